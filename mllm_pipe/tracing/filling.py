"""How the journal's index is filled: line by line, and a long journal in parts, each by a process of its own.

Of an outcome the span alone is parsed, not the answer. The processes are copies of this one that parse, write a file of
their part, and end: what is parallel about sqlite3 and orjson in Python is that much.
"""

from __future__ import annotations

import io
import os
import re
import signal
import sqlite3
from collections import Counter
from contextlib import suppress
from math import nan
from typing import TYPE_CHECKING, Any

from orjson import JSONDecodeError, dumps, loads

from mllm_pipe.envelope import Record, holds
from mllm_pipe.lines import digest
from mllm_pipe.tracing import journalled, schema
from mllm_pipe.tracing.ledger import PICODOLLARS, digits, picodollars

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

USAGE = ("input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")
PART = 32 << 20  # bytes that are worth a process
_PARTS = 4  # at most
_BLOCK = 1 << 18  # larger ones are new memory each time, which costs more than to copy them
_ROWS = 1000  # are written at once
_TAIL = 4096  # bytes before what was not read yet, by which the journal is known again
# Numbers beyond are kept as REAL: the sum of such has less digits, where one of integers would end in an overflow.
_TOKENS, _COST = 1 << 40, 1000 * PICODOLLARS
# Columns of a call.
_TEXTS, _OR_TEXTS, _TIMES, _COUNTS, _MONEY = (2, 3, 4, 6), (15, 16, 17, 18), (7, 8), range(9, 14), 14
_STAMPS = re.compile(r"(?:\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z\n)*", re.ASCII)
# What comes of using a span that is none.
_NO_SPAN = (KeyError, IndexError, TypeError, AttributeError, ValueError, OverflowError)
_NULL = nan  # SQLite takes it for a null, which sqlite3 binds several times as slowly; JSON has none
_CALL = "insert into call values (" + ",".join("?" * 20) + ")"
_SUMS = "calls, unpriced, cost, " + ", ".join(USAGE)
_ADDED = "on conflict do update set " + ", ".join(
    f"{name} = coalesce({name} + excluded.{name}, {name}, excluded.{name})" for name in _SUMS.split(", ")
)
_MANY = 50_000  # lines of pace more are not worth counting together


class _Stretch(io.RawIOBase):
    """The bytes of a file from one offset to another. The place of its descriptor, which processes share, is not moved.
    parent: where that process has ended, there are no more."""

    def __init__(self, descriptor: int, offset: int, end: int, parent: int) -> None:
        self.descriptor, self.offset, self.end, self.parent = descriptor, offset, end, parent

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        if self.parent and os.getppid() != self.parent:
            return 0
        block = os.pread(self.descriptor, min(len(view), self.end - self.offset), self.offset)
        view[: len(block)] = block
        self.offset += len(block)
        return len(block)


class Filling:
    """Takes lines of the journal into the tables."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db
        self.kinds = {tuple(rest): n for n, *rest in db.execute("select * from kind")}
        self.known = len(self.kinds)
        self.pending = {ident: (offset, length) for ident, offset, length in db.execute("select * from pending")}
        self.elsewhere: set[bytes] = set()  # calls that ended here, and began before the first line that was read
        self.descriptor = -1  # of the journal
        self.rows: list[tuple[Any, ...]] = []
        self.unsound = 0  # lines of calls that do not hold to the envelope: they are left out
        self.times: dict[int, tuple[list[float], list[float]]] = {}  # of each kind: durations, times to first tokens
        self.pace: dict[tuple[int, int], Counter[str]] = {}  # of each kind, and whether it is of first tokens

    def read(self, descriptor: int, offset: int, end: int, parent: int = 0) -> int:
        """Take the lines from one offset to another; the offset after the last whole one. parent: for which process
        this one works; it stops when that has ended."""
        outcome, intent, begin = journalled.OUTCOME, journalled.INTENT, offset
        self.descriptor = descriptor
        for line in io.BufferedReader(_Stretch(descriptor, offset, end, parent), _BLOCK):
            if not line.endswith(b"\n"):
                break
            if line.startswith(outcome):
                self._outcome(line, offset)
            elif line.startswith(intent):
                self.pending[line[29 : line.find(b'"', 29)]] = offset, len(line) - 1
            offset += len(line)
        self._write()
        self._total(begin)
        return offset

    def _outcome(self, line: bytes, offset: int) -> None:
        ident = line[30 : line.find(b'"', 30)]
        if self.pending.pop(ident, None) is None:
            self.elsewhere.add(ident)
        # Its span is all that is needed: the answer that follows is not parsed. Such bytes cannot stand in a text,
        # where a quote has its backslash.
        start = line.find(b'"records":[{') + 11
        stop = line.find(b'},{"v":1,"type":"', start) + 1
        if start == 10:
            return
        try:
            span = loads(line[start:stop] if stop else line[start : line.rindex(b"}]") + 1])
        except (JSONDecodeError, ValueError):
            entry = journalled.entry_of(line)
            span = entry["records"][0] if entry and entry["records"] else {}
        try:
            if span["type"] == "span":
                self._call(span, line, offset)
        except _NO_SPAN:
            self.unsound += 1

    def _call(self, span: Record, line: bytes, offset: int) -> None:
        get = span.get
        stage, cost, first, outputs = get("stage"), get("cost_usd"), get("first_token_ms"), get("output_ids")
        attempts, duration, used = get("attempts"), span["duration_ms"], (get("usage") or {}).get
        kind = (span["op"], get("slot"), get("agent"), get("runtime"), get("model"), get("group"), span["status"],
                stage if stage is None else str(stage), get("cost_source"))  # fmt: skip
        n = self.kinds.get(kind)
        if n is None:  # no two processes count from the same offset
            if not holds(span):
                raise ValueError
            n = self.kinds[kind] = offset
        self.rows.append((
            offset, len(line) - 1, span["id"], get("parent_run_id", "-"), span["thread"], n, span["started_at"],
            duration, _NULL if first is None else first, used("input_tokens", _NULL),
            used("cache_read_tokens", _NULL), used("cache_write_tokens", _NULL), used("output_tokens", _NULL),
            used("reasoning_tokens", _NULL),
            _NULL if cost is None else _stored(cost), get("input_id", _NULL), get("handed_id", _NULL),
            dumps(outputs).decode() if outputs else _NULL,
            _NULL if not attempts or len(attempts) == 1 and attempts[0]["status"] == "ok" else dumps(attempts).decode(),
            len(get("losses", ())),
        ))  # fmt: skip
        if span["op"] in ("judge", "route"):
            self._findings(span, line)
        if len(self.rows) >= _ROWS:
            self._write()

    def _findings(self, span: Record, line: bytes) -> None:
        run = span.get("parent_run_id", "-")
        entry = journalled.entry_of(line)
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

    def _write(self) -> None:
        if not _sound(self.rows):
            rows = [sound for row in self.rows if (sound := self._mended(row))]
            self.unsound += len(self.rows) - len(rows)
            self.rows = rows
        self.db.executemany(_CALL, self.rows)
        for row in self.rows:
            durations, firsts = self.times.get(row[5]) or self.times.setdefault(row[5], ([], []))
            durations.append(row[7])
            if row[8] == row[8]:
                firsts.append(row[8])
        self.rows.clear()
        for n, both in self.times.items():
            for first, times in enumerate(both):
                self.pace.setdefault((n, first), Counter()).update(digits(times))
        self.times.clear()

    def _mended(self, row: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """A row with its large numbers as REAL, which SQLite can sum; None if its span is none by the envelope."""
        if not _sound([row]):
            entry = journalled.entry_of(os.pread(self.descriptor, row[1], row[0]))
            if not entry or not holds(entry["records"][0]):
                return None
        return (*row[:9], *(number if number != number else int(number) if number < _TOKENS else float(number)
                            for number in row[9:14]), *row[14:])  # fmt: skip

    def _total(self, begin: int) -> None:
        """Add the calls from this offset on to the sums by kind and day."""
        sums = ", ".join(f"sum({name})" for name in USAGE)
        self.db.execute("insert into total select kind, substr(started_at, 1, 10), count(*), sum(cost is null), "
                        f"coalesce(sum(cost), 0), {sums} from call where offset >= ? group by 1, 2 {_ADDED}",
                        (begin,))  # fmt: skip

    def join(self, part: str) -> None:
        """Take what another process has made of the lines that follow: rows of like tables are copied as they are."""
        db = self.db
        db.execute("attach ? as part", (part,))
        for table in ("kind", "call", "verdict", "unrouted", "total", "pace"):
            db.execute(f"insert into main.{table} select * from part.{table}")
        for (ident,) in db.execute("select id from part.elsewhere"):
            self.pending.pop(ident, None)
        self.pending |= {ident: (offset, length) for ident, offset, length in db.execute("select * from part.pending")}
        self.unsound += db.execute("select unsound from part.meta").fetchone()[0]
        db.execute("detach part")

    def store(self, end: int) -> None:
        """Write what was counted, and how far the journal was read."""
        db = self.db
        places = list(self.pending.values())
        intents = zip(list(self.pending), (journalled.entry_of(os.pread(self.descriptor, length, offset))
                                           for offset, length in places), strict=True)  # fmt: skip
        for ident, intent in intents:
            if intent is None or not holds(journalled.unheard(intent)):
                del self.pending[ident]
                self.unsound += intent is not None
        db.executemany("insert into kind values (" + ",".join("?" * 10) + ")",
                       [(n, *kind) for kind, n in list(self.kinds.items())[self.known:]])  # fmt: skip
        db.execute("delete from pending")
        db.executemany("insert into pending values (?,?,?)", [(i, *place) for i, place in self.pending.items()])
        db.executemany("insert into pace values (?,?,?,?)",
                       [(kind, first, float(value), n) for (kind, first), counted in self.pace.items()
                        for value, n in counted.items()])  # fmt: skip
        db.execute("update meta set offset = ?, tail = ?, unsound = unsound + ?",
                   (end, tail(self.descriptor, end), self.unsound))  # fmt: skip
        self._gather()

    def _gather(self) -> None:
        """Count equal lines of pace together when they have become twice as many as there were after the last time."""
        db = self.db
        (lines, before) = db.execute("select max(rowid), (select paced from meta) from pace").fetchone()
        if (lines or 0) > 2 * before + _MANY:
            db.execute("create temp table gathered as select kind, first, value, sum(calls) from pace group by 1, 2, 3")
            db.execute("delete from pace")
            db.execute("insert into pace select * from gathered")
            db.execute("drop table gathered")
            db.execute("update meta set paced = (select max(rowid) from pace)")


def _stored(cost: float) -> float:
    """A cost as the index keeps it: in picodollars, a large one as REAL."""
    if type(cost) is bool:
        raise TypeError
    return picodollars(cost) if cost * 1e12 < _COST else cost * 1e12


def _sound(rows: list[tuple[Any, ...]]) -> bool:
    """True if all columns of calls hold what they have to: asked of many at once, for a look at each costs too much."""
    columns = list(zip(*rows, strict=True))
    known = {place: [value for value in columns[place] if value == value]
             for place in (*_OR_TEXTS, *_TIMES, *_COUNTS, _MONEY)} if columns else {}  # fmt: skip
    return not columns or (
        all(set(map(type, columns[place])) == {str} for place in _TEXTS)
        and _STAMPS.fullmatch("\n".join(columns[6]) + "\n") is not None
        and all(set(map(type, known[place])) <= {str} for place in _OR_TEXTS)
        and all(set(map(type, known[place])) <= {int, float} for place in _TIMES)
        and all(set(map(type, known[place])) <= {int} and max(known[place], default=0) < _TOKENS for place in _COUNTS)
        and all(min(known[place], default=0) >= 0 for place in (*_TIMES, *_COUNTS, _MONEY))
    )


def tail(descriptor: int, end: int) -> str:
    """A digest of the last bytes before an offset of the journal: where they are others, it is another journal."""
    begin = max(end - _TAIL, 0)
    return digest(os.pread(descriptor, end - begin, begin))


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
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        for part, _, _ in parts:
            with suppress(FileNotFoundError):
                os.unlink(part)


def _started(part: str, descriptor: int, begin: int, end: int) -> int:
    """The id of a process that makes a part. It ends if this one does."""
    parent = os.getpid()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, signal.SIG_DFL)
        db = made(part)
        db.execute("create table elsewhere (id blob)")
        db.execute("insert into meta values (0, 0, 0, '', 0, '', 0, 0)")
        db.execute("begin")
        filling = Filling(db)
        filling.store(filling.read(descriptor, begin, end, parent))
        db.executemany("insert into elsewhere values (?)", [(ident,) for ident in filling.elsewhere])
        db.execute("commit")
        db.close()
        status = 0
    finally:
        os._exit(status)


def _ends(descriptor: int) -> list[int]:
    """Where the parts of the journal end, each after a whole line but the last."""
    size = os.fstat(descriptor).st_size
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = max(min(processors, size // PART, _PARTS), 1)
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
