"""Lines of NDJSON from a descriptor, and what becomes of a line that is no record."""

from __future__ import annotations

import os
import re
import select
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import Any

from orjson import JSONDecodeError, loads

from mllm_pipe.envelope import Record, envelope_fault, has_envelope, timestamp
from mllm_pipe.errors import Usage
from mllm_pipe.terminal import kind_of, program

MAX_LINE = 64 << 20
CHUNK = 1 << 20
SHORT = 1 << 16  # bytes that take no longer to digest without hashlib than with it
RAW_KEPT = 4096  # bytes of a bad line that its error record carries


def digest(data: bytes) -> str:
    """SHA-256 in hex."""
    return str((_fast_sha256() if len(data) > SHORT else _sha256())(data).hexdigest())


def _fast_sha256() -> Any:
    from hashlib import sha256

    return sha256


@cache
def _sha256() -> Any:
    """Python's own, as its `random` has it: hashlib loads OpenSSL, 5 ms that only what is long is worth."""
    for name in ("_sha2", "_sha256"):  # since 3.12, and before
        with suppress(ImportError):
            return import_module(name).sha256
    return _fast_sha256()


class Long:
    """A line beyond the limit: what is known of it without having kept it."""

    __slots__ = ("head", "length", "sha256")

    def __init__(self, head: bytes, length: int, sha256: str) -> None:
        self.head, self.length, self.sha256 = head, length, sha256


class _Unfinished:
    """A line whose end has not been read; beyond the limit only its head, its length and its digest are kept."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.pieces: list[bytes] = []
        self.size = 0
        self.digest: Any = None

    def add(self, piece: bytes) -> None:
        self.size += len(piece)
        if self.digest:
            self.digest.update(piece)
            return
        self.pieces.append(piece)
        if self.size > self.limit:
            line = b"".join(self.pieces)
            self.digest, self.pieces = _fast_sha256()(line), [line[:RAW_KEPT]]

    def take(self) -> bytes | Long:
        line = Long(self.pieces[0], self.size, self.digest.hexdigest()) if self.digest else b"".join(self.pieces)
        self.pieces, self.size, self.digest = [], 0, None
        return line


class Lines:
    """The lines of a descriptor, in batches: one list for each read, so that nothing waits that could flow.

    Split on newline only. A regular file is read up to the size it has at the start, so that a command at the end of
    the pipe may append to it. After the last batch `torn` tells whether the last line had no newline.
    """

    def __init__(self, descriptor: int = 0, max_line: int = MAX_LINE) -> None:
        self.descriptor, self.max_line, self.torn = descriptor, max_line, False

    def batches(self) -> Iterator[list[bytes | Long]]:
        """Lists of lines without their newline; a line of more than `max_line` bytes comes as a Long."""
        unfinished = _Unfinished(self.max_line)
        for chunk in self._chunks():
            *whole, rest = chunk.split(b"\n")
            if whole:
                batch = list[bytes | Long](whole)
                if unfinished.size:
                    unfinished.add(whole[0])
                    batch[0] = unfinished.take()
                if self.max_line < len(chunk):
                    batch = [self._bounded(line) for line in batch]
                yield batch
            if rest:
                unfinished.add(rest)
        if unfinished.size:
            self.torn = True
            yield [unfinished.take()]

    def _bounded(self, line: bytes | Long) -> bytes | Long:
        if isinstance(line, Long) or len(line) <= self.max_line:
            return line
        return Long(line[:RAW_KEPT], len(line), digest(line))

    def _chunks(self) -> Iterator[bytes]:
        left = left_of(self.descriptor)
        while left is None or left > 0:
            try:
                chunk = os.read(self.descriptor, CHUNK if left is None else min(CHUNK, left))
            except BlockingIOError:
                select.select([self.descriptor], [], [])
                continue
            except OSError as error:
                raise Usage(f"stdin cannot be read: {error.strerror}") from None
            if not chunk:
                return
            if left is not None:
                left -= len(chunk)
            yield chunk


def left_of(descriptor: int) -> int | None:
    """How many bytes of a regular file are not read yet; None of anything else."""
    if kind_of(descriptor) != "file":
        return None
    return os.fstat(descriptor).st_size - os.lseek(descriptor, 0, os.SEEK_CUR)


def parse(line: bytes | Long) -> tuple[Record, str]:
    """(record, "") if the line is a record by its envelope; else (what it is or {}, what is wrong)."""
    if isinstance(line, Long):
        return {}, f"too long, {line.length} bytes; --max-line sets the limit"
    try:
        record = loads(line)
    except JSONDecodeError as error:
        return {}, f"no JSON: {error.msg} at column {error.colno}"
    if has_envelope(record):
        return record, ""
    return record if type(record) is dict else {}, envelope_fault(record)


def blank(line: bytes | Long) -> bool:
    """True for a line that says nothing, as one of a file with Windows line ends does that has nothing but its CR."""
    return not isinstance(line, Long) and not line.strip(b" \t\r")


def bad_line(line: bytes | Long, number: int, thread: str, why: str) -> Record:
    """The error record that carries a line that is no record; its id is a digest of the line, so it is stored once."""
    if isinstance(line, Long):
        head, length, sha256 = line.head, line.length, line.sha256
    else:
        head, length, sha256 = line[:RAW_KEPT], len(line), digest(line)
    record: Record = {
        "v": 1, "type": "error", "thread": thread, "id": f"line-{sha256[:32]}",
        "code": "bad_line", "message": why, "stage": program(), "retryable": False, "billed": "no", "line": number,
    }  # fmt: skip
    try:
        record["raw"] = head.decode()
    except UnicodeDecodeError:
        import base64

        record["raw_base64"] = base64.b64encode(head).decode()
    if length > len(head):
        record |= {"length": length, "sha256": sha256}
    return record


def torn_record(fragment: bytes, thread: str) -> Record:
    """The error record that says: the line before this one is known to be torn (a write was killed)."""
    sha256 = digest(fragment)
    return {
        "v": 1, "type": "error", "thread": thread, "id": f"torn-{sha256[:32]}", "at": timestamp(),
        "code": "torn", "message": "a write to this file was cut off here", "length": len(fragment), "sha256": sha256,
    }  # fmt: skip


def closes(record: Record, line: bytes | Long) -> bool:
    """True if the record is the `torn` error that makes this bad line before it known damage."""
    if record.get("type") != "error" or record.get("code") != "torn" or isinstance(line, Long):
        return False
    return record.get("length") == len(line) and record.get("sha256") == digest(line)


def named_thread(fragment: bytes) -> str | None:
    """The thread that a torn line speaks of, if it got that far."""
    found = re.search(rb'"thread"\s*:\s*("(?:[^"\\]|\\.)*")', fragment)
    if not found:
        return None
    try:
        return str(loads(found[1]))
    except JSONDecodeError:
        return None


