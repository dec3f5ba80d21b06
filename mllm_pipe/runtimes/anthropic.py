"""Anthropic Messages: POST {base}/v1/messages, always streamed.

The key is in ANTHROPIC_API_KEY (sent as x-api-key) or ANTHROPIC_AUTH_TOKEN (as a bearer), or where target["key_env"]
says; the base URL may come from ANTHROPIC_BASE_URL. Profile: {"system_turns": bool, "cache": bool}.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from mllm_pipe.runtimes import _endpoint, _files, _reply, _turns
from mllm_pipe.runtimes._turns import Json

STREAMS = True
TAKES_OPTIONS = TAKES_TOOLS = TAKES_SCHEMA = TAKES_MAX_TOKENS = True
API, DEFAULT_URL, VERSION = "anthropic", "https://api.anthropic.com", "2023-06-01"
KEYS = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN")
MAX_TOKENS = 32000  # the API wants a number; of a model whose limit is known it is that
FINISHES = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_use": "tool",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "refusal",
    "pause_turn": "pause",
    "compaction": "pause",
}
_DEAF = re.compile(r"claude-sonnet-5(-20\d{6})?")  # to system turns: it answers 200 and takes no notice of them
_UNIONS = ("oneOf", "anyOf", "allOf", "enum", "not", "$ref")


def call(target: Json, request: Json, io: Any) -> Json:
    """Asks the model; see mllm_pipe.runtimes."""
    rendered, address = _rendered(target, request), _address(target, io)
    return _reply.exchange(
        API, target, address, rendered, lambda values: reply(values, target, request, io.text), io, "anthropic"
    )


def usable(target: Json) -> str:
    """Why it cannot be called here, or ""."""
    return _endpoint.lacking(target, KEYS, _base(target) == DEFAULT_URL)


def preview(target: Json, request: Json) -> Json:
    """What `call` would send: {"url", "headers", "body", "losses"}, keys masked."""
    return _endpoint.shown(_address(target), _rendered(target, request))


def _base(target: Json) -> str:
    return _endpoint.base_url(target, "ANTHROPIC_BASE_URL", DEFAULT_URL)


def _url(target: Json) -> str:
    return _base(target).removesuffix("/v1") + "/v1/messages"


def _address(target: Json, io: Any = None) -> tuple[str, dict[str, str], list[str]]:
    variable, key = _endpoint.key(target, KEYS, _base(target) == DEFAULT_URL, io)
    headers = {"content-type": "application/json", "anthropic-version": VERSION}
    if key:
        bearer = variable.endswith("_AUTH_TOKEN")
        headers["authorization" if bearer else "x-api-key"] = f"Bearer {key}" if bearer else key
    return _url(target), *_endpoint.headers_of(target, headers, key)


# -- the request ------------------------------------------------------------------------------------------------------


def _able(target: Json, flag: str) -> bool | None:
    """What the table of models says of the target's model; None if it does not."""
    from mllm_pipe import models

    return models.capability(models.find(API, target.get("model")), flag)


def _longest(target: Json) -> int:
    """The longest answer of the target's model, or MAX_TOKENS."""
    from mllm_pipe import models

    return models.output_limit(models.find(API, target.get("model"))) or MAX_TOKENS


def _system(target: Json) -> str:
    """What becomes of system turns: the API takes them after a user's, but not every model does."""
    taken = (target.get("profile") or {}).get("system_turns")
    if taken is None:
        taken = _able(target, "mid_conversation_system") and not _DEAF.fullmatch(target.get("model") or "")
    return "after_user" if taken else "text"


def _rule(target: Json) -> Json:
    return _turns.rules(
        API,
        _endpoint.endpoint(_url(target)),
        ids=r"[a-zA-Z0-9_-]+",
        names=r"[a-zA-Z0-9_-]{1,128}",
        longest_name=128,
        objects=True,
        blank_text=False,
        system="text",
    )


def request(target: Json, asked: Json) -> tuple[Json, list[Json]]:
    """(body, losses) of POST /v1/messages. Usage without a model; CallFailed("bad_request") for a file it cannot take.

    The cache mark is the top-level one (it moves with the last block), so that old turns never change.
    """
    return _rendered(target, asked)[:2]


def _rendered(target: Json, asked: Json) -> tuple[Json, list[Json], str]:
    model, rule = _endpoint.model(target), _rule(target)
    if any(turn["role"] == "system" for turn in asked["turns"]):
        rule |= {"system": _system(target)}
    seen, unseen = _files.seen(_files.embedded(asked["turns"]), API, model)
    placed, unplaced = _files.placed(seen, lambda part, _: _file(part))
    turns, losses = _turns.settle(placed, rule)
    losses += unseen + unplaced
    offered = [_tool(tool, losses) for tool in _turns.tools(asked, rule, losses)]
    head = [asked["system"], offered]
    messages, dropped, prefix = _turns.render(head, turns, rule, target.get("model"), _messages)
    body: Json = {"model": model, "max_tokens": target.get("max_tokens") or _longest(target), "stream": True}
    if (target.get("profile") or {}).get("cache", True):
        body["cache_control"] = {"type": "ephemeral"}
    if asked["system"]:
        body["system"] = asked["system"]
    if offered:
        body["tools"] = offered
    choice = asked.get("tool_choice")
    if choice and offered:
        named = isinstance(choice, dict)
        kind = "tool" if named else {"required": "any"}.get(choice, choice)
        if kind in ("tool", "any") and _able(target, "forced_tool_use") is False:
            _turns.loss(losses, {}, "tool_choice", "downgraded", "auto: the model cannot be made to call a tool")
            named, kind = False, "auto"
        body["tool_choice"] = {"type": kind} | ({"name": _turns.legal_name(choice["name"], rule)} if named else {})
    if asked.get("schema") is not None:
        body["output_config"] = {"format": {"type": "json_schema", "schema": asked["schema"]}}
    body["messages"] = messages
    body, unfit = _endpoint.with_options(body, target, asked, API, API)
    return body, losses + dropped + unfit, prefix


def _tool(tool: Json, losses: list[Json]) -> Json:
    schema = {"type": "object"} | tool["schema"]
    unions = [word for word in _UNIONS if word in schema]
    if unions:  # 400: input_schema does not support oneOf, allOf, or anyOf at the top level
        _turns.loss(losses, {}, f"schema of tool {tool['name']}", "downgraded", f"{unions[0]} at its top is refused")
        schema = {word: value for word, value in schema.items() if word not in _UNIONS}
    described = {"description": tool["description"]} if tool["description"] else {}
    return {"name": tool["name"]} | described | {"input_schema": schema}


def _messages(turn: Json, keep: bool) -> list[Json]:
    if turn["role"] == "system":
        return [{"role": "system", "content": turn["parts"][0]["text"]}]
    blocks = [_block(part) for part in turn["parts"] if keep or part["type"] != "reasoning"]
    blocks = [block for block in blocks if block is not None]
    return [{"role": turn["role"], "content": blocks}] if blocks else []


def _block(part: Json) -> Json | None:
    kind = part["type"]
    if kind == "refusal":
        return None  # what the API says beside the content of a refusal was never content
    if "raw" in part:
        raw: Json = part["raw"]
        return raw
    if kind == "text":
        return {"type": "text", "text": part["text"]}
    if kind == "tool_call":
        return {"type": "tool_use", "id": part["id"], "name": part["name"], "input": part["arguments"]}
    if kind == "tool_result":
        content = part["content"]
        if isinstance(content, list):
            content = [_file(p) if p["type"] == "file" else {"type": "text", "text": p["text"]} for p in content]
        block: Json = {"type": "tool_result", "tool_use_id": part["call_id"], "content": content}
        return block | {"is_error": True} if part["is_error"] else block
    return _file(part) if kind == "file" else None


def _file(part: Json) -> Json:
    kind = part["media_type"]
    image = _files.is_image(part)
    if not image and kind != "application/pdf":
        text = _files.as_text(part)
        if text is None:
            raise _files.not_taken(part, API)
        return {"type": "text", "text": text}
    source: Json = {"type": "url", "url": part.get("url")}
    if "data" in part:
        source = {"type": "base64", "media_type": kind, "data": part["data"]}
    if image:
        return {"type": "image", "source": source}
    title = {"title": part["name"]} if part.get("name") else {}
    return {"type": "document", "source": source} | title


# -- the reply --------------------------------------------------------------------------------------------------------


def reply(values: Iterable[Any], target: Json, asked: Json, text: Callable[[str], None] = _reply.nobody) -> Json:
    """The result that the events of a stream, or one whole message, make; see _reply.read."""

    def fold(state: Json, value: Json) -> bool:
        return _fold(state, value, text)

    names = _turns.original_names(asked, _rule(target))
    return _reply.read(values, fold, _close, FINISHES, names=names)


def _fold(state: Json, event: Json, text: Callable[[str], None]) -> bool:
    kind = event.get("type")
    if kind == "message_start":
        _start(state, event.get("message") or {}, text)  # a second one begins the message anew
    elif kind == "content_block_start":
        state.setdefault("blocks", {})[event.get("index", 0)] = {"start": event.get("content_block") or {}, "more": {}}
        text(_shown(event.get("content_block")))
    elif kind == "content_block_delta":
        block = state.setdefault("blocks", {}).setdefault(event.get("index", 0), {"start": {}, "more": {}})
        for name, piece in (event.get("delta") or {}).items():
            if name != "type":
                block["more"].setdefault(name, []).append(piece)
        if not block["start"]:  # llama-server has been seen to leave out the start
            thinks = "thinking" in (event.get("delta") or {})
            block["start"] = {"type": "thinking", "thinking": ""} if thinks else {"type": "text", "text": ""}
        if isinstance(piece := (event.get("delta") or {}).get("text"), str):
            text(piece)
    elif kind == "message_delta":
        delta = event.get("delta") or {}
        state["message"] = state.get("message", {}) | {name: v for name, v in delta.items() if v is not None}
        _use(state, event.get("usage"))
    elif kind == "message_stop":
        return True
    elif kind == "message":
        _start(state, event, text)
        return True
    return False


def _start(state: Json, message: Json, text: Callable[[str], None]) -> None:
    state["message"] = {name: value for name, value in message.items() if name not in ("content", "usage")}
    state["blocks"] = {}
    state["usage"] = {}
    for index, block in enumerate(message.get("content") or []):
        state["blocks"][index] = {"start": block, "more": {}}
        text(_shown(block))
    _use(state, message.get("usage"))


def _shown(block: Any) -> str:
    shown = isinstance(block, dict) and block.get("type") == "text" and block.get("text")
    return shown if isinstance(shown, str) else ""


def _use(state: Json, usage: Any) -> None:
    if isinstance(usage, dict):  # what message_delta says is the sum so far, and replaces what was said at the start
        state["usage"] = state.get("usage", {}) | {name: v for name, v in usage.items() if v is not None}


def _close(state: Json) -> Json:
    message, usage = state.get("message", {}), state.get("usage", {})
    parts = [_part(_block_of(**block)) for block in state.get("blocks", {}).values()]
    details = message.get("stop_details") or {}
    if message.get("stop_reason") == "refusal" and details.get("explanation"):
        parts.append({"type": "refusal", "text": details["explanation"], "raw": details})
    return {
        "parts": parts,
        "raw_finish": message.get("stop_reason"),
        "model": message.get("model"),
        "response_id": message.get("id"),
        "service_tier": usage.get("service_tier"),
        "factors": [usage.get("inference_geo"), usage.get("speed")],
        "usage": _usage(usage),
        # what compaction and advisors used is charged, each at its own model's price, and not in the totals
        "iterations": [{"model": i.get("model"), "usage": _usage(i)} for i in usage.get("iterations") or []],
    }


_INPUT = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")


def _usage(usage: Json) -> Json | None:
    said = [_reply.count(usage.get(name)) for name in _INPUT]
    known = [number for number in said if number is not None]
    thinking, writes = usage.get("output_tokens_details") or {}, usage.get("cache_creation") or {}
    return _reply.used(
        input_tokens=sum(known) if known else None,  # the API's own input_tokens leaves the cache out
        cache_read_tokens=said[1],
        cache_write_tokens=said[2],
        cache_write_1h_tokens=_reply.count(writes.get("ephemeral_1h_input_tokens")) or None,
        output_tokens=_reply.count(usage.get("output_tokens")),
        reasoning_tokens=_reply.count(thinking.get("thinking_tokens")),
    )


def _block_of(start: Json, more: dict[str, list[Any]]) -> Json:
    """A block as it would have come unstreamed; the argument text of a call that is no JSON stays as _raw."""
    block = dict(start)
    for name, pieces in more.items():
        texts = [piece for piece in pieces if isinstance(piece, str)]
        if name == "partial_json":
            joined = "".join(texts)
            if joined.strip():
                found = _reply.arguments(joined)
                block["input"] = found["arguments"]
                if "arguments_raw" in found:
                    block["_raw"] = joined
        elif name == "citation":
            block["citations"] = [*(block.get("citations") or []), *pieces]
        elif name == "signature":
            block["signature"] = texts[-1] if texts else ""
        elif name in ("text", "thinking", "content"):
            block[name] = "".join([block.get(name) or "", *texts])
        else:
            block[name] = pieces[-1]
    if str(block.get("type")).endswith("tool_use") and not isinstance(block.get("input"), dict):
        block["input"] = {}
    return block


def _part(block: Json) -> Json:
    """The content part of a block; `raw` where the part alone could not give the block back."""
    kind = block.get("type")
    part: Json = {"type": "opaque"}
    if kind == "text" and isinstance(block.get("text"), str):
        part = {"type": "text", "text": block["text"]}
    elif kind in ("thinking", "redacted_thinking"):
        part = {"type": "reasoning", "text": block.get("thinking") or ""}
    elif kind == "tool_use" and block.get("id") and block.get("name"):
        part = {"type": "tool_call", "id": block["id"], "name": block["name"], "arguments": block["input"]}
        if "_raw" in block:
            return part | {"arguments_raw": block["_raw"]}
    return part if _block(part) == block else part | {"raw": block}
