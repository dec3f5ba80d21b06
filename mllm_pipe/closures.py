"""A JSON Schema (draft 2020-12) as closures: what is checked for every record must take microseconds.

The keywords are those of `_KEYWORDS`; a schema that uses others is a KeyError when it is read.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

Check = Callable[[Any], bool]
Schema = dict[str, Any]


def check_of(schema: Schema) -> Check:
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
_OF_OBJECT = frozenset(["required", "properties"])
_IN_PLACE = frozenset(["$ref", "allOf", "if", "then", "else"])
_ASK_NOTHING = frozenset(["then", "else", "$schema", "$id", "$defs", "title", "description"])


def _text(schema: Schema) -> Check:
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


def _later(make: Callable[[], Check]) -> Check:
    """A check that is made when the first value comes: a command meets few kinds of records."""
    made: list[Check] = []

    def check(v: Any) -> bool:
        if not made:
            made.append(make())
        return made[0](v)

    return check


def _asks(test: Schema) -> tuple[str, frozenset[str]]:
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

    def __init__(self, schema: Schema) -> None:
        self.definitions = schema.get("$defs", {})
        self.references: dict[str, Check] = {}
        self.check = self.build(schema)

    def build(self, schema: Schema) -> Check:
        if schema.keys() <= _OF_TEXT and schema.get("type") == "string":
            return _text(schema)
        if schema.keys() == {"$ref"}:
            return self.reference(schema["$ref"], schema)
        if conditions := self.conditions(schema):
            return self.by_word(schema, conditions)
        return self.of_object([schema]) if schema.keys() & _OF_OBJECT else self.in_turn(schema)

    def in_turn(self, schema: Schema) -> Check:
        """Keyword by keyword, but for those that speak of the fields of an object."""
        return _all_of([getattr(self, _KEYWORDS[keyword])(value, schema) for keyword, value in schema.items()
                        if keyword not in _ASK_NOTHING | _OF_OBJECT])  # fmt: skip

    def of_object(self, schemas: list[Schema]) -> Check:
        """All of the schemas: the fields of an object are gone through once for all of them."""
        wanted = frozenset([name for schema in schemas for name in schema.get("required", ())])
        named: dict[str, list[Check]] = {}
        for schema in schemas:
            for name, member in schema.get("properties", {}).items():
                named.setdefault(name, []).append(self.build(member))
        fields = {name: _all_of(each) for name, each in named.items()}
        others = [self.in_turn(schema) for schema in schemas if schema.keys() - _OF_OBJECT - _ASK_NOTHING]
        beside = [holds for holds in others if holds is not _TYPES["object"]]
        in_turn, rest = _all_of(others), _all_of(beside) if beside else None

        def check(v: Any) -> bool:
            if type(v) is not dict:
                return in_turn(v)
            if not v.keys() >= wanted:
                return False
            for name, value in v.items():
                if name in fields and not fields[name](value):
                    return False
            return rest is None or rest(v)

        return check

    def by_word(self, schema: Schema, conditions: list[tuple[str, frozenset[str]]]) -> Check:
        """What the word in a field asks of an object is put together when the first such object comes."""
        field = conditions[0][0]
        words = frozenset[str]().union(*(words for asked, words in conditions if asked == field))
        of_word: dict[str | None, Check] = {}

        def make(word: str | None) -> Check:
            if word not in of_word:
                of_word[word] = self.of_object(self.given(schema, field, word))
            return of_word[word]

        def check(v: Any) -> bool:
            word = v.get(field) if type(v) is dict else None
            if type(word) is not str:
                return in_turn(v)
            found = of_word.get(word)
            return found(v) if found else make(word if word in words else None)(v)

        in_turn = _later(lambda: self.of_object([schema]))
        return check

    def conditions(self, schema: Schema) -> list[tuple[str, frozenset[str]]]:
        """(field, words) of each condition of the schema that asks for the words of a field of the value itself."""
        asked = [_asks(schema["if"])] if "if" in schema else []
        within = [*schema.get("allOf", ()), *(schema[key] for key in ("then", "else") if key in schema)]
        if "$ref" in schema:
            within.append(self.definition(schema["$ref"]))
        return [one for one in asked if one[0]] + [one for inner in within for one in self.conditions(inner)]

    def given(self, schema: Schema, field: str, word: str | None) -> list[Schema]:
        """What is asked of an object whose field has this word, or one that nothing asks for (None): schemas without
        those conditions."""
        found = [{key: value for key, value in schema.items() if key not in _IN_PLACE}]
        inner = list(schema.get("allOf", ()))
        if "$ref" in schema:
            inner.append(self.definition(schema["$ref"]))
        if "if" in schema:
            asked, words = _asks(schema["if"])
            if asked == field:
                inner.append(schema.get("then" if word in words else "else", {}))
            else:
                found.append({key: schema[key] for key in ("if", "then", "else") if key in schema})
        return found + [each for one in inner for each in self.given(one, field, word)]

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

    def items(self, member: Schema, _: Any) -> Check:
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

    def every(self, members: list[Schema], _: Any) -> Check:
        return _all_of([self.build(member) for member in members])

    def condition(self, test: Schema, schema: Schema) -> Check:
        when, then, otherwise = self.build(test), self.build(schema.get("then", {})), self.build(schema.get("else", {}))
        return lambda v: then(v) if when(v) else otherwise(v)

    def reference(self, pointer: str, _: Any) -> Check:
        if pointer not in self.references:
            self.references[pointer] = lambda v: self.references[pointer](v)  # for the circle: it is built by then
            self.references[pointer] = self.build(self.definition(pointer))
        return self.references[pointer]

    def definition(self, pointer: str) -> Schema:
        found: Schema = self.definitions[pointer.removeprefix("#/$defs/")]
        return found


_KEYWORDS = {
    "type": "any_type",
    "const": "constant",
    "enum": "choice",
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
