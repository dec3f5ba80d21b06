"""Requests of generateContent, whole or their `contents` alone, in camelCase and in snake_case."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from mllm_pipe.sessions import body, gemini
from mllm_pipe.sessions.body import KNOWN, held
from mllm_pipe.sessions.store import Whole as reader

Json = dict[str, Any]
PROGRAM = "generateContent"
FIELDS = ("text", "thought", "thought_signature", "inline_data", "function_call", "function_response", "mime_type",
          "file_data", "file_uri")  # fmt: skip
__all__ = ["PROGRAM", "KNOWN", "held", "reader", "records"]


def records(entries: Iterable[Json], _name: str) -> Json:
    """The request as records (see mllm_pipe.sessions). A call without an id gets one, as does the result after it."""
    asked = body.of(entries, "contents")
    chain = body.Chain("google", "google")
    open_calls: list[Json] = []
    number = 0
    system = asked.get("systemInstruction", asked.get("system_instruction"))
    chain.add("system", _parts(system))
    for one in chain.given(asked.get("contents"), "parts"):
        parts = []
        for part in _given(one):
            call, result = part.get("functionCall"), part.get("functionResponse")
            if isinstance(call, dict):
                number += 1
                part = part | {"functionCall": {"id": f"call_{number}", **call}}
                open_calls.append(part["functionCall"])
            elif isinstance(result, dict):
                asking = [made for made in open_calls if made.get("name") == result.get("name")]
                asking = [made for made in asking if made["id"] == result.get("id", made["id"])]
                part = part | {"functionResponse": ({"id": asking[0]["id"]} if asking else {}) | result}
                open_calls = [made for made in open_calls if not asking or made is not asking[0]]
            parts.append(gemini.part_of(part))
        parts = [part for part in parts if part["type"] != "text" or part["text"]]
        only = bool(parts) and all(part["type"] == "tool_result" for part in parts)
        chain.add("assistant" if one.get("role") == "model" else "tool" if only else "user", parts)
    return chain.result(body.tools(asked.get("tools")))


def _given(content: Any) -> list[Json]:
    """The parts of a content, their names in camelCase."""
    given = content.get("parts") if isinstance(content, dict) else None
    return [_camel(part) for part in given if isinstance(part, dict)] if isinstance(given, list) else []


def _parts(content: Any) -> list[Json]:
    return [part for part in map(gemini.part_of, _given(content)) if part["type"] != "text" or part["text"]]


def _camel(given: Json) -> Json:
    """A part with the API's names in camelCase; what is in calls and results stays."""
    return {
        re.sub(r"_([a-z])", lambda found: found[1].upper(), name) if name in FIELDS else name:
        _camel(value) if name in ("inline_data", "file_data") and isinstance(value, dict) else value
        for name, value in given.items()
    }  # fmt: skip
