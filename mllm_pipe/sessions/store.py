"""The files of sessions: found, read up to their last whole line, and new ones made. None is changed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Any

import orjson

from mllm_pipe.envelope import MAX_DEPTH, depth, timestamp
from mllm_pipe.errors import Missing, WriteFailed
from mllm_pipe.lines import MAX_LINE, Lines, Long

Json = dict[str, Any]
DEPTH = MAX_DEPTH - 8  # a record puts what it has of a line a few levels deeper
HEAD = 1 << 16  # bytes in which a session says where it was held


def files_in(folder: str, deep: int, ending: str) -> list[str]:
    """The regular files in a folder, `deep` folders down; links are not followed."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return []
    if deep:
        inner = (entry.path for entry in entries if entry.is_dir(follow_symlinks=False))
        return [path for one in inner for path in files_in(one, deep - 1, ending)]
    return [entry.path for entry in entries if entry.name.endswith(ending) and entry.is_file(follow_symlinks=False)]


def age(path: str) -> float:
    """When a session was last written, in seconds since the epoch; 0 if it has just been taken away."""
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0


def measure(paths: list[str]) -> Json:
    """{"sessions": how many, "bytes": of all, "newest": when the newest was written, "folder": what holds all}."""
    size = sum(os.lstat(path).st_size for path in paths if os.path.lexists(path))
    newest = timestamp(max(map(age, paths))) if paths else None
    folder = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else None
    return {"sessions": len(paths), "bytes": size, "newest": newest, "folder": folder}


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


def _too_deep(value: Json, line: bytes | Long) -> bool:
    """True for what would be nested deeper in a record than one may be."""
    brackets = 0 if isinstance(line, Long) else line.count(b"[") + line.count(b"{")
    return brackets > DEPTH and depth(value) > DEPTH


class Reader:
    """The lines of a session, parsed. Afterwards `bad` has those that no record can be made of, by number, and `torn`
    tells that the last one is still being written, and was left out."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.bad: list[tuple[bytes | Long, int]] = []
        self.torn = False

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
                    try:
                        value = None if isinstance(line, Long) else orjson.loads(line)
                    except orjson.JSONDecodeError:
                        value = None
                    if isinstance(value, dict) and not _too_deep(value, line):
                        yield value
                    else:
                        self.bad.append((line, number))
            if lines.torn and self.bad and self.bad[-1][1] == number:
                self.torn = True
                self.bad.pop()
        finally:
            os.close(descriptor)


def create(path: str, data: bytes) -> bool:
    """Make a new file, whole, for the user alone; False if there is one of that name. WriteFailed if it cannot be."""
    beside = f"{path}.{os.getpid()}.tmp"
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with open(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(data)
        os.link(beside, path)
    except FileExistsError:
        return False
    except OSError as error:
        raise WriteFailed(f"{path}: {error.strerror}") from None
    finally:
        if os.path.exists(beside):
            os.unlink(beside)
    return True
