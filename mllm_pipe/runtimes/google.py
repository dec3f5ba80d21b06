"""Gemini generateContent: POST {base}/v1beta/models/MODEL:streamGenerateContent?alt=sse.

The key is in GEMINI_API_KEY or GOOGLE_API_KEY, or where target["key_env"] says; the base URL may come from
GOOGLE_GEMINI_BASE_URL and may end in /v1 or /v1beta. Profile: {"result_files": bool, "signatures": bool}.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import quote

from mllm_pipe.runtimes import _endpoint, _files, _google_reply, _reply, _turns
from mllm_pipe.runtimes._turns import Json

STREAMS = True
TAKES_OPTIONS = TAKES_TOOLS = TAKES_SCHEMA = TAKES_MAX_TOKENS = True
API, DEFAULT_URL = "google", "https://generativelanguage.googleapis.com"
KEYS = ("GEMINI_API_KEY", "GOOGLE_API_KEY")
# Gemini 3 refuses a call of the current turn without a signature; for calls that others made this is documented.
NO_SIGNATURE = "skip_thought_signature_validator"
_OLD = re.compile(r"gemini-[12]\b")
_FILES = re.compile(r"(image|audio|video|text)/.+|application/pdf")
_RESULT_FILES = ("image/png", "image/jpeg", "image/webp", "application/pdf", "text/plain")


def call(target: Json, request: Json, io: Any) -> Json:
    """Asks the model; see mllm_pipe.runtimes."""
    rendered, address = _rendered(target, request), _address(target, io)
    return _reply.exchange(
        API, target, address, rendered, lambda values: reply(values, target, request, io.text), io, "google"
    )


def usable(target: Json) -> str:
    """Why it cannot be called here, or ""."""
    return _endpoint.lacking(target, KEYS, _base(target) == DEFAULT_URL)


def preview(target: Json, request: Json) -> Json:
    """What `call` would send: {"url", "headers", "body", "losses"}, keys masked."""
    return _endpoint.shown(_address(target), _rendered(target, request))


def _base(target: Json) -> str:
    return _endpoint.base_url(target, "GOOGLE_GEMINI_BASE_URL", DEFAULT_URL)


def _address(target: Json, io: Any = None) -> tuple[str, dict[str, str], list[str]]:
    base = _base(target)
    _, key = _endpoint.key(target, KEYS, base == DEFAULT_URL, io)
    headers = {"content-type": "application/json"} | ({"x-goog-api-key": key} if key else {})
    version = "" if base.endswith(("/v1", "/v1beta", "/v1alpha")) else "/v1beta"
    model = quote(_endpoint.model(target).removeprefix("models/"), safe="")
    url = f"{base}{version}/models/{model}:streamGenerateContent?alt=sse"
    return url, *_endpoint.headers_of(target, headers, key)


# -- the request ------------------------------------------------------------------------------------------------------


def _rule(target: Json) -> Json:
    profile, modern = target.get("profile") or {}, not _OLD.search(target.get("model") or "")
    return _turns.rules(
        API,
        _endpoint.endpoint(_base(target)),
        ids=r"[!-~]{1,128}",
        names=r"[A-Za-z_][A-Za-z0-9_.:-]{0,127}",
        longest_name=128,
        objects=True,
        result_files=profile.get("result_files", modern),
        model_files=True,
        system="text",
    ) | {"signatures": profile.get("signatures", modern)}


def request(target: Json, asked: Json) -> tuple[Json, list[Json]]:
    """(body, losses) of streamGenerateContent. Usage without a model; CallFailed("bad_request") for a file that it
    cannot take. System text within the thread is sent as user text: the API has no place for it."""
    return _rendered(target, asked)[:2]


def _rendered(target: Json, asked: Json) -> tuple[Json, list[Json], str]:
    model, rule = _endpoint.model(target), _rule(target)
    seen, unseen = _files.seen(_files.embedded(asked["turns"]), API, model)
    placed, unplaced = _files.placed(seen, lambda part, inner: _file(part, inner and rule["result_files"]))
    turns, losses = _turns.settle(placed, rule)
    losses += unseen + unplaced
    functions = [
        {"name": tool["name"], "description": tool["description"], "parametersJsonSchema": tool["schema"]}
        for tool in _turns.tools(asked, rule, losses)
    ]

    def contents_of(turn: Json, keep: bool) -> list[Json]:
        return _contents(turn, keep, rule)

    head = [asked["system"], functions]
    contents, dropped, prefix = _turns.render(head, turns, rule, target.get("model"), contents_of)
    body: Json = {}
    if asked["system"]:
        body["systemInstruction"] = {"parts": [{"text": asked["system"]}]}
    if functions:
        body["tools"] = [{"functionDeclarations": functions}]
    choice = asked.get("tool_choice")
    if choice and functions:
        if isinstance(choice, dict):
            wanted = {"mode": "ANY", "allowedFunctionNames": [_turns.legal_name(choice["name"], rule)]}
        else:
            wanted = {"mode": {"auto": "AUTO", "none": "NONE", "required": "ANY"}[choice]}
        body["toolConfig"] = {"functionCallingConfig": wanted}
    settings: Json = {}
    if target.get("max_tokens"):
        settings["maxOutputTokens"] = target["max_tokens"]
    if asked.get("schema") is not None:
        settings |= {"responseMimeType": "application/json", "responseJsonSchema": asked["schema"]}
    if settings:
        body["generationConfig"] = settings
    body["contents"] = contents
    body, unfit = _endpoint.with_options(body, target, asked, API, API)
    return body, losses + dropped + unfit, prefix


def _contents(turn: Json, keep: bool, rule: Json) -> list[Json]:
    if turn["role"] == "user":
        # the answers to calls are a turn of their own, of as many parts as there were calls
        results = [_result(part) for part in turn["parts"] if part["type"] == "tool_result"]
        said = [_part(part) for part in turn["parts"] if part["type"] != "tool_result"]
        return [{"role": "user", "parts": parts} for parts in (results, said) if parts]
    parts: list[Json] = []
    signed = False  # of parallel calls only the first has a signature
    for part in turn["parts"]:
        if part["type"] == "reasoning" and not keep:
            continue
        raw = part.get("raw")
        if raw is not None and not keep:
            raw = {name: value for name, value in raw.items() if name != "thoughtSignature"}
            if raw == {"text": ""}:
                continue
        made = raw if raw is not None else _part(part)
        if part["type"] == "tool_call":
            if not signed and not keep and rule["signatures"]:
                made = made | {"thoughtSignature": NO_SIGNATURE}
            signed = True
        parts.append(made)
    return [{"role": "model", "parts": parts}] if parts else []


def _part(part: Json) -> Json:
    kind = part["type"]
    if kind == "file":
        return _file(part)
    if kind == "tool_call":
        return _google_reply.call_of(part)
    return _google_reply.text_of(part)


def _file(part: Json, of_result: bool = False) -> Json:
    kind = part["media_type"]
    if of_result and kind not in _RESULT_FILES:
        raise _files.not_taken(part, f"{API}, within a tool's result,")
    if "data" not in part:
        return {"fileData": {"mimeType": kind, "fileUri": part["url"]}}
    if not _FILES.fullmatch(kind):
        text = _files.as_text(part)
        if text is None:
            raise _files.not_taken(part, API)
        return {"text": text}
    return {"inlineData": {"mimeType": kind, "data": part["data"]}}


def _result(part: Json) -> Json:
    """A functionResponse; its name must be that of the call. A made-up id is not said: the call has none either."""
    text, files = _turns.plain(part["content"])
    response: Json = {"name": part["name"], "response": {"error" if part["is_error"] else "output": text}}
    if not _google_reply.is_made(part["call_id"]):
        response = {"id": part["call_id"]} | response
    if files:
        response["parts"] = [_file(file, of_result=True) for file in files]
    return {"functionResponse": response}


# -- the reply --------------------------------------------------------------------------------------------------------


def reply(values: Iterable[Any], target: Json, asked: Json, text: Callable[[str], None] = _reply.nobody) -> Json:
    """The result that the events of a stream, or one whole response, make; see _reply.read."""

    def fold(state: Json, value: Json) -> bool:
        return _google_reply.fold(state, value, text)

    names = _turns.original_names(asked, _rule(target))
    finishes = _google_reply.FINISHES
    return _reply.read(values, fold, _google_reply.close, finishes, names=names)
