"""OpenAI Responses: POST {base}/responses, always streamed, nothing stored (store: false).

The key is in OPENAI_API_KEY or where target["key_env"] says; the base URL may come from OPENAI_BASE_URL.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import orjson

from mllm_pipe.runtimes import _endpoint, _faults, _files, _reply, _turns
from mllm_pipe.runtimes._turns import Json

STREAMS = True
TAKES_OPTIONS = TAKES_TOOLS = TAKES_SCHEMA = TAKES_MAX_TOKENS = True
API, DEFAULT_URL = "openai", "https://api.openai.com/v1"
KEYS = ("OPENAI_API_KEY",)
LEAST_TOKENS = 16  # 400 for fewer
FINISHES = {
    "completed": "stop",
    "max_output_tokens": "length",
    "content_filter": "filter",
    "max_messages": "pause",
    "steered": "pause",
}


def call(target: Json, request: Json, io: Any) -> Json:
    """Asks the model; see mllm_pipe.runtimes."""
    rendered, address = _rendered(target, request), _address(target, io)
    return _reply.exchange(
        API, target, address, rendered, lambda values: reply(values, target, request, io.text), io, "openai"
    )


def usable(target: Json) -> str:
    """Why it cannot be called here, or ""."""
    return _endpoint.lacking(target, KEYS, _base(target) == DEFAULT_URL)


def preview(target: Json, request: Json) -> Json:
    """What `call` would send: {"url", "headers", "body", "losses"}, keys masked."""
    return _endpoint.shown(_address(target), _rendered(target, request))


def _base(target: Json) -> str:
    return _endpoint.base_url(target, "OPENAI_BASE_URL", DEFAULT_URL)


def _address(target: Json, io: Any = None) -> tuple[str, dict[str, str], list[str]]:
    _, key = _endpoint.key(target, KEYS, _base(target) == DEFAULT_URL, io)
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    return _base(target) + "/responses", *_endpoint.headers_of(target, headers, key)


# -- the request ------------------------------------------------------------------------------------------------------


def _rule(target: Json) -> Json:
    return _turns.rules(
        API,
        _endpoint.endpoint(_base(target)),
        ids=r"[!-~]{1,64}",
        names=r"[a-zA-Z0-9_-]{1,64}",
        refusals=False,
        user_first=False,
    )


def request(target: Json, asked: Json) -> tuple[Json, list[Json]]:
    """(body, losses) of POST /responses. Usage without a model; CallFailed("bad_request") for a file it cannot take.

    Reasoning comes back encrypted and goes out again in its place, since nothing is stored.
    """
    return _rendered(target, asked)[:2]


def _rendered(target: Json, asked: Json) -> tuple[Json, list[Json], str]:
    model, rule = _endpoint.model(target), _rule(target)
    seen, unseen = _files.seen(_files.embedded(asked["turns"]), API, model)
    placed, unplaced = _files.placed(seen, lambda part, _: _input(part))
    turns, losses = _turns.settle(placed, rule)
    losses += unseen + unplaced
    tools = [
        {"type": "function", "name": tool["name"], "description": tool["description"] or None,
         "parameters": tool["schema"], "strict": False}
        for tool in _turns.tools(asked, rule, losses)
    ]  # fmt: skip
    unsent: list[Json] = []

    def items_of(turn: Json, keep: bool) -> list[Json]:
        return _items(turn, keep, unsent)

    head = [asked["system"], tools]
    items, dropped, prefix = _turns.render(head, turns, rule, target.get("model"), items_of)
    body: Json = {"model": model, "store": False, "stream": True, "include": ["reasoning.encrypted_content"]}
    if target.get("max_tokens"):
        body["max_output_tokens"] = max(target["max_tokens"], LEAST_TOKENS)
        if target["max_tokens"] < LEAST_TOKENS:
            _turns.loss(losses, {}, "max_tokens", "downgraded", f"fewer than {LEAST_TOKENS} are refused")
    if asked["system"]:
        body["instructions"] = asked["system"]
    if tools:
        body["tools"] = tools
    choice = asked.get("tool_choice")
    if choice and tools:
        named = isinstance(choice, dict)
        body["tool_choice"] = {"type": "function", "name": _turns.legal_name(choice["name"], rule)} if named else choice
    if asked.get("schema") is not None:
        wanted = {"type": "json_schema", "name": "answer", "schema": asked["schema"], "strict": False}
        body["text"] = {"format": wanted}
    body["input"] = items
    body, unfit = _endpoint.with_options(body, target, asked, API, API)
    return body, losses + dropped + unsent + unfit, prefix


def _items(turn: Json, keep: bool, losses: list[Json]) -> list[Json]:
    if turn["role"] == "system":
        return [{"type": "message", "role": "system", "content": turn["parts"][0]["text"]}]
    items: list[Json] = []
    said: list[Json] = []
    for part in turn["parts"]:
        if part["type"] == "tool_result":
            items.append(_output(turn, part, losses))
        elif turn["role"] == "user":
            said.append(_input(part))
        elif part["type"] != "reasoning" or keep:
            items += _item(part)
    return [*items, {"type": "message", "role": "user", "content": said}] if said else items


def _item(part: Json) -> list[Json]:
    """The items of one part of an answer; none for the later parts of an item that its first part has whole."""
    if "raw" in part:
        return [] if part["raw"] == _CONTINUED else [part["raw"]]
    if part["type"] == "text":
        return [{"type": "message", "role": "assistant", "content": part["text"]}]
    if part["type"] == "tool_call":
        arguments = part.get("arguments_raw")
        if arguments is None:
            arguments = orjson.dumps(part["arguments"]).decode()
        return [{"type": "function_call", "call_id": part["id"], "name": part["name"], "arguments": arguments}]
    return []


def _output(turn: Json, part: Json, losses: list[Json]) -> Json:
    content = part["content"]
    if part["is_error"]:
        _turns.error_as_text(losses, turn, part)
        text, files = _turns.plain(content)
        told = {"type": "text", "text": orjson.dumps({"error": text}).decode()}
        content = [told, *files] if files else told["text"]
    if isinstance(content, list):
        content = [_input(inner) for inner in content]
    return {"type": "function_call_output", "call_id": part["call_id"], "output": content}


def _input(part: Json) -> Json:
    if part["type"] == "text":
        return {"type": "input_text", "text": part["text"]}
    kind = part["media_type"]
    data = f"data:{kind};base64,{part['data']}" if "data" in part else None
    if _files.is_image(part):
        return {"type": "input_image", "detail": "auto", "image_url": data or part["url"]}
    if kind == "application/pdf":
        if data:
            return {"type": "input_file", "filename": part.get("name") or "file.pdf", "file_data": data}
        return {"type": "input_file", "file_url": part["url"]}
    text = _files.as_text(part)
    if text is None:
        raise _files.not_taken(part, API)
    return {"type": "input_text", "text": text}


# -- the reply --------------------------------------------------------------------------------------------------------

_CONTINUED = {"type": "continued"}  # the raw of a part whose item stands whole in the part before it


def reply(values: Iterable[Any], target: Json, asked: Json, text: Callable[[str], None] = _reply.nobody) -> Json:
    """The result that the events of a stream, or one whole response, make; see _reply.read."""

    def fold(state: Json, value: Json) -> bool:
        return _fold(state, value, text)

    names = _turns.original_names(asked, _rule(target))
    return _reply.read(values, fold, _close, FINISHES, names=names)


def _fold(state: Json, event: Json, text: Callable[[str], None]) -> bool:
    """Takes in one event, by its JSON `type`: some servers name no events, most padding and progress is passed over."""
    kind = event.get("type")
    if isinstance(event.get("response"), dict):
        state["response"] = event["response"]
    if kind == "response.output_text.delta":
        text(event["delta"])
        state.setdefault("texts", {}).setdefault(event.get("output_index", 0), []).append(event["delta"])
    elif kind == "response.output_item.done":
        state.setdefault("items", []).append(event["item"])
        state.get("texts", {}).pop(event.get("output_index", 0), None)
    elif kind in ("response.completed", "response.incomplete", "response.failed"):
        return _ended(state)
    elif kind is None and (event.get("object") == "response" or "output" in event):
        state["response"] = event
        for part in _parts(event.get("output") or []):
            if part["type"] == "text":
                text(part["text"])
        return _ended(state)
    return False


def _ended(state: Json) -> bool:
    response = state["response"]
    status = response.get("status")
    if status in ("failed", "cancelled"):
        error = response.get("error") or {"message": f"the response is {status}"}
        raise _faults.of_event({"error": error}, begun=bool(state.get("items") or state.get("texts")))
    reason = (response.get("incomplete_details") or {}).get("reason")
    state["finish"] = reason or status or "completed"
    return True


def _close(state: Json) -> Json:
    response = state.get("response", {})
    # The last event has all items; servers were seen that leave it empty, and until it came there are the single ones.
    items = response.get("output") or state.get("items", []) if "finish" in state else state.get("items", [])
    parts = _parts(items)
    if "finish" not in state:
        parts += [{"type": "text", "text": "".join(pieces)} for pieces in state.get("texts", {}).values()]
    kinds = {part["type"] for part in parts}
    finish = None
    if state.get("finish") == "completed":  # the API has no finish reason for calls and refusals
        finish = "tool" if "tool_call" in kinds else "refusal" if "refusal" in kinds and "text" not in kinds else None
    usage = response.get("usage") or {}
    of_input, of_output = usage.get("input_tokens_details") or {}, usage.get("output_tokens_details") or {}
    return {
        "parts": parts,
        "raw_finish": state.get("finish"),
        "finish": finish,
        "model": response.get("model"),
        "response_id": response.get("id"),
        "service_tier": response.get("service_tier"),
        "usage": _reply.used(
            input_tokens=_reply.count(usage.get("input_tokens")),
            cache_read_tokens=_reply.count(of_input.get("cached_tokens")),
            cache_write_tokens=_reply.count(of_input.get("cache_write_tokens")),
            output_tokens=_reply.count(usage.get("output_tokens")),
            reasoning_tokens=_reply.count(of_output.get("reasoning_tokens")),
        ),
    }


def _parts(items: list[Json]) -> list[Json]:
    return [part for item in items for part in _parts_of(item)]


def _parts_of(item: Json) -> list[Json]:
    """The content parts of an output item; `raw` where they could not give it back (ids, phases, encrypted text)."""
    kind = item.get("type")
    if kind == "message":
        parts = [_said(content) for content in item.get("content") or []]
        if not parts:
            return [{"type": "opaque", "raw": item}]
        return [parts[0] | {"raw": item}, *(part | {"raw": _CONTINUED} for part in parts[1:])]
    if kind == "reasoning":
        told = [*(item.get("summary") or []), *(item.get("content") or [])]
        texts = [piece.get("text") or "" for piece in told]
        return [{"type": "reasoning", "text": "\n\n".join(filter(None, texts)), "raw": item}]
    if kind == "function_call" and item.get("call_id") and item.get("name"):
        call = {"type": "tool_call", "id": item["call_id"], "name": item["name"]}
        part = call | _reply.arguments(item.get("arguments") or "")
        return [part if _item(part) == [item] else part | {"raw": item}]
    return [{"type": "opaque", "raw": item}]


def _said(content: Json) -> Json:
    if content.get("type") == "refusal":
        return {"type": "refusal", "text": content.get("refusal") or ""}
    if isinstance(content.get("text"), str):
        return {"type": "text", "text": content["text"]}
    return {"type": "opaque"}
