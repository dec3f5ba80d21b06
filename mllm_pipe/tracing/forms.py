"""The forms in which runs and rows are written."""

from __future__ import annotations

import os
import shutil
from typing import Any

import orjson

from mllm_pipe.envelope import line_of
from mllm_pipe.errors import Usage
from mllm_pipe.lineage import traceparent
from mllm_pipe.runs import Fold
from mllm_pipe.tracing import table

FORMS = ("table", "tree", "json", "ndjson", "csv", "html", "otlp")
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


def of_runs(runs: Rows, form: str, fold: Fold, *, brief: bool = False, content: bool = False) -> str:
    """Runs, and what they were made of. brief: as a table, a line a run. content: as OTLP, with what was said."""
    if form == "table":
        return table.of_runs(runs, brief=brief)
    if form == "tree":
        from mllm_pipe.tracing.waterfall import tree

        columns = shutil.get_terminal_size((100, 24)).columns
        return "\n".join(tree(run, columns) for run in runs) or "no runs\n"
    if form == "html":
        from mllm_pipe.tracing.page import page

        return page(runs, fold)
    if form == "otlp":
        return _json(_traces(runs, fold, content), "ndjson")
    if form == "csv":
        parts = ("type", "usage", "stages", "findings", "handoffs")
        return table.csv([{name: value for name, value in run.items() if name not in parts}
                          | {"stages": len(run["stages"])} | {name: run["usage"].get(name)
                          for name in ("input_tokens", "output_tokens")} for run in runs])  # fmt: skip
    return _json(runs, form)


def of_records(runs: Rows, fold: Fold, redact: bool) -> str:
    """The records that the runs are made of, one a line."""
    from mllm_pipe.tracing import bundle

    return "".join(line_of(record).decode() for record in bundle.of_runs(runs, fold, redact=redact))


def sent(runs: Rows, fold: Fold, content: bool, url: str) -> str:
    """Send the runs to a collector by OTLP; what came of it, in words. A Failure if it did not take them."""
    from mllm_pipe.tracing.sender import send

    spans = send(_traces(runs, fold, content), url)
    return f"{spans} spans of {len(runs)} {'run' if len(runs) == 1 else 'runs'} sent"


def _traces(runs: Rows, fold: Fold, content: bool) -> Rows:
    """An ExportTraceServiceRequest for each run."""
    from mllm_pipe.tracing import otlp

    resource, parent = otlp.resource_of(dict(os.environ)), traceparent()
    return otlp.of_runs(runs, fold, resource, content=content, parent=parent)


def _json(rows: Rows, form: str) -> str:
    if form == "json":
        return orjson.dumps(rows, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode()
    if form == "ndjson":
        return "".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE).decode() for row in rows)
    raise Usage(f"--format {form} is for runs; say table, json, ndjson or csv")
