"""Runs as a table: of one run its stages, of several a line each; and rows of any kind as a table or as CSV."""

from __future__ import annotations

from typing import Any

import orjson

from mllm_pipe.tracing.words import cell, columns, money, time, tokens

Run = dict[str, Any]


def of_runs(runs: list[Run], *, brief: bool = False) -> str:
    """The runs, a line a stage and the total of each; brief: a line a run."""
    if not runs:
        return "no runs\n"
    return _list(runs) if brief else "\n".join(map(_stages, runs))


def _list(runs: list[Run]) -> str:
    rows = [("run", "started", "status", "group", "stages", "time", "in", "cached", "out", "cost")]
    rows += [(run["id"], run["started_at"] or "-", run["status"], run["group"] or "-", str(len(run["stages"])),
              time(run["duration_ms"]), *tokens(run["usage"]), money(run["cost_usd"], run["unpriced"]))
             for run in runs]  # fmt: skip
    return "\n".join(columns(rows, range(4, len(rows[0])))) + "\n"


def _stages(run: Run) -> str:
    head = cell(f"run {run['id']}  {run['status']}  {run['started_at'] or ''}") + "\n"
    heads = ("", "stage", "runtime", "model", "status", "time", "first", "in", "cached", "out", "cost")
    rows: list[tuple[str, ...]] = [heads]
    for number, stage in enumerate(run["stages"], 1):
        what = stage["op"] if stage.get("agent") in (None, "assistant") else f"{stage['op']} {stage['agent']}"
        rows.append((str(number), what, stage.get("runtime", "-"), stage.get("model") or "-", stage["status"],
                     time(stage["duration_ms"]), time(stage.get("first_token_ms")),
                     *tokens(stage.get("usage") or {}), money(stage.get("cost_usd"))))  # fmt: skip
    rows.append(("", "total", "", "", "", time(run["duration_ms"]), "", *tokens(run["usage"]),
                 money(run["cost_usd"], run["unpriced"])))  # fmt: skip
    waits = "".join(
        cell(f"   handoff  {edge['from']} -> {edge['to']}  {edge['message_id']}  waited {time(edge['wait_ms'])}") + "\n"
        for edge in run["handoffs"]
    )
    return head + "\n".join(columns(rows, range(5, len(heads)))) + "\n" + waits


def of_rows(rows: list[dict[str, Any]]) -> str:
    """Objects that have the same fields as a table; numbers stand to the right."""
    if not rows:
        return "nothing\n"
    right = [place for place, value in enumerate(rows[0].values()) if isinstance(value, int | float)]
    words = [[_word(value) for value in row.values()] for row in rows]
    return "\n".join(columns([list(rows[0]), *words], right)) + "\n"


def csv(rows: list[dict[str, Any]]) -> str:
    """Objects as CSV (RFC 4180): a line of names, then one an object; what is no plain value is JSON.

    A text that a spreadsheet would take for a formula gets an apostrophe before it.
    """
    if not rows:
        return ""
    return "".join(",".join(map(_field, line)) + "\r\n" for line in [list(rows[0]), *(row.values() for row in rows)])


def _field(value: Any) -> str:
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        value = "'" + value
    text = _word(value, "")
    return '"' + text.replace('"', '""') + '"' if any(one in text for one in ',"\r\n') else text


def _word(value: Any, nothing: str = "-") -> str:
    if value is None:
        return nothing
    return value if isinstance(value, str) else orjson.dumps(value).decode()
