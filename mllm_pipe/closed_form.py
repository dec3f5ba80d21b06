"""An answer that was asked for in a closed form, read to the letter: what a judge finds, where a router sends, JSON.

Where models look for a way around a form, what is nearly it is nothing: an answer that breaks off, says two things by
one name, or says more than was asked is not read as the likeliest thing that it could mean.
"""

from __future__ import annotations

import json
from typing import Any

import orjson


class Invalid(Exception):
    """An answer that does not hold to the form; the message says why, for a repair try."""


def whole(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The parts of what was said. Invalid if it was not said to the end: it may have gone on."""
    if result["finish"] != "stop":
        raise Invalid(f"it does not come to its end ({result['finish']})")
    return list(result["parts"])


def json_of(parts: list[dict[str, Any]]) -> Any:
    """The JSON that an answer is. Invalid if it is none, or says two things, of which none counts more than the other;
    a refusal says nothing."""
    values = [part["value"] for part in parts if part["type"] == "data"]
    if len(values) > 1:
        raise Invalid(f"it says {len(values)} things, and not one")
    if values:
        return values[0]
    text = "".join(part["text"] for part in parts if part["type"] == "text").strip()
    if text.startswith("```") and text.endswith("```"):  # the one wrapping that models cannot help
        text = text.removeprefix("```json").removeprefix("```").removesuffix("```")
    try:
        value = orjson.loads(text)
        json.loads(text, object_pairs_hook=_once, parse_int=float)
    except orjson.JSONDecodeError as error:
        raise Invalid(f"it is no JSON ({error.msg})") from None
    except RecursionError:
        raise Invalid("it is nested too deeply") from None
    return value


def _once(pairs: list[tuple[str, Any]]) -> None:
    """Takes the members of an object. Invalid if two are of one name: orjson would take the last."""
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise Invalid(f"{next(name for name in names if names.count(name) > 1)!r} comes twice in one object")
