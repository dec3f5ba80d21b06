"""The files of sessions: found, read up to their last whole line, and new ones made. None is changed."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import orjson

from mllm_pipe.envelope import DEEPEST, depth, timestamp
from mllm_pipe.errors import Missing, WriteFailed
from mllm_pipe.files import whole
from mllm_pipe.lines import MAX_LINE, Lines, Long
from mllm_pipe.terminal import note

Json = dict[str, Any]


class Held(NamedTuple):
    """A session that is there: in which file, its id, when it was last written (seconds), how many bytes it has."""

    path: str
    ident: str
    at: float
    size: int


BOM = b"\xef\xbb\xbf"  # an editor's mark at the head of a file
HEAD = 1 << 16  # bytes in which a session says where it was held


def files_in(folder: str, deep: int, ending: str | tuple[str, ...]) -> list[str]:
    """The regular files in a folder, `deep` folders down; links are not followed."""
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return []
    except OSError as error:
        note(f"{folder}: {error.strerror}; what sessions it has is not seen")
        return []
    if deep:
        inner = (entry.path for entry in entries if entry.is_dir(follow_symlinks=False))
        return [path for one in inner for path in files_in(one, deep - 1, ending)]
    return [entry.path for entry in entries if entry.name.endswith(ending) and entry.is_file(follow_symlinks=False)]


def held_in(paths: Iterable[str], ident_of: Callable[[str], str]) -> list[Held]:
    """The sessions that are a file each; one that has just been taken away is none."""
    found = []
    for path in paths:
        try:
            seen = os.stat(path)
        except OSError:
            continue
        stem, _ = os.path.splitext(os.path.basename(path))
        found.append(Held(path, ident_of(stem), seen.st_mtime, seen.st_size))
    return found


def measure(sessions: list[Held]) -> Json:
    """{"sessions": how many, "bytes": of all, "newest": when the newest was written, "folder": what holds all}."""
    newest = timestamp(max(one.at for one in sessions)) if sessions else None
    folder = os.path.commonpath([os.path.dirname(one.path) for one in sessions]) if sessions else None
    return {"sessions": len(sessions), "bytes": sum(one.size for one in sessions), "newest": newest, "folder": folder}


def says_first(path: str, field: str, inside: str = "") -> str | None:
    """What the first line of a session that has the field says in it; of an object in the line, if one is named."""
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD).split(b"\n")
    except OSError:
        return None
    for line in head:
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        value = value.get(inside) if inside and isinstance(value, dict) else value
        if isinstance(value, dict) and isinstance(value.get(field), str):
            return str(value[field])
    return None


def _too_deep(value: Json, line: bytes) -> bool:
    """True for what would be nested deeper in a record than one may be."""
    return line.count(b"[") + line.count(b"{") > DEEPEST and depth(value) > DEEPEST


class Reader:
    """The lines of a session, parsed. Afterwards `bad` has those that no record can be made of, by number, `torn` tells
    that the last one is still being written, and was left out, and `halves` how many had half a character."""

    def __init__(self, path: str, ident: str = "") -> None:
        self.path, self.ident = path, ident
        self.bad: list[tuple[bytes | Long, int]] = []
        self.torn = False
        self.halves = 0

    def value(self, text: bytes) -> Any:
        """The JSON value of a text, None for what is none. JavaScript cuts a text in mid-character, and writes the half
        that is left as an escape, which is no Unicode: U+FFFD stands for it."""
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError:
            if text.startswith(BOM):
                return self.value(text[len(BOM) :])
            if b"\\ud" not in text.lower():
                return None
        import json

        try:
            whole = json.dumps(json.loads(text), ensure_ascii=False).encode("utf-16", "surrogatepass")
            value = orjson.loads(whole.decode("utf-16", "replace"))
        except (ValueError, RecursionError):
            return None
        self.halves += 1
        return value

    def entries(self) -> Iterator[Json]:
        """Each line that is a JSON object. Missing if the file cannot be read."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise Missing(f"{self.path}: {error.strerror}") from None
        try:
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise Missing(f"{self.path}: a directory, no session")
            lines, number = Lines(descriptor, MAX_LINE), 0
            for batch in lines.batches():
                for line in batch:
                    number += 1
                    if not line:
                        continue
                    if isinstance(line, bytes):
                        value = self.value(line)
                        if isinstance(value, dict) and not _too_deep(value, line):
                            yield value
                            continue
                    self.bad.append((line, number))
            if lines.torn and self.bad and self.bad[-1][1] == number:
                self.torn = True
                self.bad.pop()
        finally:
            os.close(descriptor)


class Whole(Reader):
    """One JSON value over the whole file, or a value a line; a list is its items. Of a path `-`, stdin."""

    def entries(self) -> Iterator[Json]:
        """Each value that is an object. Missing if the file cannot be read, Usage if it is too large for one."""
        data = whole(0 if self.path == "-" else self.path)
        value = self.value(data)
        if value is None:
            yield from self._by_line(data)
            return
        for number, one in enumerate(value if isinstance(value, list) else [value], 1):
            line = orjson.dumps(one)
            if isinstance(one, dict) and not _too_deep(one, line):
                yield one
            else:
                self.bad.append((line, number))

    def _by_line(self, data: bytes) -> Iterator[Json]:
        for number, line in enumerate(data.split(b"\n"), 1):
            value = self.value(line) if line.strip() else {}
            if not isinstance(value, dict) or _too_deep(value, line):
                self.bad.append((line, number))
            elif value:
                yield value


def ndjson(lines: Iterable[Json]) -> bytes:
    """The bytes of a session that has an object a line."""
    return b"".join(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE) for line in lines)


@contextmanager
def alone(folder: str) -> Iterator[None]:
    """While no other of our processes puts a session there: a lock on the folder, which no program has one on.

    WriteFailed if the folder cannot be.
    """
    try:
        with suppress(FileExistsError):  # opening a file that stands there says what is wrong
            os.makedirs(folder, mode=0o700, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise WriteFailed(f"{folder}: {error.strerror}") from None
    with suppress(OSError):  # NFS locks nothing that is open for reading alone; a file is made in one step anyway
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)


def lay(path: str, data: bytes, namesakes: list[str]) -> str | None:
    """Make a session's file, and say where it is: the very same one stays where it lies. None if its id is another's.

    namesakes: the files of that id, wherever the program may find them.
    """
    if not all(_has(one, data) for one in namesakes):
        return None
    return namesakes[0] if namesakes else path if create(path, data) else None


def create(path: str, data: bytes) -> bool:
    """Make a new file, whole, for the user alone. False if there is another of that name; the very same one is left.

    WriteFailed if it cannot be.
    """
    beside = f"{path}.{os.getpid()}.tmp"
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with open(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(data)
        try:
            os.link(beside, path)
        except FileExistsError:
            return _has(path, data)
    except OSError as error:
        raise WriteFailed(f"{path}: {error.strerror}") from None
    finally:
        if os.path.exists(beside):
            os.unlink(beside)
    return True


def _has(path: str, data: bytes) -> bool:
    """True if a file is there that has these bytes; one that cannot be read has others."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as there:
            return there.read() == data  # of a FIFO nothing
    except OSError:
        return False
