"""dispatch: ask a runtime for the next turn of each thread."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import click

from mllm_pipe import cli
from mllm_pipe.agents import find, slot, usable_here
from mllm_pipe.answering import Answered, answer, preview, told
from mllm_pipe.envelope import new_id
from mllm_pipe.errors import FAILED, CallFailed, Outcome, Usage
from mllm_pipe.inflight import stop_when_reader_leaves
from mllm_pipe.patience import patience_of
from mllm_pipe.pool import in_flight, several
from mllm_pipe.progress import Progress
from mllm_pipe.runtimes import check_options, load
from mllm_pipe.span import Io
from mllm_pipe.stream import Live, Sink, Source, Thread, refuse_own_output, show
from mllm_pipe.terminal import kind_of, say
from mllm_pipe.thread import UNNAMED
from mllm_pipe.turn import NEXT_STEP, Wish


@click.command("dispatch", context_settings={"max_content_width": 100})
@click.argument("prompt", required=False)
@click.option("--to", "specs", multiple=True, metavar="SPEC",
              help="Who is asked: RUNTIME[:MODEL], exec:COMMAND, replay:FILE, or an agent; $MLLM_TO. "
                   "Several are asked at once.")
@click.option("--pick", metavar="NAME", help="Of the answers of several, go on from the one of this agent or runtime.")
@click.option("-j", "--jobs", type=click.IntRange(1, 2000), default=1, metavar="N",
              help="Threads in flight (default 1).")
@click.option("--unordered", is_flag=True, help="With -j: a thread goes out as soon as it is answered.")
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
def command(prompt: str | None, specs: tuple[str, ...], pick: str | None, jobs: int, unordered: bool,
            system: str | None, name: str | None, files: tuple[str, ...], options: tuple[tuple[str, str], ...],
            schema: str | None, tools: tuple[str, ...], run_tools: str | None, max_turns: int, last: int | None,
            window: int | None, strict: bool, new: bool, skip_answered: bool, text: bool, form: str | None,
            dry_run: bool, grouped: bool, max_line: int, quiet: bool, timeout: float, **flags: Any) -> int:  # fmt: skip
    """Ask a runtime for the next turn of each thread on stdin.

    PROMPT is appended first, as a user message. Each thread goes on whole, with its answer and a span.
    """
    if prompt is not None and not prompt.strip():
        raise Usage("PROMPT is empty; an empty message is never sent")
    specs = specs or tuple(filter(None, [os.environ.get("MLLM_TO")]))
    if not specs:
        raise Usage(f"no --to, and nobody is asked by default; usable here: {', '.join(usable_here())}")
    if len(specs) > 1 and (lone := next((flag for flag in _OF_ONE if flags[flag]), None)):
        raise Usage(f"--{lone.replace('_', '-')} is for one --to alone; with several say --to RUNTIME:MODEL each")
    patience = patience_of(flags, jobs)
    as_text = text or form == "text" or (form is None and kind_of(1) == "terminal")
    alone = jobs == 1 and len(specs) == 1
    live = Live(as_text, quiet or dry_run) if alone else None
    content = _prompt(prompt, files)

    def wish_of(spec: str) -> Wish:
        target, agent = find(spec, **flags)
        load(target["kind"])
        agent["name"] = name or agent["name"] or UNNAMED
        agent["system"] = "\n\n".join(filter(None, [agent["system"], system])) or None
        wish = Wish(target, agent, timeout)
        wish.prompt, wish.pick, wish.patience = content, pick, patience
        wish.skip_answered, wish.strict, wish.last, wish.max_turns = skip_answered, strict, last, max_turns
        wish.window, wish.summarizer = window, slot(agent, target, "summarizer")
        wish.on_text = live.text if live else None
        return wish

    wishes = [wish_of(spec) for spec in specs]
    _same_for_all(wishes, schema, tools, options, _tool_runner(run_tools, timeout) if run_tools else None)
    outcome, sink = Outcome(), Sink(records=not as_text and not dry_run)
    source = Source(outcome, sink.record, grouped=grouped, max_line=max_line, run=patience.run)
    progress = Progress(alone or quiet or dry_run)
    map_of = several(jobs * (len(wishes) - 1))
    stop_when_reader_leaves()

    def work(thread: Thread) -> Answered | None:
        if thread.status == "failed":
            return None
        if dry_run:
            return preview(thread, wishes, show)
        with progress.working():
            return answer(thread, wishes, outcome, map_of)

    threads = _one(source, content) if new or kind_of(0) in ("terminal", "null") else _piped(source)
    for thread, done in in_flight(threads, work, jobs, ordered=not unordered):
        if done is None:
            outcome.fail(FAILED)
            sink.thread(thread, [], "failed")
            continue
        shown = live.end() if live else False
        for wish, failure in done.failures:
            asked = f"{wish.target['runtime']}: " if isinstance(failure, CallFailed) else ""
            say(f"thread {thread.id}: {asked}{failure}{NEXT_STEP.get(failure.code, '')}")
            if not done.whole:
                outcome.fail(failure.status)
        outcome.said_no = outcome.said_no or thread.status == "no"
        answers = [record for record in done.made if record.get("role") == "assistant"]
        if as_text and answers and not shown:
            show(told(answers, len(wishes) > 1))
        sink.thread(thread, done.made, thread.status if done.whole else "failed")
        progress.done(done.made, done.whole)
    progress.end()
    sink.end(source, outcome)
    return outcome.status()


_OF_ONE = ("model", "base_url", "key_env")


def _same_for_all(wishes: list[Wish], schema: str | None, tools: tuple[str, ...],
                  options: tuple[tuple[str, str], ...], run_tool: Any) -> None:  # fmt: skip
    """What every wish is given of the flags that need more of us."""
    for wish in wishes:
        wish.run_tool = run_tool
    if schema:
        from mllm_pipe.structured import schema_of

        wanted = schema_of(schema)
        for wish in wishes:
            wish.schema = wanted
    if tools:
        from mllm_pipe.tools import read

        declared = [tool for file in tools for tool in read(file)]
        for wish in wishes:
            wish.tools = declared
    if options:
        from mllm_pipe.models import value

        wanted_options = {key: value(given) for key, given in options}
        for wish in wishes:
            wish.options = wanted_options
            for target in (wish.target, *wish.patience.fallbacks):
                check_options(target, wanted_options)


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
