"""The answers of Gemini: each event is a whole GenerateContentResponse with the parts that are new. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from mllm_pipe.runtimes import _reply

Json = dict[str, Any]

_BLOCKED = [
    "SAFETY",
    "RECITATION",
    "LANGUAGE",
    "BLOCKLIST",
    "PROHIBITED_CONTENT",
    "SPII",
    "MODEL_ARMOR",
    "IMAGE_SAFETY",
    "IMAGE_PROHIBITED_CONTENT",
    "IMAGE_RECITATION",
]
# Others (MALFORMED_FUNCTION_CALL, UNEXPECTED_TOOL_CALL, MISSING_THOUGHT_SIGNATURE, OTHER ...) are no answers.
FINISHES = {"STOP": "stop", "MAX_TOKENS": "length"} | dict.fromkeys(_BLOCKED, "filter")
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]|\['((?:[^'\\]|\\.)*)'\]|\[\"((?:[^\"\\]|\\.)*)\"\]")


def fold(state: Json, value: Json, text: Callable[[str], None]) -> bool:
    """Takes in one event; there is no last one, the stream just ends."""
    for name, key in (("modelVersion", "model"), ("responseId", "id")):
        if value.get(name):
            state[key] = value[name]
    if isinstance(value.get("usageMetadata"), dict):
        state["usage"] = state.get("usage", {}) | value["usageMetadata"]
    blocked = (value.get("promptFeedback") or {}).get("blockReason")
    if blocked:
        state["blocked"] = blocked
    for candidate in value.get("candidates") or []:
        if candidate.get("index"):
            continue
        for part in (candidate.get("content") or {}).get("parts") or []:
            _take(state, part)
            if isinstance(part.get("text"), str) and part["text"] and not part.get("thought"):
                text(part["text"])
        if candidate.get("finishReason"):
            state["finish"] = candidate["finishReason"]
    return False


def _take(state: Json, part: Json) -> None:
    """Adds a part: texts of one kind are pieces of one text, but a signature stays on the part that it came on."""
    parts: list[Json] = state.setdefault("parts", [])
    call = part.get("functionCall")
    if isinstance(call, dict) and ("willContinue" in call or "partialArgs" in call or not call or state.get("open")):
        _continue(state, parts, part, call)
    elif set(part) <= {"text", "thought"} and isinstance(part.get("text"), str):
        last = parts[-1] if parts else {}
        if "pieces" in last and last["part"].get("thought") == part.get("thought"):
            last["pieces"].append(part["text"])
        elif part["text"]:
            parts.append({"part": part, "pieces": [part["text"]]})
    else:
        parts.append({"part": part})


def _continue(state: Json, parts: list[Json], part: Json, call: Json) -> None:
    """A call whose arguments are streamed (streamFunctionCallArguments): name first, then values by path, then {}."""
    if not state.get("open"):
        state["open"] = {"args": {}}
        opened = {name: value for name, value in call.items() if name not in ("willContinue", "partialArgs")}
        parts.append({"part": part | {"functionCall": opened | {"args": state["open"]["args"]}}})
    for piece in call.get("partialArgs") or []:
        steps = [
            int(index) if index else name or single or double
            for name, index, single, double in _STEP.findall(piece["jsonPath"].removeprefix("$"))
        ]
        place: Any = state["open"]["args"]
        for step, following in zip(steps, [*steps[1:], None], strict=True):
            if isinstance(step, int):
                place.extend([None] * (step + 1 - len(place)))
            empty: Any = None if following is None else [] if isinstance(following, int) else {}
            if isinstance(step, int) and place[step] is None or isinstance(step, str) and step not in place:
                place[step] = empty
            if following is None:
                place[step] = _value(place[step], piece)
            place = place[step]
    if not call.get("willContinue"):
        state["open"] = None


def _value(old: Any, piece: Json) -> Any:
    if "stringValue" in piece:
        return (old or "") + piece["stringValue"]
    for name in ("numberValue", "boolValue"):
        if name in piece:
            return piece[name]
    return None


def close(state: Json) -> Json:
    """What has come, for _reply.read."""
    parts = [
        _part(held["part"] | ({"text": "".join(held["pieces"])} if "pieces" in held else {}), state, number)
        for number, held in enumerate(state.get("parts", []))
    ]
    raw_finish, finish = state.get("finish"), None
    if state.get("open"):
        raw_finish = None  # within a call
    if raw_finish == "STOP" and any(part["type"] == "tool_call" for part in parts):
        finish = "tool"
    if raw_finish is None and state.get("blocked"):  # of the prompt: there is no candidate then
        raw_finish, finish = state["blocked"], "filter"
    usage = state.get("usage") or {}
    prompt, tools = _reply.count(usage.get("promptTokenCount")), _reply.count(usage.get("toolUsePromptTokenCount"))
    answer, thoughts = _reply.count(usage.get("candidatesTokenCount")), _reply.count(usage.get("thoughtsTokenCount"))
    return {
        "parts": parts,
        "raw_finish": raw_finish,
        "finish": finish,
        "model": state.get("model"),
        "response_id": state.get("id"),
        "usage": _reply.used(
            input_tokens=None if prompt is None else prompt + (tools or 0),
            cache_read_tokens=_reply.count(usage.get("cachedContentTokenCount")),
            output_tokens=None if answer is None and thoughts is None else (answer or 0) + (thoughts or 0),
            reasoning_tokens=thoughts,
        ),
    }


def _part(made: Json, state: Json, number: int) -> Json:
    """The content part of a part; `raw` where it alone could not give the vendor's back (signatures above all)."""
    part: Json = {"type": "opaque"}
    call, data = made.get("functionCall"), made.get("inlineData")
    if isinstance(made.get("text"), str):
        part = {"type": "reasoning" if made.get("thought") else "text", "text": made["text"]}
    elif isinstance(call, dict) and call.get("name"):
        ident = call.get("id") or _reply.made_id(state.get("id"), number)
        part = {"type": "tool_call", "id": ident, "name": call["name"], "arguments": call.get("args") or {}}
    elif isinstance(data, dict) and data.get("data"):
        part = {"type": "file", "media_type": data.get("mimeType") or "application/octet-stream", "data": data["data"]}
        return part if made == {"inlineData": data} and data.keys() == {"mimeType", "data"} else part | {"raw": made}
    if part["type"] == "opaque":
        return part | {"raw": made}
    again = call_of(part) if part["type"] == "tool_call" else text_of(part)
    return part if again == made else part | {"raw": made}


def text_of(part: Json) -> Json:
    """The vendor's part of a text, or of a thought."""
    return {"text": part["text"], "thought": True} if part["type"] == "reasoning" else {"text": part["text"]}


def call_of(part: Json) -> Json:
    """The vendor's part of a call. An id that was made up here is not said."""
    call = {"name": part["name"], "args": part["arguments"]}
    return {"functionCall": call if is_made(part["id"]) else {"id": part["id"]} | call}


def is_made(ident: str) -> bool:
    """True for the ids of _reply.made_id, of calls that had none, and of mapped ones."""
    return re.fullmatch(r"c_[a-z2-7]{24}", ident) is not None
