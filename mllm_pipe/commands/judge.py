"""judge: a verdict on the answer at the end of each thread, and an exit status that CI can hang on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from mllm_pipe import cli
from mllm_pipe.calling.inflight import stop_when_reader_leaves
from mllm_pipe.calling.patience import patience_of
from mllm_pipe.calling.pool import collect_seldom, in_flight
from mllm_pipe.errors import FAILED, Failure, Outcome, Usage
from mllm_pipe.judging import rubrics
from mllm_pipe.judging.gatekeeping import Gate
from mllm_pipe.judging.judgement import Judged, judge
from mllm_pipe.judging.terms import Terms, terms_of
from mllm_pipe.lines import left_of
from mllm_pipe.stream import Sink, Source, Thread, refuse_own_output, show
from mllm_pipe.terminal import kind_of, say
from mllm_pipe.turn import next_step

if TYPE_CHECKING:
    from mllm_pipe.judging.ahead import Ahead

BLOCK = 4096  # threads that are judged in one go
MUCH = 1 << 22  # bytes of a file on stdin that are worth a second process


def _scale(_: click.Context, __: click.Parameter, text: str | None) -> tuple[int, int] | None:
    return rubrics.scale(text, "--scale") if text else None


@click.command("judge", context_settings={"max_content_width": 100})
@cli.option("--by", "specs", multiple=True, metavar="SPEC",
            help="Who judges, as in dispatch --to; several are a panel; $MLLM_BY.")
@cli.option("--rubric", metavar="RUBRIC",
            help="By what: a NAME (mllm rubrics lists them), @FILE, or a text of several words.")
@cli.option("--scale", callback=_scale, metavar="LEAST-MOST", help="The scores that are asked for (default 1-5).")
@cli.option("--pass-at", type=cli.Number(0, 1), metavar="SCORE",
            help="Least score, of 0 to 1, that passes (default: the rubric's).")
@cli.option("-n", "--repeats", type=click.IntRange(1, 99), default=1, metavar="N",
            help="Ask each judge so often; the mean counts, and the verdict has the spread.")
@cli.option("--combine", type=click.Choice(["majority", "mean"]),
            help="How a panel decides (default majority).")
@cli.option("--escalate", metavar="SPEC", help="Who is asked where the others decide nothing.")
@cli.option("--forbid-self", is_flag=True, help="Refuse a judge of the family that wrote the answer.")
@cli.option("--pairwise", is_flag=True,
            help="Compare the answers to the same message; the thread goes on with the best.")
@cli.option("--against", metavar="FILE", help="Compare with the answer that the thread ends with in FILE.")
@cli.option("--one-order", is_flag=True, help="Ask each comparison once, not both ways round.")
@cli.option("--seed", type=click.IntRange(0), metavar="N", help="Of the order in which answers are shown.")
@cli.option("--check", "rules", multiple=True, metavar="RULE",
            help="A check without a model: contains:TEXT, equals:TEXT, regex:RE, json, schema:FILE, jsonpath:$.PATH, "
                 "similar:0.8:TEXT, max-cost:USD, exec:CMD, ...; 2*RULE counts twice.")
@cli.option("--need", default="all", metavar="all|any|SHARE", help="How many checks must hold (default all).")
@cli.option("--cascade", is_flag=True, help="The checks first, and the model only where they pass.")
@cli.option("--reference", metavar="FILE",
            help="A right answer: for all threads, or in FILE.jsonl by thread.")
@cli.option("--reply", is_flag=True,
            help="After a negative verdict, say to the writer what failed, as a message to answer.")
@cli.option("--advise", is_flag=True, help="A negative verdict is status 0, and lets the pipe go on.")
@cli.option("-j", "--jobs", type=click.IntRange(1, 1000), default=1, metavar="N",
            help="Threads in flight (default 1).")
@cli.option("--min-pass-rate", type=cli.Number(0, 1), metavar="SHARE",
            help="Status 1 if fewer of all threads pass; then no thread says no by itself.")
@cli.option("--baseline", metavar="FILE", help="Say what has changed since the verdicts of an earlier run.")
@cli.option("--labels", metavar="FILE", help="Say how far the verdicts agree with those of people.")
@cli.option("--replay", is_flag=True, help="Score the verdicts that the stream has, by these terms; ask nobody.")
@cli.option("--junit", metavar="FILE", help="Write the verdicts there, as JUnit XML.")
@cli.option("--format", "form", type=click.Choice(["text", "ndjson", "json"]),
            help="What stdout gets; ndjson in a pipe; json: what all threads come to.")
@cli.runtime_options
@cli.stream_options
def command(advise: bool, jobs: int, form: str | None, grouped: bool, max_line: int, quiet: bool, timeout: float,
            **flags: Any) -> int:  # fmt: skip
    """Judge the answer at the end of each thread on stdin.

    A negative verdict is status 1, no valid verdict 6. The thread goes on with the verdict.
    """
    patience = patience_of(flags, jobs)
    form = form or ("text" if kind_of(1) == "terminal" else "ndjson")
    gate = Gate(flags, form)
    terms = terms_of(flags, timeout, patience)
    if kind_of(0) in ("terminal", "null"):
        raise Usage("no thread to judge; pipe one in: ... | judge")
    refuse_own_output()
    outcome, sink = Outcome(), Sink(records=form == "ndjson")
    source = Source(outcome, sink.record, grouped=grouped, max_line=max_line, run=patience.run)
    in_turn = jobs == 1 and terms.asks_nobody()
    if in_turn:
        collect_seldom()
    worth_it = in_turn and not terms.replay and (left_of(0) or 0) > MUCH
    ahead = _ahead(source, terms, outcome) if worth_it else None
    stop_when_reader_leaves()
    work_of = _replay if terms.replay else judge

    def work(thread: Thread) -> Judged | None:
        if thread.status == "failed":
            return None
        return (ahead and ahead.take(thread)) or work_of(thread, terms, outcome)

    def judged() -> Iterator[tuple[Thread, Judged | None]]:
        if not in_turn:
            yield from in_flight(source.threads(), work, jobs)
            return
        sink.gathers = True
        for block in source.blocks(BLOCK):
            if ahead:
                ahead.hear()
            yield from ((thread, work(thread)) for thread in block)
            sink.flush()
        if ahead:
            ahead.end()

    for thread, done in judged():
        if done is None:
            outcome.fail(FAILED)
            gate.take(thread, Judged([], Failure("it had failed before it was to be judged")))
            sink.thread(thread, [], "failed")
            continue
        if done.failure:
            say(f"thread {thread.id}: {done.failure}{next_step(done.failure)}")
            outcome.fail(done.failure.status)
        gate.take(thread, done)
        negative = done.negative() and not gate.alone and not advise
        outcome.said_no = outcome.said_no or thread.status == "no" or negative
        if form == "text":
            _show(done)
        sink.hand_over(thread, done.lines(), "failed" if done.failure else "no" if negative else thread.status)
    if gate.close() and not advise:
        outcome.said_no = outcome.all_no = True
    sink.end(source, outcome)
    return outcome.status()


def _ahead(source: Source, terms: Terms, outcome: Outcome) -> Ahead | None:
    from mllm_pipe.judging.ahead import started

    return started(lambda thread: judge(thread, terms, outcome), 0, source.run(), source.pending)


def _replay(thread: Thread, terms: Terms, outcome: Outcome) -> Judged:
    from mllm_pipe.judging.replay import replay

    return replay(thread, terms, outcome)


def _show(done: Judged) -> None:
    from mllm_pipe.judging.report import lines

    show(lines(done.verdicts))


def main() -> None:
    """Entry point."""
    cli.run(command)
