"""Verdicts that a stream has already, scored anew: by another bar, other weights, another way to combine. Nobody is
asked, and nothing is paid.
"""

from __future__ import annotations

from typing import Any

from mllm_pipe.envelope import Record
from mllm_pipe.errors import Failure, Outcome
from mllm_pipe.judging import comparing, panel, verdict
from mllm_pipe.judging.asking import Case, Finding, NoVerdict
from mllm_pipe.judging.judgement import Judged
from mllm_pipe.judging.pairs import Pair, settled
from mllm_pipe.judging.terms import Terms
from mllm_pipe.stream import Thread
from mllm_pipe.thread import admitted


def replay(thread: Thread, terms: Terms, outcome: Outcome) -> Judged:
    """The newest verdicts of a thread that count, as they are by these terms; nothing is added to the thread.

    NoVerdict is the failure if there is none, or if one of them decides nothing.
    """
    try:
        if thread.fault:
            raise thread.fault
        records = admitted(thread)
        found = [_scored(record, records, thread, terms, outcome) for record in counted(records)]
        undecided = next((record for record in found if record["pass"] is None), None)
        failure = None
        if undecided or not found:
            failure = NoVerdict("the recorded verdict decides nothing" if found else "no verdict is recorded")
        return Judged([], failure, found)
    except Failure as refusal:
        return Judged([], refusal, [])


def counted(records: list[Record]) -> list[Record]:
    """The newest verdicts that are no part of another: the last one, and those of its run about the same answers."""
    final = [record for record in records if record["type"] == "verdict" and "part" not in record]
    if not final:
        return []
    last = final[-1]
    newest = {record["author"].get("agent") if "author" in record else None: record for record in final
              if record.get("parent_run_id") == last.get("parent_run_id") and set(record["about"]) & set(last["about"])}
    return list(newest.values())  # fmt: skip


def votes_of(record: Record, records: list[Record]) -> list[Record]:
    """The verdicts that a verdict was made of."""
    by_id = {one["id"]: one for one in records}
    return [by_id[ident] for ident in record.get("votes", []) if ident in by_id]


def _scored(record: Record, records: list[Record], thread: Thread, terms: Terms, outcome: Outcome) -> Record:
    """A verdict that counts, by these terms."""
    votes = votes_of(record, records)
    together = [one for one in votes if one.get("part") == "panel"]
    if "consistent" in record:
        return _compared(record, together, records, thread, terms, outcome) if together else record
    if not together:
        return record | _again(record, terms)
    valid = [one | _again(one, terms) for one in together]
    case = Case(thread, [], [{"id": record["about"][-1]}], terms, outcome)
    found = panel.scored(case, [Finding([], one) for one in valid], _bar(record, terms), _combine(record, terms))
    return record | {"pass": None} | _fields(found)


def _again(record: Record, terms: Terms) -> dict[str, Any]:
    """Score and pass of a verdict of scores, by the weights of --rubric and by --pass-at where they are given."""
    criteria = record.get("criteria", [])
    if record["pass"] is None or not criteria or record.get("author", {}).get("agent") == "check":
        return {}
    told = {one["name"]: one for one in terms.rubric["criteria"]} if terms.rubric else {}
    own = [{"weight": 1} | one | {key: told[one["name"]][key] for key in ("weight", "least")
                                  if key in told.get(one["name"], {})} for one in criteria]  # fmt: skip
    return verdict.scored(own, _bar(record, terms))


def _bar(record: Record, terms: Terms) -> float:
    if terms.pass_at is not None:
        return terms.pass_at
    return float(terms.rubric["pass_at"] if terms.rubric else record.get("pass_at", 1.0))


def _combine(record: Record, terms: Terms) -> str:
    return terms.combine or str(record.get("combine", "majority"))


def _compared(record: Record, together: list[Record], records: list[Record], thread: Thread, terms: Terms,
              outcome: Outcome) -> Record:  # fmt: skip
    """A panel's verdict on several answers, combined again from the votes of its judges."""
    older = [{"id": record["against"], "against": True}] if "against" in record else []
    answers = [*older, *({"id": ident} for ident in record["about"])]
    place = {answer["id"]: number for number, answer in enumerate(answers)}
    case = Case(thread, [], answers, terms, outcome)
    judged = []
    for one in together:
        asked: list[Pair] = [(place[vote["shown"][0]], place[vote["shown"][1]]) for vote in votes_of(one, records)]
        shares = settled(asked, [vote["score"] for vote in votes_of(one, records)])
        judged.append(comparing.Compared(Finding([], one), shares))
    return {key: value for key, value in record.items() if key != "preferred"} | _fields(
        panel.compared(case, judged, _combine(record, terms)))  # fmt: skip


def _fields(found: Finding) -> dict[str, Any]:
    """What a verdict says, without whose and when it is."""
    return {key: value for key, value in (found.verdict or {"pass": None}).items()
            if key in ("criteria", "score", "pass", "preferred", "consistent", "ranking", "confidence", "agreement")}
