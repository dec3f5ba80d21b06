"""What the Gemini CLI says (`--output-format stream-json`), and what its exit status and its logs add to it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import orjson

from mllm_pipe.errors import CallFailed
from mllm_pipe.runtimes import _child, _faults, _shape

Json = dict[str, Any]

FINISH = {"stop": "stop", "length": "length", "content_filter": "filter"}
HEADERS_S = 50  # it waits 60 s for the headers of an answer, and then says the same as when it cannot connect
ENDED = _child.Exit(0, "")


def event(line: bytes) -> Json | None:
    """The event of a line, if it is one that says something here."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    wanted = isinstance(value, dict) and value.get("type") in ("message", "tool_use", "error", "result")
    return value if wanted else None


def over(events: Sequence[Json]) -> bool:
    """True if the program has said its last word."""
    return bool(events) and events[-1]["type"] == "result"


def begun(events: Sequence[Json]) -> bool:
    """True if the program has said more than what it was asked, which it says too."""
    return any(event["type"] != "message" or event.get("role") == "assistant" for event in events)


def piece(events: Sequence[Json], index: int) -> str:
    """What an event adds to the answer; what was said before and after a tool was used is a blank line apart."""
    if not _speaks(events[index]):
        return ""
    gap = ""
    for before in range(index - 1, -1, -1):
        if events[before]["type"] == "tool_use":
            gap = "\n\n"
        elif _speaks(events[before]):
            return gap + str(events[index]["content"])
    return str(events[index]["content"])


def _speaks(event: Json) -> bool:
    return event["type"] == "message" and event.get("role") == "assistant" and bool(event["content"])


def reply(
    events: Sequence[Json],
    made: Mapping[str, Any] | None = None,
    *,
    log: bytes = b"",
    ended: _child.Exit = ENDED,
    secrets: Sequence[str] = (),
) -> Json:
    """The result that the events of a run say (see mllm_pipe.runtimes), the last of type `result`. Pure.

    log: the telemetry. Success is the status of the result, whatever the exit status says, and some text. Else
    CallFailed, in which no secret is told.
    """
    return _shape.said(
        events,
        lambda some: _partial(some, made, log),
        lambda result: _answer(events, result, log, ended, secrets),
    )


def _answer(events: Sequence[Json], result: Json, log: bytes, ended: _child.Exit, secrets: Sequence[str]) -> Json:
    final = events[-1]
    finish = FINISH.get(_told(log).get("finish_reasons", ["stop"])[-1], "stop")
    if final["status"] == "success":
        if any(part["text"].strip() for part in result["parts"]):
            return {**result, "finish": finish}
        if result["usage"]:
            raise CallFailed("empty", "it ended without an answer", billed="yes", result=result)
        said = "it made no request, as it does when it takes a thread for longer than the model's window"
        raise CallFailed("too_large", said, billed="no")
    if final.get("error"):
        raise _failure(events, final["error"].get("message") or "", ended, worth(result), secrets)
    errors = [str(event.get("message")) for event in events if event["type"] == "error"]
    said = _faults.tidy(errors[-1] if errors else "no reason given", secrets)
    if "finish reason" in said:
        raise CallFailed("cut", said, billed="unknown", result=worth(result))
    if finish == "filter":
        refusal = [] if result["parts"] else [{"type": "refusal", "text": said}]
        return {**result, "parts": [*result["parts"], *refusal], "finish": finish}
    raise CallFailed("length" if finish == "length" else "empty", said, billed="yes", result=worth(result))


def partial(events: Sequence[Json], made: Mapping[str, Any] | None = None, log: bytes = b"") -> Json:
    """What had come by the last of the events, as a result with finish "error". made: what `session` gave."""
    return _shape.so_far(events, lambda some: _partial(some, made, log))


def _partial(events: Sequence[Json], made: Mapping[str, Any] | None, log: bytes) -> Json:
    stats = events[-1].get("stats", {}) if events else {}
    told, text = _told(log), "".join(piece(events, index) for index in range(len(events)))
    model = next((name for name, used in stats.get("models", {}).items() if used["total_tokens"]), None)
    made = made or {"losses": [], "prefix": None, "endpoint": None}
    origin = {
        "api": "gemini",
        "endpoint": made["endpoint"],
        "model": model,
        "prefix": made["prefix"],
        "response_id": told.get("gen_ai.response.id"),
        "raw_finish": told.get("finish_reasons", [None])[-1],
    }
    return {
        "parts": [{"type": "text", "text": text}] if text else [],
        "finish": "error",
        "model": model,
        "provider": "google",
        "usage": _usage(stats),
        "cost_usd": None,
        "cost_source": None,
        "origin": {name: value for name, value in origin.items() if value is not None} if model else None,
        "losses": list(made["losses"]),
    }  # fmt: skip


def _told(log: bytes) -> Json:
    """What the telemetry says of the last answer: one JSON object after the other, each over many lines."""
    told: Json = {}
    for record in log.split(b"\n}\n"):
        if b'"gemini_cli.api_response"' in record or b'"gen_ai.response.id"' in record:
            try:
                told |= orjson.loads(record + b"\n}")["attributes"]
            except (KeyError, TypeError, ValueError):
                continue  # it was killed while it wrote, or writes it otherwise by now
    reasons = told.get("finish_reasons")
    listed = isinstance(reasons, list) and bool(reasons) and isinstance(reasons[-1], str)
    return told if listed else {name: value for name, value in told.items() if name != "finish_reasons"}


def _usage(stats: Json) -> dict[str, int] | None:
    """Tokens in our terms: their output_tokens leave out the reasoning, which is only in the total."""
    total, given, said = (stats.get(name) or 0 for name in ("total_tokens", "input_tokens", "output_tokens"))
    if not total:
        return None
    return {"input_tokens": given, "cache_read_tokens": stats.get("cached") or 0, "output_tokens": total - given,
            "reasoning_tokens": total - given - said}  # fmt: skip


def worth(result: Json) -> Json | None:
    """The partial result, if it says anything."""
    return result if result["parts"] or result["usage"] else None


def _failure(
    events: Sequence[Json], text: str, ended: _child.Exit, result: Json | None, secrets: Sequence[str]
) -> CallFailed:
    """Why the API gave no answer: by the HTTP status, in the error's body, on stderr, or in the exit status."""
    found = re.search(r"\[API Error: (.*)\]", text, re.DOTALL)
    text = found[1] if found else text
    if "fetch failed" in text:
        times = [datetime.fromisoformat(event["timestamp"]) for event in events if "timestamp" in event]
        waited = (times[-1] - times[0]).total_seconds() if times else 0.0
        if waited > HEADERS_S:
            return CallFailed("timeout", f"no answer within {waited:.0f} s, its own limit", result=result)
        # It does not say whether the connection was refused or lost.
        return CallFailed("network", "the connection failed; check the network", result=result)
    if "Incomplete JSON" in text:
        return CallFailed("malformed", f"what came is no answer: {_faults.tidy(text, secrets)}", result=result)
    body = text.encode() if text.startswith("{") else orjson.dumps({"error": {"message": text}})
    if status := _status(text, ended):
        fault = _faults.of_reply(status, {}, body, secrets)
        hint = "; check GEMINI_API_KEY, or log in with: gemini" if fault.code == "auth" else ""
        billed = "unknown" if result else fault.billed
        return CallFailed(fault.code, f"{fault}{hint}", billed=billed, http_status=status, result=result)
    return CallFailed("exit", _faults.tidy(text, secrets) or "no reason given", result=result)


def _status(text: str, ended: _child.Exit) -> int | None:
    in_body, in_tail = r'\{"error":\{"code":(\d{3})\b', r"\b(?:status|code): (\d{3})\b"
    if found := re.match(in_body, text) or re.search(in_tail, ended.tail):
        return int(found[1])
    return next((status for status in range(400, 600) if status & 0xFF == ended.status and status & 0xFF > 2), None)


def no_result(ended: _child.Exit, result: Json | None, secrets: Sequence[str]) -> CallFailed:
    """A run without a last word: it could not start, or its output was lost."""
    said = _child.last_line(ended.tail, secrets)
    if ended.status == 41:
        return CallFailed("auth", f"{said}; check GEMINI_API_KEY, or log in with: gemini", billed="no")
    message = f"exit status {ended.status} without a result{': ' + said if said else ''}"
    return CallFailed("cut" if result else "exit", message, result=result)
