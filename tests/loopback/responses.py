"""OpenAI Responses: POST .../responses (streamed or not)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from .server import Handler, new_id, pieces, text_for

TOOL, ARGUMENTS = "exec_command", {"cmd": "echo hi-from-tool"}
ERRORS = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}


def is_call(method: str, path: str) -> bool:
    return method == "POST" and path.endswith("/responses")


def text_of(item: dict[str, Any]) -> str:
    """The text of an input item's content, which is a text or a list of parts."""
    content = item.get("content") or []
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def answer(handler: Handler, path: str, body: dict[str, Any]) -> None:
    status = handler.error_status() if is_call(handler.command, path) else 404
    if handler.headers.get("Upgrade") == "websocket":
        status = 426  # it speaks plain HTTP
    if status:
        code = ERRORS.get(status, "server_error" if status >= 500 else "invalid_request_error")
        said = f"loopback says {status}" + ": The requested model does not exist." * (status == 404)
        error = {"message": said, "type": code, "param": None, "code": code}
        return handler.send_json({"error": error}, status)
    given = body.get("input", [])
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    response: dict[str, Any] = {"id": new_id("resp_"), "object": "response", "created_at": 1,
                                "status": "in_progress", "model": body.get("model"), "output": []}
    half = {"type": "message", "id": new_id("msg_"), "role": "assistant", "status": "in_progress", "content": []}
    if (body.get("stream") or handler.scenario == "hang") and handler.trouble([
        {"type": "response.created", "response": response},
        {"type": "response.output_item.added", "output_index": 0, "item": half},
        {"type": "response.output_text.delta", "item_id": half["id"], "output_index": 0, "content_index": 0,
         "delta": "half an ans"},
    ]):
        return None
    tool = handler.server.tool
    output = output_of(handler.scenario, items, tool if f'"{tool[0]}"' in json.dumps(body.get("tools", [])) else None)
    incomplete = {"length": "max_output_tokens", "refusal": "content_filter"}.get(handler.scenario)
    final = {**response, "status": "incomplete" if incomplete else "completed", "output": output,
             "incomplete_details": {"reason": incomplete} if incomplete else None,
             "usage": {"input_tokens": 31, "input_tokens_details": {"cached_tokens": 7}, "output_tokens": 13,
                       "output_tokens_details": {"reasoning_tokens": 3}, "total_tokens": 44}}
    if not body.get("stream"):
        return handler.send_json(final)
    return handler.send_sse(stream(handler.scenario, response, output, final))


def output_of(
    scenario: str, items: list[dict[str, Any]], tool: tuple[str, dict[str, Any]] | None
) -> list[dict[str, Any]]:
    """The output items of the scenario for these input items; `tool`: the one to call, if it is offered."""
    output: list[dict[str, Any]] = []
    if scenario == "think":
        summary = [{"type": "summary_text", "text": "pondering"}]
        output.append({"type": "reasoning", "id": new_id("rs_"), "summary": summary, "encrypted_content": "b3BhcXVl"})
    users = [i for i, item in enumerate(items) if item.get("role") == "user"]
    newest = items[users[-1] :] if users else items
    answered = any(str(item.get("type", "")).endswith("call_output") for item in newest)
    if scenario == "tool" and not answered and tool:
        return [*output, {"type": "function_call", "id": new_id("fc_"), "call_id": new_id("call_"), "name": tool[0],
                          "arguments": json.dumps(tool[1]), "status": "completed"}]
    turns = sum(item.get("role") in ("user", "assistant") for item in items)
    text = text_for(scenario, turns, sum(map(len, map(text_of, items))), text_of(items[users[-1]]) if users else "")
    content = [{"type": "output_text", "text": text, "annotations": []}]
    message = {"type": "message", "id": new_id("msg_"), "role": "assistant", "status": "completed", "content": content}
    return [*output, message]


def stream(
    scenario: str, response: dict[str, Any], output: list[dict[str, Any]], final: dict[str, Any]
) -> Iterator[dict[str, Any] | str | float]:
    """The events of a whole answer (platform.openai.com: Streaming API responses)."""
    yield {"type": "response.created", "response": response}
    for index, item in enumerate(output):
        where = {"item_id": item["id"], "output_index": index}
        if item["type"] == "reasoning":
            yield {"type": "response.output_item.added", "output_index": index, "item": {**item, "summary": []}}
            yield {"type": "response.reasoning_summary_text.delta", **where, "summary_index": 0,
                   "delta": item["summary"][0]["text"]}
        elif item["type"] == "function_call":
            yield {"type": "response.output_item.added", "output_index": index, "item": {**item, "arguments": ""}}
            yield {"type": "response.function_call_arguments.delta", **where, "delta": item["arguments"]}
        else:
            yield {"type": "response.output_item.added", "output_index": index, "item": {**item, "content": []}}
            for piece in pieces(scenario, item["content"][0]["text"]):
                yield piece if isinstance(piece, float) else {
                    "type": "response.output_text.delta", **where, "content_index": 0, "delta": piece}
        yield {"type": "response.output_item.done", "output_index": index, "item": item}
    yield {"type": f"response.{final['status']}", "response": final}
