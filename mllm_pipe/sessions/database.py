"""Databases of other programs (SQLite), read as they are at one moment. None is changed, locked or given a companion.

SQLite itself would make files beside a database whose log is live, and hold locks on it. So such a one is read from a
copy in a private directory; any other in place, as a file that does not change (`immutable`).
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

import orjson

from mllm_pipe.errors import Missing

MAGIC = b"SQLite format 3\0"
LOGS = ("-wal", "-journal")  # what the file itself does not have yet
TRIES = 5


def is_database(path: str) -> bool:
    """True for a regular file that begins as a database of SQLite does."""
    try:
        with open(path, "rb") as file:
            return os.path.isfile(path) and file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


@contextmanager
def opened(path: str) -> Iterator[sqlite3.Connection]:
    """A connection that reads the database. Missing if it is none, lacks a table that is asked for, or never rests."""
    try:
        with tempfile.TemporaryDirectory(prefix="mllm-") as folder:
            database = sqlite3.connect(f"file:{quote(_at_rest(path, folder))}?mode=ro&immutable=1", uri=True)
            try:
                database.row_factory = sqlite3.Row
                yield database
            finally:
                database.close()
    except OSError as error:
        raise Missing(f"{path}: {error.strerror}") from None
    except (UnicodeDecodeError, orjson.JSONDecodeError, IndexError):  # what SQLite says is no text, a column is lacking
        raise Missing(f"{path}: no database that is known here: it is damaged") from None
    except sqlite3.Error as error:
        raise Missing(f"{path}: no database that is known here: {error}") from None


def _at_rest(path: str, folder: str) -> str:
    """A file that has all of the database: itself, or a copy into which its log has been taken."""
    for _ in range(TRIES):
        before = _state(path)
        if not any(size for _, size in before[1:]):
            return os.path.abspath(path)
        copy = os.path.join(folder, "copy")
        for ending, (_, size) in zip(("", *LOGS), before, strict=True):
            if size:
                shutil.copyfile(path + ending, copy + ending)
        if _state(path) == before:
            # Opening takes the log in; what is left is one file.
            database = sqlite3.connect(copy)
            database.execute("PRAGMA journal_mode=DELETE")
            database.close()
            return copy
    raise Missing(f"{path}: it is written to faster than it can be copied; try again")


def _state(path: str) -> list[tuple[int, int]]:
    """(when it was written, size) of the database and of its logs; 0 for what is not there."""
    found = []
    for ending in ("", *LOGS):
        try:
            seen = os.stat(path + ending)
            found.append((seen.st_mtime_ns, seen.st_size))
        except FileNotFoundError:
            if not ending:
                raise
            found.append((0, 0))
    return found
