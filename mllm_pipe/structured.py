"""Structured output: the schema that the user names, and whether an answer holds to it."""

from __future__ import annotations

import os
import re
from typing import Any

import orjson

from mllm_pipe.closed_form import Invalid, json_of
from mllm_pipe.contract import Schema, TooDeep, fault, sound
from mllm_pipe.errors import Usage
from mllm_pipe.files import whole

_TYPES = {"int": "integer", "float": "number", "bool": "boolean", "str": "string"}
_FIELD = r"([A-Za-z_][A-Za-z0-9_]*)(?:\s+(int|float|bool|str))?(?:\s*:\s*(.*))?"


def schema_of(spec: str) -> Schema:
    """The JSON Schema that --schema names: JSON text, a file, or fields as in 'name, age int, bio: one line'.

    In the short form, fields are separated by commas, or by newlines if it has any; each is a name, a type (int,
    float, bool, str; str if none) and a description after a colon; all are required. (The form is that of `llm`.)
    Usage if it is none of them or no valid schema; Missing if it looks like a file that is not there.
    """
    text = spec.strip()
    if text.startswith("{"):
        return sound(_parsed(text.encode(), "--schema"), "--schema")
    if os.path.exists(text) or "/" in text or text.endswith(".json"):
        return from_file(text, f"--schema {text}")
    return _short(text)


def from_file(path: str, where: str) -> Schema:
    """The JSON Schema in a file. Missing if it cannot be read, Usage if it is none; `where` begins the message."""
    return sound(_parsed(whole(path, where), where), where)


def _short(text: str) -> Schema:
    properties: dict[str, Any] = {}
    for field in filter(None, map(str.strip, text.split("\n") if "\n" in text else text.split(","))):
        found = re.fullmatch(_FIELD, field, re.DOTALL)
        if not found:
            raise Usage(f"--schema: {field!r} is no field; say NAME, NAME int, or NAME: what it is")
        name, kind, description = found.groups()
        properties[name] = {"type": _TYPES[kind or "str"]} | ({"description": description} if description else {})
    if not properties:
        raise Usage("--schema is empty; say a file, JSON, or fields as in 'name, age int'")
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _parsed(data: bytes, where: str) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise Usage(f"{where}: no JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None


def value_of(parts: list[dict[str, Any]], schema: Schema, seconds: float) -> tuple[Any, str]:
    """(the value that the answer's parts hold, "" or why it does not hold to the schema). CallFailed, as `fault`."""
    try:
        value = json_of(parts)
        return value, fault(value, schema, seconds)
    except (Invalid, TooDeep) as why:
        return None, str(why)


def with_value(parts: list[dict[str, Any]], value: Any) -> list[dict[str, Any]]:
    """The parts with the value as a data part; the text that it was read from stays, for its maker wants it back."""
    if any(part["type"] == "data" for part in parts):
        return parts
    return [*parts, {"type": "data", "value": value}]
