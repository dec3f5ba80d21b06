"""Keeps the journal small: takes out the calls that ended long ago.

What stays is written beside the journal and put in its place whole, under its lock; who waits to append meanwhile sees
that the file was replaced, and appends to the new one. A kill at any moment leaves the one or the other.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import IO

from mllm_pipe.calling import journal
from mllm_pipe.envelope import timestamp
from mllm_pipe.errors import Missing, Usage, WriteFailed
from mllm_pipe.storage import Appender, read_new
from mllm_pipe.tracing.journalled import place_of_index as place
from mllm_pipe.tracing.selection import age as seconds_of

DAY_S = 86400.0  # budgets of a day are kept in the journal


class _Pruned:
    """What was taken out, and what stays."""

    def __init__(self) -> None:
        self.calls = self.bytes_before = self.bytes_after = 0


def prune(age: str) -> str:
    """Take out the calls that ended longer ago than 90d or 12w, with all that they made; what came of it, in words.

    Usage if it is no age of a day or more; Missing if there is no journal; WriteFailed, and nothing is changed, if the
    rest cannot be written.
    """
    seconds = seconds_of(age)
    if seconds is None or seconds < DAY_S:
        raise Usage(f"--prune {age}: no age of a day or more; say 90d or 12w")
    found = _pruned(timestamp(time.time() - seconds))
    if not found.calls:
        return "nothing is that old"
    freed = found.bytes_before - found.bytes_after
    return f"{found.calls} calls taken out; the journal is {freed} bytes smaller, and has {found.bytes_after}"


def _pruned(before: str) -> _Pruned:
    """Take out what was written before a time (of the envelope's form), both lines of a call when its last one was."""
    path, found = journal.path(), _Pruned()
    if not os.path.exists(path):
        raise Missing(f"there is no journal yet ({path})")
    making = f"{path}.pruned"  # who holds the lock is alone with it; a killed one has left it
    with Appender(path) as appender:
        found.bytes_before = os.fstat(appender.descriptor).st_size
        appender.close_tail()
        late = _late(appender, before)
        try:
            with open(os.open(making, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
                _copy(appender, before, late, file, found)
                file.flush()
                os.fsync(file.fileno())
                found.bytes_after = file.tell()
            if found.bytes_after == found.bytes_before:
                os.unlink(making)
            else:
                os.replace(making, path)
        except OSError as error:
            with suppress(FileNotFoundError):
                os.unlink(making)
            raise WriteFailed(f"{making}: {error.strerror}; the journal is as it was") from None
    if found.bytes_after < found.bytes_before:
        with suppress(OSError):
            os.unlink(place())  # of a file that is gone, and whose inode may come again
    appender.close()
    return found


def _late(appender: Appender, before: str) -> set[bytes]:
    """Ids of the calls that were begun before that time, and ended later."""
    begun, late = set[bytes](), set[bytes]()
    limit = before.encode()

    def look(line: bytes) -> None:
        head = journal.HEAD.match(line)
        if head and head[1] == b"intent" and head[4] < limit:
            begun.add(head[2])
        elif head and head[1] == b"outcome":
            if head[4] >= limit and head[2] in begun:
                late.add(head[2])
            begun.discard(head[2])

    read_new(appender, 0, look)
    return late


def _copy(appender: Appender, before: str, late: set[bytes], file: IO[bytes], found: _Pruned) -> None:
    limit, calls = before.encode(), set[bytes]()

    def take(line: bytes) -> None:
        head = journal.HEAD.match(line)
        if head and head[4] < limit and head[2] not in late:
            calls.add(head[2])
        else:
            file.write(line + b"\n")

    read_new(appender, 0, take)
    found.calls = len(calls)
