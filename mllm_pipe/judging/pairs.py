"""Which of two answers is better, without a call in it: what is asked, in which order, and what both orders say.

The answers are called A and B, and nobody's name is shown. Shown both ways round, a judge that only likes the first
place contradicts itself: then nothing is decided.
"""

from __future__ import annotations

from itertools import combinations
from random import Random
from typing import Any

import orjson

from mllm_pipe.closed_form import Invalid, json_of
from mllm_pipe.envelope import Record
from mllm_pipe.judging import statistics
from mllm_pipe.judging.rubrics import Rubric
from mllm_pipe.judging.verdict import SYSTEM, asked, material
from mllm_pipe.lines import digest
from mllm_pipe.thread import fenced, parts_of, transcript_text

Pair = tuple[int, int]  # places of two answers, the one that is shown as A first

_SCHEMA = {
    "type": "object",
    "properties": {"better": {"type": "string", "enum": ["A", "B", "tie"]}, "reason": {"type": "string"}},
    "required": ["better", "reason"],
    "additionalProperties": False,
}
_SHARE = {"A": 1.0, "B": 0.0, "tie": 0.5}  # of the comparison, for the answer shown first


def question(before: list[Record], first: Record, second: Record, rubric: Rubric,
             reference: str | None = None) -> dict[str, Any]:  # fmt: skip
    """The request to a judge: which of two answers to what came before is better, the first shown as A."""
    shown = "\n\n".join(f"Answer {name}:\n{fenced(f'answer {name}', transcript_text(parts_of(one['content'])))}"
                        for name, one in (("A", first), ("B", second)))  # fmt: skip
    text = (
        f"{material(before, rubric, reference, names=False)}{shown}\n\n"
        "Which answer is better by the criteria? The order in which they stand means nothing. Answer with one JSON "
        'object and nothing else; better is "A", "B" or "tie". The form:\n'
        f"{orjson.dumps({'better': 'A', 'reason': '...'}).decode()}"
    )
    return asked(SYSTEM.format(what="two answers to it", whom="the answers"), text, [*before, first, second], _SCHEMA)


def read(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """{"score": 1 if the answer shown first is better, 0 if the second is, 0.5 for a tie; "reason"}. Invalid."""
    value = json_of(parts)
    if type(value) is not dict or value.keys() != {"better", "reason"}:
        raise Invalid('it is not an object with "better" and "reason" alone')
    if type(value["better"]) is not str or value["better"] not in _SHARE:
        raise Invalid('better is not "A", "B" or "tie"')
    if type(value["reason"]) is not str:
        raise Invalid("the reason is no text")
    return {"score": _SHARE[value["better"]], "reason": value["reason"]}


def seed_of(answers: list[Record]) -> int:
    """A seed for the order in which answers are shown: the same for the same answers."""
    return int(digest(orjson.dumps([answer["id"] for answer in answers]))[:8], 16)


def order(count: int, seed: int, *, both: bool) -> list[Pair]:
    """The comparisons of so many answers: every pair, in an order of the seed; both ways round, or one of them."""
    random = Random(seed)
    pairs: list[Pair] = list(combinations(range(count), 2))
    random.shuffle(pairs)
    ways = [(i, j) if random.random() < 0.5 else (j, i) for i, j in pairs]
    return [way for i, j in ways for way in ([(i, j), (j, i)] if both else [(i, j)])]


def settled(asked: list[Pair], scores: list[float | None]) -> dict[Pair, float | None]:
    """What was found of each pair i < j: the share of it that i has, None where it is undecided.

    scores: of each comparison asked, what the answer shown first has; None if the judge gave no verdict. Two orders
    that say otherwise decide nothing.
    """
    found: dict[Pair, list[float | None]] = {}
    for (i, j), score in zip(asked, scores, strict=True):
        turned = score if i < j or score is None else 1 - score
        found.setdefault((min(i, j), max(i, j)), []).append(turned)
    return {pair: shares[0] if len(set(shares)) == 1 else None for pair, shares in found.items()}


def ranked(pairs: list[dict[Pair, float | None]], count: int) -> dict[str, Any]:
    """The ranking that pairs of one judge, or of several together, give: {"winner", "ranking", "confidence"}.

    winner: the place of the best answer, None if it is not surely better: another is as strong, or the two best were
    not decided for it. confidence: how likely the first is stronger than the second, by these. ranking: of each answer
    {"place", "strength": log-odds of Bradley and Terry, "error": their standard error, "share": of its comparisons
    that it won}, the best first. An undecided pair counts half for each.
    """
    wins = [[0.0] * count for _ in range(count)]
    for judged in pairs:
        for (i, j), share in judged.items():
            wins[i][j] += 0.5 if share is None else share
            wins[j][i] += 0.5 if share is None else 1 - share
    strengths, covariance = statistics.bradley_terry(wins)
    best = sorted(range(count), key=lambda place: (-round(strengths[place], 9), place))
    ranking = [
        {
            "place": place,
            "strength": round(strengths[place], 4),
            "error": round(covariance[place][place] ** 0.5, 4),
            "share": round(sum(wins[place]) / (len(pairs) * (count - 1)), 4),
        }
        for place in best
    ]
    first, second = best[0], best[1]
    ahead = strengths[first] - strengths[second]
    variance = covariance[first][first] + covariance[second][second] - 2 * covariance[first][second]
    surely = ahead > 1e-6 and wins[first][second] > wins[second][first]
    return {
        "winner": first if surely else None,
        "ranking": ranking,
        "confidence": round(statistics.normal_cdf(ahead / variance**0.5), 4),
    }
