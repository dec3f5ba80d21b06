"""A judge's turn: the call, one repair try, and the vote that comes of it, as a record."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mllm_pipe.calling.call import ask
from mllm_pipe.closed_form import Invalid, whole
from mllm_pipe.envelope import Record, new_id, timestamp
from mllm_pipe.errors import NO_VERDICT, WRITE_FAILED, CallFailed, Failure, Outcome, Usage
from mllm_pipe.judging import verdict
from mllm_pipe.judging.families import family_of
from mllm_pipe.judging.terms import Terms
from mllm_pipe.stream import Thread
from mllm_pipe.terminal import note
from mllm_pipe.turn import tell_unkept

Read = Callable[[list[dict[str, Any]]], dict[str, Any]]  # an answer's parts as fields of a verdict, or Invalid


class NoVerdict(Failure):
    """What the verdict hangs on cannot be known: no valid one was given, or the votes decide nothing."""

    status = NO_VERDICT
    code = "no_verdict"


class Barred(NoVerdict):
    """The judge turned out to be one that the terms forbid: there is no use in asking it for more."""


class Case:
    """What is judged of a thread: the answers, what came before them, and on what terms."""

    def __init__(self, thread: Thread, before: list[Record], answers: list[Record], terms: Terms,
                 outcome: Outcome) -> None:  # fmt: skip
        self.thread, self.before, self.answers, self.terms, self.outcome = thread, before, answers, terms, outcome
        self.reference = terms.reference_of(thread.id)

    def verdict(self, body: dict[str, Any]) -> Record:
        """A verdict on the thread's answers, with its id and time."""
        record: Record = {"v": 1, "type": "verdict", "thread": self.thread.id, "id": new_id(), "at": timestamp()}
        about = [answer["id"] for answer in self.answers if "against" not in answer]
        return record | {"about": about, "parent_run_id": self.thread.run} | body

    def none(self, author: dict[str, Any], failure: Failure, body: dict[str, Any]) -> Record:
        """The verdict of a judge that gave none: a vote for nothing, which stays on record, and why."""
        nothing: dict[str, Any] = {"criteria": [], "score": None, "pass": None, "failure": told(failure)}
        return self.verdict({"author": author} | body | nothing)


def told(failure: Failure) -> dict[str, str]:
    """A failure as a verdict has it."""
    return {"code": failure.code, "message": str(failure)}


class Finding:
    """What was found: the records that came of it, the verdict that counts, and why it decides nothing, if so."""

    __slots__ = ("made", "verdict", "failure")

    def __init__(self, made: list[Record], verdict: Record, failure: Failure | None = None) -> None:
        self.made, self.verdict, self.failure = made, verdict, failure


def vote(case: Case, target: dict[str, Any], request: dict[str, Any], read: Read, body: dict[str, Any]) -> Finding:
    """Ask a judge, once more if its answer is no verdict. The vote has the fields of `body` and those that are read.

    A vote that is none has pass null: its failure is NoVerdict, or that of the call.
    """
    thread, terms, made, why, barred = case.thread, case.terms, list[Record](), "", list[str]()
    about = {"thread": thread.id, "op": "judge", "slot": "evaluator", "parent_run_id": thread.run,
             "input_id": case.answers[-1]["id"]}  # fmt: skip

    def make(result: dict[str, Any], span: Record) -> list[Record]:
        nonlocal why
        try:
            found = read(whole(result))
        except Invalid as invalid:
            why = str(invalid)
            return []
        author = {"agent": "judge", "runtime": span["runtime"], "model": span["model"],
                  "provider": result.get("provider")}  # fmt: skip
        family = _own_family(author, case.answers)
        if family and terms.forbid_self:
            who = author["model"] or author["runtime"]
            barred.append(f"{who} judged, which is of the family that wrote the answer ({family}), and --forbid-self "
                           "was said")  # fmt: skip
            return []
        mine = {"self_judged": True} if family else {}
        return [case.verdict({"author": author} | body | {"run_id": span["id"]} | found | mine)]

    def nothing(failure: Failure, who: dict[str, Any] = target) -> Finding:
        none = case.none(judge_of(who), failure, body)
        return Finding([*made, none], none, failure)

    for _ in range(2):
        try:
            call = ask(target, request, about, timeout_s=terms.timeout_s, make=make, patience=terms.patience)
        except Failure as refused:  # over budget, say: what was asked before stays on record
            if refused.status == WRITE_FAILED:
                raise
            return nothing(refused)
        made += [call.span, *call.made]
        tell_unkept(call, thread, case.outcome)
        if call.failure:
            why = f"{target['runtime']}: {call.failure}"
            return nothing(CallFailed(call.failure.code, why, billed=call.failure.billed), call.span)
        if barred:
            return nothing(Barred(barred[0]), call.span)
        if call.made:
            _tell_self(case, call.made[0])
            return Finding(made, call.made[0])
        request = verdict.repair(request, call.result["parts"] if call.result else [], why)
    return nothing(NoVerdict(f"{target['runtime']} gave no valid verdict, twice: {why}"), call.span)


def judge_of(target: dict[str, Any]) -> dict[str, Any]:
    """A target, or the span of a call, as the author of a verdict."""
    return {"agent": "judge", "runtime": target["runtime"], "model": target.get("model")}


def _own_family(judge: dict[str, Any], answers: list[Record]) -> str | None:
    """The family of the judge, if an author of the answers is of it; None if not, or if nobody can say."""
    family = family_of(judge)
    return family if family in {family_of(answer.get("author", {})) for answer in answers} else None


def refuse_self(case: Case, targets: list[dict[str, Any]]) -> None:
    """Usage, before anybody is asked, if one of the judges is of an author's family and the terms forbid it."""
    if case.terms.forbid_self:
        for candidate in (*targets, *case.terms.patience.fallbacks):
            if family := _own_family(candidate, case.answers):
                raise Usage(f"{candidate['spec']} is of the family that wrote the answer ({family}), and --forbid-self "
                            "was said; --by another")  # fmt: skip


def _tell_self(case: Case, vote: Record) -> None:
    """Once for each judge of a thread, that it judges its own."""
    if vote.get("self_judged"):
        key = case.thread.id, vote["author"]["runtime"], vote["author"]["model"]
        if key not in case.terms.told:
            case.terms.told.add(key)
            name = ":".join(filter(None, dict.fromkeys(key[1:])))
            note(f"thread {key[0]}: {name} judged an answer of its own family "
                 f"({family_of(vote['author'])}); --by another is fairer")  # fmt: skip
