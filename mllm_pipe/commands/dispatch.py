"""dispatch: ask a runtime for the next turn of each thread."""

from __future__ import annotations

from typing import Any

import click

from mllm_pipe import cli
from mllm_pipe.answering import Answered, answer, preview, refused, told
from mllm_pipe.calling.inflight import stop_when_reader_leaves
from mllm_pipe.calling.patience import patience_of
from mllm_pipe.calling.pool import in_flight, several
from mllm_pipe.envelope import new_id
from mllm_pipe.errors import FAILED, CallFailed, Failure, Outcome, Usage
from mllm_pipe.progress import Progress
from mllm_pipe.stream import Live, Sink, Source, Thread, refuse_own_output, show
from mllm_pipe.terminal import kind_of, say
from mllm_pipe.turn import next_step
from mllm_pipe.wishing import Wishes


@click.command("dispatch", context_settings={"max_content_width": 100})
@cli.argument("prompt", required=False)
@cli.option("--to", "specs", multiple=True, metavar="SPEC",
            help="Who is asked: RUNTIME[:MODEL], exec:COMMAND, replay:FILE, or an agent; $MLLM_TO. "
                 "Several are asked at once.")
@cli.option("--pick", metavar="NAME", help="Of the answers of several, go on from the one of this agent or runtime.")
@cli.option("-j", "--jobs", type=click.IntRange(1, 2000), default=1, metavar="N",
            help="Threads in flight (default 1).")
@cli.option("--unordered", is_flag=True, help="With -j: a thread goes out as soon as it is answered.")
@cli.option("-t", "--template", metavar="NAME",
            help="The prompt [prompts.NAME] of mllm.toml; PROMPT is its {prompt}.")
@cli.option("-p", "--param", "parameters", multiple=True, nargs=2, metavar="KEY VALUE",
            help="What stands for {KEY} in it; VALUE is not looked at again.")
@cli.option("-s", "--system", metavar="TEXT", help="System text of this call.")
@cli.option("--as", "name", metavar="NAME", help="The agent that speaks; others' answers are quoted to it.")
@cli.option("-a", "--attachment", "files", multiple=True, type=cli.NAMED_FILE, metavar="FILE|URL",
            help="Attach a file's bytes to PROMPT, or name a URL.")
@cli.option("-o", "--option", "options", multiple=True, nargs=2, metavar="KEY VALUE",
            help="temperature, top_p, seed, stop, effort, ...; what the model refuses is dropped and listed.")
@cli.option("--schema", metavar="SCHEMA", help="Answer in JSON of this schema: FILE, JSON, or 'name, age int'.")
@cli.option("--tool", "tools", multiple=True, type=cli.NAMED_FILE, metavar="FILE",
            help="Tools that the answer may call.")
@cli.option("--tool-choice", metavar="WORD", help="auto, none, required, or the tool that must be called.")
@cli.option("--run-tools", metavar="exec:CMD", help="Answer the calls with this program, and ask again.")
@cli.option("--max-turns", type=click.IntRange(1), default=10, metavar="N",
            help="Most calls of the runtime with --run-tools (default 10).")
@cli.option("--last", type=click.IntRange(1), metavar="N",
            help="Send the last N messages, system text and pins only.")
@cli.option("--window", type=click.IntRange(1), metavar="TOKENS", help="The model's window, where it is unknown.")
@cli.option("--strict", is_flag=True, help="Refuse to send what would lose anything of the thread.")
@cli.option("--new", is_flag=True, help="Start a thread with PROMPT; stdin is not read.")
@cli.option("--skip-answered", is_flag=True, help="Copy threads that are answered: how a batch is run again.")
@cli.option("--text", is_flag=True, help="Print the answer alone; what a terminal gets anyway.")
@cli.option("--format", "form", type=click.Choice(["text", "ndjson"]), help="What stdout gets; ndjson in a pipe.")
@cli.option("--dry-run", is_flag=True, help="Print what would be sent, and lost; send nothing.")
@cli.runtime_options
@cli.stream_options
def command(prompt: str | None, jobs: int, unordered: bool, new: bool, text: bool, form: str | None, dry_run: bool,
            grouped: bool, max_line: int, quiet: bool, **flags: Any) -> int:  # fmt: skip
    """Ask a runtime for the next turn of each thread on stdin.

    PROMPT is appended first, as a user message. Each thread goes on whole, with its answer and a span.
    """
    patience = patience_of(flags, jobs)
    as_text = text or form == "text" or (form is None and kind_of(1) == "terminal")
    live = Live(as_text, quiet or dry_run)
    wishes = Wishes(prompt, flags, patience, live.text if jobs == 1 else None)
    alone = jobs == 1 and wishes.alone
    outcome, sink = Outcome(), Sink(records=not as_text and not dry_run)
    source = Source(outcome, sink.record, grouped=grouped, max_line=max_line, run=patience.run)
    progress = Progress(alone or quiet or dry_run)
    map_of = several(max(0, len(wishes.named) - 1))
    stop_when_reader_leaves()

    def work(thread: Thread) -> Answered | None:
        if thread.status == "failed":
            return None
        try:
            asked = wishes.of(thread)
        except Failure as nobody:
            return refused(thread, nobody)
        if dry_run:
            return preview(thread, asked, show)
        with progress.working():
            return answer(thread, asked, outcome, map_of)

    threads = _one(source, wishes.content) if new or kind_of(0) in ("terminal", "null") else _piped(source)
    for thread, done in in_flight(threads, work, jobs, ordered=not unordered):
        if done is None:
            outcome.fail(FAILED)
            sink.thread(thread, [], "failed")
            continue
        shown = live.end()
        for wish, failure in done.failures:
            who = f"{wish.target['runtime']}: " if wish and isinstance(failure, CallFailed) else ""
            say(f"thread {thread.id}: {who}{failure}{next_step(failure)}")
            if not done.whole:
                outcome.fail(failure.status)
        outcome.said_no = outcome.said_no or thread.status == "no"
        answers = [record for record in done.made if record.get("role") == "assistant"]
        if answers and shown == 2:
            thread.shown = answers[-1]["id"]
        if answers and as_text and shown != 1:
            show(told(answers, not wishes.alone))
        sink.thread(thread, done.made, thread.status if done.whole else "failed")
        progress.done(done.made, done.whole)
    progress.end()
    sink.end(source, outcome)
    return outcome.status()


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
