"""How the journal's index is filled: block by block, and its calls in columns.

Of an outcome the span alone is parsed, not the answer. Spans are decoded to their types by the block; one that has
others is parsed by itself.
"""

from __future__ import annotations

import gc
import os
import sqlite3
from collections import Counter
from collections.abc import Sequence
from itertools import compress
from operator import itemgetter
from types import ModuleType
from typing import Any

from orjson import JSONDecodeError, dumps, loads

from mllm_pipe.envelope import Record, holds
from mllm_pipe.lines import digest
from mllm_pipe.tracing import journalled
from mllm_pipe.tracing.chunks import Chunk
from mllm_pipe.tracing.columns import (
    KIND,
    NAMES,
    NO_SPAN,
    PLACE,
    USAGE,
    Column,
    cells_of,
    known,
    unpacked,
)
from mllm_pipe.tracing.ledger import digits

_BLOCK = 1 << 18  # what is parsed of it stays in the processor's cache
_LITTLE = 1 << 21  # bytes: to load msgspec takes as long as to read them without it
_CHUNK = 500  # calls
_BULKY = 1 << 26  # bytes of spans: such a chunk is not waited for
_MANY = 5000  # calls are counted at once, which is less work; the dearest come to less than 64 bits
_TAIL = 4096  # bytes before what was not read yet, by which the journal is known again
_RECORDS = b'"records":[{'
_QUOTE = ord('"')
_NEXT = b'},{"v":1,"type":"'  # it cannot stand in a text, where a quote has its backslash
_FINDERS = {"judge", "route"}  # ops whose outcomes have findings
_COUNTED = ("kind", "cost", "duration_ms", "first_token_ms", *USAGE)
_SUMS = "calls, unpriced, cost, " + ", ".join(USAGE)
_ADDED = "on conflict do update set " + ", ".join(
    f"{name} = coalesce({name} + excluded.{name}, {name}, excluded.{name})" for name in _SUMS.split(", ")
)
_LINES = 1000  # lines of pace more are not worth counting together


class Filling:
    """Takes lines of the journal into the tables."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db
        self.kinds = {tuple(rest): n for n, *rest in db.execute("select * from kind")}
        self.known = len(self.kinds)
        self.pending = {ident: (offset, length) for ident, offset, length in db.execute("select * from pending")}
        self.elsewhere: set[bytes] = set()  # calls that ended here, and began before the first line that was read
        self.descriptor = -1  # of the journal
        self.columns: list[list[Any]] = [[] for _ in NAMES]  # of calls that are not yet in the chunk
        self.chunk = Chunk()
        self.bulk = 0  # bytes of the spans in it
        self.unsound = 0  # lines of calls that do not hold to the envelope: they are left out
        self.uncounted: list[list[Any]] = [[] for _ in _COUNTED]
        self.pace: dict[tuple[int, int], Counter[str]] = {}  # of each kind, and whether it is of first tokens
        self.typed: ModuleType | None = None  # for many spans at once
        self._resume()

    def _resume(self) -> None:
        found = self.db.execute("select * from chunk order by n desc limit 1").fetchone()
        if found and found[1] < _CHUNK:
            self.chunk.add([unpacked(kept, found[1]) for kept in found[4:]])
            self.chunk.runs.clear()  # they are known to be in it
            self.db.execute("delete from chunk where n = ?", found[:1])

    def read(self, descriptor: int, offset: int, end: int, parent: int = 0) -> int:
        """Take the lines from one offset to another; the offset after the last whole one. parent: for which process
        this one works; it stops when that has ended."""
        self.descriptor = descriptor
        if end - offset > _LITTLE:
            from mllm_pipe.tracing import typed

            self.typed = typed
        size = _BLOCK
        collects = gc.isenabled()
        gc.disable()  # spans make no cycles, and looking for some takes a tenth of the time
        while offset < end and parent in (0, os.getppid()):
            block = os.pread(descriptor, min(size, end - offset), offset)
            taken = self._lines(block, offset)
            if not taken and len(block) < size:
                break
            size = _BLOCK if taken else 2 * size
            offset += taken
        if collects:
            gc.enable()
        return offset

    def _lines(self, block: bytes, offset: int) -> int:
        """Take the whole lines of a block; how many bytes they are."""
        find, pending = block.find, self.pending
        outcome, intent = journalled.OUTCOME[:-1], journalled.INTENT  # of 29 bytes each
        spans, places, at = [], [], 0
        while (end := find(b"\n", at)) >= 0:
            begin = at + 29
            head = block[at:begin]
            if head == intent:
                pending[block[begin : find(b'"', begin)]] = offset + at, end - at
            elif head == outcome and block[begin] == _QUOTE:
                begin += 1
                ident = block[begin : find(b'"', begin)]
                if pending.pop(ident, None) is None:
                    self.elsewhere.add(ident)
                start = find(_RECORDS, begin, end) + 11
                if start > 10:
                    stop = find(_NEXT, start, end) + 1 or block.rfind(b"}]", start, end) + 1
                    spans.append(block[start:stop])
                    places.append((offset + at, end - at))
            at = end + 1
        if spans:
            self.bulk += sum(map(len, spans))
            self._take(spans, places)
            self._pack()
            if self.chunk.calls >= _CHUNK or self.bulk > _BULKY:
                self._write()
        return at

    def _take(self, spans: list[bytes], places: list[tuple[int, int]]) -> None:
        """Take spans into the columns."""
        if not self.typed:
            for span, place in zip(spans, places, strict=True):
                self._take_alone(span, place)
            return
        try:
            columns, ops = self.typed.columns_of(spans, lambda what: self._numbers(what, spans, places))
        except (ValueError, RecursionError):
            self._take_apart(spans, places, list(map(self.typed.is_usual, spans)))
            return
        self._pack()
        self._add([*zip(*places, strict=True), *columns])
        if not _FINDERS.isdisjoint(ops):
            for op, span, place in zip(ops, spans, places, strict=True):
                if op in _FINDERS:
                    self._findings(loads(span), place)

    def _take_apart(self, spans: list[bytes], places: list[tuple[int, int]], usual: list[bool]) -> None:
        """Take spans that cannot be taken together: those that are not of the usual types alone; where all are, and one
        cannot be taken yet, that is found by halves."""
        half = len(spans) // 2
        if half and all(usual):
            self._take(spans[:half], places[:half])
            self._take(spans[half:], places[half:])
            return
        for span, place, of_types in zip(spans, places, usual, strict=True):
            if not half or not of_types:
                self._take_alone(span, place)
        if half and any(usual):
            self._take(list(compress(spans, usual)), list(compress(places, usual)))

    def _take_alone(self, text: bytes, place: tuple[int, int]) -> None:
        """Take a span into the columns, whatever it is."""
        try:
            span = self._parsed(text, place)
            if span["type"] != "span":
                return
            cells = self._cells(span, place)
        except NO_SPAN:
            self.unsound += 1
            return
        for column, cell in zip(self.columns, [*place, *cells], strict=True):
            column.append(cell)
        if span["op"] in _FINDERS:
            self._findings(span, place)

    def _parsed(self, text: bytes, place: tuple[int, int]) -> Record:
        try:
            found: Record = loads(text)
        except JSONDecodeError:
            entry = self._entry(place)
            found = entry["records"][0] if entry and entry["records"] else {}
        return found

    def _cells(self, span: Record, place: tuple[int, int]) -> list[Any]:
        """What the index keeps of a call, from `run` on. One of NO_SPAN if it is none."""
        try:
            return self._numbered(cells_of(span, sound=False), span, place)
        except NO_SPAN:
            entry = self._entry(place)
            if not entry or not holds(entry["records"][0]):
                raise
            return self._numbered(cells_of(span, sound=True), span, place)

    def _numbered(self, cells: list[Any], span: Record, place: tuple[int, int]) -> list[Any]:
        run, thread, kind, *rest = cells
        return [run, thread, self._number(kind, span, place), *rest]

    def _entry(self, place: tuple[int, int]) -> Record | None:
        return journalled.entry_of(os.pread(self.descriptor, place[1], place[0]))

    def _numbers(self, what: list[Column], spans: list[bytes], places: list[tuple[int, int]]) -> list[int]:
        """The number of each kind; what: columns in the order of KIND. ValueError if one is new, and its span does not
        hold to the envelope."""
        try:
            return list(map(self.kinds.__getitem__, zip(*what, strict=True)))
        except KeyError:
            return [self._number(kind, loads(span) if kind not in self.kinds else {}, place)
                    for kind, span, place in zip(zip(*what, strict=True), spans, places, strict=True)]  # fmt: skip

    def _number(self, kind: tuple[Any, ...], span: Record, place: tuple[int, int]) -> int:
        """The number of a kind: the offset at which it stands first, so that no two processes count the same. The first
        call of a kind is held to the envelope. ValueError if it does not hold."""
        if kind not in self.kinds:
            if not holds(span):
                raise ValueError
            self.kinds[kind] = place[0]
        number: int = self.kinds[kind]
        return number

    def _findings(self, span: Record, place: tuple[int, int]) -> None:
        run = span.get("parent_run_id", "-")
        entry = self._entry(place)
        for record in entry["records"] if entry else []:
            if record["type"] == "route" and record.get("by") == "none":
                self.db.execute("insert into unrouted values (?,?,?)", (run, span["id"], span["thread"]))
            elif record["type"] == "verdict" and holds(record):
                author = record.get("author", {})
                self.db.execute(
                    "insert into verdict values (" + ",".join("?" * 14) + ")",
                    (record["id"], run, span["id"], span["thread"],
                     dumps(record["about"]).decode(), record.get("rubric"), record["pass"], record.get("score"),
                     record.get("preferred"), record.get("consistent"), record.get("self_judged"),
                     author.get("runtime"), author.get("model"), record.get("part")),
                )  # fmt: skip

    def _pack(self) -> None:
        """Put what was taken span by span into the chunk."""
        if self.columns[0]:
            self._add(self.columns)
            self.columns = [[] for _ in NAMES]

    def _add(self, columns: Sequence[Column]) -> None:
        """Put calls into the chunk, and what is counted of them aside, while the processor's cache has them."""
        self.chunk.add(columns)
        for counted, name in zip(self.uncounted, _COUNTED, strict=True):
            counted += columns[PLACE[name]]
        if len(self.uncounted[0]) >= _MANY:
            self._count()

    def _write(self) -> None:
        """Write the chunk."""
        if self.chunk.calls:
            row, runs = self.chunk.row(), dumps(list(self.chunk.runs))
            self.db.execute(f"insert into chunk values ({','.join('?' * len(row))})", row)
            self.db.execute("insert into held select value, ? from json_each(?)", (row[0], runs))
            self.chunk = Chunk()
            self.bulk = 0

    def _count(self) -> None:
        """Add calls to the sums of their kinds, and what they took to the times."""
        kinds, *columns = self.uncounted
        if not kinds:
            return
        by_kind = itemgetter(*sorted(range(len(kinds)), key=kinds.__getitem__), 0)
        costs, durations, firsts, *used = map(by_kind, columns)
        sums, start = [], 0
        for kind, count in sorted(Counter(kinds).items()):
            of_kind = slice(start, start + count)
            paid = known(costs[of_kind])
            tokens = [known(column[of_kind]) for column in used]
            sums.append((kind, count, count - len(paid), sum(paid), *(sum(some) if some else None for some in tokens)))
            for first, times in enumerate((durations[of_kind], known(firsts[of_kind]))):
                self.pace.setdefault((kind, first), Counter()).update(digits(times))
            start += count
        self.db.executemany(f"insert into total values (?,?,?,?,?,?,?,?,?) {_ADDED}", sums)
        for column in self.uncounted:
            column.clear()

    def join(self, part: str) -> None:
        """Take what another process has made of the lines that follow: rows of like tables are copied as they are."""
        db = self.db
        db.execute("attach ? as part", (part,))
        for table in ("kind", "chunk", "held", "verdict", "unrouted", "total", "pace"):
            db.execute(f"insert into main.{table} select * from part.{table}")
        for (ident,) in db.execute("select id from part.elsewhere"):
            self.pending.pop(ident, None)
        self.pending |= {ident: (offset, length) for ident, offset, length in db.execute("select * from part.pending")}
        self.unsound += db.execute("select unsound from part.meta").fetchone()[0]
        db.execute("detach part")

    def store(self, end: int) -> None:
        """Write what was counted, and how far the journal was read."""
        db = self.db
        self._write()
        self._count()
        places = list(self.pending.items())
        for ident, place in places:
            intent = self._entry(place)
            if intent is None or not holds(journalled.unheard(intent)):
                del self.pending[ident]
                self.unsound += intent is not None
        db.executemany("insert into kind values (" + ",".join("?" * (1 + len(KIND))) + ")",
                       [(n, *kind) for kind, n in list(self.kinds.items())[self.known:]])  # fmt: skip
        db.execute("delete from pending")
        db.executemany("insert into pending values (?,?,?)", [(i, *place) for i, place in self.pending.items()])
        db.executemany("insert into pace values (?,?,?)",
                       [(*of, dumps(times).decode()) for of, times in self.pace.items() if times])  # fmt: skip
        db.execute("update meta set offset = ?, tail = ?, unsound = unsound + ?",
                   (end, tail(self.descriptor, end), self.unsound))  # fmt: skip
        self._gather()

    def _gather(self) -> None:
        """Count times together when their lines have become twice as many as there were after the last time."""
        db = self.db
        (lines, before) = db.execute("select max(rowid), (select paced from meta) from pace").fetchone()
        if (lines or 0) > 2 * before + _LINES:
            gathered: dict[tuple[int, int], Counter[str]] = {}
            for kind, first, times in db.execute("select * from pace"):
                gathered.setdefault((kind, first), Counter()).update(loads(times))
            db.execute("delete from pace")
            db.executemany("insert into pace values (?,?,?)",
                           [(*of, dumps(times).decode()) for of, times in gathered.items()])  # fmt: skip
            db.execute("update meta set paced = (select max(rowid) from pace)")


def tail(descriptor: int, end: int) -> str:
    """A digest of the last bytes before an offset of the journal: where they are others, it is another journal."""
    begin = max(end - _TAIL, 0)
    return digest(os.pread(descriptor, end - begin, begin))
