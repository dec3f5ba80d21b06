"""judge: a verdict on the answer at the end of each thread, and an exit status that CI can hang on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from mllm_pipe import checks, cli, rubrics
from mllm_pipe import reference as references
from mllm_pipe.agents import find
from mllm_pipe.envelope import Record
from mllm_pipe.errors import FAILED, WRITE_FAILED, CallFailed, Failure, Outcome, Usage
from mllm_pipe.inflight import stop_when_reader_leaves
from mllm_pipe.judging import Undecided, by_model, verdict_record
from mllm_pipe.patience import patience_of
from mllm_pipe.runtimes import load
from mllm_pipe.span import Io
from mllm_pipe.stream import Sink, Source, Thread, refuse_own_output, show
from mllm_pipe.terminal import kind_of, say
from mllm_pipe.thread import admitted, branch, rivals
from mllm_pipe.turn import CUT_SHORT, NEXT_STEP, complaint, cut_short


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
@click.option("--advise", is_flag=True, help="A negative verdict is status 0, and lets the pipe go on.")
@click.option("--format", "form", type=click.Choice(["text", "ndjson"]), help="What stdout gets; ndjson in a pipe.")
@cli.runtime_options
@cli.stream_options
def command(spec: str | None, rubric: str | None, rules: tuple[str, ...], need: str, cascade: bool,
            reference: str | None, pass_at: float | None, advise: bool, form: str | None, grouped: bool, max_line: int,
            quiet: bool, timeout: float, **flags: Any) -> int:  # fmt: skip
    """Judge the answer at the end of each thread on stdin.

    A negative verdict is status 1, no valid verdict 6. The thread goes on with the verdict.
    """
    if not rubric and not rules:
        raise Usage(f"by what? say --rubric {'|'.join(rubrics.names())}|@FILE|TEXT, or --check RULE")
    if rubric and not spec:
        raise Usage("a rubric needs a judge: --by SPEC; checks do without")
    if cascade and not (rubric and rules):
        raise Usage("--cascade needs both: --check RULE, and --rubric with --by")
    tests, share = [checks.check(rule, _runner(timeout), timeout) for rule in rules], checks.needed(need)
    reference_of = references.read(reference) if reference else lambda thread: None
    measure = rubrics.find(rubric) if rubric else None
    if measure and pass_at is not None:
        measure["pass_at"] = pass_at
    patience = patience_of(flags)
    target = find(spec, **flags)[0] if spec and measure else None
    if target:
        load(target["kind"])
    if kind_of(0) in ("terminal", "null"):
        raise Usage("no thread to judge; pipe one in: ... | judge")
    refuse_own_output()
    as_text = form == "text" or (form is None and kind_of(1) == "terminal")
    outcome, sink = Outcome(), Sink(records=not as_text)
    source = Source(outcome, sink.record, grouped=grouped, max_line=max_line, run=patience.run)
    stop_when_reader_leaves()

    def judge(thread: Thread, made: list[Record]) -> Failure | None:
        """Add the verdicts on the thread to `made`; why there is none, if so."""
        if thread.fault:
            return thread.fault
        messages = _judged(thread)
        about = {"about": [messages[-1]["id"]], "parent_run_id": thread.run}
        if tests:
            found = checks.findings(tests, share, checks.Subject(messages, thread, reference_of(thread.id)))
            author = {"agent": "check", "runtime": "check"}
            made.append(verdict_record(thread, about | {"author": author, "rubric": "check"} | found))
            if found["pass"] is None:
                return Undecided("; ".join(f"{one['name']}: {one['reason']}" for one in found["criteria"]
                                           if one["pass"] is None))  # fmt: skip
        if not measure or not target or (cascade and not found["pass"]):
            return None
        return by_model(thread, messages, target, measure, about, made, outcome, timeout, patience)

    for thread in source.threads():
        if thread.status == "failed":
            outcome.fail(FAILED)
            sink.thread(thread, [], "failed")
            continue
        made: list[Record] = []
        try:
            failure = judge(thread, made)
        except Failure as refusal:
            if refusal.status == WRITE_FAILED:
                raise
            failure = refusal
        if failure:
            say(f"thread {thread.id}: {failure}{NEXT_STEP.get(failure.code, '')}")
            outcome.fail(failure.status)
            made.append(complaint(failure, thread, next((r for r in made[::-1] if r["type"] == "span"), None)))
        verdicts = [record for record in made if record["type"] == "verdict"]
        negative = any(record["pass"] is False for record in verdicts)
        outcome.said_no = outcome.said_no or thread.status == "no" or negative
        if as_text:
            show("".join(map(_line, verdicts)))
        sink.thread(thread, made, "failed" if failure else "no" if negative and not advise else thread.status)
    sink.end(source, outcome)
    status = outcome.status()
    return 0 if advise and status == 1 else status


def _judged(thread: Thread) -> list[Record]:
    """The branch whose tip is to be judged. Usage if the tip is no answer."""
    records = admitted(thread)
    messages = branch(records)
    if not messages or messages[-1]["role"] != "assistant":
        raise Usage("nothing to judge: the thread does not end with an answer; dispatch comes first")
    if rivals(records, messages[-1]):
        raise Usage("nothing to judge: it has several answers and none is preferred")
    if messages[-1].get("finish") in CUT_SHORT:
        raise cut_short(messages[-1])
    return messages


def _line(record: Record) -> str:
    """A verdict for a person."""
    word = {True: "pass", False: "fail", None: "none"}[record["pass"]]
    lines = [f"{word}  {_number(record['score'])}  thread {record['thread']}\n"]
    lines += [f"      {_number(one['score'])}  {one['name']}: {one['reason']}\n" for one in record["criteria"]]
    return "".join(lines)


def _number(score: float | None) -> str:
    return "-" if score is None else f"{score:.2f}"


def _runner(timeout: float) -> Callable[[list[str] | str, bytes], tuple[bool, str]]:
    """A program as a check: the answer on its stdin, status 0 passes. CallFailed if it cannot be run."""

    def run(command_line: list[str] | str, answer: bytes) -> tuple[bool, str]:
        argv = find(f"exec:{command_line}")[0]["argv"] if isinstance(command_line, str) else command_line
        status, said = load("command").run_check(argv, answer, Io(timeout).left)
        if status >= 126:  # not found, not executable, killed: it has not judged
            why = f"--check exec:{command_line}: exit status {status}{said and ': ' + said}"
            raise CallFailed("exit", why, billed="no")
        return status == 0, said or f"status {status}"

    return run


def main() -> None:
    """Entry point."""
    cli.run(command)
