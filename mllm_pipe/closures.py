"""A JSON Schema (draft 2020-12) as closures: what is checked for every record must take microseconds.

The keywords are those of `_KEYWORDS`; a schema that uses others is a KeyError when it is read.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

Check = Callable[[Any], bool]


def check_of(schema: dict[str, Any]) -> Check:
    """A function that is true exactly of the values that jsonschema accepts by this schema. KeyError: see above."""
    return _Door(schema).check


# JSON Schema counts 1.0 as an integer and does not count true as a number; draft 2020-12 §6.1.1.
_TYPES: dict[str, Check] = {
    "object": lambda v: type(v) is dict,
    "array": lambda v: type(v) is list,
    "string": lambda v: type(v) is str,
    "boolean": lambda v: type(v) is bool,
    "null": lambda v: v is None,
    "number": lambda v: type(v) in (int, float),
    "integer": lambda v: type(v) is int or type(v) is float and v.is_integer(),
}


_PYTHON: dict[str, list[type]] = {
    "object": [dict], "array": [list], "string": [str], "boolean": [bool], "null": [type(None)], "number": [int, float],
}  # fmt: skip


def _same(value: Any, other: Any) -> bool:
    """JSON equality: 1 equals 1.0, but true is not 1. Only scalars stand in our consts and enums."""
    return bool(value == other) and (type(value) is bool) == (type(other) is bool)


_OF_TEXT = frozenset(["type", "minLength", "maxLength", "pattern", "description"])


def _text(schema: dict[str, Any]) -> Check:
    """The keywords of a text in one check, for most fields are one."""
    least, most = schema.get("minLength", 0), schema.get("maxLength", sys.maxsize)
    if "pattern" in schema:
        search = re.compile(schema["pattern"]).search
        return lambda v: type(v) is str and least <= len(v) <= most and search(v) is not None
    return lambda v: type(v) is str and least <= len(v) <= most


def _all_of(checks: list[Check]) -> Check:
    if len(checks) == 1:
        return checks[0]

    def check(v: Any) -> bool:
        for holds in checks:  # a loop: twice as fast as all(), and this runs for each field
            if not holds(v):
                break
        else:
            return True
        return False

    return check


def _asks(test: dict[str, Any]) -> tuple[str, frozenset[str]]:
    """(field, words) of an `if` that asks for nothing but that the field is one of the words; else ("", none)."""
    if test.keys() == {"properties"} and len(test["properties"]) == 1:
        ((field, asked),) = test["properties"].items()
        if asked.keys() == {"const"} or asked.keys() == {"enum"}:
            words = [asked["const"]] if "const" in asked else asked["enum"]
            if all([type(word) is str for word in words]):
                return field, frozenset(words)
    return "", frozenset()


class _Door:
    """Closures for the schema's keywords. `check` is the whole; references are looked up once, and may be circular."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self.definitions = schema.get("$defs", {})
        self.references: dict[str, Check] = {}
        self.check = self.build(schema)

    def build(self, schema: dict[str, Any]) -> Check:
        if schema.keys() <= _OF_TEXT and schema.get("type") == "string":
            return _text(schema)
        checks = []
        for keyword, value in schema.items():
            if keyword in ("then", "else", "$schema", "$id", "$defs", "title", "description"):
                continue
            check = getattr(self, _KEYWORDS[keyword])(value, schema)
            checks.append(check)
        return checks[0] if len(checks) == 1 else _all_of(checks)

    def any_type(self, names: str | list[str], _: Any) -> Check:
        if isinstance(names, str):
            return _TYPES[names]
        if "integer" in names:
            tests = [_TYPES[name] for name in names]
            return lambda v: any([test(v) for test in tests])
        types = frozenset([kind for name in names for kind in _PYTHON[name]])
        return lambda v: type(v) in types

    def constant(self, expected: Any, _: Any) -> Check:
        if type(expected) is str:
            return lambda v: bool(v == expected)
        return lambda v: _same(v, expected)

    def choice(self, options: list[Any], _: Any) -> Check:
        if all([type(option) is str for option in options]):
            words = frozenset(options)
            return lambda v: type(v) is str and v in words
        return lambda v: any([_same(v, option) for option in options])

    def required(self, names: list[str], _: Any) -> Check:
        wanted = frozenset(names)
        return lambda v: type(v) is not dict or v.keys() >= wanted

    def properties(self, members: dict[str, Any], _: Any) -> Check:
        checks = {name: self.build(member) for name, member in members.items()}

        def check(v: Any) -> bool:
            if type(v) is dict:
                for name, value in v.items():
                    if name in checks and not checks[name](value):
                        return False
            return True

        return check

    def items(self, member: dict[str, Any], _: Any) -> Check:
        check = self.build(member)
        return lambda v: type(v) is not list or all([check(item) for item in v])

    def shortest(self, least: int, _: Any) -> Check:
        return lambda v: type(v) is not str or len(v) >= least

    def longest(self, most: int, _: Any) -> Check:
        return lambda v: type(v) is not str or len(v) <= most

    def fewest(self, least: int, _: Any) -> Check:
        return lambda v: type(v) is not list or len(v) >= least

    def minimum(self, least: float, _: Any) -> Check:
        return lambda v: type(v) not in (int, float) or v >= least

    def maximum(self, most: float, _: Any) -> Check:
        return lambda v: type(v) not in (int, float) or v <= most

    def pattern(self, expression: str, _: Any) -> Check:
        search = re.compile(expression).search
        return lambda v: type(v) is not str or search(v) is not None

    def every(self, members: list[dict[str, Any]], _: Any) -> Check:
        """All of them; where each is for certain words in one field, only those of the word that is there."""
        in_turn = _all_of([self.build(member) for member in members])
        asked = [_asks(member.get("if", {})) if "else" not in member else ("", frozenset()) for member in members]
        field = asked[0][0]
        if not field or any([other != field for other, _ in asked]):
            return in_turn
        of_word: dict[str, list[Check]] = {}
        for member, (_, words) in zip(members, asked, strict=True):
            then = self.build(member.get("then", {}))
            for word in words:
                of_word.setdefault(word, []).append(then)
        table = {word: _all_of(thens) for word, thens in of_word.items()}

        def check(v: Any) -> bool:
            word = v.get(field) if type(v) is dict else None
            if type(word) is not str:
                return in_turn(v)
            then = table.get(word)
            return then is None or then(v)

        return check

    def condition(self, test: dict[str, Any], schema: dict[str, Any]) -> Check:
        when = self.build(test)
        then, otherwise = self.build(schema.get("then", {})), self.build(schema.get("else", {}))
        field, words = _asks(test)

        def check(v: Any) -> bool:
            word = v.get(field) if type(v) is dict else None
            asked = word in words if type(word) is str else when(v)
            return then(v) if asked else otherwise(v)

        return check if field else lambda v: then(v) if when(v) else otherwise(v)

    def reference(self, pointer: str, _: Any) -> Check:
        name = pointer.removeprefix("#/$defs/")
        if name not in self.references:
            self.references[name] = lambda v: self.references[name](v)  # for the circle: it is built by then
            self.references[name] = self.build(self.definitions[name])
        return self.references[name]


_KEYWORDS = {
    "type": "any_type",
    "const": "constant",
    "enum": "choice",
    "required": "required",
    "properties": "properties",
    "items": "items",
    "minLength": "shortest",
    "maxLength": "longest",
    "minItems": "fewest",
    "minimum": "minimum",
    "maximum": "maximum",
    "pattern": "pattern",
    "allOf": "every",
    "if": "condition",
    "$ref": "reference",
}
