"""A limit on how long a search by a regular expression may keep the processor busy.

A hostile text can keep a backtracking search busy for ever. Python's looks for signals while it searches, and a signal
comes to the main thread alone, so that is where a search has to be made. Time is counted as this process uses it: a
busy machine makes no search late.
"""

from __future__ import annotations

import signal
import threading

PARTS = 10  # of a limit, after each of which we look; a timer set and unset for each search would cost more than it

_main = threading.main_thread().ident
_every = 0.0  # seconds of the timer that runs, 0 if none does
_ticks = 0  # of it
_last = 0  # tick that is the last one of the block that was opened last
_open = False


class Late(Exception):
    """The time is over."""


def possible() -> bool:
    """True in the main thread: there alone a time can be kept."""
    return threading.get_ident() == _main


def _tick(*_: object) -> None:
    global _ticks
    _ticks += 1
    if _open and _ticks > _last:
        raise Late
    if _ticks > _last:
        _run(0.0)  # nobody has come for long


def _run(every: float) -> None:
    global _every
    _every = every
    signal.signal(signal.SIGVTALRM, _tick)
    signal.setitimer(signal.ITIMER_VIRTUAL, every, every)


class within:  # noqa: N801, it is used as a block
    """What is done in the block may take so many seconds of the processor, and a part more, else it ends with Late.

    Main thread only, and not one in another.
    """

    def __init__(self, seconds: float) -> None:
        self.every = seconds / PARTS

    def __enter__(self) -> None:
        global _last, _open
        if _every != self.every:
            _run(self.every)
        _last, _open = _ticks + PARTS, True

    def __exit__(self, *_: object) -> None:
        global _open
        _open = False
