"""Anthropic Messages: POST /v1/messages (streamed or not) and /v1/messages/count_tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from .server import Handler, new_id, pieces, text_for

TOOL, ARGUMENTS = "Bash", {"command": "echo hi-from-tool", "description": "say hi"}
ERRORS = {400: "invalid_request_error", 401: "authentication_error", 402: "billing_error", 403: "permission_error",
          404: "not_found_error", 413: "request_too_large", 429: "rate_limit_error", 529: "overloaded_error"}
STOPS = {"length": "max_tokens", "refusal": "refusal"}


def is_call(method: str, path: str) -> bool:
    return method == "POST" and path.endswith("/v1/messages")


def text_of(content: Any) -> str:
    """The text of a message's content, which is a text or a list of blocks."""
    if isinstance(content, str):
        return content
    return "".join(block.get("text", "") for block in content or [] if block.get("type") == "text")


def answer(handler: Handler, path: str, body: dict[str, Any]) -> None:
    if path.endswith("/v1/messages/count_tokens"):
        return handler.send_json({"input_tokens": len(json.dumps(body)) // 4})
    status = handler.error_status() if is_call(handler.command, path) else 404
    if status:
        error = {"type": ERRORS.get(status, "api_error"), "message": f"loopback says {status}"}
        return handler.send_json({"type": "error", "error": error, "request_id": "req_loop"}, status)
    messages = body.get("messages", [])
    usage = {"input_tokens": 11, "cache_creation_input_tokens": 5, "cache_read_input_tokens": 7, "output_tokens": 1}
    message = {"id": new_id("msg_"), "type": "message", "role": "assistant", "model": body.get("model", "loopback"),
               "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
    if (body.get("stream") or handler.scenario == "hang") and handler.trouble([
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "half an ans"}},
    ]):
        return None
    last = next((text_of(m["content"]) for m in reversed(messages) if m["role"] == "user"), "")
    text = text_for(handler.scenario, len(messages), sum(len(text_of(m["content"])) for m in messages), last)
    blocks: list[dict[str, Any]] = [{"type": "text", "text": text}] if text else []
    stop = STOPS.get(handler.scenario, "end_turn")
    name, arguments = handler.server.tool
    offered = any(tool["name"] == name for tool in body.get("tools", []))
    if handler.scenario == "tool" and offered and not has_result(messages):
        blocks, stop = [{"type": "tool_use", "id": new_id("toolu_"), "name": name, "input": arguments}], "tool_use"
    if handler.scenario == "think":
        blocks.insert(0, {"type": "thinking", "thinking": "pondering", "signature": "c2lnbmF0dXJl"})
    usage = {**usage, "output_tokens": 23}
    if not body.get("stream"):
        return handler.send_json({**message, "content": blocks, "stop_reason": stop, "usage": usage})
    return handler.send_sse(stream(handler.scenario, message, blocks, stop, usage))


def has_result(messages: list[dict[str, Any]]) -> bool:
    """True when the last message brings the result of a tool."""
    content = messages[-1]["content"] if messages else ""
    return isinstance(content, list) and any(block.get("type") == "tool_result" for block in content)


def stream(
    scenario: str, message: dict[str, Any], blocks: list[dict[str, Any]], stop: str, usage: dict[str, Any]
) -> Iterator[dict[str, Any] | str | float]:
    """The events of a whole answer (platform.claude.com: Streaming messages)."""
    yield {"type": "message_start", "message": message}
    for index, block in enumerate(blocks):
        if block["type"] == "text":
            empty: dict[str, Any] = {"type": "text", "text": ""}
            deltas: list[dict[str, Any] | float] = [
                piece if isinstance(piece, float) else {"type": "text_delta", "text": piece}
                for piece in pieces(scenario, block["text"])
            ]
        elif block["type"] == "thinking":
            empty = {"type": "thinking", "thinking": "", "signature": ""}
            deltas = [{"type": "thinking_delta", "thinking": block["thinking"]},
                      {"type": "signature_delta", "signature": block["signature"]}]
        else:
            empty = {**block, "input": {}}
            deltas = [{"type": "input_json_delta", "partial_json": json.dumps(block["input"])}]
        yield {"type": "content_block_start", "index": index, "content_block": empty}
        for delta in deltas:
            yield delta if isinstance(delta, float) else {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    yield {"type": "message_delta", "delta": {"stop_reason": stop, "stop_sequence": None}, "usage": usage}
    yield {"type": "message_stop"}
