"""A judge's finding on one answer: scores by the rubric, asked for once or several times."""

from __future__ import annotations

from typing import Any

from mllm_pipe.envelope import Record
from mllm_pipe.judging import statistics, verdict
from mllm_pipe.judging.asking import Case, Finding, NoVerdict, judge_of, vote
from mllm_pipe.judging.rubrics import Rubric


def score(case: Case, target: dict[str, Any], rubric: Rubric, part: dict[str, Any]) -> Finding:
    """What a judge finds of the last answer. part: fields that its verdict has, if it is one part of another."""
    request = verdict.question([*case.before, case.answers[-1]], rubric, case.reference)
    body = {"rubric": rubric["name"]}

    def read(parts: list[dict[str, Any]]) -> dict[str, Any]:
        return verdict.read(parts, rubric)

    if case.terms.repeats == 1:
        return vote(case, target, request, read, body | part)
    made, valid, failures = list[Record](), list[Record](), []
    for _ in range(case.terms.repeats):
        once = vote(case, target, request, read, body | {"part": "repeat"})
        made += once.made
        if once.failure:
            failures.append(once.failure)
        else:
            valid.append(once.verdict)
    if not valid or 2 * len(valid) <= case.terms.repeats:
        few = f"{len(failures)} of {case.terms.repeats} repeats gave no verdict: {failures[0]}"
        failure = NoVerdict(few) if valid else failures[0]
        made.append(case.none(judge_of(target), failure, body | part))
        return Finding(made, made[-1], failure)
    scores = [one["score"] for one in valid]
    mean = statistics.mean(scores)
    spread = {"n": len(scores), "least": min(scores), "most": max(scores),
              "deviation": round((sum((one - mean) ** 2 for one in scores) / len(scores)) ** 0.5, 4)}  # fmt: skip
    middle = sorted(valid, key=lambda one: float(one["score"]))[len(valid) // 2]
    criteria = [one | {"score": statistics.mean([other["criteria"][place]["score"] for other in valid])}
                for place, one in enumerate(middle["criteria"])]  # fmt: skip
    fields = {name: middle[name] for name in ("author", "self_judged") if name in middle}
    found = verdict.scored(criteria, rubric["pass_at"]) | {"spread": spread, "votes": [one["id"] for one in valid]}
    made.append(case.verdict(fields | body | part | found))
    return Finding(made, made[-1])
