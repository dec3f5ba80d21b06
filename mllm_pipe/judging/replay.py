"""Verdicts that a stream has already, scored anew: by another bar, other weights, another way to combine. Nobody is
asked, and nothing is paid.
"""

from __future__ import annotations

from typing import Any

from mllm_pipe.envelope import Record
from mllm_pipe.errors import STATUS_OF_CODE, BadRecord, CallFailed, Failure, Missing, Outcome, OverBudget, Usage
from mllm_pipe.judging import comparing, panel, verdict
from mllm_pipe.judging.asking import Case, Finding, NoVerdict
from mllm_pipe.judging.judgement import Judged
from mllm_pipe.judging.pairs import Pair, settled
from mllm_pipe.judging.terms import Terms
from mllm_pipe.stream import Thread
from mllm_pipe.thread import admitted, branch


def replay(thread: Thread, terms: Terms, outcome: Outcome) -> Judged:
    """The verdicts on the answer that a thread ends with, as they are by these terms; nothing is added to the thread.

    NoVerdict is the failure if there is none; if one of them decides nothing, why that was.
    """
    try:
        if thread.fault:
            raise thread.fault
        records = admitted(thread)
        found = [_scored(record, records, thread, terms, outcome) for record in counted(records)]
        failure = next((failure for _, failure in found if failure), None)
        if not found:
            failure = NoVerdict("no verdict is recorded on the answer that the thread ends with")
        return Judged([], failure, [record for record, _ in found])
    except Failure as refusal:
        return Judged([], refusal, [])


def counted(records: list[Record]) -> list[Record]:
    """The verdicts on the answer that the thread ends with which are no part of another, the newest last.

    One gives way to a later one of the same judge that was asked the same: by the digest that says so, else by author,
    rubric and names of criteria.
    """
    messages = branch(records)
    if not messages or messages[-1]["role"] != "assistant":
        return []
    newest: dict[Any, Record] = {}
    for record in records:
        if record["type"] == "verdict" and "part" not in record and messages[-1]["id"] in record["about"]:
            named = tuple(one["name"] for one in record.get("criteria", []))
            who = tuple(record.get("author", {}).get(name) for name in ("agent", "runtime", "model"))
            asked = record.get("asked") or (who, record.get("rubric"), named)
            key = asked, "consistent" in record, record.get("against")
            newest.pop(key, None)
            newest[key] = record
    return list(newest.values())


def votes_of(record: Record, records: list[Record]) -> list[Record]:
    """The verdicts that a verdict was made of. Lost if one of them is not here."""
    by_id = {one["id"]: one for one in records if one["type"] == "verdict"}
    idents = record.get("votes", [])
    if any(ident not in by_id for ident in idents):
        raise Lost(f"a vote of verdict {record['id']} is not here: it cannot be scored anew")
    return [by_id[ident] for ident in idents]


class Lost(NoVerdict):
    """What a verdict was made of is not all in the thread, so that what it comes to by other terms is not known."""


def _scored(record: Record, records: list[Record], thread: Thread, terms: Terms,
            outcome: Outcome) -> tuple[Record, Failure | None]:  # fmt: skip
    """A verdict that counts, by these terms, and why it decides nothing, if so; as it is where they say nothing."""
    if not (terms.combine or terms.rubric or terms.pass_at is not None):
        return record, _failure_of(record)
    if record.get("author", {}).get("agent") != "panel":
        anew = record | ({} if "consistent" in record else _again(record, terms))
        return anew, _failure_of(anew)
    try:
        found = _together(record, records, thread, terms, outcome)
    except Lost as lost:
        return record | {"score": None, "pass": None}, lost
    plain = {key: value for key, value in record.items() if key not in ("preferred", "failure")}
    return plain | _fields(found, record), found.failure


def _together(record: Record, records: list[Record], thread: Thread, terms: Terms, outcome: Outcome) -> Finding:
    """A panel's verdict, combined again from the votes of all its judges. Lost if they are not all here."""
    votes = votes_of(record, records)
    if record.get("judges") != len(votes):
        raise Lost(f"verdict {record['id']} does not say how many judges were asked: it cannot be scored anew")
    if "consistent" in record:
        return _compared(record, votes, records, thread, terms, outcome)
    valid = [vote for vote in votes if vote["pass"] is not None]
    named = {tuple(one["name"] for one in vote.get("criteria", [])) for vote in valid}
    if len(named) > 1 or not all(map(_scores, valid)):
        raise Lost(f"the votes of verdict {record['id']} have no scores of the same criteria: it cannot be scored anew")
    case = Case(thread, [], [{"id": record["about"][-1]}], terms, outcome)
    findings = [Finding([], one | _again(one, terms), _failure_of(one)) for one in votes]
    return panel.scored(case, findings, _bar(record, terms), _combine(record, terms))


_KINDS = {kind.code: kind for kind in (Failure, Usage, BadRecord, Missing, OverBudget)}


def _failure_of(record: Record) -> Failure | None:
    """Why a verdict decides nothing, as it was when it was made, so that the status is the same; None if it does."""
    if record["pass"] is not None:
        return None
    said = record.get("failure", {"code": NoVerdict.code, "message": "the recorded verdict decides nothing"})
    if said["code"] in STATUS_OF_CODE:
        return CallFailed(said["code"], said["message"])
    return _KINDS.get(said["code"], NoVerdict)(said["message"])


def _again(record: Record, terms: Terms) -> dict[str, Any]:
    """Score and pass of a verdict of scores, by the weights of --rubric and by --pass-at where they are given."""
    criteria = record.get("criteria", [])
    if record["pass"] is None or not _scores(record) or record.get("author", {}).get("agent") == "check":
        return {}
    told = {one["name"]: one for one in terms.rubric["criteria"]} if terms.rubric else {}
    own = [{"weight": 1} | one | {key: told[one["name"]][key] for key in ("weight", "least")
                                  if key in told.get(one["name"], {})} for one in criteria]  # fmt: skip
    return verdict.scored(own, _bar(record, terms))


def _scores(record: Record) -> bool:
    """True if each criterion of a verdict has a score, and they count something; another's verdict may have none."""
    criteria = record.get("criteria", [])
    return all(one.get("score") is not None for one in criteria) and sum(one.get("weight", 1) for one in criteria) > 0


def _bar(record: Record, terms: Terms) -> float:
    if terms.pass_at is not None:
        return terms.pass_at
    return float(terms.rubric["pass_at"] if terms.rubric else record.get("pass_at", 1.0))


def _combine(record: Record, terms: Terms) -> str:
    return terms.combine or str(record.get("combine", "majority"))


def _compared(record: Record, together: list[Record], records: list[Record], thread: Thread, terms: Terms,
              outcome: Outcome) -> Finding:  # fmt: skip
    """A panel's verdict on several answers, combined again from the votes of its judges."""
    older = [{"id": record["against"], "against": True}] if "against" in record else []
    answers = [*older, *({"id": ident} for ident in record["about"])]
    place = {answer["id"]: number for number, answer in enumerate(answers)}
    case = Case(thread, [], answers, terms, outcome)
    judged = []
    for one in together:
        orders = votes_of(one, records)
        if any(len(set(vote.get("shown", [])) & place.keys()) != 2 for vote in orders):
            raise Lost(f"a vote of verdict {one['id']} does not say which answers were shown: it cannot be scored anew")
        asked: list[Pair] = [(place[vote["shown"][0]], place[vote["shown"][1]]) for vote in orders]
        shares = settled(asked, [vote.get("score") for vote in orders])
        judged.append(comparing.Compared(Finding([], one, _failure_of(one)), shares))
    return panel.compared(case, judged, _combine(record, terms))


def _fields(found: Finding, record: Record) -> dict[str, Any]:
    """What a verdict says, without whose and when it is. One order stays one order."""
    said = ("criteria", "score", "pass", "preferred", "consistent", "ranking", "confidence", "agreement", "failure")
    fields = {key: value for key, value in found.verdict.items() if key in said}
    return fields | ({"consistent": None} if "consistent" in record and record["consistent"] is None else {})
