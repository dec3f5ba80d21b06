"""The files of a child: pipes to it that no other child holds, and what it must not inherit."""

from __future__ import annotations

import os
from contextlib import suppress


def pipe() -> tuple[int, int]:
    """A pipe of which no end is a standard stream, not even when ours are closed: putting one in place would hit it."""
    ends = os.pipe()
    if min(ends) > 2:
        return ends
    import fcntl

    moved = tuple(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in ends)
    for fd in ends:
        os.close(fd)
    return moved[0], moved[1]


def widen(pipe: int) -> None:
    """Lets a pipe hold 1 MiB, where that can be done: claude ends without what its full pipe did not take (seen)."""
    import fcntl

    with suppress(AttributeError, OSError):  # not Linux; over the user's limit
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 1 << 20)


def inherited() -> list[int]:
    """The open files beyond stderr that a child would inherit; our own pipes are not among them (PEP 446)."""
    found = []
    for fd in map(int, os.listdir("/dev/fd")):
        with suppress(OSError):  # the one that listdir had open
            found += [fd] if fd > 2 and os.get_inheritable(fd) else []
    return found
