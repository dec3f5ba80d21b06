"""Runs, folded from the spans of a stream: what ran, how long, for how much, and where it was handed over.

Money is summed over spans by id, once, in exact decimals; a span without a known cost makes the sum a floor, and
`unpriced` counts them.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from mllm_pipe.envelope import Record, seconds_of, timestamp

USAGE = ("input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")
_WORST = {"ok": 0, "no": 1, "unknown": 2, "error": 3}


class Fold:
    """Takes records as they come, keeps of them what runs are made of, and gives the runs."""

    def __init__(self) -> None:
        self.spans: dict[tuple[str, str], Record] = {}  # by (thread, id)
        self.messages: dict[tuple[str, str], tuple[str, float | None, str | None]] = {}  # (who, when, reply_to)
        self.no: set[str] = set()  # runs with a negative verdict, or none where one was asked for
        self.failed: set[str] = set()  # runs with a thread that could not go on

    def take(self, record: Record) -> None:
        """Use a record: spans, messages and verdicts count."""
        kind, thread = record["type"], record["thread"]
        if kind == "span":
            self.spans.setdefault((thread, record["id"]), record)
        elif kind == "message":
            author = record.get("author", {})
            who = author.get("runtime") or author.get("agent") or record["role"]
            at = seconds_of(record["at"]) if "at" in record else None
            self.messages.setdefault((thread, record["id"]), (who, at, record.get("reply_to")))
        elif kind == "verdict" and record["pass"] is not True and "parent_run_id" in record:
            self.no.add(record["parent_run_id"])
        elif kind == "error" and "parent_run_id" in record:
            self.failed.add(record["parent_run_id"])

    def runs(self, wanted: set[str] | None = None) -> list[dict[str, Any]]:
        """One object for each run (of those wanted), the oldest first."""
        by_run: dict[str, list[Record]] = {}
        for span in self.spans.values():
            by_run.setdefault(span.get("parent_run_id", "-"), []).append(span)
        if wanted is not None:
            for ident in wanted & (self.failed | self.no):  # a run in which nothing could be sent is a run
                by_run.setdefault(ident, [])
            by_run = {ident: spans for ident, spans in by_run.items() if ident in wanted}
        runs = [self._run(ident, sorted(spans, key=_started)) for ident, spans in by_run.items()]
        return sorted(runs, key=lambda run: run["started_at"] or "")

    def _run(self, ident: str, spans: list[Record]) -> dict[str, Any]:
        stages = [_stage(span) for span in spans]
        start = min(map(_started, spans), default=0.0)
        end = max(map(_ended, spans), default=0.0)
        statuses = [span["status"] for span in spans]
        statuses += ["no"] * (ident in self.no) + ["error"] * (ident in self.failed)
        return {
            "type": "run",
            "id": ident,
            "group": next((span["group"] for span in spans if "group" in span), None),
            "status": max(statuses, key=_WORST.__getitem__, default="ok"),
            "started_at": timestamp(start) if spans else None,
            "duration_ms": round((end - start) * 1000, 3),
            "usage": usage_of(spans),
            "cost_usd": cost_of(spans),
            "unpriced": sum(span.get("cost_usd") is None for span in spans),
            "stages": stages,
            "handoffs": self._handoffs(spans),
        }

    def _handoffs(self, spans: list[Record]) -> list[dict[str, Any]]:
        """Every edge: the newest answer that a span worked on, else the question; its maker, and how long it waited."""
        makers = {(s["thread"], made): s for s in self.spans.values() for made in s.get("output_ids", [])}
        edges = []
        for span in spans:
            if "input_id" not in span:
                continue
            thread, message = span["thread"], span["input_id"]
            above: str | None = message
            while above and (thread, above) not in makers:
                above = self.messages.get((thread, above), ("", None, None))[2]
            maker = makers.get((thread, above)) if above else None
            who, at, _ = self.messages.get((thread, message), ("user", None, None))
            ready = _ended(maker) if maker else at
            edge = {"from": _label(maker) if maker else who, "to": _label(span), "thread": thread}
            edge["message_id"] = above or message
            edge["wait_ms"] = None if ready is None else max(0.0, round((_started(span) - ready) * 1000, 3))
            edges.append(edge)
        return edges


def usage_of(spans: list[Record]) -> dict[str, int]:
    """The sums of what is known, by kind of token."""
    known = [span["usage"] for span in spans if span.get("usage")]
    return {name: sum(usage.get(name, 0) for usage in known) for name in USAGE if any(name in usage for usage in known)}


def cost_of(spans: list[Record]) -> float | None:
    """The exact sum of the known costs; None if none is known."""
    known = [Decimal(repr(span["cost_usd"])) for span in spans if span.get("cost_usd") is not None]
    return float(sum(known, Decimal())) if known else None


def _stage(span: Record) -> dict[str, Any]:
    names = ("op", "slot", "agent", "runtime", "model", "status", "started_at", "duration_ms", "first_token_ms",
             "usage", "cost_usd", "stage")  # fmt: skip
    stage = {"run_id": span["id"], "thread": span["thread"]}
    stage |= {name: span[name] for name in names if name in span}
    losses = span.get("losses")
    if losses:
        stage["losses"] = len(losses)
    return stage


def _label(span: Record) -> str:
    agent = span.get("agent")
    runtime = str(span.get("runtime", span["op"]))
    return f"{agent} ({runtime})" if agent and agent != "assistant" else runtime


def _started(span: Record) -> float:
    return seconds_of(span["started_at"]) or 0.0


def _ended(span: Record) -> float:
    return _started(span) + float(span["duration_ms"]) / 1000


# -- for a person


def table(runs: list[dict[str, Any]]) -> str:
    """The runs as a table: a line a stage, then the total."""
    if not runs:
        return "no runs\n"
    return "\n".join(_table_of(run) for run in runs)


def _table_of(run: dict[str, Any]) -> str:
    head = f"run {run['id']}  {run['status']}  {run['started_at'] or ''}\n"
    heads = ("", "stage", "runtime", "model", "status", "time", "first", "in", "cached", "out", "cost")
    rows: list[tuple[str, ...]] = [heads]
    for number, stage in enumerate(run["stages"], 1):
        what = stage["op"] if stage.get("agent") in (None, "assistant") else f"{stage['op']} {stage['agent']}"
        rows.append(
            (str(number), what, stage.get("runtime", "-"), stage.get("model") or "-", stage["status"],
             _time(stage["duration_ms"]), _time(stage.get("first_token_ms")), *_tokens(stage.get("usage") or {}),
             _money(stage.get("cost_usd"), 0))
        )  # fmt: skip
    rows.append(("", "total", "", "", "", _time(run["duration_ms"]), "", *_tokens(run["usage"]),
                 _money(run["cost_usd"], run["unpriced"])))  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(_aligned(row, widths)).rstrip() for row in rows]
    waits = "".join(
        f"   handoff  {edge['from']} -> {edge['to']}  {edge['message_id']}  waited {_time(edge['wait_ms'])}\n"
        for edge in run["handoffs"]
    )
    return head + "\n".join(lines) + "\n" + waits


def _aligned(row: tuple[str, ...], widths: list[int]) -> list[str]:
    cells = zip(row, widths, strict=True)
    return [cell.rjust(width) if column > 4 else cell.ljust(width) for column, (cell, width) in enumerate(cells)]


def _time(milliseconds: float | None) -> str:
    if milliseconds is None:
        return "-"
    return f"{milliseconds / 1000:.2f}s" if milliseconds >= 1000 else f"{milliseconds:.0f}ms"


def _tokens(usage: dict[str, int]) -> list[str]:
    """Of the prompt, of it from a cache, of the answer."""
    return [str(usage.get(name, "-")) for name in ("input_tokens", "cache_read_tokens", "output_tokens")]


def _money(cost: float | None, unpriced: int) -> str:
    if cost is None:
        return "unknown"
    return f"${cost:.6f}" + (f" + {unpriced} unpriced" if unpriced else "")
