"""The columns in which the index keeps calls, and the cells of one call.

Most calls are read many at once (mllm_pipe.tracing.typed); here is how one is read, whatever it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import inf
from typing import Any

from orjson import JSONDecodeError, dumps, loads

from mllm_pipe.envelope import Record
from mllm_pipe.tracing.ledger import PICODOLLARS, picodollars

Column = Sequence[Any]
USAGE = ("input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")
# What calls share: it is kept once.
KIND = ("op", "slot", "agent", "runtime", "model", "group", "status", "stage", "cost_source")
# Columns of calls, in the order in which the index has them.
NAMES = ("offset", "length", "run", "thread", "kind", "started_at", "duration_ms", "first_token_ms", *USAGE, "cost",
         "id", "input_id", "handed_id", "outputs", "attempts", "losses")  # fmt: skip
PLACE = {name: place for place, name in enumerate(NAMES)}
# What comes of using a span that is none.
NO_SPAN = (KeyError, IndexError, TypeError, AttributeError, ValueError, OverflowError)
# Numbers beyond are kept as REAL: the sum of such has less digits, where one of integers would end in an overflow.
MANY_TOKENS, DEAR = 1 << 40, 1000  # the latter in US dollars
_STAMPS = re.compile(r"(?:\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z\n)*", re.ASCII)
_OURS = b"0000-00-00T00:00:00.000Z\n"  # how nearly all times are written, with its digits as zeros
_ZEROS = bytes(48 if 48 <= byte <= 57 else byte for byte in range(256))


def cells_of(span: Record, *, sound: bool) -> dict[str, Any]:
    """What the index keeps of one call but its place and kind. One of NO_SPAN if it is not what it has to be.

    sound: it holds to the envelope, and is not asked again.
    """
    usage, cost, tries, losses = (span.get(name) for name in ("usage", "cost_usd", "attempts", "losses"))
    used = {name: None if usage is None else usage.get(name) for name in USAGE}
    cells = {name: span.get(name) for name in ("first_token_ms", "input_id", "handed_id")}
    cells |= {name: span[name] for name in ("thread", "id", "started_at", "duration_ms")}
    cells |= {"run": span.get("parent_run_id", "-"), "outputs": span.get("output_ids")}
    if sound:
        used = {name: one if one is None or one < MANY_TOKENS else float(one) for name, one in used.items()}
        cells["cost"] = cost if cost is None else _stored(cost)
    else:
        _refuse_unsound(cells, used, cost)
        cells["cost"] = cost if cost is None else round(cost * 1e12)
    cells["attempts"] = None if not tries or len(tries) == 1 and tries[0]["status"] == "ok" else dumps(tries).decode()
    return cells | used | {"losses": len(losses) if losses else None}


def _stored(cost: float) -> float:
    """A cost as the index keeps it: in picodollars, a large one as REAL."""
    return picodollars(cost) if cost * 1e12 < DEAR * PICODOLLARS else cost * 1e12


def kind_of(span: Record) -> tuple[Any, ...]:
    """The kind of a call, in the order of KIND."""
    return tuple(str(span[name]) if name == "stage" and span.get(name) is not None else span.get(name) for name in KIND)


def _refuse_unsound(cells: dict[str, Any], used: dict[str, Any], cost: Any) -> None:
    """ValueError or TypeError if cells do not hold what they have to."""
    outputs, took, first = cells["outputs"], cells["duration_ms"], cells["first_token_ms"]
    ids = [cells[name] for name in ("run", "thread", "id")]
    ids += [cells[name] for name in ("input_id", "handed_id") if cells[name] is not None]
    refuse_times([cells["started_at"]])
    "".join([*ids, *(outputs or ())])  # it refuses what is no text
    if (
        type(outputs) not in (list, type(None))
        or not all(_is_number(one, (int, float), inf) for one in (took, 0 if first is None else first))
        or not (cost is None or _is_number(cost, (int, float), DEAR))
        or not all(one is None or _is_number(one, (int,), MANY_TOKENS) for one in used.values())
    ):
        raise ValueError


def _is_number(value: Any, types: tuple[type, ...], limit: float) -> bool:
    """True if it is of these types, from 0 to below the limit."""
    return type(value) in types and 0 <= value < limit


def refuse_times(stamps: Column) -> None:
    """ValueError or TypeError if one of these is no time of the envelope."""
    text = "\n".join(stamps) + "\n"
    if text.encode().translate(_ZEROS) != _OURS * len(stamps) and not _STAMPS.fullmatch(text):
        raise ValueError


def known(column: Column) -> Column:
    """The values of a column that are not None."""
    missing = column.count(None)  # nearly always none is, or each
    return column if not missing else () if missing == len(column) else [one for one in column if one is not None]


def packed(column: list[Any]) -> bytes | None:
    """A column as it is kept; None if it has no values."""
    return dumps(column) if column[0] is not None or column.count(None) < len(column) else None


def unpacked(kept: bytes | None, count: int) -> list[Any]:
    """A column as it was. ValueError if it is damaged."""
    try:
        column = [None] * count if kept is None else loads(kept)
    except JSONDecodeError:
        column = None
    if type(column) is not list or len(column) != count:
        raise ValueError("a column of the index is damaged")
    return column
