"""A judge's finding on several answers: which is better, asked of every pair in both orders."""

from __future__ import annotations

from typing import Any

from mllm_pipe.envelope import Record
from mllm_pipe.judging import pairs
from mllm_pipe.judging.asking import Barred, Case, Finding, NoVerdict, judge_of, told, vote


class Compared:
    """What one judge said: its finding, and of each pair the share that its first answer has (None: undecided)."""

    __slots__ = ("finding", "shares")

    def __init__(self, finding: Finding, shares: dict[pairs.Pair, float | None]) -> None:
        self.finding, self.shares = finding, shares


def compare(case: Case, target: dict[str, Any], part: dict[str, Any]) -> Compared:
    """What a judge finds of the answers. part: fields that its verdict has, if it is one part of another.

    A failed call is the end of it: the verdict would hang on what is not known. Then there are no shares.
    """
    terms, answers, rubric = case.terms, case.answers, case.terms.rubric
    assert rubric
    asked = pairs.order(len(answers), seed(case), both=not terms.one_order)
    made, scores, votes, failure = list[Record](), list[float | None](), list[Record](), None
    for i, j in asked:
        request = pairs.question(case.before, answers[i], answers[j], rubric, case.reference)
        shown = {"rubric": rubric["name"], "part": "order", "shown": [answers[i]["id"], answers[j]["id"]]}
        once = vote(case, target, request, _read, shown)
        made += once.made
        if once.failure and (isinstance(once.failure, Barred) or not isinstance(once.failure, NoVerdict)):
            of_all = {"rubric": rubric["name"], "consistent": None, "seed": seed(case)} | _against(case) | part
            made.append(case.none(once.verdict["author"], once.failure, of_all))
            return Compared(Finding(made, made[-1], once.failure), {})
        votes.append(once.verdict)
        scores.append(once.verdict["score"])
        failure = failure or once.failure
    shares = pairs.settled(asked, scores)
    author = next((one["author"] for one in votes if one["pass"] is not None), judge_of(target))
    mine = {"self_judged": True} if any(one.get("self_judged") for one in votes) else {}
    body = {"author": author, "rubric": rubric["name"]} | mine | part
    body |= outcome(case, [shares]) | {"votes": [one["id"] for one in votes]}
    if body["pass"] is None and failure:
        body["failure"] = told(failure)
    made.append(case.verdict(body))
    if body["pass"] is None:
        failure = failure or NoVerdict(undecided(case, body, target["runtime"]))
    return Compared(Finding(made, made[-1], failure if body["pass"] is None else None), shares)


def outcome(case: Case, judged: list[dict[pairs.Pair, float | None]]) -> dict[str, Any]:
    """What the pairs of one judge, or of several, say of the answers, as fields of a verdict.

    Among siblings one is preferred, or nothing is decided (pass null). Against an older answer, the newer one passes
    if it is not worse.
    """
    ranked = pairs.ranked(judged, len(case.answers))
    shares = [share for one in judged for share in one.values()]
    consistent = None if case.terms.one_order else None not in shares
    found: dict[str, Any] = {"criteria": [], "consistent": consistent, "seed": seed(case)}
    if _against(case):
        found |= _against(case)
        known = [1 - share for share in shares if share is not None]  # of the newer answer, which is the second one
        mean = sum(known) / len(known) if 2 * len(known) > len(shares) else None
        return found | {"score": mean, "pass": None if mean is None else mean >= 0.5}
    winner, ranking = ranked["winner"], ranked["ranking"]
    found |= {"score": ranking[0]["share"], "pass": None if winner is None else True}
    if len(case.answers) > 2:
        found["ranking"] = [{"id": case.answers[one.pop("place")]["id"]} | one for one in ranking]
        found["confidence"] = ranked["confidence"]
    return found if winner is None else found | {"preferred": case.answers[winner]["id"]}


def _against(case: Case) -> dict[str, Any]:
    """The field that names the older answer, where the newer one is held against one."""
    return {"against": case.answers[0]["id"]} if "against" in case.answers[0] else {}


def seed(case: Case) -> int:
    """Of the order in which the answers are shown."""
    return case.terms.seed if case.terms.seed is not None else pairs.seed_of(case.answers)


def undecided(case: Case, body: dict[str, Any], who: str) -> str:
    """Why nothing is decided, for a person, with the next step."""
    if body["consistent"] is False and "ranking" not in body:
        why = f"{who} says otherwise when the answers change places: nothing is decided"
    else:
        why = f"{who} finds none of the answers better than the others"
    if case.terms.escalate:
        return why
    return f"{why}; --escalate SPEC asks another{'' if case.terms.against else ', dispatch --pick NAME takes one'}"


def _read(parts: list[dict[str, Any]]) -> dict[str, Any]:
    found = pairs.read(parts)
    return {"criteria": [{"name": "better", "score": found["score"], "reason": found["reason"]}],
            "score": found["score"], "pass": True}  # fmt: skip
