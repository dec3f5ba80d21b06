"""What each worker keeps for itself from one call to the next, such as a connection, and closes when it ends."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, Generic, Protocol, TypeVar


class Closable(Protocol):
    """What can be closed."""

    def close(self) -> None: ...


Thing = TypeVar("Thing", bound=Closable)


class Kept(Generic[Thing]):
    """Things of one sort. Each thread and each greenlet has a context, and so things, of its own."""

    def __init__(self) -> None:
        self._own: ContextVar[_Own[Thing]] = ContextVar("own")

    def mine(self) -> dict[Any, Thing]:
        """Those of the worker that asks, by what they are for."""
        own = self._own.get(None)
        if own is None:
            self._own.set(own := _Own())
        return own.things


class _Own(Generic[Thing]):
    """Ends with its worker, or with the process."""

    def __init__(self) -> None:
        self.things: dict[Any, Thing] = {}
        weakref.finalize(self, _close, self.things)


def _close(things: Mapping[Any, Closable]) -> None:
    for thing in things.values():
        thing.close()
