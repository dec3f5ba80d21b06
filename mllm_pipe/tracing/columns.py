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
_STAGE = KIND.index("stage")
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
_NUMBERS = (int, float)
_ZEROS = bytes(48 if 48 <= byte <= 57 else byte for byte in range(256))


def cells_of(span: Record, *, sound: bool) -> list[Any]:
    """What the index keeps of one call, in the order of NAMES from `run` on; instead of its kind's number the kind, in
    the order of KIND. One of NO_SPAN if it is not what it has to be.

    sound: it holds to the envelope, and is not asked again.
    """
    usage, cost, tries, losses, outputs = map(span.get, ("usage", "cost_usd", "attempts", "losses", "output_ids"))
    used = [None] * len(USAGE) if usage is None else [usage.get(name) for name in USAGE]
    first, began, took = span.get("first_token_ms"), span["started_at"], span["duration_ms"]
    ids = [span.get("parent_run_id", "-"), span["thread"], span["id"], span.get("input_id"), span.get("handed_id")]
    if not sound:
        refuse_times([began])
        "".join([*ids[:3], *known(ids[3:]), *(outputs or ())])  # it refuses what is no text
        if not (
            type(outputs) in (list, type(None))
            and type(took) in _NUMBERS and 0 <= took < inf
            and (first is None or type(first) in _NUMBERS and 0 <= first < inf)
            and (cost is None or type(cost) in _NUMBERS and 0 <= cost < DEAR)
            and all(type(tokens) is int and 0 <= tokens < MANY_TOKENS for tokens in known(used))
        ):  # fmt: skip
            raise ValueError
    kind = tuple(map(span.get, KIND))
    if kind[_STAGE] is not None:
        kind = (*kind[:_STAGE], str(kind[_STAGE]), *kind[_STAGE + 1 :])
    return [
        *ids[:2], kind, began, took, first,
        *(tokens if tokens is None or tokens < MANY_TOKENS else float(tokens) for tokens in used),
        cost if cost is None else _stored(cost), *ids[2:], outputs,
        None if not tries or len(tries) == 1 and tries[0]["status"] == "ok" else dumps(tries).decode(),
        len(losses) if losses else None,
    ]  # fmt: skip


def _stored(cost: float) -> float:
    """A cost as the index keeps it: in picodollars, a large one as REAL."""
    return picodollars(cost) if cost * 1e12 < DEAR * PICODOLLARS else cost * 1e12


def refuse_times(stamps: Column) -> None:
    """ValueError or TypeError if one of these is no time of the envelope."""
    text = "\n".join(stamps) + "\n"
    if text.encode().translate(_ZEROS) != _OURS * len(stamps) and not _STAMPS.fullmatch(text):
        raise ValueError


def known(column: Column) -> Column:
    """The values of a column that are not None."""
    missing = column.count(None)  # nearly always none is, or each
    return column if not missing else () if missing == len(column) else [one for one in column if one is not None]


def unpacked(kept: bytes | None, count: int) -> list[Any]:
    """A column as it was. ValueError if it is damaged."""
    try:
        column = [None] * count if kept is None else loads(kept)
    except JSONDecodeError:
        column = None
    if type(column) is not list or len(column) != count:
        raise ValueError("a column of the index is damaged")
    return column
