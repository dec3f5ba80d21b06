"""The first index of a long journal is made in parts, each by a process of its own.

The processes are copies of this one that parse, write a file of their part, and end: what is parallel about sqlite3 and
orjson in Python is that much.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress

from mllm_pipe.forks import fork, kill, processors
from mllm_pipe.tracing import schema
from mllm_pipe.tracing.filling import Filling

PART = 32 << 20  # bytes that are worth a process
_PARTS = 4  # at most
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


def fill(db: sqlite3.Connection, descriptor: int, path: str) -> None:
    """Fill new tables from the whole journal. path: of their file; parts are made beside it, unless it is in memory."""
    ends = _ends(descriptor) if path != ":memory:" else [os.fstat(descriptor).st_size]
    parts = [(f"{path}.{number}", begin, end) for number, (begin, end) in enumerate(zip(ends, ends[1:], strict=False))]
    children = [_started(part, descriptor, begin, end) for part, begin, end in parts]
    try:
        filling = Filling(db)
        db.execute("begin")
        last = filling.read(descriptor, 0, ends[0])
        db.execute("commit")
        for (part, _, end), child in zip(parts, list(children), strict=True):
            _, status = os.waitpid(child, 0)
            children.remove(child)
            if status:
                raise sqlite3.OperationalError(f"{part} was not made")
            filling.join(part)
            last = end
        if parts:  # a line that has no newline yet stays for later
            last = whole(descriptor, ends[-2], ends[-1])
        db.execute("begin")
        filling.store(last)
        db.execute("commit")
    finally:
        for child in children:
            kill(child)
        for part, _, _ in parts:
            with suppress(FileNotFoundError):
                os.unlink(part)


def _started(part: str, descriptor: int, begin: int, end: int) -> int:
    """The id of a process that makes a part. It ends if this one does."""
    parent = os.getpid()

    def work() -> None:
        db = made(part)
        db.execute("create table elsewhere (id blob)")
        db.execute("insert into meta values (0, 0, 0, '', 0, '', 0, 0, 0)")
        db.execute("begin")
        filling = Filling(db)
        filling.store(filling.read(descriptor, begin, end, parent))
        db.executemany("insert into elsewhere values (?)", [(ident,) for ident in filling.elsewhere])
        db.execute("commit")
        db.close()

    return fork(work)


def _ends(descriptor: int) -> list[int]:
    """Where the parts of the journal end, each after a whole line but the last."""
    size = os.fstat(descriptor).st_size
    count = max(min(processors(), size // PART, _PARTS), 1)
    ends = [_next_line(descriptor, size * number // count) for number in range(1, count)]
    return [*dict.fromkeys(ends), size]


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
