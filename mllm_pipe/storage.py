"""Files of records that many processes append to: one lock, one write, a torn tail closed and never truncated.

Measured on a local file system under kill -9: an append without the lock loses other writers' acknowledged lines,
because the next line is glued to the fragment; a tail that is cut back breaks those who follow the file.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable
from contextlib import suppress

from mllm_pipe.envelope import line_of
from mllm_pipe.errors import Usage, WriteFailed
from mllm_pipe.lines import blank, named_thread, parse, torn_record
from mllm_pipe.waiting import aside


class Appender:
    """An append-only file, created 0600 with its folder 0700. Use as a context: the lock is held inside.

    A file that was made here is taken away again where the context fails and nothing was added.
    """

    def __init__(self, path: str, *, sync: bool = False, make_folder: bool = False) -> None:
        self.path, self.sync, self.make_folder = path, sync, make_folder
        self.descriptor = -1
        self.whole = 0  # the length after our last append: what ends there has its newline
        self.made = False

    def __enter__(self) -> Appender:
        """Open and lock. WriteFailed if it cannot be; Usage if the path is no regular file."""
        try:
            self._lock()
        except OSError as error:
            self.close()
            raise WriteFailed(f"{self.path}: {error.strerror}") from None
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        if self.descriptor >= 0:
            if failed and self.made and not os.fstat(self.descriptor).st_size:
                self._take_away()
            fcntl.flock(self.descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the file; the next `with` opens it anew."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor, self.whole, self.made = -1, 0, False

    def append(self, data: bytes, thread: str = "-") -> None:
        """Append whole lines in one write, under the lock. `thread` is named by the note on a torn tail.

        WriteFailed if they cannot be written whole; the file then has its old length.
        """
        size = os.fstat(self.descriptor).st_size
        data = self._tail_closed(size, thread) + data
        try:
            written = os.write(self.descriptor, data)
            if written < len(data):  # how a full disk first shows
                os.write(self.descriptor, data[written:])
                if os.fstat(self.descriptor).st_size < size + len(data):
                    raise OSError(28, "No space left on device")
            if self.sync:
                os.fdatasync(self.descriptor)
        except OSError as error:
            os.ftruncate(self.descriptor, size)
            raise WriteFailed(f"{self.path}: {error.strerror}; nothing was added") from None
        self.whole = size + len(data)

    def close_tail(self, thread: str = "-") -> None:
        """Close a tail that a killed writer left torn, under the lock: then it is known damage to all readers."""
        if self._tail_closed(os.fstat(self.descriptor).st_size, thread):
            self.append(b"", thread)

    def _lock(self) -> None:
        while True:
            if self.descriptor < 0:
                if self.make_folder:
                    os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
                self._open()
            _lock(self.descriptor)
            try:
                if os.path.samestat(os.fstat(self.descriptor), os.stat(self.path)):
                    return
            except FileNotFoundError:
                pass
            self.close()  # replaced or removed while we waited

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC
        try:
            self.descriptor = os.open(self.path, flags)
        except FileNotFoundError:
            self.descriptor = os.open(self.path, flags | os.O_CREAT, 0o600)
            self.made = True
            if self.sync:
                folder = os.open(os.path.dirname(self.path) or ".", os.O_RDONLY)
                os.fsync(folder)
                os.close(folder)
        if not stat.S_ISREG(os.fstat(self.descriptor).st_mode):
            self.close()
            raise Usage(f"{self.path} is no regular file; a thread is kept in one")

    def _take_away(self) -> None:
        """Who waits for the lock, or opens the file later, finds that it is gone and makes it anew."""
        with suppress(OSError):
            if os.path.samestat(os.fstat(self.descriptor), os.stat(self.path)):
                os.unlink(self.path)

    def _tail_closed(self, size: int, thread: str) -> bytes:
        """What must stand before new lines: nothing, or the newline (and the note) that a killed writer owes."""
        if not size or size == self.whole or os.pread(self.descriptor, 1, size - 1) == b"\n":
            return b""
        fragment = b""
        while (start := size - len(fragment)) > 0 and b"\n" not in fragment:
            step = min(1 << 16, start)
            fragment = os.pread(self.descriptor, step, start - step) + fragment
        fragment = fragment[fragment.rfind(b"\n") + 1 :]
        if blank(fragment) or not parse(fragment)[1]:
            return b"\n"  # whole but for its newline
        return b"\n" + line_of(torn_record(fragment, named_thread(fragment) or thread))


def _lock(descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:  # who has it may be stopped, or prune
        aside(lambda: fcntl.flock(descriptor, fcntl.LOCK_EX))


def line_at(appender: Appender, offset: int) -> bytes:
    """The line of the file that begins at the offset, without its newline. To be called under the lock."""
    size = 4096
    while True:
        data = os.pread(appender.descriptor, size, offset)
        if b"\n" in data or len(data) < size:
            return data.partition(b"\n")[0]
        size *= 4


def read_new(appender: Appender, offset: int, take: Callable[[bytes], None]) -> int:
    """Give `take` each line of the file from `offset` on, without its newline; the offset after the last whole one.

    To be called under the lock. A line without newline is left for the writer that closes it.
    """
    size = os.fstat(appender.descriptor).st_size
    rest = b""
    while offset + len(rest) < size:
        chunk = os.pread(appender.descriptor, min(1 << 20, size - offset - len(rest)), offset + len(rest))
        *lines, after = (rest + chunk).split(b"\n")
        for line in lines:
            take(line)
        offset += len(rest) + len(chunk) - len(after)
        rest = after
    return offset
