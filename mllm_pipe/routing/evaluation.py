"""How good a router is on a log: by targets, or by what was gained where the strong one of two agents was asked.

APGR, CPT50 and CPT80 are those of RouteLLM (Ong et al. 2024, arXiv:2406.18665): prompts go to the strong agent in the
order of a score; PGR is the share of the gap between weak and strong that is won, APGR its mean over all shares of
strong calls, CPT(x) the least share of strong calls at which PGR is x. Equal scores count as in random order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

Report = dict[str, Any]


def of_targets(wanted: Sequence[str], found: Sequence[str | None]) -> Report:
    """{"accuracy", "targets": {name: {"precision", "recall", "count"}}, "confusion": {wanted: {found: count}}}.

    Precision is None for what was never chosen, recall for what was never wanted; found is "none" for no route.
    """
    pairs = Counter(zip(wanted, [one or "none" for one in found], strict=True))
    names = sorted({name for pair in pairs for name in pair})
    report: Report = {"accuracy": _share(sum([pairs[name, name] for name in names]), len(wanted)), "targets": {}}
    for name in names:
        right = pairs[name, name]
        chosen = sum([count for (_, one), count in pairs.items() if one == name])
        there = sum([count for (one, _), count in pairs.items() if one == name])
        report["targets"][name] = {"precision": _share(right, chosen), "recall": _share(right, there), "count": there}
    report["confusion"] = {
        one: {other: pairs[one, other] for other in names if pairs[one, other]}
        for one in names if any([pairs[one, other] for other in names])
    }  # fmt: skip
    return report


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def gained(scores: Sequence[float], weak: Sequence[float], strong: Sequence[float]) -> list[float]:
    """PGR after each prompt that goes to the strong agent, the highest scores first, from none to all of them.

    Within equal scores it grows by their mean: the expectation of a random order.
    """
    gap = sum(strong) - sum(weak)
    order = sorted(range(len(scores)), key=lambda place: -scores[place])
    curve, won, start = [0.0], 0.0, 0
    while start < len(order):
        end = start
        while end < len(order) and scores[order[end]] == scores[order[start]]:
            end += 1
        step = sum([strong[place] - weak[place] for place in order[start:end]]) / (end - start)
        for _ in range(start, end):
            won += step
            curve.append(won / gap)
        start = end
    return curve


def of_scores(scores: Sequence[float], weak: Sequence[float], strong: Sequence[float]) -> Report:
    """{"apgr", "cpt50", "cpt80"} of a score; the shares are None where they are never reached."""
    curve = gained(scores, weak, strong)
    apgr = sum([(one + other) / 2 for one, other in zip(curve, curve[1:], strict=False)]) / len(scores)

    def cpt(wanted: float) -> float | None:
        place = next((place for place, won in enumerate(curve) if won >= wanted), None)
        return None if place is None else round(place / len(scores), 4)

    return {"apgr": round(apgr, 4), "cpt50": cpt(0.5), "cpt80": cpt(0.8)}


def of_order(texts: Sequence[str], scores: Sequence[float], weak: Sequence[float], strong: Sequence[float]) -> Report:
    """{"scores": {name: as of_scores}} of these scores, and of what any router should be measured beside: random order,
    longer prompts first, and the oracle. {} where the strong one is no better: there is no gap to win a share of."""
    if sum(strong) <= sum(weak):
        return {}
    orders = {
        "this": scores,
        "random": [0.0] * len(texts),
        "length": [float(len(text)) for text in texts],
        "oracle": [one - other for one, other in zip(strong, weak, strict=True)],
    }
    return {"scores": {name: of_scores(order, weak, strong) for name, order in orders.items()}}


def of_outcomes(to_strong: Sequence[bool], weak: Sequence[float], strong: Sequence[float]) -> Report:
    """{"accuracy", "strong_share", "pgr", "weak_accuracy", "strong_accuracy", "best_single"} of what was decided."""
    count = len(weak)
    means = {"weak": sum(weak) / count, "strong": sum(strong) / count}
    right = sum([(s if to else w) for to, w, s in zip(to_strong, weak, strong, strict=True)]) / count
    gap = means["strong"] - means["weak"]
    return {
        "accuracy": round(right, 4),
        "strong_share": round(sum(to_strong) / count, 4),
        "pgr": round((right - means["weak"]) / gap, 4) if gap > 0 else None,
        "weak_accuracy": round(means["weak"], 4),
        "strong_accuracy": round(means["strong"], 4),
        "best_single": max(means, key=means.__getitem__),
    }


def calibration(probabilities: Sequence[float], labels: Sequence[float], bins: int = 10) -> float:
    """The expected calibration error: the mean distance, by bins of equal size, of what was said and what was."""
    order = sorted(range(len(labels)), key=probabilities.__getitem__)
    error = 0.0
    for one in range(bins):
        places = order[one * len(order) // bins : (one + 1) * len(order) // bins]
        error += abs(sum([probabilities[place] - labels[place] for place in places]))
    return round(error / len(labels), 4)
