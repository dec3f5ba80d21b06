"""The forms in which runs and rows are written."""

from __future__ import annotations

import shutil
from typing import Any

import orjson

from mllm_pipe.errors import Usage
from mllm_pipe.tracing import table

FORMS = ("table", "tree", "json", "ndjson", "csv")
Rows = list[dict[str, Any]]


def of_sums(rows: Rows, key: str, form: str) -> str:
    """The lines of `ledger.by`."""
    if form == "table":
        from mllm_pipe.tracing.ledger import as_table

        return as_table(rows, key)
    return of_rows(rows, form)


def of_rows(rows: Rows, form: str) -> str:
    """Rows that have the same fields."""
    if form == "table":
        return table.of_rows(rows)
    if form == "csv":
        return table.csv(rows)
    return _json(rows, form)


def of_runs(runs: Rows, form: str, *, brief: bool) -> str:
    """Runs. brief: as a table, a line a run."""
    if form == "table":
        return table.of_runs(runs, brief=brief)
    if form == "tree":
        from mllm_pipe.tracing.waterfall import tree

        columns = shutil.get_terminal_size((100, 24)).columns
        return "\n".join(tree(run, columns) for run in runs) or "no runs\n"
    if form == "csv":
        parts = ("type", "usage", "stages", "findings", "handoffs")
        return table.csv([{name: value for name, value in run.items() if name not in parts}
                          | {"stages": len(run["stages"])} | {name: run["usage"].get(name)
                          for name in ("input_tokens", "output_tokens")} for run in runs])  # fmt: skip
    return _json(runs, form)


def _json(rows: Rows, form: str) -> str:
    if form == "json":
        return orjson.dumps(rows, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode()
    if form == "ndjson":
        return "".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE).decode() for row in rows)
    raise Usage(f"--format {form} is for runs; say table, json, ndjson or csv")
