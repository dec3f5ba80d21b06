"""thread-export: a thread as a session that an agent program goes on with."""

from __future__ import annotations

import shlex
from typing import Any

import click
import orjson

from mllm_pipe import cli, places, sessions
from mllm_pipe.envelope import Record
from mllm_pipe.errors import FAILED, BadRecord, CallFailed, Failure, Missing, Outcome, Usage
from mllm_pipe.runtimes._program import FIXED_TIME
from mllm_pipe.sessions import page
from mllm_pipe.stream import Sink, Source, Thread, show
from mllm_pipe.terminal import kind_of, note, say
from mllm_pipe.thread import UNNAMED, admitted, branch


@click.command("thread-export", context_settings={"max_content_width": 100})
@cli.option("--to", "program", required=True, type=click.Choice([*sessions.KEPT, *sessions.APIS, *page.FORMS]),
            help="Who shall go on; a request's body; or a page for people.")
@cli.option("-m", "--model", metavar="MODEL", help="Of a body, and of llm: the model (default: its own last one).")
@cli.option("--cwd", type=click.Path(exists=True, file_okay=False), callback=cli.resolved, metavar="DIR",
            help="The directory that the session belongs to (default: this one).")
@cli.option("--as", "agent", metavar="NAME", default=UNNAMED, help="Whose turns are its own; others' are quoted.")
@cli.option("--format", "form", type=click.Choice(["text", "json"]), default="text",
            help="text: the command that goes on (default); json: with thread, session and path.")
@cli.stream_options
def command(program: str, model: str | None, cwd: str | None, agent: str, form: str, grouped: bool, max_line: int,
            quiet: bool) -> int:  # fmt: skip
    """Write each thread on stdin as a new session of an agent program, and print the command that resumes it.

    What is written is the branch that the thread stands at. A session that is there already is never changed. With
    markdown, html or text, the thread itself goes to stdout, as a page; with anthropic, openai or google, the body of
    the request that dispatch would send.

    \b
    $ thread-append --new "Name a risk." | thread-export --to markdown
    """
    if kind_of(0) in ("terminal", "null"):
        raise Usage("no thread to export; pipe one in, or: thread-export --to claude < FILE")
    if model is not None and program not in ("llm", *sessions.APIS):
        why = "a page has none" if program in page.FORMS else f"{program} goes on with its own model"
        raise Usage(f"-m is for a request's body and for llm; {why}")
    if (cwd is not None or form == "json") and program not in sessions.KEPT:
        raise Usage(f"--cwd and --format json are for a session; {program} goes to stdout")
    where = cwd or (places.directory() if program in sessions.KEPT else "")
    outcome = Outcome()
    source = Source(outcome, Sink(records=False).record, grouped=grouped, max_line=max_line)
    for thread in source.threads():
        outcome.said_no = outcome.said_no or thread.status == "no"
        try:
            messages = _messages(thread)
            if program in page.FORMS:
                show(page.page(messages, thread.id, program))
                continue
            if program in sessions.APIS:
                _body(thread, messages, program, model, agent)
                continue
            made = _export(thread, messages, program, where, agent, model)
        except Failure as failure:
            say(f"thread {thread.id}: {failure}")
            outcome.fail(failure.status)
            continue
        note(f"thread {thread.id}: {made['path']}")
        if form == "json":
            show(orjson.dumps(made, option=orjson.OPT_APPEND_NEWLINE).decode())
        else:
            show(f"cd {shlex.quote(where)} && {made['command']}\n")
    return outcome.status()


def _messages(thread: Thread) -> list[Record]:
    """The branch that a thread stands at; a Failure where it is not to be exported."""
    if thread.fault:
        raise thread.fault
    if thread.status == "failed":
        failed = Failure("it failed before it came here, and is not exported; export it from its file")
        failed.status = FAILED
        raise failed
    messages = branch(admitted(thread))
    if not messages:
        raise BadRecord("it has no message")
    return messages


def _body(thread: Thread, messages: list[Record], api: str, model: str | None, agent: str) -> None:
    """Shows the body of the request that dispatch would send."""
    from mllm_pipe.sessions import body

    try:
        made, losses = body.of_thread(messages, thread.records, api, model, agent)
    except CallFailed as refused:
        raise Missing(str(refused)) from None
    _lost(thread, losses)
    show(orjson.dumps(made, option=orjson.OPT_APPEND_NEWLINE).decode())


def _lost(thread: Thread, losses: list[dict[str, Any]]) -> None:
    for loss in losses:
        note(f"thread {thread.id}: {loss['what']}: {loss['action']}, {loss['why']}")


def _export(thread: Thread, messages: list[Record], program: str, cwd: str, agent: str,
            model: str | None) -> dict[str, Any]:  # fmt: skip
    """Writes the session of a thread: {"thread", "session", "path", "cwd", "command"}."""
    module = sessions.load(program)
    spans = {ident: one for one in thread.records if one["type"] == "span" and one.get("usage")
             for ident in one.get("output_ids", ())}  # fmt: skip
    at = next((one["at"] for one in messages if "at" in one), FIXED_TIME)
    tried: list[Any] = []
    while True:
        ident = module.session_id(thread.id, *tried)
        try:
            data, losses = module.session(messages, spans, ident, cwd, agent, *([model] if model else []))
        except CallFailed as refused:  # a file that the program has no place for
            raise Missing(str(refused)) from None
        path = module.put(data, ident, cwd, at)
        if path:
            break
        tried = [messages[-1]["id"], tried[1] + 1 if tried else 1]
    _lost(thread, [*losses, *sessions.unkept(messages, spans, module, program, agent)])
    words = shlex.join(module.go_on(ident, path))
    return {"thread": thread.id, "session": ident, "path": path, "cwd": cwd, "command": words}


def main() -> None:
    """Entry point."""
    cli.run(command)
