"""A limit on how long a search by a regular expression may keep the processor busy.

A hostile text can keep a backtracking search busy for ever. Python's looks for signals while it searches, and a signal
comes to the main thread alone, so that is where a search has to be made. Time is counted as this process uses it: a
busy machine makes no search late.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Late(Exception):
    """The time is over."""


def _late(*_: object) -> None:
    raise Late


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """What is done in the block may take so many seconds of the processor, else it ends with Late. Main thread only."""
    signal.signal(signal.SIGVTALRM, _late)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
