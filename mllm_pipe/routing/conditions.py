"""Conditions of rules: what each asks of a subject, and how it says so to a person.

A condition is an entry of a rule, checked in shape by mllm_pipe.configuration. All that stands in it must hold; of a
list, any.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import orjson

from mllm_pipe.configuration import Keys, Wrong, nearest
from mllm_pipe.routing.subject import HAS, Subject
from mllm_pipe.routing.words import folded

Entry = dict[str, Any]
Hits = dict[int, str]  # number of a list of keywords: the one of them that is in the text


class Condition(NamedTuple):
    """Whether it holds; that it holds or why not, in words; and the lists of keywords of which it needs one (None: it
    may hold without any)."""

    holds: Callable[[Subject, Hits], bool]
    told: Callable[[Subject, Hits], str]
    needs: frozenset[int] | None = None


class Conditions:
    """Makes conditions of what is configured, and gathers the lists of keywords that stand in them."""

    def __init__(self, wrong: Wrong) -> None:
        """wrong: makes Usage of why something has no meaning, and the keys that lead to it."""
        self.lists: list[list[str]] = []
        self.searches = False
        self._wrong = wrong

    def of(self, entry: Entry, at: Keys) -> Condition:
        """The condition of an entry that stands at these keys. Usage if it asks for nothing, or for what is not."""
        if not entry:
            raise self._wrong("asks for nothing; the router's default says where all others go", *at)
        return _every([getattr(self, f"_{key}")(value, (*at, key)) for key, value in entry.items()])

    def _keywords(self, words: str | list[str], at: Keys) -> Condition:
        keywords = [folded(word) for word in _listed(words)]
        if not all(keywords):
            raise self._wrong("has a blank keyword, which would match everything", *at)
        number, none = len(self.lists), f"no keyword of {_some(_listed(words))}"
        self.lists.append(keywords)
        return Condition(
            lambda subject, hits: number in hits,
            lambda subject, hits: f"keyword {hits[number]}" if number in hits else none,
            frozenset([number]),
        )

    def _regex(self, patterns: str | list[str], at: Keys) -> Condition:
        if not all(_listed(patterns)):
            raise self._wrong("has an empty expression, which would match everything", *at)
        try:
            searches = [re.compile(pattern).search for pattern in _listed(patterns)]
        except (re.error, OverflowError, RecursionError) as error:
            raise self._wrong(f"is no regular expression: {error}", *at) from None
        self.searches = True
        shown = _some(_listed(patterns))

        def holds(subject: Subject, _: Hits) -> bool:
            return any([search(subject.text) is not None for search in searches])

        return Condition(holds, lambda subject, hits: f"regex {shown}{'' if holds(subject, hits) else ': no match'}")

    def _has(self, kinds: str | list[str], at: Keys) -> Condition:
        wanted = frozenset(_listed(kinds))
        for kind in sorted(wanted - set(HAS)):
            raise self._wrong(f"is {kind!r}{nearest(kind, list(HAS))}; there are {', '.join(HAS)}", *at)

        def told(subject: Subject, _: Hits) -> str:
            there = sorted(wanted & subject.has)
            return f"has {', '.join(there)}" if there else f"has no {' or '.join(sorted(wanted))}"

        return Condition(lambda subject, hits: not wanted.isdisjoint(subject.has), told)

    def _language(self, codes: str | list[str], at: Keys) -> Condition:
        wanted = frozenset(_listed(codes))
        for code in sorted(wanted):
            if not re.fullmatch(r"[a-z]{2,3}", code):
                raise self._wrong(f"is {code!r}, no code of ISO 639; say de, en, ja, ...", *at)
        return Condition(
            lambda subject, hits: subject.language in wanted,
            lambda subject, hits: f"language {subject.language or 'unknown'}",
        )

    def _meta(self, fields: Entry, at: Keys) -> Condition:
        if not fields:
            raise self._wrong("asks for no field", *at)
        wanted = [(key, value if isinstance(value, list) else [value]) for key, value in fields.items()]

        def held(subject: Subject, key: str, values: list[Any]) -> bool:
            value = _in(subject.meta, key)
            return any([value == one and (value is True) == (one is True) for one in values])

        def told(subject: Subject, _: Hits) -> str:
            fault = next((key for key, values in wanted if not held(subject, key, values)), None)
            return ", ".join([f"meta.{key} is {_json(_in(subject.meta, key))}" for key, _ in wanted
                              if fault is None or key == fault])  # fmt: skip

        return Condition(lambda subject, hits: all([held(subject, *one) for one in wanted]), told)

    def _longer_than(self, most: int, _: Keys) -> Condition:
        return Condition(
            lambda subject, hits: len(subject.text) > most,
            lambda subject, hits: f"{len(subject.text)} characters",
        )

    def _shorter_than(self, least: int, _: Keys) -> Condition:
        return Condition(
            lambda subject, hits: len(subject.text) < least,
            lambda subject, hits: f"{len(subject.text)} characters",
        )

    def _tokens_over(self, most: int, _: Keys) -> Condition:
        return Condition(lambda subject, hits: subject.tokens > most, lambda subject, hits: f"{subject.tokens} tokens")

    def _all(self, entries: list[Entry], at: Keys) -> Condition:
        return _every(self._each(entries, at))

    def _any(self, entries: list[Entry], at: Keys) -> Condition:
        parts = self._each(entries, at)
        needs = [part.needs for part in parts]

        def told(subject: Subject, hits: Hits) -> str:
            held = next((part for part in parts if part.holds(subject, hits)), None)
            return held.told(subject, hits) if held else "; ".join([part.told(subject, hits) for part in parts])

        return Condition(
            lambda subject, hits: any([part.holds(subject, hits) for part in parts]),
            told,
            None if None in needs else frozenset[int]().union(*filter(None, needs)),
        )

    def _not(self, entry: Entry, at: Keys) -> Condition:
        inner = self.of(entry, at)
        return Condition(
            lambda subject, hits: not inner.holds(subject, hits),
            lambda subject, hits: f"not: {inner.told(subject, hits)}",
        )

    def _each(self, entries: list[Entry], at: Keys) -> list[Condition]:
        if not entries:
            raise self._wrong("is empty", *at)
        return [self.of(entry, (*at, place)) for place, entry in enumerate(entries)]


def _every(parts: list[Condition]) -> Condition:
    """That all of them hold. What is known already, keywords, is asked first."""
    if len(parts) == 1:
        return parts[0]
    parts = sorted(parts, key=lambda part: part.needs is None)

    def told(subject: Subject, hits: Hits) -> str:
        fault = next((part for part in parts if not part.holds(subject, hits)), None)
        return fault.told(subject, hits) if fault else ", ".join([part.told(subject, hits) for part in parts])

    def holds(subject: Subject, hits: Hits) -> bool:
        for part in parts:  # noqa: SIM110 - twice as fast as all(), and this runs for each thread
            if not part.holds(subject, hits):
                return False
        return True

    return Condition(holds, told, parts[0].needs)


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def _some(words: list[str]) -> str:
    return ", ".join(words[:4]) + (", ..." if len(words) > 4 else "")


def _in(fields: Any, dotted: str) -> Any:
    """What stands in nested fields at customer.plan; None if nothing does."""
    for step in dotted.split("."):
        fields = fields.get(step) if isinstance(fields, dict) else None
    return fields


def _json(value: Any) -> str:
    text = orjson.dumps(value).decode()
    return "not set" if value is None else text if len(text) <= 60 else text[:57] + "..."
