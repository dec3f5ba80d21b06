"""Several judges of one matter: their votes as one verdict, and how many votes they are worth."""

from __future__ import annotations

from itertools import combinations
from typing import Any

from mllm_pipe.envelope import Record
from mllm_pipe.judging import comparing, statistics, verdict
from mllm_pipe.judging.asking import Case, Finding, NoVerdict

LEAST = 10  # threads before a correlation of votes is worth telling


def scored(case: Case, findings: list[Finding], pass_at: float, combine: str) -> Finding:
    """One verdict of several judges on one answer. A judge that gave none is one that voted for nothing."""
    made = [record for finding in findings for record in finding.made]
    verdicts = [finding.verdict for finding in findings]
    valid = [one for one in verdicts if one["pass"] is not None]
    votes = [one["pass"] for one in verdicts]
    figures = _figures(case, votes, verdicts, valid)
    if not valid:
        return _nothing(case, findings, combine, figures)
    criteria = []
    for place, one in enumerate(valid[0]["criteria"]):
        all_of = [(_name(judged), judged["criteria"][place]) for judged in valid]
        mean = statistics.mean([found["score"] for _, found in all_of])
        reasons = "; ".join(f"{name}: {found.get('reason', '')}" for name, found in all_of)
        criteria.append(one | {"score": mean, "reason": reasons})
    found = verdict.scored(criteria, pass_at)
    if combine == "majority":
        found["pass"] = _majority(votes)
    elif 2 * len(valid) <= len(findings):
        found["pass"] = None
    body = _of(valid) | {"rubric": valid[0].get("rubric")} | found | {"combine": combine} | figures
    made.append(case.verdict(body))
    return Finding(made, made[-1], _failure(findings, votes) if found["pass"] is None else None)


def compared(case: Case, judged: list[comparing.Compared], combine: str) -> Finding:
    """One verdict of several judges on several answers: more than half prefer the same, or all pairs count together."""
    findings = [one.finding for one in judged]
    made = [record for finding in findings for record in finding.made]
    verdicts = [finding.verdict for finding in findings]
    valid = [one for one in judged if one.shares]
    heard = [one.finding.verdict for one in valid]
    against = "against" in case.answers[0]
    votes = [_choice(one, against) for one in verdicts]
    figures = _figures(case, votes, verdicts, heard)
    if not valid:
        return _nothing(case, findings, combine, figures)
    found = comparing.outcome(case, [one.shares for one in valid])
    if combine == "majority":
        wanted = _majority(votes)
        if against:
            found["pass"] = wanted
        elif wanted is None or found.get("preferred") != wanted:  # the best of most need not be that of all comparisons
            found.pop("preferred", None)
            found["pass"] = None
    elif 2 * len(valid) <= len(judged):
        found = {name: value for name, value in found.items() if name != "preferred"} | {"pass": None}
    body = _of(heard) | {"rubric": heard[0].get("rubric")} | found | {"combine": combine} | figures
    made.append(case.verdict(body))
    return Finding(made, made[-1], _failure(findings, votes) if found["pass"] is None else None)


def _nothing(case: Case, findings: list[Finding], combine: str, figures: dict[str, Any]) -> Finding:
    """The verdict where not one judge gave one; why is what kept the first of them from it."""
    failure, first = findings[0].failure, findings[0].verdict
    assert failure
    same = {name: first[name] for name in ("rubric", "consistent", "seed", "against") if name in first}
    made = [record for finding in findings for record in finding.made]
    made.append(case.none({"agent": "panel"}, failure, same | {"combine": combine} | figures))
    return Finding(made, made[-1], failure)


def _choice(judged: Record, against: bool) -> Any:
    """What a judge voted for, None if for nothing."""
    return judged["pass"] if against else judged.get("preferred")


def _majority(votes: list[Any]) -> Any:
    """What more than half of all votes are for; None if nothing is."""
    return next((one for one in votes if one is not None and 2 * votes.count(one) > len(votes)), None)


def _figures(case: Case, votes: list[Any], verdicts: list[Record], heard: list[Record]) -> dict[str, Any]:
    """How many were asked, what they said, how many pairs of them agree, and how many independent votes they are
    worth, so far. verdicts: of each judge, in the order of the panel; heard: of those that gave one."""
    pairs = list(combinations(votes, 2))
    agreed = sum(one == other and one is not None for one, other in pairs)
    case.terms.votes.append(_numbers(case, verdicts) if len(heard) == len(votes) else None)
    rows = [row for row in case.terms.votes if row]
    worth = statistics.effective_votes(list(zip(*rows, strict=True))) if len(rows) >= LEAST else None
    return {"votes": [one["id"] for one in verdicts], "judges": len(votes),
            "voted": len(votes) - votes.count(None), "agreement": round(agreed / len(pairs), 4),
            "effective_votes": None if worth is None else round(worth, 2)}  # fmt: skip


def _numbers(case: Case, verdicts: list[Record]) -> list[float]:
    """Each judge's vote as a number: for the first answer, for the last, or for neither; of one answer, its score."""
    if len(case.answers) == 1:
        return [float(one["score"]) if one["score"] is not None else 0.5 for one in verdicts]
    if "against" in case.answers[0]:
        return [0.5 if one["pass"] is None else float(one["pass"]) for one in verdicts]
    first = case.answers[0]["id"]
    return [0.5 if (chosen := _choice(one, False)) is None else float(chosen == first) for one in verdicts]


def _of(verdicts: list[Record]) -> dict[str, Any]:
    """Who speaks, for all of them."""
    mine = {"self_judged": True} if any(one.get("self_judged") for one in verdicts) else {}
    return {"author": {"agent": "panel"}} | mine


def _name(judged: Record) -> str:
    author = judged.get("author", {})
    return ":".join(filter(None, dict.fromkeys([author.get("runtime"), author.get("model")])))


def _failure(findings: list[Finding], votes: list[Any]) -> NoVerdict:
    why = "; ".join(dict.fromkeys(str(finding.failure) for finding in findings if finding.failure))
    if _majority(votes) is not None:
        return NoVerdict("the panel is not of one mind: what more than half prefer is not surely the best by all "
                         "comparisons together")  # fmt: skip
    return NoVerdict(f"the panel is not of one mind ({sum(vote is not None for vote in votes)} of {len(votes)} judges "
                     f"decided){why and ': ' + why}")  # fmt: skip
