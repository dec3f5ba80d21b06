"""Signals: the first one ends us, but breaks into nothing that must be written down whole.

Python runs a handler in the main thread, between any two steps, whichever thread the kernel gave the signal to: to mask
it in the main thread alone does not hold it back. So the handler itself looks whether it may raise.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import NoReturn

from mllm_pipe.errors import Stopped

PATIENCE_S = 2.0  # how we end takes less; whoever sends one more after that will not wait
AGAIN_S = 0.01

_main = threading.main_thread().ident
_came: list[tuple[int, float]] = []  # the first signal, and when
_raised: list[int] = []


def listen() -> None:
    """From now on INT, TERM and HUP end us by Stopped, but those that are ignored (as by nohup)."""
    sys.unraisablehook = _raise_again
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, _hear)


def _hear(signum: int, _: FrameType | None) -> None:
    """Ctrl-C is often sent twice, and timeout(1) sends to us and to our group: one more is let be for a while."""
    now = time.monotonic()
    if not _came:
        _came.append((signum, now))
    elif now - _came[0][1] > PATIENCE_S:
        die_by(signum)
    if not _raised and not held.depth:
        _stop()


def _raise_again(lost: sys.UnraisableHookArgs) -> None:
    """What is raised in a destructor, as of a generator that is not read to its end, is thrown away by Python."""
    if isinstance(lost.exc_value, Stopped):
        _raised.clear()
        threading.Timer(AGAIN_S, os.kill, (os.getpid(), lost.exc_value.signum)).start()
    else:
        sys.__unraisablehook__(lost)


def _stop() -> NoReturn:
    _raised.append(_came[0][0])
    raise Stopped(_came[0][0])


def ending() -> None:
    """We end anyway: a signal that comes from now on is let be for a while."""
    if not _came:
        _came.append((0, time.monotonic()))
    _raised.append(_came[0][0])


class _Held:
    """Use as a context, which may be nested: a signal that comes within is raised at its end."""

    def __init__(self) -> None:
        self.depth = 0

    def __enter__(self) -> None:
        if threading.get_ident() == _main:
            self.depth += 1

    def __exit__(self, *_: object) -> None:
        if threading.get_ident() == _main:
            self.depth -= 1
            if _came and not self.depth and not _raised:
                _stop()


held = _Held()


def die_by(signum: int) -> NoReturn:
    """End as if the signal had not been handled, so that the shell sees 128+n and a loop in it stops."""
    signal.signal(signum, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signum])
    os.kill(os.getpid(), signum)
    os._exit(128 + signum)
