"""The calls of the journal's index, which has them in chunks of columns (mllm_pipe.tracing.schema): how a chunk is
filled, and how they are read."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from math import nan
from typing import Any, NamedTuple

from orjson import dumps

from mllm_pipe.tracing import schema
from mllm_pipe.tracing.columns import NAMES, PLACE, Column, unpacked

_KEPT = 16  # chunks are kept in memory
_NULL = nan  # SQLite takes it for a null, which sqlite3 binds several times as slowly; JSON has none


class Call(NamedTuple):
    """What of a call says where it stands, and whether it is meant."""

    offset: int
    length: int
    run: str
    thread: str
    kind: int
    started_at: str


class Chunk:
    """The one that is being filled. Its columns are JSON from the first, in pieces: values that wait to be written are
    out of the processor's cache by then."""

    def __init__(self) -> None:
        self.calls = 0
        self.runs: set[str] = set()
        self._offsets: list[int] = []  # the least of each piece
        self._times: list[str] = []  # the first and the last of each
        self._counts: list[int] = []  # of the calls in each
        self._pieces: list[list[bytes | None]] = [[] for _ in NAMES]  # None has no values

    def add(self, columns: Sequence[Column]) -> None:
        """Add calls, of which there is one at least. columns: in the order of NAMES."""
        began = columns[PLACE["started_at"]]
        self._offsets.append(min(columns[PLACE["offset"]]))
        self._times += min(began), max(began)
        self._counts.append(len(began))
        self.calls += len(began)
        self.runs.update(columns[PLACE["run"]])
        for pieces, column in zip(self._pieces, columns, strict=True):
            empty = column[0] is None and column.count(None) == len(column)
            pieces.append(None if empty else dumps(column)[1:-1])

    def row(self) -> list[Any]:
        """Its row in the table."""
        return [min(self._offsets), self.calls, min(self._times), max(self._times), *map(self._whole, self._pieces)]

    def _whole(self, pieces: list[bytes | None]) -> bytes | None:
        if pieces.count(None) == len(pieces):
            return None
        return b"[%b]" % b",".join(b",".join([b"null"] * count) if piece is None else piece
                                   for piece, count in zip(pieces, self._counts, strict=True))  # fmt: skip


class Chunks:
    """Reads them, and keeps those that were read last."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db
        self.kept: dict[int, list[Call]] = {}
        self.runs: dict[int, dict[str, list[Call]]] = {}

    def newest(self) -> Iterator[Call]:
        """All calls, the newest first."""
        for (n,) in self.db.execute("select n from chunk order by n desc").fetchall():
            yield from self._calls(n)

    def of(self, run: str) -> list[Call]:
        """The calls of a run, the oldest first."""
        found = self.db.execute("select distinct chunk from held where run = ? order by chunk", (run,)).fetchall()
        return [call for (n,) in found for call in reversed(self._by_run(n).get(run, ()))]

    def _calls(self, n: int) -> list[Call]:
        if n not in self.kept:
            if len(self.kept) == _KEPT:
                self.kept.clear()
                self.runs.clear()
            (columns,) = columns_where(self.db, Call._fields, "n = ?", (n,))
            self.kept[n] = sorted(map(Call._make, zip(*columns, strict=True)), reverse=True)
        return self.kept[n]

    def _by_run(self, n: int) -> dict[str, list[Call]]:
        calls = self._calls(n)
        if n not in self.runs:
            found = self.runs[n] = {}
            for call in calls:
                found.setdefault(call.run, []).append(call)
        return self.runs[n]


def columns_where(
    db: sqlite3.Connection, names: Sequence[str], condition: str, values: Sequence[Any]
) -> Iterator[list[list[Any]]]:
    """The columns of these names of each chunk of which that is true, the oldest first."""
    asked = f"select calls, {', '.join(names)} from chunk where {condition} order by n"
    for calls, *kept in db.execute(asked, values):
        yield [unpacked(column, calls) for column in kept]


def make_rows(db: sqlite3.Connection) -> None:
    """Have a row in `call` for each call, for the views; those that are there already stay."""
    (rowed,) = db.execute("select rowed from meta").fetchone()
    row = f"insert into call ({', '.join(NAMES)}) values ({','.join('?' * len(NAMES))})"
    recent = "n >= coalesce((select max(n) from chunk where n < ?), 0)"
    for calls in columns_where(db, NAMES, recent, (rowed,)):
        outputs, losses = PLACE["outputs"], PLACE["losses"]
        calls[outputs] = [dumps(ids).decode() if ids else None for ids in calls[outputs]]
        calls[losses] = [number or 0 for number in calls[losses]]
        known = [[_NULL if value is None else value for value in column] for column in calls]
        rows = zip(*known, strict=True)
        db.executemany(row, rows if calls[0][0] >= rowed else [one for one in rows if one[0] >= rowed])
    db.execute("update meta set rowed = offset")
    db.execute(schema.INDEX_OF_ROWS)
