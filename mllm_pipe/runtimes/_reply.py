"""What the readers of all APIs share: when an answer is one, what it used, and the call around it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Any

import orjson

from mllm_pipe.errors import CallFailed
from mllm_pipe.runtimes import _faults, _http, _shape, _sse
from mllm_pipe.runtimes._endpoint import endpoint
from mllm_pipe.runtimes._turns import digest_id

Json = dict[str, Any]


def nobody(_: str) -> None:
    """Hears the text of an answer that nobody looks on at."""


def count(value: Any) -> int | None:
    """A number of tokens, or None: some servers send null, floats, or less than nothing."""
    return value if type(value) is int and value >= 0 else None


def used(**counts: int | None) -> Json | None:
    """The usage of a result: what is known of it, None if nothing is."""
    return {name: value for name, value in counts.items() if value is not None} or None


def made_id(response_id: Any, number: int) -> str:
    """An id for a call that came without one: the same for the same answer, whoever reads it."""
    return "c_" + digest_id(f"{response_id}/{number}")


def arguments(text: str) -> Json:
    """{"arguments": object} of a call's argument text, with `arguments_raw` if that is no JSON object; "" is {}."""
    if not text.strip():
        return {"arguments": {}}
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        value = None
    return {"arguments": value} if isinstance(value, dict) else {"arguments": {}, "arguments_raw": text}


def read(
    values: Iterable[Any],
    fold: Callable[[Json, Json], bool],
    close: Callable[[Json], Json],
    finishes: dict[str, str],
    *,
    names: dict[str, str] | None = None,
) -> Json:
    """The result that an answer's JSON values make.

    fold(state, value) takes in a value, and is True for the last one. close(state) gives {"parts", "raw_finish",
    "model", "usage", "response_id"} of what has come, `finish` where the API has no word for it, and `service_tier`,
    `factors` and `iterations` where it says them.
    `finishes`: the API's words for the finish reasons. An answer is whole if it has a finish reason, whatever the
    connection did after it. CallFailed with the result so far: "cut" (no finish reason), "malformed" (an unknown
    one), "empty", or what an error among the values says.
    """
    state: Json = {}
    failure: CallFailed | None = None
    unread: list[Json] = []  # parts: what no reader could make anything of
    try:
        for value in values:
            if not isinstance(value, dict):
                unread += [_shape.kept(value)] * bool(value)
                raise CallFailed("malformed", "the answer is no JSON object")
            if _faults.is_error(value):
                raise _faults.of_event(value, begun=bool(_closed(close, state)["parts"]))
            try:
                if fold(state, value):
                    break
            except _shape.ERRORS:
                unread.append(_shape.kept(value))
                raise CallFailed("malformed", _shape.ODD) from None
    except CallFailed as failed:
        failure = failed
        unread += failed.result["parts"] if failed.result else []
    closed = _closed(close, state)
    raw_finish = closed["raw_finish"]
    known = raw_finish is None or isinstance(raw_finish, str)
    finish = closed.get("finish") or (finishes.get(raw_finish or "", "error") if known else "error")
    result = {
        "parts": closed["parts"],
        "finish": finish,
        "model": closed["model"],
        "provider": None,
        "usage": closed["usage"],
        "cost_usd": closed.get("cost_usd"),
        "cost_source": "provider" if closed.get("cost_usd") is not None else None,
        "origin": {"response_id": _text_or_none(closed["response_id"]), "raw_finish": raw_finish},
        "losses": [],
    }
    if isinstance(closed.get("service_tier"), str):
        result["service_tier"] = closed["service_tier"]
    if factors := [word for word in closed.get("factors", ()) if isinstance(word, str)]:
        result["factors"] = factors
    if closed.get("iterations"):
        result["iterations"] = closed["iterations"]
    odd = ""
    if finish == "error":
        result, odd = _shape.sound(result)  # where there is a finish, _shape.heard asks whether all of it is sound
    try:
        result["parts"] = [_named(part, names or {}) for part in result["parts"]]
        silent = not any(map(_says_something, result["parts"]))
    except _shape.ERRORS:
        silent, (result, odd) = False, _shape.sound(result)
    if raw_finish is None:
        failure = failure or _odd(closed) or CallFailed("cut", "the answer ended without a finish reason")
    elif odd:
        failure = CallFailed("malformed", odd, billed="yes")
    elif finish == "error":
        failure = CallFailed("malformed", f"the answer ended with {_faults.tidy(repr(raw_finish))}", billed="yes")
    elif finish in ("stop", "tool") and silent:
        failure = failure if unread and failure else CallFailed("empty", "the answer is empty", billed="yes")
    else:
        failure = None
    if failure:
        result |= {"finish": "error", "parts": result["parts"] + unread}
        failure.result = result if result["parts"] or result["usage"] else None
        raise failure
    return result


def _closed(close: Callable[[Json], Json], state: Json) -> Json:
    """close(state); if it does not know the shape of what came, that as it is, as one part."""
    try:
        return close(state)
    except _shape.ERRORS:
        came = {name: {str(key): inner for key, inner in value.items()} if isinstance(value, dict) else value
                for name, value in state.items()}  # fmt: skip
        nothing = dict.fromkeys(("raw_finish", "model", "response_id", "usage"))
        return nothing | {"parts": [_shape.kept(came)], "unknown": True}


def _odd(closed: Json) -> CallFailed | None:
    return CallFailed("malformed", _shape.ODD) if closed.get("unknown") else None


def _text_or_none(value: Any) -> str | None:
    """An id of the vendor's, which is of no use but to tell: some servers count them."""
    return value if isinstance(value, str) else None


def _says_something(part: Json) -> bool:
    return part["type"] != "reasoning" and (part["type"] not in ("text", "refusal") or bool(part["text"].strip()))


def _named(part: Json, names: dict[str, str]) -> Json:
    return part | {"name": names.get(part["name"], part["name"])} if part["type"] == "tool_call" else part


def exchange(
    api: str,
    target: Json,
    address: tuple[str, dict[str, str], list[str]],
    rendered: tuple[Json, list[Json], str],
    reader: Callable[[Iterable[Any]], Json],
    io: _http.Io,
    provider: str,
) -> Json:
    """Sends a rendered request (body, losses, prefix) to an address (url, headers, secrets), and reads the answer."""
    url, headers, secrets = address
    body, losses, prefix = rendered

    def sealed(result: Json) -> Json:
        origin = {"api": api, "endpoint": endpoint(url), "model": target.get("model"), "prefix": prefix}
        told = {"provider": provider, "origin": origin | result["origin"], "losses": losses}
        whole: Json = _sse.mended(result | told)
        return whole

    io.lost(losses)
    limits = {name: float(target[name]) for name in ("first_byte_s", "idle_s") if target.get(name)}
    try:
        # Closed here, not by the collector: that may strike inside the pool of connections, whose lock is held then.
        with closing(_http.post(url, headers, orjson.dumps(body), io, secrets=secrets, **limits)) as chunks:
            return sealed(reader(_sse.values(chunks)))
    except CallFailed as failure:
        failure.args = (_faults.tidy(str(failure), secrets),)
        if failure.result:
            failure.result = sealed(failure.result)
        raise
