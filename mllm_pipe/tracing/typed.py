"""Spans of the journal, decoded as what they have to be: most of them, by the block.

Every field that the envelope names is named here, and a span that has another one, or other types, is refused: what is
not refused was looked at wholly, as orjson would. Each refused one is read by itself (mllm_pipe.tracing.columns).
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct
from msgspec.json import Decoder
from msgspec.structs import astuple
from orjson import dumps, loads

from mllm_pipe.tracing.columns import DEAR, MANY_TOKENS, Column, refuse_times

_EXACT = 1 << 53  # orjson makes a float of a whole number beyond 64 bits
_Tokens = Annotated[int, Meta(ge=0, lt=MANY_TOKENS)] | None
_Cost = Annotated[int, Meta(ge=0, lt=DEAR)] | Annotated[float, Meta(ge=0, lt=DEAR)] | None
_Time = Annotated[int, Meta(ge=0, lt=_EXACT)] | Annotated[float, Meta(ge=0)]
_Status = Literal["ok", "error", "unknown"]


class Usage(Struct, gc=False, forbid_unknown_fields=True):
    """Tokens of a call."""

    input_tokens: _Tokens = None
    cache_read_tokens: _Tokens = None
    cache_write_tokens: _Tokens = None
    output_tokens: _Tokens = None
    reasoning_tokens: _Tokens = None
    cache_write_1h_tokens: _Tokens = None


class Attempt(Struct, gc=False, forbid_unknown_fields=True):
    """A try of a call."""

    runtime: str
    status: _Status
    model: str | None = None
    code: str | None = None
    wait_ms: float | None = None
    duration_ms: float | None = None


class Span(Struct, gc=False, kw_only=True, forbid_unknown_fields=True):
    """A call. Fields stand in the order in which they are written: so they are found soonest."""

    v: Literal[1]
    type: Literal["span"]
    thread: str
    id: str
    at: str | None = None
    op: Literal["dispatch", "route", "judge", "summarize", "tool"]
    slot: str | None = None
    agent: str | None = None
    parent_run_id: str = "-"
    input_id: str | None = None
    handed_id: str | None = None
    route_id: str | None = None
    system: str | None = None
    traceparent: str | None = None
    group: str | None = None
    stage: Annotated[int, Meta(ge=-_EXACT, lt=_EXACT)] | str | None = None
    runtime: str | None = None
    model: str | None = None
    started_at: str
    duration_ms: _Time
    first_token_ms: _Time | None = None
    status: _Status
    usage: Usage | None = None
    cost_usd: _Cost = None
    cost_source: str | None = None
    saved_usd: float | None = None
    cached_run_id: str | None = None
    losses: list[Any] | None = None
    attempts: list[Attempt] | None = None
    output_ids: list[str] | None = None


_decoded = Decoder(Span).decode
_NO_USAGE = Usage()


def is_usual(text: bytes) -> bool:
    """True if a text is a span of these types."""
    try:
        _decoded(text)
    except (ValueError, RecursionError):
        return False
    return True


def columns_of(texts: list[bytes], kinds: Callable[[list[Column]], list[int]]) -> tuple[list[Column], Column]:
    """The columns of these spans but their places, from `run` on; after them the op of each. ValueError or
    RecursionError if one of the texts is not such a span.

    kinds: gives the number of each kind, of columns in the order of KIND.
    """
    (_, _, threads, ids, _, ops, slots, agents, runs, inputs, handed, _, _, _, groups, stages, runtimes, models, began,
     durations, firsts, statuses, usages, costs, sources, _, _, losses, tries, outputs) = zip(
        *map(astuple, map(_decoded, texts)), strict=True)  # fmt: skip
    refuse_times(began)
    if not _is_empty(stages):
        stages = tuple(stage if stage is None else str(stage) for stage in stages)
    *used, _ = zip(*map(astuple, [usage or _NO_USAGE for usage in usages]), strict=True)
    kept = [None if not made or len(made) == 1 and made[0].status == "ok" else _attempts_of(texts[number])
            for number, made in enumerate(tries)]  # fmt: skip
    return [
        runs, threads, kinds([ops, slots, agents, runtimes, models, groups, statuses, stages, sources]),
        began, durations, firsts, *used, [cost if cost is None else round(cost * 1e12) for cost in costs],
        ids, inputs, handed, outputs, kept,
        losses if _is_empty(losses) else [len(lost) if lost else None for lost in losses],
    ], ops  # fmt: skip


def _attempts_of(text: bytes) -> str:
    return dumps(loads(text)["attempts"]).decode()


def _is_empty(column: Column) -> bool:
    """True if no value of a column is known."""
    return column.count(None) == len(column)
