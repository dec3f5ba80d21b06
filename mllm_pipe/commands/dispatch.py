"""dispatch: ask a runtime for the next turn of each thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from mllm_pipe import cli
from mllm_pipe.agents import find, slot, usable_here
from mllm_pipe.call import Io, patience_of, stop_when_reader_leaves
from mllm_pipe.compact import fitted
from mllm_pipe.envelope import Record, line_of, new_id
from mllm_pipe.errors import FAILED, WRITE_FAILED, CallFailed, Failure, Outcome, Usage
from mllm_pipe.runtimes import load
from mllm_pipe.stream import Live, Sink, Source, Thread, refuse_own_output, show
from mllm_pipe.terminal import kind_of, say
from mllm_pipe.thread import UNNAMED, text_of
from mllm_pipe.turn import NEXT_STEP, Wish, complaint, open_turn, take


@click.command("dispatch", context_settings={"max_content_width": 100})
@click.argument("prompt", required=False)
@click.option("--to", "spec", envvar="MLLM_TO", metavar="SPEC",
              help="Who is asked: RUNTIME[:MODEL], exec:COMMAND, replay:FILE, or an agent; $MLLM_TO.")
@click.option("-s", "--system", metavar="TEXT", help="System text of this call.")
@click.option("--as", "name", metavar="NAME", help="The agent that speaks; others' answers are quoted to it.")
@click.option("-a", "--attachment", "files", multiple=True, type=click.Path(allow_dash=True), metavar="FILE|URL",
              help="Attach a file's bytes to PROMPT, or name a URL.")
@click.option("-o", "--option", "options", multiple=True, nargs=2, metavar="KEY VALUE",
              help="temperature, top_p, seed, stop, effort, ...; what the model refuses is dropped and listed.")
@click.option("--schema", metavar="SCHEMA", help="Answer in JSON of this schema: FILE, JSON, or 'name, age int'.")
@click.option("--tool", "tools", multiple=True, type=click.Path(), metavar="FILE",
              help="Tools that the answer may call.")
@click.option("--run-tools", metavar="exec:CMD", help="Answer the calls with this program, and ask again.")
@click.option("--max-turns", type=click.IntRange(1), default=10, metavar="N",
              help="Most calls of the runtime with --run-tools (default 10).")
@click.option("--last", type=click.IntRange(1), metavar="N", help="Send the last N messages only; caches are lost.")
@click.option("--window", type=click.IntRange(1), metavar="TOKENS", help="The model's window, where it is unknown.")
@click.option("--strict", is_flag=True, help="Refuse to send what would lose anything of the thread.")
@click.option("--new", is_flag=True, help="Start a thread with PROMPT; stdin is not read.")
@click.option("--skip-answered", is_flag=True, help="Copy threads that are answered: how a batch is run again.")
@click.option("--text", is_flag=True, help="Print the answer alone; what a terminal gets anyway.")
@click.option("--format", "form", type=click.Choice(["text", "ndjson"]), help="What stdout gets; ndjson in a pipe.")
@click.option("--dry-run", is_flag=True, help="Print what would be sent, keys masked; send nothing.")
@cli.runtime_options
@cli.stream_options
def command(prompt: str | None, spec: str | None, system: str | None, name: str | None, files: tuple[str, ...],
            options: tuple[tuple[str, str], ...], schema: str | None, tools: tuple[str, ...], run_tools: str | None,
            max_turns: int, last: int | None, window: int | None, strict: bool, new: bool, skip_answered: bool,
            text: bool, form: str | None, dry_run: bool, grouped: bool, max_line: int, quiet: bool, timeout: float,
            **flags: Any) -> int:  # fmt: skip
    """Ask a runtime for the next turn of each thread on stdin.

    PROMPT is appended first, as a user message. Each thread goes on whole, with its answer and a span.
    """
    if prompt is not None and not prompt.strip():
        raise Usage("PROMPT is empty; an empty message is never sent")
    if not spec:
        raise Usage(f"no --to, and nobody is asked by default; usable here: {', '.join(usable_here())}")
    patience = patience_of(flags)
    target, agent = find(spec, **flags)
    runtime = load(target["kind"])
    agent["name"] = name or agent["name"] or UNNAMED
    agent["system"] = "\n\n".join(filter(None, [agent["system"], system])) or None
    as_text = text or form == "text" or (form is None and kind_of(1) == "terminal")
    outcome, sink, live = Outcome(), Sink(records=not as_text and not dry_run), Live(as_text, quiet or dry_run)
    source = Source(outcome, sink.record, grouped=grouped, max_line=max_line)
    wish = Wish(target, agent, timeout)
    wish.prompt = _prompt(prompt, files)
    wish.skip_answered, wish.strict, wish.last, wish.max_turns = skip_answered, strict, last, max_turns
    wish.on_text, wish.patience = live.text, patience
    wish.window, wish.summarizer = window, slot(agent, target, "summarizer")
    if schema:
        from mllm_pipe.structured import schema_of

        wish.schema = schema_of(schema)
    if tools:
        from mllm_pipe.tools import read

        wish.tools = [tool for file in tools for tool in read(file)]
    if run_tools:
        wish.run_tool = _tool_runner(run_tools, timeout)
    if options:
        from mllm_pipe.models import value

        wish.options = {key: value(given) for key, given in options}
    stop_when_reader_leaves()

    def answer(thread: Thread) -> tuple[list[Record], Failure | None]:
        """What is added to the thread, and why it fails if it does."""
        made: list[Record] = []
        failure = thread.fault
        try:
            turn = None if failure else open_turn(thread, wish)
            if turn and dry_run:
                show(line_of({"thread": thread.id} | runtime.preview(target, turn.request)).decode())
            elif turn:
                made += turn.made
                turn = fitted(turn, thread, wish, outcome, made)
                failure = take(turn, thread, wish, outcome, made)
                thread.status = "ok"
        except Failure as refusal:
            if refusal.status == WRITE_FAILED:
                raise
            failure = refusal
        if failure and not any(record["type"] == "error" for record in made):
            made.append(complaint(failure, thread))
        return made, failure

    for thread in _one(source, wish.prompt) if new or kind_of(0) in ("terminal", "null") else _piped(source):
        if thread.status == "failed":
            outcome.fail(FAILED)
            sink.thread(thread, [], "failed")
            continue
        made, failure = answer(thread)
        shown = live.end()
        if failure:
            asked = f"{target['runtime']}: " if isinstance(failure, CallFailed) else ""
            say(f"thread {thread.id}: {asked}{failure}{NEXT_STEP.get(failure.code, '')}")
            outcome.fail(failure.status)
        outcome.said_no = outcome.said_no or thread.status == "no"
        answers = [text_of(record["content"]) for record in made if record.get("role") == "assistant"]
        if as_text and answers and not shown:
            show(answers[-1].rstrip("\n") + "\n")
        sink.thread(thread, made, "failed" if failure else thread.status)
    sink.end(source, outcome)
    return outcome.status()


def _prompt(prompt: str | None, files: tuple[str, ...]) -> str | list[dict[str, Any]] | None:
    """PROMPT as a message's content: with attachments, a list of parts."""
    if not files:
        return prompt
    from mllm_pipe import attachments

    return [{"type": "text", "text": prompt}] * bool(prompt) + [attachments.part(name) for name in files]


def _tool_runner(spec: str, timeout_s: float) -> Callable[[bytes], tuple[int, str, str]]:
    """--run-tools exec:CMD, as mllm_pipe.tools wants it."""
    target, _ = find(spec)
    if target["kind"] != "command":
        raise Usage(f"--run-tools {spec}: say exec:PROGRAM ARGUMENTS")
    program = load("command")
    return lambda call: program.run_tool(target["argv"], call, Io(timeout_s).left)


def _one(source: Source, prompt: Any) -> list[Thread]:
    """A thread that starts with the prompt."""
    if not prompt:
        raise Usage("no thread and no PROMPT; say: dispatch --to SPEC PROMPT, or pipe a thread in")
    thread = Thread(new_id())
    thread.run = source.run()
    return [thread]


def _piped(source: Source) -> Any:
    refuse_own_output()
    return source.threads()


def main() -> None:
    """Entry point."""
    cli.run(command)
