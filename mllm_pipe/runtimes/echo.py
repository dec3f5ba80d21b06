"""echo: the offline runtime for trying things. It says the newest turn back; costs nothing, sends nothing.

Tokens are counted as words. Asked for structured output, it gives the largest value that the schema allows, so that
a judge on it is always content.
"""

from __future__ import annotations

from typing import Any

import orjson

from mllm_pipe.errors import CallFailed

FREE = TAKES_SCHEMA = True


def call(target: dict[str, Any], request: dict[str, Any], io: Any) -> dict[str, Any]:
    """The last user turn's text, or a value of request["schema"]. CallFailed("empty") if the turn has no text."""
    said = [text(turn) for turn in request["turns"]]
    newest = text(newest_of(request["turns"]))
    schema = request.get("schema")
    answer = orjson.dumps(instance(schema)).decode() if schema is not None else newest
    if not answer:
        raise CallFailed("empty", "the newest turn has no text to echo", billed="no")
    io.text(answer)
    words = sum(len(line.split()) for line in [*said, request.get("system") or ""])
    return {
        "parts": [{"type": "text", "text": answer}],
        "finish": "stop",
        "model": target.get("model") or "echo",
        "provider": "offline",
        "usage": {"input_tokens": words, "output_tokens": len(answer.split())},
        "cost_usd": 0.0,
        "cost_source": "runtime",
        "origin": None,
        "losses": [],
    }


def usable(target: dict[str, Any]) -> str:
    """Always."""
    return ""


def preview(target: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    """Nothing is sent."""
    return {"stdin": text(newest_of(request["turns"]))}


def newest_of(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """The newest turn that is no system text."""
    return next(turn for turn in reversed(turns) if turn["role"] != "system")


def text(turn: dict[str, Any]) -> str:
    """The text parts of a turn, a line apart."""
    return "\n".join(part["text"] for part in turn["parts"] if part["type"] == "text")


def instance(schema: dict[str, Any], place: int = 0) -> Any:
    """A value that the schema allows: const, the first of enum, the maximum, true, one item. Several items take the
    values of an enum in turn. place: of the item that it stands in."""
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][place % len(schema["enum"])]
    kind = schema.get("type", "object")
    if kind == "object":
        return {name: instance(member, place) for name, member in schema.get("properties", {}).items()}
    if kind == "array":
        return [instance(schema.get("items", {}), item) for item in range(max(1, schema.get("minItems", 1)))]
    if kind in ("number", "integer"):
        return schema.get("maximum", schema.get("minimum", 1))
    return {"boolean": True, "null": None}.get(kind, "echo")
