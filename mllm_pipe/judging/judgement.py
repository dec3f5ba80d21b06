"""The judgement of a thread: what of it is judged, by the checks and by the model, and what the next command gets."""

from __future__ import annotations

from typing import Any

import orjson

from mllm_pipe.envelope import Record, line_of
from mllm_pipe.errors import WRITE_FAILED, Failure, Missing, Outcome, Usage
from mllm_pipe.judging import checks
from mllm_pipe.judging.asking import Case, Finding, NoVerdict, refuse_self, told
from mllm_pipe.judging.replying import reply
from mllm_pipe.judging.terms import Terms
from mllm_pipe.lines import digest
from mllm_pipe.stream import Thread
from mllm_pipe.terminal import note, say
from mllm_pipe.thread import admitted, branch, parents, parts_of, rivals
from mllm_pipe.turn import CUT_SHORT, CutShort, complaint, cut_short

_UNFINISHED = {*CUT_SHORT, "pause"}  # how an answer ends that is no whole one


class Judged:
    """What comes of judging a thread: the records to add, the verdicts that count, and why there is none.

    Those that count are the ones made that are no part of another, if nothing else is said.
    """

    __slots__ = ("made", "failure", "verdicts")

    def __init__(self, made: list[Record], failure: Failure | None, verdicts: list[Record] | None = None) -> None:
        self.made, self.failure = made, failure
        self.verdicts = verdicts if verdicts is not None else [
            record for record in made if record["type"] == "verdict" and "part" not in record
        ]  # fmt: skip

    def lines(self) -> list[bytes]:
        """The records to add, as lines without their newline."""
        return [line_of(record)[:-1] for record in self.made]

    def negative(self) -> bool:
        """True if one of the verdicts is."""
        return any(record["pass"] is False for record in self.verdicts)


def judge(thread: Thread, terms: Terms, outcome: Outcome) -> Judged:
    """Judge the answer at the end of a thread. Nothing is raised but WriteFailed."""
    made: list[Record] = []
    try:
        failure = _judge(thread, terms, made, outcome)
    except Failure as refusal:
        if refusal.status == WRITE_FAILED:
            raise
        failure = refusal
    judged = Judged(made, failure)
    if failure:
        made.append(complaint(failure, thread, next((r for r in made[::-1] if r["type"] == "span"), None)))
    elif terms.reply and judged.negative():
        made.append(reply(thread, judged.verdicts))
    return judged


def _judge(thread: Thread, terms: Terms, made: list[Record], outcome: Outcome) -> Failure | None:
    """Add the verdicts on the thread to `made`; why there is none, if so."""
    if thread.fault:
        raise thread.fault
    case = _case(thread, terms, outcome)
    try:
        failure = _verdicts(case, made)
    except Failure as refusal:
        if refusal.status == WRITE_FAILED:
            raise
        who, rubric = ("judge", terms.rubric["name"]) if terms.rubric else ("check", "check")
        made.append(case.none({"agent": who}, refusal, {"rubric": rubric}))
        return refusal
    if failure:
        made[-1]["failure"] = told(failure)  # it was made here and is in no journal
    return failure


def _verdicts(case: Case, made: list[Record]) -> Failure | None:
    """Add the verdicts on a case to `made`; why the last of them decides nothing, if so."""
    thread, terms = case.thread, case.terms
    if terms.reference and case.reference is None:
        raise NoVerdict(f"--reference {terms.reference} has no line for it: nothing to hold the answer against")
    if terms.checks:
        subject = checks.Subject([*case.before, case.answers[-1]], thread, case.reference)
        found = checks.findings(terms.checks, terms.need, subject)
        made.append(case.verdict({"author": {"agent": "check", "runtime": "check"}, "rubric": "check"} | found))
        if found["pass"] is None:
            return NoVerdict("; ".join(f"{one['name']}: {one['reason']}" for one in found["criteria"]
                                       if one["pass"] is None))  # fmt: skip
    if not terms.rubric or (terms.cascade and not found["pass"]):
        return None
    if any(map(_only_calls, case.answers)):
        raise Usage("nothing to judge: the answer calls tools and says nothing; dispatch --run-tools goes on from it")
    targets = terms.judges_of(case.answers[-1])
    called_in = [terms.escalate] if terms.escalate else []
    refuse_self(case, [*targets, *called_in])
    of_all: dict[str, Any] = {"asked": _asked(terms, [*targets, *called_in])}
    finding = _found(case, targets, of_all)
    made += finding.made
    if terms.escalate and isinstance(finding.failure, NoVerdict):
        note(f"thread {thread.id}: {finding.failure}; {terms.escalate['spec']} is asked")
        finding.verdict["part"] = "first"  # it was made here and is in no journal
        of_all |= {"escalated": True, "escalated_from": finding.verdict["id"]}
        finding = _found(case, [terms.escalate], of_all)
        made += finding.made
    return finding.failure


def _asked(terms: Terms, targets: list[dict[str, Any]]) -> str:
    """A digest of who is asked, and by what: the same where a thread is judged again by the same command."""
    assert terms.rubric
    who = [[target["spec"], target.get("model")] for target in targets]
    what = [[one["name"], one["text"]] for one in terms.rubric["criteria"]]
    return digest(orjson.dumps([who, terms.rubric["name"], what, terms.pairwise]))


def _found(case: Case, targets: list[dict[str, Any]], part: dict[str, Any]) -> Finding:
    """What one judge finds, or several of them together."""
    from mllm_pipe.judging import comparing, panel, scoring

    terms, rubric = case.terms, case.terms.rubric
    assert rubric
    of_each = {"part": "panel"} if len(targets) > 1 else part
    at_once, combine = terms.at_once, terms.combine or "majority"
    if terms.pairwise:
        compared = at_once(lambda target: comparing.compare(case, target, of_each), targets)
        each = [one.finding for one in compared]
        found = panel.compared(case, compared, combine) if len(targets) > 1 else each[0]
    else:
        each = at_once(lambda target: scoring.score(case, target, rubric, of_each), targets)
        found = panel.scored(case, each, rubric["pass_at"], combine) if len(targets) > 1 else each[0]
    if len(targets) > 1:
        found.verdict.update(part)
        if not found.failure:
            _tell_silent(case, targets, each, found.verdict)
    return found


def _tell_silent(case: Case, targets: list[dict[str, Any]], each: list[Finding], verdict: Record) -> None:
    """Which judges of a panel that has decided gave no verdict, and why; the others' silence stays in their votes."""
    for target, one in zip(targets, each, strict=True):
        if "failure" in one.verdict:
            say(f"thread {case.thread.id}: judge {target['spec']} has not voted: {one.failure}; {verdict['voted']} of "
                f"{verdict['judges']} judges have")  # fmt: skip


def _case(thread: Thread, terms: Terms, outcome: Outcome) -> Case:
    """What is to be judged. Usage if the tip of the thread is no answer, or if there is nothing to compare."""
    records = admitted(thread)
    messages = branch(records)
    if not messages or messages[-1]["role"] != "assistant":
        raise Usage("nothing to judge: the thread does not end with an answer; dispatch comes first")
    *before, answer = messages
    if terms.against:
        older = terms.against(thread.id)
        if older is None:
            raise Missing(f"--against has no answer of thread {thread.id}")
        _whole(answer)
        if older.get("finish") in _UNFINISHED:
            raise CutShort(f"--against: answer {older['id']} is not whole ({older['finish']}): nothing to compare with")
        return Case(thread, before, [older, answer], terms, outcome)
    if terms.pairwise:
        return Case(thread, before, _siblings(records, answer), terms, outcome)
    if rivals(records, answer):
        raise Usage("nothing to judge: it has several answers and none is preferred; --pairwise compares them")
    _whole(answer)
    return Case(thread, before, [answer], terms, outcome)


def _siblings(records: list[Record], tip: Record) -> list[Record]:
    """The answers to what the tip answers, in the order of the thread; those that are cut short are no rivals."""
    parent_of = parents(records)
    answers = [record for record in records if record["type"] == "message" and record["role"] == "assistant"
               and parent_of[record["id"]] == parent_of[tip["id"]]]  # fmt: skip
    whole = [answer for answer in answers if answer.get("finish") not in _UNFINISHED]
    for answer in answers:
        if answer not in whole:
            note(f"thread {tip['thread']}: answer {answer['id']} is not whole ({answer['finish']}), and not compared")
    if len(whole) < 2:
        raise Usage("nothing to compare: it has one answer; ask several with dispatch --to A --to B, or hold it "
                    "--against FILE")  # fmt: skip
    return whole


def _whole(answer: Record) -> None:
    if answer.get("finish") in _UNFINISHED:
        raise cut_short(answer)


def _only_calls(answer: Record) -> bool:
    """True if an answer calls tools and says nothing."""
    parts = parts_of(answer["content"])
    said = any(part["type"] in ("data", "file") or (part["type"] in ("text", "refusal") and part["text"].strip())
               for part in parts)  # fmt: skip
    return not said and any(part["type"] == "tool_call" for part in parts)
