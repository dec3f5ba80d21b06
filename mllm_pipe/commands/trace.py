"""trace: what ran, how long it took, what it cost, where it was handed over. It ends a pipe."""

from __future__ import annotations

import os

import click
import orjson

from mllm_pipe import cli
from mllm_pipe.envelope import Record, admit
from mllm_pipe.errors import FAILED, BadRecord, Outcome, Usage
from mllm_pipe.runs import Fold, table
from mllm_pipe.stream import Sink, Source, refuse_own_output, show
from mllm_pipe.terminal import kind_of, safe, say


@click.command("trace", context_settings={"max_content_width": 100})
@click.option("--all", "every", is_flag=True, help="Every run of the stream, not only those that this pipe made.")
@click.option("--tee", is_flag=True, help="Copy the stream to stdout, and speak on stderr.")
@click.option("--format", "form", type=click.Choice(["table", "json", "ndjson"]),
              help="table on a terminal, ndjson in a pipe.")
@cli.stream_options
def command(every: bool, tee: bool, form: str | None, grouped: bool, max_line: int, quiet: bool) -> int:
    """Show the runs of a stream.

    From a pipe: the runs of its handoffs. From a file: all its runs. A run is what one pipeline did: its stages in
    order, with time, tokens, cost and handoffs, and their total.
    """
    if kind_of(0) in ("terminal", "null"):
        raise Usage("no stream to trace; pipe one in, or: trace < FILE")
    refuse_own_output()
    outcome, fold, wanted = Outcome(), Fold(), set[str]()
    sink = Sink(records=tee)
    source = Source(outcome, sink.record, grouped=grouped, max_line=max_line, again=True)
    handed = False
    for thread in source.threads():
        for record in thread.records:
            if record["type"] in ("span", "message", "verdict", "error"):
                _take(fold, record, thread.raws[record["id"]], outcome)
        if thread.fault:
            say(f"thread {thread.id}: {thread.fault}")
            outcome.fail(thread.fault.status)
        elif thread.status == "failed":
            outcome.fail(FAILED)
        outcome.said_no = outcome.said_no or thread.status == "no"
        if thread.handed:
            handed = True
            wanted.add(thread.run)
        sink.thread(thread, [], "failed" if thread.fault else thread.status)
    sink.end(source, outcome)
    runs = fold.runs(wanted if handed and source.from_pipe and not every else None)
    form = form or ("table" if kind_of(2 if tee else 1) == "terminal" else "ndjson")
    if form == "table":
        text = table(runs)
    elif form == "json":
        text = orjson.dumps(runs, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode()
    else:
        text = "".join(orjson.dumps(run, option=orjson.OPT_APPEND_NEWLINE).decode() for run in runs)
    if tee:
        os.write(2, safe(text).encode())
    else:
        show(text)
    return outcome.status()


def _take(fold: Fold, record: Record, line: bytes, outcome: Outcome) -> None:
    """Use a record, through the full door; one that does not pass is told of, and left out of the sums."""
    try:
        admit(record, line)
    except BadRecord as fault:
        outcome.bad_lines += 1
        say(f"thread {record['thread']}: record {record['id']}: {fault}; left out")
    else:
        fold.take(record)


def main() -> None:
    """Entry point."""
    cli.run(command)
