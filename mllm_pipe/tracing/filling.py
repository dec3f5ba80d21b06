"""How the journal's index is filled: line by line, and a long journal in parts, each by a process of its own.

Of an outcome the span alone is parsed, not the answer. The processes are copies of this one that parse, write a file of
their part, and end: what is parallel about sqlite3 and orjson in Python is that much.
"""

from __future__ import annotations

import os
import signal
import sqlite3
from collections import Counter
from contextlib import suppress
from typing import Any

from orjson import JSONDecodeError, dumps, loads

from mllm_pipe.envelope import Record
from mllm_pipe.tracing import journalled, schema
from mllm_pipe.tracing.ledger import picodollars

USAGE = ("input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")
PART = 32 << 20  # bytes that are worth a process
_PARTS = 4  # at most
_BLOCK = 1 << 20
_ROWS = 2000  # are written at once
_CALL = "insert into call values (null" + ",?" * 22 + ")"
_DIGITS = "%.3g".__mod__  # as ledger.rounded
_SUMS = "calls, unpriced, cost, " + ", ".join(USAGE)
_ADDED = "on conflict do update set " + ", ".join(
    f"{name} = coalesce({name} + excluded.{name}, {name}, excluded.{name})" for name in _SUMS.split(", ")
)
_COLUMNS = (
    "id, run, thread, kind, stage, started_at, duration_ms, first_token_ms, input_tokens, cache_read_tokens, "
    "cache_write_tokens, output_tokens, reasoning_tokens, cost, cost_source, input_id, handed_id, outputs, attempts, "
    "losses, offset, length"
)


class Filling:
    """Takes lines of the journal into the tables."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db
        self.kinds = {tuple(rest): n for n, *rest in db.execute("select * from kind")}
        self.known = len(self.kinds)
        self.pending = {ident: (offset, length) for ident, offset, length in db.execute("select * from pending")}
        self.elsewhere: set[str] = set()  # calls that ended here, and began before the first line that was read
        self.newest = db.execute("select coalesce(max(n), 0) from call").fetchone()[0]
        self.rows: list[tuple[Any, ...]] = []
        self.times: dict[int, tuple[list[float], list[float]]] = {}  # of each kind: durations, times to first tokens
        self.pace: dict[tuple[int, int], Counter[str]] = {}  # of each kind, and whether it is of first tokens

    def read(self, descriptor: int, offset: int, end: int, parent: int = 0) -> int:
        """Take the lines from one offset to another; the offset after the last whole one. parent: for which process
        this one works; it stops when that has ended."""
        rest, outcome, intent = b"", journalled.OUTCOME, journalled.INTENT
        while offset + len(rest) < end and (not parent or os.getppid() == parent):
            start = offset + len(rest)
            *lines, rest = (rest + os.pread(descriptor, min(_BLOCK, end - start), start)).split(b"\n")
            for line in lines:
                if line.startswith(outcome):
                    self._outcome(line, offset)
                elif line.startswith(intent):
                    self.pending[line[29 : line.index(b'"', 29)].decode()] = offset, len(line)
                offset += len(line) + 1
        return offset

    def _outcome(self, line: bytes, offset: int) -> None:
        ident = line[30 : line.index(b'"', 30)].decode()
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
        if span.get("type") == "span":
            self._call(span, line, offset)

    def _call(self, span: Record, line: bytes, offset: int) -> None:
        get = span.get
        kind = (span["op"], get("slot"), get("agent"), get("runtime"), get("model"), get("group"), span["status"])
        n = self.kinds.get(kind) or self._new_kind(kind)
        cost, outputs, attempts, stage = get("cost_usd"), get("output_ids"), get("attempts"), get("stage")
        duration, first, use = span["duration_ms"], get("first_token_ms"), (get("usage") or {}).get
        self.rows.append((
            span["id"], get("parent_run_id", "-"), span["thread"], n, None if stage is None else str(stage),
            span["started_at"], duration, first, use("input_tokens"), use("cache_read_tokens"),
            use("cache_write_tokens"), use("output_tokens"), use("reasoning_tokens"),
            None if cost is None else picodollars(cost), get("cost_source"), get("input_id"), get("handed_id"),
            f'["{outputs[0]}"]' if outputs and len(outputs) == 1 and outputs[0].replace("-", "").isalnum()
            else dumps(outputs).decode() if outputs else None,
            None if not attempts or len(attempts) == 1 and attempts[0]["status"] == "ok" else dumps(attempts).decode(),
            len(get("losses", ())), offset, len(line),
        ))  # fmt: skip
        durations, firsts = self.times.get(n) or self.times.setdefault(n, ([], []))
        durations.append(duration)
        if first is not None:
            firsts.append(first)
        if span["op"] == "judge":
            self._verdicts(span, line)
        if len(self.rows) >= _ROWS:
            self._write()

    def _new_kind(self, kind: tuple[Any, ...]) -> int:
        self.kinds[kind] = number = len(self.kinds) + 1
        return number

    def _verdicts(self, span: Record, line: bytes) -> None:
        entry = journalled.entry_of(line)
        for record in entry["records"] if entry else []:
            if record["type"] == "verdict":
                author = record.get("author", {})
                self.db.execute(
                    "insert into verdict values (" + ",".join("?" * 13) + ")",
                    (record["id"], span.get("parent_run_id", "-"), span["id"], span["thread"],
                     dumps(record["about"]).decode(), record.get("rubric"), record["pass"], record.get("score"),
                     record.get("preferred"), record.get("consistent"), record.get("self_judged"),
                     author.get("runtime"), author.get("model")),
                )  # fmt: skip

    def _write(self) -> None:
        self.db.executemany(_CALL, self.rows)
        self.rows.clear()
        for n, both in self.times.items():
            for first, times in enumerate(both):
                self.pace.setdefault((n, first), Counter()).update(map(_DIGITS, times))
        self.times.clear()

    def _total(self) -> None:
        """Add the calls that were read since the last time to the sums by kind and day."""
        self._write()
        sums = ", ".join(f"sum({name})" for name in USAGE)
        self.db.execute("insert into main.total select kind, substr(started_at, 1, 10), count(*), sum(cost is null), "
                        f"coalesce(sum(cost), 0), {sums} from main.call where n > ? group by 1, 2 {_ADDED}",
                        (self.newest,))  # fmt: skip
        self.newest = self.db.execute("select coalesce(max(n), 0) from main.call").fetchone()[0]

    def join(self, part: str) -> None:
        """Take what another process has made of the lines that follow."""
        db = self.db
        self._total()
        db.execute("attach ? as part", (part,))
        named = {n: self.kinds.get(kind) or self._new_kind(kind) for n, *rest in db.execute("select * from part.kind")
                 for kind in [tuple(rest)]}  # fmt: skip
        db.execute("create temp table named (old integer primary key, kind integer)")
        db.executemany("insert into named values (?,?)", named.items())
        theirs = _COLUMNS.replace(" kind,", " named.kind,")
        db.execute(f"insert into main.call ({_COLUMNS}) select {theirs} from part.call join named on old = call.kind "
                   "order by call.n")  # fmt: skip
        db.execute("insert into main.verdict select * from part.verdict")
        db.execute(f"insert into main.total select named.kind, day, {_SUMS} from part.total "
                   f"join named on old = total.kind where true {_ADDED}")  # fmt: skip
        self.newest = db.execute("select coalesce(max(n), 0) from main.call").fetchone()[0]
        for kind, first, value, calls in db.execute("select * from part.pace"):
            self.pace.setdefault((named[kind], first), Counter())[_DIGITS(value)] += calls
        for (ident,) in db.execute("select id from part.elsewhere"):
            self.pending.pop(ident, None)
        self.pending |= {ident: (offset, length) for ident, offset, length in db.execute("select * from part.pending")}
        db.execute("drop table named")
        db.execute("detach part")

    def store(self, end: int) -> None:
        """Write what was counted, and how far the journal was read."""
        db = self.db
        db.executemany("insert into kind values (?,?,?,?,?,?,?,?)",
                       [(n, *kind) for kind, n in list(self.kinds.items())[self.known:]])  # fmt: skip
        self._total()
        db.execute("delete from pending")
        db.executemany("insert into pending values (?,?,?)", [(i, *place) for i, place in self.pending.items()])
        db.executemany("insert into pace values (?,?,?,?) on conflict do update set calls = calls + excluded.calls",
                       [(kind, first, float(value), n) for (kind, first), counted in self.pace.items()
                        for value, n in counted.items()])  # fmt: skip
        db.execute("update meta set offset = ?", (end,))


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
            last = _whole(descriptor, ends[-2], ends[-1])
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
        db.execute("create table elsewhere (id text)")
        db.execute("insert into meta values (0, 0, 0, '', 0)")
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


def _whole(descriptor: int, begin: int, end: int) -> int:
    """The offset after the last newline before `end`; begin if there is none."""
    at = end
    while at > begin:
        start = max(begin, at - _BLOCK)
        if (found := os.pread(descriptor, at - start, start).rfind(b"\n")) >= 0:
            return start + found + 1
        at = start
    return begin
