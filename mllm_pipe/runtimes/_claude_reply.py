"""What Claude Code says (`--output-format stream-json`). Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from mllm_pipe.errors import CallFailed
from mllm_pipe.runtimes import _faults, _shape

SYNTHETIC = "<synthetic>"  # the model of messages that the program wrote itself
FINISH = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length", "refusal": "refusal",
          "tool_use": "tool", "pause_turn": "pause", "model_context_window_exceeded": "length"}  # fmt: skip
WORDS = {"authentication_failed": "auth", "oauth_org_not_allowed": "permission", "billing_error": "billing",
          "rate_limit": "rate_limit", "overloaded": "overloaded", "model_not_found": "bad_model"}  # fmt: skip


def event_of(line: bytes) -> dict[str, Any] | None:
    """The event of a line, if it is one that says something here; the others are many."""
    try:
        event = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    kind = event.get("type") if isinstance(event, dict) else None
    if kind == "assistant":
        known = isinstance(event.get("message", {}).get("content"), list)
    elif kind == "stream_event":
        inner = event.get("event", {})
        of_text = inner.get("delta", {}).get("type") == "text_delta"
        wanted = of_text or inner.get("type") in ("message_start", "message_delta")
        known = wanted and event.get("parent_tool_use_id") is None
    else:
        known = kind == "result"
    return event if known else None


def reply(
    events: Sequence[dict[str, Any]], made: Mapping[str, Any] | None = None, secrets: Sequence[str] = ()
) -> dict[str, Any]:
    """The result that the events of a run say (see mllm_pipe.runtimes), the last of type `result`. Pure.

    Success is `is_error` false, whatever `subtype` says, and some text. Else CallFailed, in which no secret is told.
    """
    return _shape.said(events, lambda some: _partial(some, made), lambda result: _answer(events, result, secrets))


def _answer(events: Sequence[dict[str, Any]], result: dict[str, Any], secrets: Sequence[str]) -> dict[str, Any]:
    final = events[-1]
    text = _faults.tidy(str(final.get("result") or "; ".join(map(str, final.get("errors") or []))), secrets)
    finish = FINISH.get(final.get("stop_reason") or "", "stop")
    if not final.get("is_error"):
        if any(part["type"] == "text" and part["text"].strip() for part in result["parts"]):
            return {**result, "finish": finish}
        message = f"it ended without an answer{': ' + text if text else ''}"
        raise CallFailed("empty", message, billed="yes" if result["usage"] else "no", result=worth(result))
    word = next((e["error"] for e in reversed(events) if e["type"] == "assistant" and e.get("error")), "")
    if word == "max_output_tokens":  # it has asked for more three times by then
        return {**result, "finish": "length"}
    if finish == "refusal":
        refusal = [] if result["parts"] else [{"type": "refusal", "text": text}]
        return {**result, "parts": [*result["parts"], *refusal], "finish": finish}
    begun = any(e["type"] == "stream_event" and e["event"]["type"] == "message_start" for e in events)
    code, status = _code(final.get("api_error_status"), word, text, begun), final.get("api_error_status")
    sent = begun or code in ("timeout", "malformed", "exit")
    billed = "unknown" if sent else "no"
    hint = "; check ANTHROPIC_API_KEY, or log in with: claude" if code == "auth" else ""
    message = f"{text or 'no reason given'}{hint}"
    raise CallFailed(code, message, billed=billed, http_status=status, result=worth(result))


def partial(events: Sequence[dict[str, Any]], made: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What had come by the last of the events, as a result with finish "error". made: what `session` gave."""
    return _shape.so_far(events, lambda some: _partial(some, made))


def _partial(events: Sequence[dict[str, Any]], made: Mapping[str, Any] | None) -> dict[str, Any]:
    final = events[-1] if events and events[-1]["type"] == "result" else {}
    answers = [e["message"] for e in events if e["type"] == "assistant" and e["message"].get("model") != SYNTHETIC]
    begun = [e["event"].get("message", {}) for e in events if e["type"] == "stream_event"]
    said: dict[str, Any] = next((message for message in [*answers[::-1], *begun[::-1]] if message), {})
    usage, cost = _usage(final.get("usage")), final.get("total_cost_usd")
    made = made or {"losses": [], "prefix": None, "endpoint": None}
    origin = {
        "api": "claude",
        "endpoint": made["endpoint"],
        "model": said.get("model"),
        "response_id": said.get("id"),
        "prefix": made["prefix"],
        "raw_finish": final.get("stop_reason"),
    }
    return {
        "parts": _parts(events),
        "finish": "error",
        "model": said.get("model"),
        "provider": "anthropic",
        "usage": usage,
        "cost_usd": cost if usage else None,
        "cost_source": "runtime" if usage and cost is not None else None,
        "origin": {name: value for name, value in origin.items() if value is not None} if said else None,
        "losses": list(made["losses"]),
    }  # fmt: skip


def with_end(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The events of a run that ended well, with a `result` in the place of one that was lost.

    The program ends before its last, long lines are out, when nobody reads fast enough. The vendor's own end of the
    answer came before them.
    """
    last: dict[str, Any] = next((e["event"] for e in reversed(events) if e["type"] == "stream_event"), {})
    if (events and events[-1]["type"] == "result") or last.get("type") != "message_delta":
        return events
    stop, usage = (last.get("delta") or {}).get("stop_reason"), last.get("usage")
    return [*events, {"type": "result", "is_error": False, "stop_reason": stop, "usage": usage}] if stop else events


def worth(result: dict[str, Any]) -> dict[str, Any] | None:
    """The partial result, if it says anything."""
    return result if result["parts"] or result["usage"] else None


def _code(status: int | None, word: str, text: str, begun: bool) -> str:
    """Why a run failed: by the HTTP status, the program's own name of the error, its sentence. `begun`: mid-answer."""
    if status:
        code = _faults.of_reply(status, {}, orjson.dumps({"error": {"message": text}})).code
        return "billing" if code == "bad_request" and "credit balance" in text else code
    if word in WORDS:
        return WORDS[word]
    if "timed out" in text:
        return "timeout"
    if begun:
        return "cut"
    if "onnect" in text:  # Unable to connect to API (ConnectionRefused), Connection error
        return "network"
    return "malformed" if "Stream ended" in text else "exit"


def _parts(events: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The answer: whole blocks where they came, and the pieces of the last where it did not end."""
    parts: list[dict[str, Any]] = []
    pending = ""
    for event in events:
        if event["type"] == "stream_event":
            begins = event["event"]["type"] == "message_start"
            pending = "" if begins else pending + event["event"]["delta"].get("text", "")
        elif event["type"] == "assistant" and event["message"].get("model") != SYNTHETIC:
            pending = ""
            for block in event["message"]["content"]:
                if block.get("type") == "text":
                    _say(parts, block["text"])
                elif block.get("type") in ("thinking", "redacted_thinking"):
                    parts.append({"type": "reasoning", "text": block.get("thinking", ""), "raw": block})
                else:
                    parts.append({"type": "opaque", "raw": block})
    _say(parts, pending)
    return parts


def _say(parts: list[dict[str, Any]], text: str) -> None:
    """Adds text, as one part with the text before it: what the program asked for in several calls is one answer."""
    if text and parts and parts[-1]["type"] == "text":
        parts[-1] = {"type": "text", "text": parts[-1]["text"] + text}
    elif text:
        parts.append({"type": "text", "text": text})


def _usage(usage: dict[str, Any] | None) -> dict[str, int] | None:
    """Tokens in our terms: their input_tokens leaves out what a cache held. None when nothing was used."""
    if not usage or not (usage.get("input_tokens") or usage.get("output_tokens")):
        return None
    read, write = usage.get("cache_read_input_tokens") or 0, usage.get("cache_creation_input_tokens") or 0
    return {
        "input_tokens": (usage.get("input_tokens") or 0) + read + write,
        "cache_read_tokens": read,
        "cache_write_tokens": write,
        "output_tokens": usage.get("output_tokens") or 0,
    }
