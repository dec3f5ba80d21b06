"""Gemini generateContent: POST .../models/MODEL:streamGenerateContent?alt=sse, :generateContent, :countTokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from .server import Handler, new_id, pieces, text_for

TOOL, ARGUMENTS = "list_directory", {"dir_path": "."}
ERRORS = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND",
          429: "RESOURCE_EXHAUSTED", 500: "INTERNAL", 503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED"}  # fmt: skip
STOPS = {"length": "MAX_TOKENS", "refusal": "SAFETY"}


def is_call(method: str, path: str) -> bool:
    return method == "POST" and path.endswith((":streamGenerateContent", ":generateContent"))


def text_of(content: dict[str, Any]) -> str:
    """The text of a content's parts."""
    return "".join(part.get("text", "") for part in content.get("parts", []))


def answer(handler: Handler, path: str, body: dict[str, Any]) -> None:
    if path.endswith(":countTokens"):
        return handler.send_json({"totalTokens": len(json.dumps(body)) // 4})
    status = handler.error_status() if is_call(handler.command, path) else 404
    if status:
        error = {"code": status, "message": f"loopback says {status}", "status": ERRORS.get(status, "UNKNOWN")}
        return handler.send_json({"error": error}, status)
    contents = body.get("contents", [])
    base = {"modelVersion": path.rsplit("/", 1)[-1].split(":")[0], "responseId": new_id("r")}
    streamed = path.endswith(":streamGenerateContent")
    if (streamed or handler.scenario == "hang") and handler.trouble([event(chunk(base, [{"text": "half an ans"}]))]):
        return None
    last = next((text_of(c) for c in reversed(contents) if c["role"] == "user"), "")
    text = text_for(handler.scenario, len(contents), sum(map(len, map(text_of, contents))), last)
    parts: list[dict[str, Any]] = [{"text": text}] if text else []
    name, arguments = handler.server.tool
    offered = any(
        function["name"] == name for tool in body.get("tools", []) for function in tool.get("functionDeclarations", [])
    )
    has_result = any("functionResponse" in part for part in contents[-1].get("parts", [])) if contents else False
    if handler.scenario == "tool" and offered and not has_result:
        parts = [{"functionCall": {"name": name, "args": arguments}, "thoughtSignature": "c2lnbmF0dXJl"}]
    if handler.scenario == "think":
        parts.insert(0, {"text": "pondering", "thought": True})
    stop = STOPS.get(handler.scenario, "STOP")
    if not streamed:
        return handler.send_json(chunk(base, parts, stop))
    return handler.send_sse(stream(handler.scenario, base, parts, stop))


def chunk(base: dict[str, Any], parts: list[dict[str, Any]], stop: str | None = None) -> dict[str, Any]:
    """A GenerateContentResponse; the usage repeats in each, as it is so far."""
    candidate = {"content": {"role": "model", "parts": parts}, "index": 0}
    usage = {
        "promptTokenCount": 31,
        "candidatesTokenCount": 13,
        "thoughtsTokenCount": 3,
        "totalTokenCount": 47,
        "cachedContentTokenCount": 7,
    }
    return {**base, "candidates": [candidate | ({"finishReason": stop} if stop else {})], "usageMetadata": usage}


def event(value: dict[str, Any]) -> str:
    """One event, as it stands on the wire: no names, CRLF."""
    return f"data: {json.dumps(value)}\r\n\r\n"


def stream(
    scenario: str, base: dict[str, Any], parts: list[dict[str, Any]], stop: str
) -> Iterator[dict[str, Any] | str | float]:
    """The events of a whole answer; the finish reason comes with a last empty text, and there is no [DONE]."""
    for part in parts:
        if part.get("thought") or "functionCall" in part:
            yield event(chunk(base, [part]))
            continue
        for piece in pieces(scenario, part["text"]):
            yield piece if isinstance(piece, float) else event(chunk(base, [{"text": piece}]))
    yield event(chunk(base, [{"text": ""}], stop))
