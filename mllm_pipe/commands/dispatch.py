"""dispatch: ask a runtime for the next turn of each thread."""

from __future__ import annotations

from typing import Any

import click

from mllm_pipe import cli
from mllm_pipe.agents import find, usable_here
from mllm_pipe.call import stop_when_reader_leaves
from mllm_pipe.envelope import Record, line_of, new_id
from mllm_pipe.errors import FAILED, WRITE_FAILED, CallFailed, Failure, Outcome, Usage
from mllm_pipe.runtimes import load
from mllm_pipe.stream import Live, Sink, Source, Thread, refuse_own_output, show
from mllm_pipe.terminal import kind_of, say
from mllm_pipe.thread import UNNAMED, text_of
from mllm_pipe.turn import complaint, open_turn, take


@click.command("dispatch", context_settings={"max_content_width": 100})
@click.argument("prompt", required=False)
@click.option("--to", "spec", envvar="MLLM_TO", metavar="SPEC",
              help="Who is asked: RUNTIME[:MODEL], exec:COMMAND, replay:FILE, or an agent; $MLLM_TO.")
@click.option("-s", "--system", metavar="TEXT", help="System text of this call.")
@click.option("--as", "name", metavar="NAME", help="The agent that speaks; others' answers are quoted to it.")
@click.option("--new", is_flag=True, help="Start a thread with PROMPT; stdin is not read.")
@click.option("--skip-answered", is_flag=True, help="Copy threads that are answered: how a batch is run again.")
@click.option("--text", is_flag=True, help="Print the answer alone; what a terminal gets anyway.")
@click.option("--format", "form", type=click.Choice(["text", "ndjson"]), help="What stdout gets; ndjson in a pipe.")
@click.option("--dry-run", is_flag=True, help="Print what would be sent, keys masked; send nothing.")
@cli.runtime_options
@cli.stream_options
def command(prompt: str | None, spec: str | None, system: str | None, name: str | None, new: bool, skip_answered: bool,
            text: bool, form: str | None, dry_run: bool, grouped: bool, max_line: int, quiet: bool, timeout: float,
            **flags: Any) -> int:  # fmt: skip
    """Ask a runtime for the next turn of each thread on stdin.

    PROMPT is appended first, as a user message. Each thread goes on whole, with its answer and a span.
    """
    if prompt is not None and not prompt.strip():
        raise Usage("PROMPT is empty; an empty message is never sent")
    if not spec:
        raise Usage(f"no --to, and nobody is asked by default; usable here: {', '.join(usable_here())}")
    target, agent = find(spec, **flags)
    runtime = load(target["kind"])
    agent["name"] = name or agent["name"] or UNNAMED
    agent["system"] = "\n\n".join(filter(None, [agent["system"], system])) or None
    as_text = text or form == "text" or (form is None and kind_of(1) == "terminal")
    outcome, sink, live = Outcome(), Sink(records=not as_text and not dry_run), Live(as_text, quiet or dry_run)
    source = Source(outcome, sink.record, grouped=grouped, max_line=max_line)
    stop_when_reader_leaves()

    def answer(thread: Thread) -> tuple[list[Record], Failure | None]:
        """What is added to the thread, and why it fails if it does."""
        made: list[Record] = []
        failure = thread.fault
        try:
            turn = None if failure else open_turn(thread, prompt, agent, skip_answered)
            if turn and dry_run:
                show(line_of({"thread": thread.id} | runtime.preview(target, turn.request)).decode())
            elif turn:
                made += turn.made
                call, records, failure = take(turn, thread, target, agent, timeout_s=timeout, on_text=live.text)
                made += records
                if call.unkept:
                    say(f"thread {thread.id}: {call.unkept}")
                    outcome.fail(WRITE_FAILED)
                thread.status = "ok"
        except Failure as refusal:
            if refusal.status == WRITE_FAILED:
                raise
            failure = refusal
        if failure and not any(record["type"] == "error" for record in made):
            made.append(complaint(failure, thread))
        return made, failure

    for thread in _one(source, prompt) if new or kind_of(0) in ("terminal", "null") else _piped(source):
        if thread.status == "failed":
            outcome.fail(FAILED)
            sink.thread(thread, [], "failed")
            continue
        made, failure = answer(thread)
        shown = live.end()
        if failure:
            asked = f"{target['runtime']}: " if isinstance(failure, CallFailed) else ""
            say(f"thread {thread.id}: {asked}{failure}")
            outcome.fail(failure.status)
        outcome.said_no = outcome.said_no or thread.status == "no"
        answers = [text_of(record["content"]) for record in made if record.get("role") == "assistant"]
        if as_text and answers and not shown:
            show(answers[-1].rstrip("\n") + "\n")
        sink.thread(thread, made, "failed" if failure else thread.status)
    sink.end(source, outcome)
    return outcome.status()


def _one(source: Source, prompt: str | None) -> list[Thread]:
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
