"""Sums over the calls of many runs, one line a model, runtime, agent, slot, group, day or thread.

A percentile is the smallest duration that so many of the calls did not exceed (nearest rank), and durations are
counted with three significant digits, so that the sums of any number of calls fit into memory.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from decimal import Decimal
from itertools import accumulate
from math import ceil
from typing import Any

from mllm_pipe.envelope import Record
from mllm_pipe.runs import USAGE, count_of, outermost

KEYS = ("model", "runtime", "agent", "slot", "group", "day", "thread")
PICODOLLARS = 10**12  # costs are summed as whole numbers of these: no price has more digits


class Sum:
    """What the calls of one key come to."""

    __slots__ = ("calls", "failed", "unpriced", "cost", "usage", "durations", "firsts")

    def __init__(self) -> None:
        self.calls = self.failed = self.unpriced = self.cost = 0  # cost in picodollars
        self.usage: dict[str, int] = {}
        self.durations: Counter[float] = Counter()
        self.firsts: Counter[float] = Counter()

    def add(self, span: Record) -> None:
        """Count a call. It failed if it gave no whole answer, also where nobody knows."""
        self.calls += 1
        self.failed += span["status"] != "ok"
        cost = span.get("cost_usd")
        if cost is None:
            self.unpriced += 1
        else:
            self.cost += picodollars(cost)
        self.use((span.get("usage") or {}).items())
        self.durations[rounded(span["duration_ms"])] += 1
        if span.get("first_token_ms") is not None:
            self.firsts[rounded(span["first_token_ms"])] += 1

    def use(self, usage: Iterable[tuple[str, int | None]]) -> None:
        """Count tokens; of what is None nobody knows."""
        for name, tokens in usage:
            if tokens is not None and name in USAGE:
                self.usage[name] = self.usage.get(name, 0) + tokens

    def row(self, key: str | None) -> dict[str, Any]:
        """The line of a key. cost_usd is None if no call's cost is known, and a floor if `unpriced` is not 0."""
        known = self.unpriced < self.calls
        p50, p95 = percentiles(self.durations, 50, 95)
        first_p50, first_p95 = percentiles(self.firsts, 50, 95)
        return {
            "key": key,
            "calls": self.calls,
            "failed": self.failed,
            "usage": {name: count_of(self.usage[name]) for name in USAGE if name in self.usage},
            "cost_usd": float(Decimal(self.cost) / PICODOLLARS) if known else None,
            "unpriced": self.unpriced,
            "p50_ms": p50,
            "p95_ms": p95,
            "p50_first_token_ms": first_p50,
            "p95_first_token_ms": first_p95,
        }


def by(spans: list[Record], key: str) -> list[dict[str, Any]]:
    """A line for each value of the key among the spans; the dearest first, then those with the most calls."""
    sums: dict[str | None, Sum] = {}
    for span in spans:
        sums.setdefault(value_of(span, key), Sum()).add(span)
    return rows_of(sums, key)


def value_of(span: Record, key: str) -> str | None:
    """What a call is counted under: of a group in a group, the outer one."""
    if key == "day":
        return str(span["started_at"])[:10]
    return outermost(span["group"]) if key == "group" and "group" in span else span.get(key)


def rows_of(sums: dict[str | None, Sum], key: str) -> list[dict[str, Any]]:
    """The lines of sums by key, in the order of `by`; days stand by date."""
    rows = [found.row(value) for value, found in sums.items()]
    if key == "day":
        return sorted(rows, key=lambda row: row["key"])
    return sorted(rows, key=lambda row: (-(row["cost_usd"] or 0), -row["calls"], row["key"] or ""))


def picodollars(cost: float) -> int:
    """US dollars as a whole number of picodollars. Below $1000 the product of the floats is off by less than half of
    one; above, the digits that the float is written with count."""
    return round(cost * 1e12) if cost < 1000 else round(Decimal(repr(cost)) * PICODOLLARS)


def rounded(milliseconds: float) -> float:
    """A duration with three significant digits."""
    return float(f"{milliseconds:.3g}")


def digits(milliseconds: Sequence[float]) -> list[str]:
    """Such durations, each as `rounded` but still as text: of equal ones one alone has to become a number."""
    return ("%.3g " * len(milliseconds) % tuple(milliseconds)).split()


def percentiles(counts: Counter[float], *shares: int) -> list[float | None]:
    """For each share the smallest of the values counted that so many percent of them do not exceed; None if there are
    none."""
    values = sorted(counts)
    ranks = list(accumulate(counts[value] for value in values))
    return [values[bisect_left(ranks, ceil(ranks[-1] * share / 100))] if ranks else None for share in shares]


def as_table(rows: list[dict[str, Any]], key: str) -> str:
    """The lines for a person."""
    from mllm_pipe.tracing.words import columns, money, time, tokens

    if not rows:
        return "no calls\n"
    heads = (key, "calls", "failed", "in", "cached", "out", "p50", "p95", "first p50", "first p95", "cost")
    lines: list[tuple[str, ...]] = [heads]
    lines += [(row["key"] or "-", str(row["calls"]), str(row["failed"]), *tokens(row["usage"]),
               *(time(row[name]) for name in ("p50_ms", "p95_ms", "p50_first_token_ms", "p95_first_token_ms")),
               money(row["cost_usd"], row["unpriced"])) for row in rows]  # fmt: skip
    return "\n".join(columns(lines, range(1, len(heads)))) + "\n"
