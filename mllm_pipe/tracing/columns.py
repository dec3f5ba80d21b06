"""The spans of many calls as columns, which are what the index keeps.

What holds for a column is asked of it once: a look at each value costs too much.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import chain
from math import inf
from typing import Any

from orjson import JSONDecodeError, dumps, loads

from mllm_pipe.envelope import Record
from mllm_pipe.tracing.ledger import PICODOLLARS, picodollars

Column = Sequence[Any]
USAGE = ("input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")
# What calls share: it is kept once.
KIND = ("op", "slot", "agent", "runtime", "model", "group", "status", "stage", "cost_source")
_STAGE = KIND.index("stage")
# Columns of calls, in the order in which the index has them.
NAMES = ("offset", "length", "run", "thread", "kind", "started_at", "duration_ms", "first_token_ms", *USAGE, "cost",
         "id", "input_id", "handed_id", "outputs", "attempts", "losses")  # fmt: skip
PLACE = {name: place for place, name in enumerate(NAMES)}
# What comes of using a span that is none.
NO_SPAN = (KeyError, IndexError, TypeError, AttributeError, ValueError, OverflowError)
# Numbers beyond are kept as REAL: the sum of such has less digits, where one of integers would end in an overflow.
_TOKENS, _COST = 1 << 40, 1000 * PICODOLLARS
_STAMPS = re.compile(r"(?:\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z\n)*", re.ASCII)
_OURS = b"0000-00-00T00:00:00.000Z\n"  # how nearly all times are written, with its digits as zeros
_NONE = {type(None)}
_MISSING = {"parent_run_id": "-"}  # what is meant where a field is missing, if not None
_ZEROS = bytes(48 if 48 <= byte <= 57 else byte for byte in range(256))


def fields_of(spans: list[Record]) -> tuple[list[int] | None, dict[str, Column]]:
    """A column for each field that one of the spans has; before them which span's value stands first, second and so on,
    None if they are as they were. Spans that have the same fields are taken together, which is the least work."""
    names = list(map(tuple, spans))
    if names.count(names[0]) == len(names):
        return None, _transposed(spans)
    alike: dict[tuple[str, ...], list[int]] = {}
    for number, its in enumerate(names):
        alike.setdefault(its, []).append(number)
    parts = [(len(numbers), _transposed([spans[number] for number in numbers])) for numbers in alike.values()]
    return list(chain(*alike.values())), {
        name: list(chain(*(part.get(name) or (_MISSING.get(name),) * count for count, part in parts)))
        for name in {name for _, part in parts for name in part}
    }


def _transposed(alike: Sequence[Record]) -> dict[str, Column]:
    return dict(zip(alike[0], zip(*map(dict.values, alike), strict=True), strict=True))


def _tokens_of(usages: Column) -> list[Column]:
    """A column for each of the tokens."""
    nothing = (None,) * len(usages)
    names = [usage and tuple(usage) for usage in usages]
    if names[0] and names.count(names[0]) == len(names):
        columns = _transposed(usages)
        return [columns.get(name, nothing) for name in USAGE]
    return [[usage.get(name) if usage is not None else None for usage in usages] for name in USAGE]


def columns_of(found: dict[str, Column], kinds: Callable[[list[Any]], list[int]], *, sound: bool) -> list[Column]:
    """The columns of calls but their places: from `run` on. ValueError if they are not what they have to be.

    kinds: gives the number of each kind. sound: each span holds to the envelope, and is not asked again.
    """
    nothing = (None,) * len(found["id"])
    runs = found.get("parent_run_id") or (_MISSING["parent_run_id"],) * len(nothing)
    used, costs = _tokens_of(found.get("usage", nothing)), found.get("cost_usd", nothing)
    if sound:
        used = [[one if one is None or one < _TOKENS else float(one) for one in column] for column in used]
        costs = [cost if cost is None else _stored(cost) for cost in costs]
    else:
        _refuse_unsound(found, runs, used, costs)
        costs = [cost if cost is None else round(cost * 1e12) for cost in costs]
    what = [found.get(name, nothing) for name in KIND]
    if "stage" in found:
        what[_STAGE] = [stage if stage is None else str(stage) for stage in found["stage"]]
    return [
        runs, found["thread"], kinds(list(zip(*what, strict=True))), found["started_at"],
        found["duration_ms"], found.get("first_token_ms", nothing), *used, costs,
        found["id"], found.get("input_id", nothing), found.get("handed_id", nothing), found.get("output_ids", nothing),
        [None if not tries or len(tries) == 1 and tries[0]["status"] == "ok" else dumps(tries).decode()
         for tries in found["attempts"]] if "attempts" in found else nothing,
        [len(losses) if losses else None for losses in found["losses"]] if "losses" in found else nothing,
    ]  # fmt: skip


def _refuse_unsound(found: dict[str, Column], runs: Column, used: list[Column], costs: Column) -> None:
    """ValueError or TypeError if columns do not hold what they have to."""
    began, outputs = found["started_at"], known(found.get("output_ids", ()))
    ids = [known(found[name]) for name in ("input_id", "handed_id") if name in found]
    "".join(chain(runs, found["thread"], found["id"], *ids, *outputs))  # it refuses what is no text
    stamps = "\n".join(began) + "\n"
    if (
        (stamps.encode().translate(_ZEROS) != _OURS * len(began) and not _STAMPS.fullmatch(stamps))
        or not set(map(type, outputs)) <= {list}
        or None in found["duration_ms"]
        or not _are_numbers(found["duration_ms"], {int, float}, inf)
        or not _are_numbers(found.get("first_token_ms", ()), {int, float}, inf)
        or not _are_numbers(costs, {int, float}, _COST / PICODOLLARS)
        or not all(_are_numbers(column, {int}, _TOKENS) for column in used)
    ):  # fmt: skip
        raise ValueError


def _are_numbers(column: Column, types: set[type], limit: float) -> bool:
    """True if what is not None is of these types, from 0 to below the limit."""
    found = set(map(type, column))
    if found >= _NONE:
        found -= _NONE
        column = known(column) if found else ()
    return found <= types and (not column or 0 <= min(column) <= max(column) < limit)


def known(column: Column) -> list[Any]:
    """The values of a column that are not None."""
    return [value for value in column if value is not None]


def _stored(cost: float) -> float:
    """A cost as the index keeps it: in picodollars, a large one as REAL."""
    return picodollars(cost) if cost * 1e12 < _COST else cost * 1e12


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
