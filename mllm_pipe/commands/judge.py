"""judge: a verdict on the answer at the end of each thread, and an exit status that CI can hang on."""

from __future__ import annotations

from typing import Any

import click

from mllm_pipe import cli
from mllm_pipe.envelope import Record
from mllm_pipe.errors import FAILED, Outcome, Usage
from mllm_pipe.inflight import stop_when_reader_leaves
from mllm_pipe.judging import rubrics
from mllm_pipe.judging.judgement import judge
from mllm_pipe.judging.terms import Terms
from mllm_pipe.patience import patience_of
from mllm_pipe.stream import Sink, Source, refuse_own_output, show
from mllm_pipe.terminal import kind_of, say
from mllm_pipe.turn import NEXT_STEP


@click.command("judge", context_settings={"max_content_width": 100})
@click.option("--by", "spec", envvar="MLLM_BY", metavar="SPEC", help="Who judges, as in dispatch --to; $MLLM_BY.")
@click.option("--rubric", metavar="RUBRIC", help="By what: a NAME (correctness), @FILE, or a text of several words.")
@click.option("--check", "rules", multiple=True, metavar="RULE",
              help="A check without a model: contains:TEXT, equals:TEXT, regex:RE, json, schema:FILE, jsonpath:$.PATH, "
                   "similar:0.8:TEXT, max-cost:USD, exec:CMD, ...; 2*RULE counts twice.")
@click.option("--need", default="all", metavar="all|any|SHARE", help="How many checks must hold (default all).")
@click.option("--cascade", is_flag=True, help="The checks first, and the model only where they pass.")
@click.option("--reference", metavar="FILE",
              help="A right answer: for all threads, or in FILE.jsonl by thread.")
@click.option("--pass-at", type=click.FloatRange(0, 1), metavar="SCORE",
              help="Least score that passes (default: the rubric's).")
@click.option("--reply", is_flag=True,
              help="After a negative verdict, say to the writer what failed, as a message to answer.")
@click.option("--advise", is_flag=True, help="A negative verdict is status 0, and lets the pipe go on.")
@click.option("--format", "form", type=click.Choice(["text", "ndjson"]), help="What stdout gets; ndjson in a pipe.")
@cli.runtime_options
@cli.stream_options
def command(spec: str | None, rubric: str | None, rules: tuple[str, ...], need: str, cascade: bool,
            reference: str | None, pass_at: float | None, reply: bool, advise: bool, form: str | None, grouped: bool,
            max_line: int, quiet: bool, timeout: float, **flags: Any) -> int:  # fmt: skip
    """Judge the answer at the end of each thread on stdin.

    A negative verdict is status 1, no valid verdict 6. The thread goes on with the verdict.
    """
    if not rubric and not rules:
        raise Usage(f"by what? say --rubric {'|'.join(rubrics.names())}|@FILE|TEXT, or --check RULE")
    if cascade and not (rubric and rules):
        raise Usage("--cascade needs both: --check RULE, and --rubric with --by")
    patience = patience_of(flags)
    terms = Terms(timeout, patience)
    terms.cascade, terms.reply = cascade, reply
    terms.checked(rules, need, reference)
    if rubric:
        terms.judged(rubric, spec, flags)
    if terms.rubric and pass_at is not None:
        terms.rubric["pass_at"] = pass_at
    if kind_of(0) in ("terminal", "null"):
        raise Usage("no thread to judge; pipe one in: ... | judge")
    refuse_own_output()
    as_text = form == "text" or (form is None and kind_of(1) == "terminal")
    outcome, sink = Outcome(), Sink(records=not as_text)
    source = Source(outcome, sink.record, grouped=grouped, max_line=max_line, run=patience.run)
    stop_when_reader_leaves()
    for thread in source.threads():
        if thread.status == "failed":
            outcome.fail(FAILED)
            sink.thread(thread, [], "failed")
            continue
        done = judge(thread, terms, outcome)
        if done.failure:
            say(f"thread {thread.id}: {done.failure}{NEXT_STEP.get(done.failure.code, '')}")
            outcome.fail(done.failure.status)
        outcome.said_no = outcome.said_no or thread.status == "no" or done.negative()
        if as_text:
            show("".join(map(_line, done.verdicts())))
        handed = "failed" if done.failure else "no" if done.negative() and not advise else thread.status
        sink.thread(thread, done.made, handed)
    sink.end(source, outcome)
    status = outcome.status()
    return 0 if advise and status == 1 else status


def _line(record: Record) -> str:
    """A verdict for a person."""
    word = {True: "pass", False: "fail", None: "none"}[record["pass"]]
    lines = [f"{word}  {_number(record['score'])}  thread {record['thread']}\n"]
    lines += [f"      {_number(one['score'])}  {one['name']}: {one['reason']}\n" for one in record["criteria"]]
    return "".join(lines)


def _number(score: float | None) -> str:
    return "-" if score is None else f"{score:.2f}"


def main() -> None:
    """Entry point."""
    cli.run(command)
