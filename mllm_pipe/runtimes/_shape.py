"""What vendors and programs say is taken at its word by its readers, and held here against the contract of a result.

What is shaped otherwise is "malformed": the call fails, and what had come is kept. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mllm_pipe.envelope import DEEPEST, depth, holds
from mllm_pipe.errors import CallFailed

Json = dict[str, Any]

ODD = "the answer has an unknown shape"
ERRORS = (AttributeError, IndexError, KeyError, TypeError, ValueError, RecursionError)  # of a reader that trusts JSON
_LONGEST = 1 << 20  # characters of an answer that nothing could be made of


def trusting(step: Callable[..., Any], *arguments: Any) -> Any:
    """Runs a reader. CallFailed("malformed") for what is shaped otherwise than it knows."""
    try:
        return step(*arguments)
    except ERRORS:
        raise CallFailed("malformed", ODD) from None


def unread(text: str) -> Json:
    """The part for an answer, or a piece of one, that no reader could make anything of: its text, up to 1 MiB."""
    return {"type": "text", "text": text[:_LONGEST]}


def kept(value: Any) -> Json:
    """The part for a JSON value that no reader could make anything of."""
    if depth(value) <= DEEPEST:
        return {"type": "opaque", "raw": value}
    return unread(_deep(value))


def _deep(value: Any) -> str:
    """JSON of a value that is nested too deeply for a record, and for every writer of JSON: no recursion."""
    import json

    out: list[str] = []
    left: list[Any] = [value]
    while left:
        one = left.pop()
        if type(one) is tuple:
            out.append(one[0])
        elif type(one) is dict:
            left.append(("}",))
            for number, (name, inner) in reversed(list(enumerate(one.items()))):
                left += [inner, (f"{',' * bool(number)}{json.dumps(str(name))}:",)]
            left.append(("{",))
        elif type(one) is list:
            left.append(("]",))
            for number, inner in reversed(list(enumerate(one))):
                left += [inner, ("," * bool(number),)]
            left.append(("[",))
        else:
            out.append(json.dumps(one))
    return "".join(out)


def sound(result: Json) -> tuple[Json, str]:
    """(result, why): as it was with "", or without what does not hold to mllm_pipe.runtimes, and what that is.

    A part that is none of the envelope is kept as an opaque one. The envelope's schema says what holds.
    """
    if _holds(result):
        return result, ""
    mended: Json = dict(result)
    odd: list[str] = []
    for name in ("finish", "model", "provider", "usage", "cost_usd", "cost_source", "iterations"):
        if name in result and not _holds({name: result[name]}):
            odd.append(name)
            mended[name] = "error" if name == "finish" else None
    if isinstance(result.get("origin"), dict):
        fine = {name: value for name, value in result["origin"].items() if _holds({"origin": {name: value}})}
        odd += [name for name in result["origin"] if name not in fine]
        mended["origin"] = fine
    mended["parts"] = [part if _holds({"parts": [part]}) else kept(part) for part in result["parts"]]
    odd += [] if mended["parts"] == result["parts"] else ["content"]
    return mended, f"{ODD}: {', '.join(odd)}"


def _holds(result: Json) -> bool:
    """True if what a message and a span would say of it is of the envelope."""
    same = {"v": 1, "thread": "t", "id": "i"}
    parts = list(result.get("parts", ()))
    answer = {"type": "message", "role": "assistant", "content": parts, "finish": result.get("finish", "stop")}
    answer["author"] = {name: result.get(name) for name in ("model", "provider")}
    answer |= {"origin": result["origin"]} if result.get("origin") is not None else {}
    span = {"type": "span", "op": "dispatch", "status": "ok", "started_at": "2026-01-01T00:00:00Z", "duration_ms": 0}
    told = {name: result.get(name) for name in ("model", "usage", "cost_usd", "cost_source")}
    spans = [span | told, *(span | step for step in result.get("iterations") or ())]
    return all(depth(part) <= DEEPEST for part in parts) and all(holds(same | one) for one in (answer, *spans))


def heard(call: Callable[..., Json], *arguments: Any) -> Json:
    """The result of a runtime's call. What it has that is none of a result fails it as "malformed", and is kept."""
    try:
        result, why = sound(call(*arguments))
    except CallFailed as failed:
        if failed.result:
            failed.result, _ = sound(failed.result)
        raise
    if why:
        raise CallFailed("malformed", why, billed="yes", result=result | {"finish": "error"})
    return result


# -- the events of programs -------------------------------------------------------------------------------------------


def said(events: Sequence[Json], partial: Callable[[Sequence[Json]], Json], answer: Callable[[Json], Json]) -> Json:
    """answer(partial(events)): the result of a run. CallFailed("malformed") for events of a shape that neither knows,
    with what had come up to there."""
    try:
        return answer(partial(events))
    except ERRORS:
        result = so_far(events, partial)
        raise CallFailed("malformed", ODD, result=result if result["parts"] or result["usage"] else None) from None


def so_far(events: Sequence[Json], partial: Callable[[Sequence[Json]], Json]) -> Json:
    """partial(events), or where one of them has a shape that it does not know, of those before it; that one is kept."""
    try:
        return partial(events)
    except ERRORS:
        known, odd = 0, len(events)  # partial takes so many, but not so many
        while odd - known > 1:
            middle = (known + odd) // 2
            try:
                partial(events[:middle])
                known = middle
            except ERRORS:
                odd = middle
    result = partial(events[:known])
    return result | {"parts": [*result["parts"], kept(events[known])]}
