"""OpenAI Chat Completions: POST .../chat/completions (streamed or not)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from .server import Handler, new_id, pieces, text_for

TOOL, ARGUMENTS = "bash", {"command": "echo hi-from-tool", "description": "say hi"}
STOPS = {"length": "length", "refusal": "content_filter"}


def is_call(method: str, path: str) -> bool:
    return method == "POST" and path.endswith("/chat/completions")


def text_of(message: dict[str, Any]) -> str:
    """The text of a message, whose content is a text, a list of parts, or null."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def answer(handler: Handler, path: str, body: dict[str, Any]) -> None:
    status = handler.error_status() if is_call(handler.command, path) else 404
    if status:
        error = {"message": f"loopback says {status}", "type": "loopback_error", "param": None, "code": None}
        return handler.send_json({"error": error}, status)
    messages = body.get("messages", [])
    base = {"id": new_id("chatcmpl-"), "created": 1, "model": body.get("model", "loopback")}
    if (body.get("stream") or handler.scenario == "hang") and handler.trouble(
        [chunk(base, {"role": "assistant", "content": "half an ans"})], named=False
    ):
        return None
    last = next((text_of(m) for m in reversed(messages) if m["role"] == "user"), "")
    text = text_for(handler.scenario, len(messages), sum(map(len, map(text_of, messages))), last)
    message: dict[str, Any] = {"role": "assistant", "content": text}
    stop = STOPS.get(handler.scenario, "stop")
    name, arguments = handler.server.tool
    offered = any(tool["function"]["name"] == name for tool in body.get("tools", []))
    if handler.scenario == "tool" and offered and messages[-1]["role"] != "tool":
        function = {"name": name, "arguments": json.dumps(arguments)}
        call = {"id": new_id("call_"), "type": "function", "function": function}
        message, stop = {"role": "assistant", "content": None, "tool_calls": [call]}, "tool_calls"
    if handler.scenario == "think":
        message["reasoning_content"] = "pondering"
    usage = {
        "prompt_tokens": 31,
        "completion_tokens": 13,
        "total_tokens": 44,
        "prompt_tokens_details": {"cached_tokens": 7},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }
    if not body.get("stream"):
        choice = {"index": 0, "message": message, "finish_reason": stop}
        return handler.send_json({**base, "object": "chat.completion", "choices": [choice], "usage": usage})
    told = usage if (body.get("stream_options") or {}).get("include_usage") else None
    return handler.send_sse(stream(handler.scenario, base, message, stop, told), named=False)


def chunk(base: dict[str, Any], delta: dict[str, Any], stop: str | None = None) -> str:
    """One chunk, as it stands on the wire: this dialect names no events."""
    choice = {"index": 0, "delta": delta, "finish_reason": stop}
    return f"data: {json.dumps({**base, 'object': 'chat.completion.chunk', 'choices': [choice]})}\n\n"


def stream(
    scenario: str, base: dict[str, Any], message: dict[str, Any], stop: str, usage: dict[str, Any] | None
) -> Iterator[dict[str, Any] | str | float]:
    """The chunks of a whole answer: role, reasoning, text or calls in pieces, finish, usage, [DONE]."""
    yield chunk(base, {"role": "assistant", "content": ""})
    if "reasoning_content" in message:
        yield chunk(base, {"reasoning_content": message["reasoning_content"]})
    for index, call in enumerate(message.get("tool_calls", [])):
        arguments = call["function"]["arguments"]
        opened = {**call, "index": index, "function": {**call["function"], "arguments": ""}}
        yield chunk(base, {"tool_calls": [opened]})
        for piece in (arguments[:5], arguments[5:]):
            yield chunk(base, {"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
    for piece in pieces(scenario, message["content"] or ""):
        yield piece if isinstance(piece, float) else chunk(base, {"content": piece})
    yield chunk(base, {}, stop)
    if usage:
        yield f"data: {json.dumps({**base, 'object': 'chat.completion.chunk', 'choices': [], 'usage': usage})}\n\n"
    yield "data: [DONE]\n\n"
