"""The first index of a long journal is made in parts, each by a process of its own.

The processes are copies of this one that parse, write a file of their part, and end: what is parallel about sqlite3 and
orjson in Python is that much. A share of the journal is left, in small parts, for whoever is ready first: one processor
is seldom as fast as another.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import NamedTuple

from mllm_pipe.forks import fork, kill, processors
from mllm_pipe.tracing import schema
from mllm_pipe.tracing.filling import Filling

WORTH = 32 << 20  # bytes that are worth a process
_PROCESSES = 4  # at most
_LEFT, _SMALL = 8, 2  # one part in eight of the journal is left; in so many small ones for each process
_BLOCK = 1 << 18


def made(path: str) -> sqlite3.Connection:
    """A new file with the tables, which nobody reads yet: it is not there until it is whole."""
    if path != ":memory:":
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600))
    db = connect(path)
    for setting in ("journal_mode = off", "synchronous = off", "page_size = 16384", "locking_mode = exclusive"):
        db.execute(f"pragma {setting}")
    db.executescript(schema.TABLES)
    return db


def connect(path: str) -> sqlite3.Connection:
    """A connection without transactions but those that are begun."""
    return sqlite3.connect(path, timeout=120, isolation_level=None)


class Part(NamedTuple):
    """A part of the journal, from a line to another, and the file that is made of it."""

    path: str
    begin: int
    end: int

    def make(self, descriptor: int, parent: int = 0) -> None:
        """Make the file; parent: for which process, it is broken off if that has ended."""
        db = made(self.path)
        db.execute("create table elsewhere (id blob)")
        db.execute("insert into meta values (0, 0, 0, '', 0, '', 0, 0, 0)")
        db.execute("begin")
        filling = Filling(db)
        filling.store(filling.read(descriptor, self.begin, self.end, parent))
        db.executemany("insert into elsewhere values (?)", [(ident,) for ident in filling.elsewhere])
        db.execute("commit")
        db.close()


def fill(db: sqlite3.Connection, descriptor: int, path: str) -> None:
    """Fill new tables from the whole journal. path: of their file; parts are made beside it, unless it is in memory."""
    count = _processes(descriptor) if path != ":memory:" else 1
    ends = _ends(descriptor, count)
    parts = [Part(f"{path}.{number}", *part) for number, part in enumerate(zip(ends, ends[1:], strict=False))]
    children: list[int] = []
    numbers, given = os.pipe()  # of the parts that are left: who reads one, makes it
    os.write(given, bytes(range(count - 1, len(parts))))
    os.close(given)
    left = (parts[number] for (number,) in iter(partial(os.read, numbers, 1), b""))
    try:
        children += [_started(chain([part], left), descriptor) for part in parts[: count - 1]]
        filling = Filling(db)
        db.execute("begin")
        last = filling.read(descriptor, 0, ends[0])
        db.execute("commit")
        for part in left:
            part.make(descriptor)
        for child in list(children):
            _, status = os.waitpid(child, 0)
            children.remove(child)
            if status:
                raise sqlite3.OperationalError("a part of the index was not made")
        for part in parts:
            filling.join(part.path)
        if parts:  # a line that has no newline yet stays for later
            last = whole(descriptor, ends[-2], ends[-1])
        db.execute("begin")
        filling.store(last)
        db.execute("commit")
    finally:
        os.close(numbers)
        for child in children:
            kill(child)
        for part in parts:
            with suppress(FileNotFoundError):
                os.unlink(part.path)


def _started(parts: Iterable[Part], descriptor: int) -> int:
    """The id of a process that makes parts. It ends if this one does."""
    parent = os.getpid()

    def work() -> None:
        for part in parts:
            part.make(descriptor, parent)

    return fork(work)


def _processes(descriptor: int) -> int:
    return max(min(processors(), os.fstat(descriptor).st_size // WORTH, _PROCESSES), 1)


def _ends(descriptor: int, count: int) -> list[int]:
    """Where the parts of the journal end, each after a whole line but the last: one a process, and what is left."""
    size = os.fstat(descriptor).st_size
    if count == 1:
        return [size]
    large = [size * number * (_LEFT - 1) // (_LEFT * count) for number in range(1, count + 1)]
    small = [large[-1] + (size - large[-1]) * number // (_SMALL * count) for number in range(1, _SMALL * count)]
    return [*dict.fromkeys([*(_next_line(descriptor, end) for end in large + small), size])]


def _next_line(descriptor: int, offset: int) -> int:
    """The offset of the line that begins after this one."""
    while block := os.pread(descriptor, _BLOCK, offset):
        if (found := block.find(b"\n")) >= 0:
            return offset + found + 1
        offset += len(block)
    return offset


def whole(descriptor: int, begin: int, end: int) -> int:
    """The offset after the last newline before `end`; begin if there is none."""
    at = end
    while at > begin:
        start = max(begin, at - _BLOCK)
        if (found := os.pread(descriptor, at - start, start).rfind(b"\n")) >= 0:
            return start + found + 1
        at = start
    return begin
