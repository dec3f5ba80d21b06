"""One field of another shape: every JSON value with each of its places in turn replaced."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

SHAPES = (5, True, None, [], {"a": 1}, "x", 1.5)


def odd(value: Any, every: int = 1) -> Iterator[Any]:
    """The value with each of its places replaced by each of the shapes; every: only each so-many-th of them."""
    pairs = [(place, shape) for place in _places(value, ()) for shape in SHAPES]
    for place, shape in pairs[::every]:
        yield _with(value, place, shape)


def _places(value: Any, place: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    if place:
        yield place
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, inner in inside:
        yield from _places(inner, (*place, step))


def _with(value: Any, place: tuple[Any, ...], shape: Any) -> Any:
    if not place:
        return shape
    copy = value.copy()
    copy[place[0]] = _with(value[place[0]], place[1:], shape)
    return copy
