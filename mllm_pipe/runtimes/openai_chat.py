"""Chat Completions of OpenAI and of the many servers that speak it: POST {base}/chat/completions, always streamed.

The key is in the variable that target["key_env"] names; OPENAI_API_KEY goes to OpenAI, and to where OPENAI_BASE_URL
says, but never to a base URL of the target's own. What a server does otherwise is data, target["profile"]
(presets: mllm_pipe/data/presets.json):

    provider            the name of the vendor
    max_tokens_key      "max_tokens" for servers that know no "max_completion_tokens"
    tool_id             "mistral9": ids of calls are exactly 9 letters and digits
    reasoning_key       the field in which reasoning is sent back ("content": as parts of it); none: it is not
    reasoning_required  that field must stand in every turn with calls, even if empty
    stream_usage        false: "stream_options" is refused
    schema              false: structured output is only "json_object"
    alternate           true: user and assistant must take turns, so neighbours are merged
    system_role         "developer" where "system" is refused
    cost_key            the field of the usage that says the price in US dollars
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import orjson

from mllm_pipe.runtimes import _chat_reply, _endpoint, _files, _reply, _turns
from mllm_pipe.runtimes._turns import Json

STREAMS = True
TAKES_OPTIONS = TAKES_TOOLS = TAKES_SCHEMA = TAKES_MAX_TOKENS = True
API, DEFAULT_URL, VENDOR_KEY = "openai-chat", "https://api.openai.com/v1", "OPENAI_API_KEY"


def call(target: Json, request: Json, io: Any) -> Json:
    """Asks the model; see mllm_pipe.runtimes."""
    rendered, address = _rendered(target, request), _address(target, io)
    return _reply.exchange(
        API, target, address, rendered, lambda values: reply(values, target, request, io.text), io, _provider(target)
    )


def usable(target: Json) -> str:
    """Why it cannot be called here, or ""."""
    return _endpoint.lacking(target, *_keys(target))


def preview(target: Json, request: Json) -> Json:
    """What `call` would send: {"url", "headers", "body", "losses"}, keys masked."""
    return _endpoint.shown(_address(target), _rendered(target, request))


def _profile(target: Json) -> Json:
    profile: Json = target.get("profile") or {}
    return profile


def _provider(target: Json) -> str:
    """The vendor's name, or the host."""
    return _profile(target).get("provider") or _endpoint.endpoint(_url(target))


def _url(target: Json) -> str:
    return _endpoint.base_url(target, "OPENAI_BASE_URL", DEFAULT_URL) + "/chat/completions"


def _keys(target: Json) -> tuple[tuple[str, ...], bool]:
    vendors = () if target.get("base_url") else (VENDOR_KEY,)
    return vendors, _url(target).startswith(DEFAULT_URL)


def _address(target: Json, io: Any = None) -> tuple[str, dict[str, str], list[str]]:
    _, key = _endpoint.key(target, *_keys(target), io)
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    return _url(target), *_endpoint.headers_of(target, headers, key)


# -- the request ------------------------------------------------------------------------------------------------------


def _rule(target: Json) -> Json:
    profile = _profile(target)
    nine = profile.get("tool_id") == "mistral9"
    return _turns.rules(
        API,
        _endpoint.endpoint(_url(target)),
        ids=r"[a-zA-Z0-9]{9}" if nine else r"[!-~]{1,64}",
        names=r"[a-zA-Z0-9_-]{1,64}",
        short_ids=nine,
        result_files=False,
        refusals="provider" not in profile and _url(target).startswith(DEFAULT_URL),
        user_first=bool(profile.get("alternate")),
        empty_answers=bool(profile.get("alternate")),
    )


def request(target: Json, asked: Json) -> tuple[Json, list[Json]]:
    """(body, losses) of POST /chat/completions. Usage without a model; CallFailed("bad_request") for a file that the
    API has no place for (it takes images, and PDFs as data)."""
    return _rendered(target, asked)[:2]


def _rendered(target: Json, asked: Json) -> tuple[Json, list[Json], str]:
    model, rule, profile = _endpoint.model(target), _rule(target), _profile(target)
    seen, unseen = _files.seen(_files.embedded(asked["turns"]), _provider(target), model)
    placed, unplaced = _files.placed(seen, lambda part, _: _filed(part))
    turns, losses = _turns.settle(placed, rule)
    losses += unseen + unplaced
    tools = [_tool(tool) for tool in _turns.tools(asked, rule, losses)]
    unsent: list[Json] = []

    def messages_of(turn: Json, keep: bool) -> list[Json]:
        return _messages(turn, keep, profile, rule, unsent)

    head = [asked["system"], tools]
    messages, dropped, prefix = _turns.render(head, turns, rule, target.get("model"), messages_of)
    if asked["system"]:
        messages = [{"role": profile.get("system_role", "system"), "content": asked["system"]}, *messages]
    if profile.get("alternate"):
        messages = _alternating(messages)
    body: Json = {"model": model, "messages": messages, "stream": True}
    if profile.get("stream_usage", True):
        body["stream_options"] = {"include_usage": True}
    if target.get("max_tokens"):
        body[profile.get("max_tokens_key", "max_completion_tokens")] = target["max_tokens"]
    if tools:
        body["tools"] = tools
    choice = asked.get("tool_choice")
    if choice and tools:
        if isinstance(choice, dict):
            choice = {"type": "function", "function": {"name": _turns.legal_name(choice["name"], rule)}}
        body["tool_choice"] = choice
    if asked.get("schema") is not None:
        if profile.get("schema", True):
            wanted = {"name": "answer", "schema": asked["schema"], "strict": False}
            body["response_format"] = {"type": "json_schema", "json_schema": wanted}
        else:
            body["response_format"] = {"type": "json_object"}
    names = {"max_completion_tokens": profile.get("max_tokens_key", "max_completion_tokens")}
    body, unfit = _endpoint.with_options(body, target, asked, API, _provider(target), names)
    return body, losses + dropped + unsent + unfit, prefix


def _tool(tool: Json) -> Json:
    described = {"description": tool["description"]} if tool["description"] else {}
    return {"type": "function", "function": {"name": tool["name"]} | described | {"parameters": tool["schema"]}}


def _messages(turn: Json, keep: bool, profile: Json, rule: Json, losses: list[Json]) -> list[Json]:
    if turn["role"] == "system":
        return [{"role": profile.get("system_role", "system"), "content": turn["parts"][0]["text"]}]
    if turn["role"] == "assistant":
        message = _assistant(turn, keep, profile, rule, losses)
        if len(message) == 1 and rule["empty_answers"]:
            message["content"] = ""
        return [message] if len(message) > 1 else []
    results = [part for part in turn["parts"] if part["type"] == "tool_result"]
    messages = [_result(turn, part, losses) for part in results]
    said = [part for part in turn["parts"] if part["type"] != "tool_result"]
    return [*messages, {"role": "user", "content": _content(said)}] if said else messages


def _result(turn: Json, part: Json, losses: list[Json]) -> Json:
    content = part["content"]
    if part["is_error"]:
        _turns.error_as_text(losses, turn, part)
        content = orjson.dumps({"error": content}).decode()
    return {"role": "tool", "tool_call_id": part["call_id"], "content": content}


def _content(parts: list[Json]) -> str | list[Json]:
    """One text where there are only texts (DeepSeek and older servers take nothing else), else the list of parts."""
    parts = [_filed(part) for part in parts]
    if all(part["type"] == "text" for part in parts):
        return "\n\n".join(part["text"] for part in parts)
    return [part if part["type"] != "text" else {"type": "text", "text": part["text"]} for part in parts]


def _filed(part: Json) -> Json:
    if part["type"] != "file":
        return part
    kind = part["media_type"]
    data = f"data:{kind};base64,{part['data']}" if "data" in part else None
    if _files.is_image(part):
        return {"type": "image_url", "image_url": {"url": data or part["url"]}}
    if kind == "application/pdf" and data:
        return {"type": "file", "file": {"filename": part.get("name") or "file.pdf", "file_data": data}}
    text = _files.as_text(part)
    if text is None:
        raise _files.not_taken(part, API)
    return {"type": "text", "text": text}


def _assistant(turn: Json, keep: bool, profile: Json, rule: Json, losses: list[Json]) -> Json:
    """{"role": "assistant", ...}; only the role if there is nothing to say."""
    message: Json = {"role": "assistant"}
    calls = [part for part in turn["parts"] if part["type"] == "tool_call"]
    reasoning = [part for part in turn["parts"] if part["type"] == "reasoning"]
    field = profile.get("reasoning_key")
    chunks = _chunks(turn["parts"], keep and field == "content")
    if chunks is not None:
        message["content"] = chunks
    else:
        text = _joined(turn["parts"])
        if text or calls:
            message["content"] = text or None
    refusals = [part["text"] for part in turn["parts"] if part["type"] == "refusal"]
    if refusals:
        message |= {"content": message.get("content"), "refusal": "".join(refusals)}
    if field and field != "content":
        if keep and reasoning:
            raw = reasoning[0].get("raw") or {}
            plain = "".join(part["text"] for part in reasoning)
            if field in raw or field != "reasoning_details":
                message[field] = raw.get(field, plain)
        elif calls and profile.get("reasoning_required"):
            message[field] = ""
    elif keep and reasoning and not field:
        _turns.loss(losses, turn, "reasoning", "dropped", "this server is not known to take it back")
    if calls:
        message["tool_calls"] = [call.get("raw") or _chat_reply.call_of(call) for call in calls]
    return message


def _chunks(parts: list[Json], keep: bool) -> list[Json] | None:
    """The list that the content was (Mistral), if any part of it is one of those; None if a text will do."""
    listed = [part for part in parts if part["type"] != "tool_call" and "type" in part.get("raw", {})]
    if not any(keep or part["type"] != "reasoning" for part in listed):
        return None
    chunks = []
    for part in parts:
        if part["type"] == "reasoning" and not keep:
            continue
        if part in listed:
            chunks.append(part["raw"])
        elif part["type"] == "text":
            chunks.append({"type": "text", "text": part["text"]})
    return chunks


def _joined(parts: list[Json]) -> str:
    """The texts of an answer: neighbours as they are (citations split sentences), others a blank line apart."""
    text, apart = "", False
    for part in parts:
        if part["type"] == "text":
            text += ("\n\n" if apart and text else "") + part["text"]
            apart = False
        else:
            apart = True
    return text


def _alternating(messages: list[Json]) -> list[Json]:
    """Neighbours of one role as one message; those with calls stay as they are, their results must follow."""
    out: list[Json] = []
    for message in messages:
        last = out[-1] if out else {"role": None}
        bare = set(message) == set(last) == {"role", "content"}
        if bare and message["role"] == last["role"] in ("user", "assistant"):
            both = [last["content"], message["content"]]
            if all(isinstance(content, str) for content in both):
                out[-1] = last | {"content": "\n\n".join(both)}
            else:
                listed = [[{"type": "text", "text": c}] if isinstance(c, str) else c for c in both]
                out[-1] = last | {"content": listed[0] + listed[1]}
        else:
            out.append(message)
    return out


# -- the reply --------------------------------------------------------------------------------------------------------


def reply(values: Iterable[Any], target: Json, asked: Json, text: Callable[[str], None] = _reply.nobody) -> Json:
    """The result that the chunks of a stream, or one whole completion, make; see _reply.read."""

    def fold(state: Json, value: Json) -> bool:
        return _chat_reply.fold(state, value, text)

    def close(state: Json) -> Json:
        return _chat_reply.close(state, _profile(target).get("cost_key"))

    names = _turns.original_names(asked, _rule(target))
    return _reply.read(values, fold, close, _chat_reply.FINISHES, names=names)
