"""Copies of this process that work beside it: what is parallel about Python in threads is too little."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fork(work: Callable[[], object]) -> int:
    """The id of a copy that does the work and ends, with status 0, or 1 if the work raised anything. OSError.

    A signal ends it in silence. Only the thread that calls this is in the copy, and any lock that another one holds.
    """
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(signum) is not signal.SIG_IGN:
                signal.signal(signum, signal.SIG_DFL)
        work()
        status = 0
    finally:
        os._exit(status)


def kill(child: int) -> None:
    """End a copy that may have ended already."""
    with suppress(ChildProcessError):  # who started us has SIGCHLD ignored, so it is not there any more
        if not os.waitpid(child, os.WNOHANG)[0]:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
