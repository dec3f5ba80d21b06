"""The answers of Chat Completions servers: chunks, whole completions, and their many dialects. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson

from mllm_pipe.errors import CallFailed
from mllm_pipe.runtimes import _reply

Json = dict[str, Any]

FINISHES = {
    "stop": "stop",
    "eos": "stop",
    "end_turn": "stop",
    "tool_calls": "tool",
    "function_call": "tool",
    "length": "length",
    "model_length": "length",
    "max_tokens": "length",
    "content_filter": "filter",
    "refusal": "refusal",
}
_REASONING = ("reasoning_content", "reasoning")  # DeepSeek, Alibaba, xAI; Groq, newer vLLM, OpenRouter


def fold(state: Json, chunk: Json, text: Callable[[str], None]) -> bool:
    """Takes in one chunk, or a whole completion; a later chunk may still bring the usage."""
    for name in ("id", "model"):
        if chunk.get(name):
            state.setdefault(name, chunk[name])
    if chunk.get("service_tier"):
        state["service_tier"] = chunk["service_tier"]
    for usage in (chunk.get("usage"), (chunk.get("x_groq") or {}).get("usage")):
        if isinstance(usage, dict):
            state["usage"] = usage
    for choice in chunk.get("choices") or []:
        if choice.get("index"):
            continue
        delta = choice.get("delta") or choice.get("message") or {}
        _content(state, delta.get("content"), text)
        for name in (*_REASONING, "refusal"):
            if isinstance(delta.get(name), str):
                state.setdefault(name, []).append(delta[name])
        for detail in delta.get("reasoning_details") or []:
            _detail(state.setdefault("reasoning_details", []), detail)
        for call in delta.get("tool_calls") or []:
            _call(state.setdefault("calls", []), call)
        if choice.get("finish_reason"):
            if choice["finish_reason"] == "insufficient_system_resource":  # DeepSeek
                raise CallFailed("overloaded", "the server ran out of resources within the answer")
            state["finish"] = choice["finish_reason"]
    return False


def _content(state: Json, content: Any, text: Callable[[str], None]) -> None:
    """A piece of text, or a list of typed pieces (Mistral)."""
    pieces = state.setdefault("content", [])
    if isinstance(content, str):
        if content:
            pieces.append(content)
            text(content)
    elif isinstance(content, list):
        for piece in content:
            pieces.append(piece)
            if piece.get("type") == "text":
                text(piece["text"])


def _detail(details: list[Json], new: Json) -> None:
    """OpenRouter streams an entry of reasoning_details in pieces of the same index and type."""
    last = details[-1] if details else {}
    if details and all(last.get(name) == new.get(name) for name in ("type", "index")) and "index" in new:
        grown = [name for name in ("text", "summary", "data") if new.get(name) and last.get(name)]
        joined = {name: last[name] + new[name] for name in grown}
        details[-1] = last | {name: value for name, value in new.items() if value is not None} | joined
    else:
        details.append(new)


def _call(calls: list[Json], new: Json) -> None:
    """A piece of a call. Some servers give no index (Mistral), others repeat id and name with each piece."""
    index, ident = new.get("index"), new.get("id") or None
    old = None
    for call in calls:
        if (index is not None and call["index"] == index) or (index is None and ident and call["id"] == ident):
            old = call
    if old is not None and ident and old["id"] and old["id"] != ident:
        old = None  # one index for several whole calls
    if old is None and index is None and ident is None and calls:
        old = calls[-1]
    if old is None:
        old = {"index": len(calls) if index is None else index, "id": None, "name": "", "arguments": [], "more": {}}
        calls.append(old)
    function = new.get("function") or {}
    old["id"] = old["id"] or ident
    old["name"] = old["name"] or function.get("name") or ""
    arguments = function.get("arguments")
    if isinstance(arguments, dict):  # Ollama and others have sent objects
        arguments = orjson.dumps(arguments).decode()
    if arguments:
        old["arguments"].append(arguments)
    old["more"] |= {name: value for name, value in new.items() if name not in ("index", "id", "type", "function")}


def close(state: Json, cost_key: str | None = None) -> Json:
    """What has come, for _reply.read."""
    parts = [*_reasoning(state), *_texts(state.get("content", []))]
    parts += [_call_part(call, state, number) for number, call in enumerate(state.get("calls", []))]
    refusal = "".join(state.get("refusal", []))
    if refusal:
        parts.append({"type": "refusal", "text": refusal})
    usage = state.get("usage") or {}
    cost: Any = usage.get(cost_key) if cost_key else None
    raw_finish, finish = state.get("finish"), None
    if raw_finish in ("stop", "eos", "end_turn"):
        # vLLM and others say stop for calls too, and OpenAI for a refusal
        finish = "tool" if state.get("calls") else "refusal" if refusal and not any(map(_is_text, parts)) else None
    return {
        "parts": parts,
        "raw_finish": raw_finish,
        "finish": finish,
        "model": state.get("model"),
        "response_id": state.get("id"),
        "service_tier": state.get("service_tier"),
        "usage": _usage(usage),
        "cost_usd": float(cost) if type(cost) in (int, float) and cost >= 0 else None,
    }


def _is_text(part: Json) -> bool:
    return bool(part["type"] == "text")


def _reasoning(state: Json) -> list[Json]:
    raw: Json = {name: "".join(state[name]) for name in _REASONING if any(state.get(name, []))}
    if state.get("reasoning_details"):
        raw["reasoning_details"] = state["reasoning_details"]
    if not raw:
        return []
    texts = [raw[name] for name in _REASONING if name in raw]
    texts += ["".join(d.get("text") or d.get("summary") or "" for d in raw.get("reasoning_details", []))]
    return [{"type": "reasoning", "text": texts[0], "raw": raw}]


def _texts(pieces: list[Any]) -> list[Json]:
    """Texts joined, and typed pieces: neighbours of one type are pieces of one."""
    parts: list[Json] = []
    run: list[str] = []
    listed = any(isinstance(piece, dict) for piece in pieces)

    def end() -> None:
        if run:
            text = "".join(run)
            parts.append({"type": "text", "text": text} | ({"raw": {"type": "text", "text": text}} if listed else {}))
            run.clear()

    for piece in pieces:
        if isinstance(piece, str):
            run.append(piece)
        elif piece.get("type") == "text" and set(piece) == {"type", "text"}:
            run.append(piece["text"])
        elif piece.get("type") == "thinking":
            end()
            thought = "".join(p.get("text") or "" for p in piece.get("thinking") or [])
            last = parts[-1] if parts else {}
            if last.get("type") == "reasoning" and set(piece) == {"type", "thinking"}:
                thought = last.pop("text") + thought
                parts.pop()
                piece = {"type": "thinking", "thinking": [{"type": "text", "text": thought}]}
            parts.append({"type": "reasoning", "text": thought, "raw": piece})
        else:
            end()
            parts.append({"type": "opaque", "raw": piece})
    end()
    return parts


def call_of(part: Json) -> Json:
    """The call as it stands in `tool_calls`, from the plain fields."""
    arguments = part.get("arguments_raw")
    if arguments is None:
        arguments = orjson.dumps(part["arguments"]).decode()
    return {"id": part["id"], "type": "function", "function": {"name": part["name"], "arguments": arguments}}


def _call_part(call: Json, state: Json, number: int) -> Json:
    text = "".join(call["arguments"]) or "{}"
    ident = call["id"] or _reply.made_id(state.get("id"), number)
    part: Json = {"type": "tool_call", "id": ident, "name": call["name"] or "unnamed"} | _reply.arguments(text)
    whole = {"id": ident, "type": "function", "function": {"name": part["name"], "arguments": text}} | call["more"]
    return part if call_of(part) == whole else part | {"raw": whole}


def _usage(usage: Json) -> Json | None:
    prompt, output = _reply.count(usage.get("prompt_tokens")), _reply.count(usage.get("completion_tokens"))
    of_prompt, of_output = usage.get("prompt_tokens_details") or {}, usage.get("completion_tokens_details") or {}
    reasoning = _reply.count(of_output.get("reasoning_tokens"))
    total = _reply.count(usage.get("total_tokens"))
    if prompt is not None and output is not None and reasoning and total == prompt + output + reasoning:
        output += reasoning  # xAI counts reasoning apart, which only the total tells
    cached = _reply.count(of_prompt.get("cached_tokens"))
    return _reply.used(
        input_tokens=prompt,
        cache_read_tokens=_reply.count(usage.get("prompt_cache_hit_tokens")) if cached is None else cached,
        cache_write_tokens=_reply.count(of_prompt.get("cache_write_tokens")),
        output_tokens=output,
        reasoning_tokens=reasoning,
    )
