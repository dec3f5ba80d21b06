"""Requests of the Responses API and of Chat Completions, whole or their `input` or `messages` alone."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from mllm_pipe.sessions import body, codex, opaque
from mllm_pipe.sessions.body import KNOWN, held
from mllm_pipe.sessions.store import Whole as reader

Json = dict[str, Any]
PROGRAM = "the Responses API or Chat Completions"
ROLES = {"developer": "system", "system": "system", "assistant": "assistant", "tool": "tool",
         "function": "tool"}  # fmt: skip
__all__ = ["PROGRAM", "KNOWN", "held", "reader", "records"]


def records(entries: Iterable[Json], _name: str) -> Json:
    """The request as records (see mllm_pipe.sessions). What the model said in a row is one answer."""
    asked = body.of(entries, "input", "messages")
    chain = body.Chain("openai", "openai")
    if isinstance(asked.get("instructions"), str):
        chain.add("system", _texts(asked["instructions"]))
    if asked.get("previous_response_id"):
        chain.notes.append("what stands before it is at the vendor (previous_response_id), and left out")
    given = asked.get("messages", asked.get("input"))
    answer: list[Json] = []
    given = [{"role": "user", "content": given}] if isinstance(given, str) else given
    for one in chain.given(given, "role", "type"):
        role, parts = _turn(one)
        if role == "assistant":
            answer += parts
            continue
        chain.add("assistant", answer)
        answer = []
        chain.add(role, parts)
    chain.add("assistant", answer)
    return chain.result(body.tools(asked.get("tools")))


def _turn(one: Json) -> tuple[str, list[Json]]:
    """(role, parts) of a message or an item."""
    role = ROLES.get(str(one.get("role")), "user")
    if one.get("type") not in (None, "message"):
        return codex.turn_of(one)
    if role == "tool":
        call, content = one.get("tool_call_id", one.get("name")), one.get("content")
        if not isinstance(call, str) or not call:
            return role, [opaque(one)]
        said: Any = content if isinstance(content, str) else _texts(content)
        return role, [{"type": "tool_result", "call_id": call, "content": said}]
    parts = _texts(one.get("content"))
    if role == "assistant":
        thought = one.get("reasoning_content") or one.get("reasoning")
        parts = [{"type": "reasoning", "text": thought}, *parts] if isinstance(thought, str) else parts
        parts += [{"type": "refusal", "text": one["refusal"]}] if isinstance(one.get("refusal"), str) else []
        parts += [_call(call) for call in one["tool_calls"]] if isinstance(one.get("tool_calls"), list) else []
        called = one.get("function_call")  # before there were tools; its result bears its name
        parts += [_call({"id": called.get("name"), "function": called})] if isinstance(called, dict) else []
    return role, parts


def _texts(content: Any) -> list[Json]:
    """A content as parts; empty texts are none."""
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    parts = [_part(block) for block in blocks] if isinstance(blocks, list) else [opaque(content)] if content else []
    return [part for part in parts if part["type"] != "text" or part["text"]]


def _part(block: Any) -> Json:
    """A part of a content, of either API; one of another shape than is known is opaque."""
    if isinstance(block, dict):
        image, kind = block.get("image_url"), block.get("type")
        url = image.get("url") if isinstance(image, dict) else image
        if kind in ("image_url", "input_image") and isinstance(url, str) and url.startswith(("https:", "http:")):
            return {"type": "file", "media_type": "image/*", "url": url}
        if kind == "refusal" and isinstance(block.get("refusal"), str):
            return {"type": "refusal", "text": block["refusal"]}
        inner = block["file"] if isinstance(block.get("file"), dict) else block
        found = re.match(r"data:([\w.+-]+/[\w.+-]+);base64,", str(inner.get("file_data")))
        if kind in ("file", "input_file") and found:
            named = {"name": inner["filename"]} if isinstance(inner.get("filename"), str) else {}
            return {"type": "file", "media_type": found[1], "data": inner["file_data"][found.end() :], **named}
        if kind == "image_url":
            return codex.part_of({"type": "input_image", "image_url": url})
    return codex.part_of(block)


def _call(call: Any) -> Json:
    """A call of Chat Completions."""
    inner = call.get("function") if isinstance(call, dict) else None
    if not isinstance(inner, dict):
        return opaque(call)
    made = codex.turn_of({"type": "function_call", "call_id": call.get("id"), "name": inner.get("name"),
                          "arguments": inner.get("arguments", "{}")})  # fmt: skip
    return made[1][0]
