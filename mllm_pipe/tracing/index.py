"""The journal's index: a SQLite file beside it that may be deleted at any time, and is then made anew.

It follows the journal: what has been appended since is read when it is opened. The first filling is made beside it and
put in its place whole; later ones are transactions. Both are done by one process at a time, while none reads: SQLite
finds an unfinished transaction by the name of the file, and so could not tell the old file from the new one. Where it
cannot be written, or somebody reads on and on, it is made in memory.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from heapq import merge
from itertools import chain, count
from math import ceil
from time import monotonic, sleep
from typing import Any

import orjson

from mllm_pipe.envelope import Record
from mllm_pipe.errors import Stopped, Usage
from mllm_pipe.runs import digest_of
from mllm_pipe.tracing import journalled, ledger, schema
from mllm_pipe.tracing.filling import USAGE, Filling, connect, fill, made, tail, whole
from mllm_pipe.tracing.selection import Selection

_DAY = "substr(started_at, 1, 10)"
_MANY = 20_000  # rows are counted together
_LONG = 64 << 20  # bytes of a line that are read without a look whether there is such a one
_READERS_S = 2.0  # readers are waited for, by who has something to write


class Index:
    """The index, as far as the journal goes now. Use as a context: inside, it can be asked, and does not change."""

    def __init__(self) -> None:
        """Missing if there is no journal."""
        self.journal = journalled.opened()
        self.path = journalled.place_of_index()
        self.lock = -1

    def __enter__(self) -> Index:
        there = os.fstat(self.journal)
        self.same = (schema.VERSION, there.st_dev, there.st_ino, os.pread(self.journal, 100, 0).hex())
        self.size = there.st_size
        self.lock = _lock(f"{self.path}.lock")
        self.db = self._opened()
        # A transaction that has begun to read goes on reading what it has opened, whatever comes in its place.
        self.db.execute("begin")
        self.unsound = self.db.execute("select unsound from meta").fetchone()[0]
        journalled.tell_of(self.unsound)
        return self

    def __exit__(self, *_: object) -> None:
        self.db.close()
        os.close(self.journal)
        if self.lock >= 0:
            os.close(self.lock)

    def _opened(self) -> sqlite3.Connection:
        """The index, up to the journal. The lock is shared by those who read, so that they do not wait for each other;
        what is missing is written by one who is alone with it, or, where readers stay, each makes for itself."""
        if self.lock < 0:
            return self._there() or self._anew()
        waited = monotonic() + _READERS_S
        while True:
            fcntl.flock(self.lock, fcntl.LOCK_SH)  # it waits for who writes, and not for who reads
            if found := self._there():
                return found
            late = monotonic() > waited
            try:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # if it fails, the shared one is gone too
            except BlockingIOError:
                if not late:
                    sleep(0.02)  # a lock can be waited for without a limit alone
                    continue
                fcntl.flock(self.lock, fcntl.LOCK_SH)
                return self._there() or self._there(copied=True) or self._filled(":memory:")
            db = self._there(alone=True) or self._anew()
            fcntl.flock(self.lock, fcntl.LOCK_SH)
            return db

    def _there(self, *, alone: bool = False, copied: bool = False) -> sqlite3.Connection | None:
        """The index that is there, if it is whole, of this journal, and goes as far; it is brought up to that if we are
        `alone` with it, or as a copy in memory. None if it does not, or there is none."""
        if not os.path.isfile(self.path):
            return None
        db = connect(self.path)
        try:
            asked = "select version, device, inode, head, offset, tail from meta"
            *same, offset, before = db.execute(asked).fetchone() or (0, 0, "")
            if tuple(same) == self.same and offset <= self.size and before == tail(self.journal, offset):
                new = whole(self.journal, offset, self.size) > offset
                if new and copied:
                    memory = connect(":memory:")
                    db.backup(memory)
                    db.close()
                    db = memory
                if new and (alone or copied):
                    self._follow(db, offset)
                if not new or alone or copied:
                    return db
        except sqlite3.DatabaseError:  # damaged, or not to be written, or of another version
            pass
        db.close()
        return None

    def _anew(self) -> sqlite3.Connection:
        """Make the index beside its place, then put it there; where that cannot be, in memory."""
        making = f"{self.path}.new"
        if self.lock >= 0:
            _tidy(making)
            try:
                self._filled(making).close()
                with suppress(FileNotFoundError):
                    os.unlink(f"{self.path}-journal")  # a killed process left it: it is of the file that goes
                os.replace(making, self.path)
                return connect(self.path)
            except (sqlite3.OperationalError, OSError):  # the disk is full, or something else has that name
                pass
            finally:
                _tidy(making)
        return self._filled(":memory:")

    def _filled(self, place: str) -> sqlite3.Connection:
        db = made(place)
        db.execute("insert into meta values (?, ?, ?, ?, 0, '', 0, 0)", self.same)
        fill(db, self.journal, place)
        db.executescript(schema.INDEXES + schema.VIEWS)
        return db

    def _follow(self, db: sqlite3.Connection, begin: int) -> None:
        """Take in what the journal has gained, in one transaction."""
        db.execute("begin immediate")
        try:
            filling = Filling(db)
            filling.store(filling.read(self.journal, begin, self.size))
            db.execute("commit")
        except BaseException:
            db.execute("rollback")
            raise

    def runs(self, wanted: Selection) -> Iterator[tuple[str, list[Record]]]:
        """Runs that may be meant, the newest first, each with its entries of the journal: perhaps too many of them,
        never too few."""
        seen = set()
        unheard: dict[str, list[Record]] = {}
        places = []
        for (offset, length) in self.db.execute("select offset, length from pending order by offset"):
            for entry in journalled.at(self.journal, [(offset, length)]):
                run = entry.get("parent_run_id", "-")
                unheard.setdefault(run, []).append(entry)
                places.append((run, offset))
        asked, values = _candidates(wanted)
        heard = self.db.execute(asked, values)
        for run, _ in merge(heard, reversed(places), key=lambda found: found[1], reverse=True):
            if run not in seen:
                seen.add(run)
                yield run, [*self._entries(run), *unheard.get(run, [])]

    def _entries(self, run: str) -> Iterator[Record]:
        found = self.db.execute("select offset, length from call where run = ? order by offset", (run,)).fetchall()
        return journalled.at(self.journal, found)

    def _pending(self) -> list[Record]:
        found = self.db.execute("select offset, length from pending order by offset").fetchall()
        return list(journalled.at(self.journal, found))

    def by(self, key: str, wanted: Selection) -> list[dict[str, Any]]:
        """The lines of `ledger.by` over all calls that are meant."""
        sums: dict[str | None, ledger.Sum] = {}
        unheard = [journalled.unheard(intent) for intent in self._pending()]
        run = wanted.run and self._ident(wanted, unheard)
        clauses, values = _where(wanted)
        if wanted.status:
            clauses.append("status = ?")
            values.append(wanted.status)
        if wanted.since is wanted.until is None and not wanted.threads and not wanted.run and key != "thread":
            self._totals(key, clauses, values, sums)
        else:
            if run:
                clauses.append("run = ?")
                values.append(run)
            self._counted(key, clauses, values, sums)
        for span in unheard:
            if wanted.counts(span) and (not run or span.get("parent_run_id", "-") == run):
                sums.setdefault(ledger.value_of(span, key), ledger.Sum()).add(span)
        return ledger.rows_of(sums, key)

    def _ident(self, wanted: Selection, unheard: list[Record]) -> str:
        """The run that is meant. Missing if there is none; Usage if several begin like it."""
        found = self.db.execute("select distinct run from call where substr(run, 1, ?) = ?",
                                (len(str(wanted.run)), wanted.run)).fetchall()  # fmt: skip
        return wanted.ident([*{run for (run,) in found} | {span.get("parent_run_id", "-") for span in unheard}])

    def _totals(self, key: str, clauses: list[str], values: list[Any], sums: dict[str | None, ledger.Sum]) -> None:
        """By the sums that were made when the index was filled: no call is looked at."""
        used, where = ", ".join(f"sum({name})" for name in USAGE), _sql(clauses)
        self._sum(f"select {_column(key)}, sum(calls), sum(calls * (status <> 'ok')), sum(unpriced), sum(cost), {used} "
                  f"from total join kind on kind.n = total.kind{where} group by 1", values, sums)  # fmt: skip
        if key == "day":  # so many times differ in so many days that they are not kept
            self._times(_DAY, f"from call join kind on kind.n = call.kind{where}", values, sums)
            return
        asked = f'select {_column(key)}, first, value, calls from pace join kind on kind.n = pace.kind{where}'
        for value, first, milliseconds, calls in self.db.execute(asked, values):
            (sums[value].firsts if first else sums[value].durations)[milliseconds] += calls

    def _counted(self, key: str, clauses: list[str], values: list[Any], sums: dict[str | None, ledger.Sum]) -> None:
        """By the calls themselves."""
        used, where = ", ".join(f"sum({name})" for name in USAGE), _sql(clauses)
        of = f"from call join kind on kind.n = call.kind{where}"
        column = _DAY if key == "day" else _column(key)
        self._sum(f"select {column}, count(*), sum(status <> 'ok'), sum(cost is null), coalesce(sum(cost), 0), {used} "
                  f"{of} group by 1", values, sums)  # fmt: skip
        self._times(column, of, values, sums)

    def _times(self, column: str, of: str, values: list[Any], sums: dict[str | None, ledger.Sum]) -> None:
        """Count how long the calls took."""
        found = self.db.execute(f"select {column}, duration_ms, first_token_ms {of}", values)
        while rows := found.fetchmany(_MANY):
            for place, name in ((1, "durations"), (2, "firsts")):
                known = [row for row in rows if row[place] is not None]
                keys, digits = [row[0] for row in known], ledger.digits([row[place] for row in known])
                for (key, time), calls in Counter(zip(keys, digits, strict=True)).items():
                    getattr(sums[key], name)[float(time)] += calls

    def _sum(self, asked: str, values: list[Any], sums: dict[str | None, ledger.Sum]) -> None:
        """Take in rows of key, calls, failed, unpriced, cost, and the sums of tokens."""
        for value, calls, failed, unpriced, cost, *used in self.db.execute(asked, values):
            found = sums[value] = ledger.Sum()
            found.calls, found.failed, found.unpriced, found.cost = calls, failed, unpriced, cost
            found.usage = {name: count for name, count in zip(USAGE, used, strict=True) if count is not None}

    def query(self, sql: str) -> list[dict[str, Any]]:
        """The rows of one SELECT over the views. Usage if it is none, or fails; nothing can be written by it."""
        self._add_unheard()
        self.db.execute("pragma query_only = on")
        self.db.create_function("in_journal", 4, self._in_journal, deterministic=True)
        self.db.set_authorizer(_may)
        self.db.set_progress_handler(lambda: 0, 1 << 16)  # a signal is heard there, and ends the query
        try:
            found = self.db.execute(sql)
            if not found.description:
                raise Usage("--sql: it asks nothing; say select ... from spans")
            names = _distinct([column[0] for column in found.description])
            return [dict(zip(names, map(_plain, row), strict=True)) for row in found]
        except sqlite3.OperationalError as error:
            if str(error) == "interrupted":
                raise Stopped(signal.SIGINT) from None
            raise Usage(f"--sql: {error}") from None
        except (sqlite3.Error, sqlite3.Warning) as error:
            raise Usage(f"--sql: {error}") from None

    def _add_unheard(self) -> None:
        """Have the views, for this connection, show the calls of which no outcome was written."""
        found = self.db.execute("select offset, length from pending order by offset").fetchall()
        calls, kinds = [], []
        for offset, length in found:
            for span in map(journalled.unheard, journalled.at(self.journal, [(offset, length)])):
                calls.append((offset, length, span["id"], span.get("parent_run_id", "-"), span["thread"], -offset,
                              span["started_at"], span["duration_ms"], span.get("input_id"), span.get("handed_id")))
                kinds.append((-offset, *map(span.get, ("op", "slot", "agent", "runtime", "model", "group", "status",
                                                       "stage"))))  # fmt: skip
        if not calls:
            return
        for table in ("call", "kind"):
            self.db.execute(f"create temp table unheard_{table} as select * from main.{table} limit 0")
            self.db.execute(f"create temp view {table} as select * from main.{table} union all "
                            f"select * from temp.unheard_{table}")  # fmt: skip
        self.db.executemany("insert into unheard_call (offset, length, id, run, thread, kind, started_at, duration_ms, "
                            "input_id, handed_id) values (?,?,?,?,?,?,?,?,?,?)", calls)  # fmt: skip
        self.db.executemany('insert into unheard_kind (n, op, slot, agent, runtime, model, "group", status, stage) '
                            "values (?,?,?,?,?,?,?,?,?)", kinds)  # fmt: skip
        self.db.executescript(schema.VIEWS.replace("create view", "create temp view"))

    def _in_journal(self, offset: int | None, length: int | None, ident: str, field: str) -> Any:
        """A field of a record that an outcome holds; bytes and sha256 are those of its content."""
        if length and length > _LONG and not self.db.execute("select 1 from call where offset = ? and length = ?",
                                                             (offset, length)).fetchone():  # fmt: skip
            return None  # only of what is there can we have that much in memory
        for entry in journalled.at(self.journal, [(offset, length)] if offset is not None and length else []):
            for record in entry.get("records", []):
                if record.get("id") == ident:
                    if field in ("bytes", "sha256"):
                        return digest_of(record)[field] if "content" in record else None
                    value = record.get(field)
                    return orjson.dumps(value).decode() if isinstance(value, list | dict) else value
        return None


def _column(key: str) -> str:
    """What a call is counted under, as `ledger.value_of` says."""
    return """substr("group", 1, instr("group" || '/', '/') - 1)""" if key == "group" else f'"{key}"'


def _where(wanted: Selection) -> tuple[list[str], list[Any]]:
    """Clauses on calls, and their values."""
    clauses, values = [], list[Any]()
    for name, value in wanted.asked.items():
        clauses.append(f'"{name}" = ?')
        values.append(value)
    if wanted.group is not None:
        clauses.append("""instr('/' || "group" || '/', ?)""")
        values.append(f"/{wanted.group}/")
    for name, sign in (("since", ">="), ("until", "<")):
        seconds = getattr(wanted, name)
        if seconds is not None:
            from mllm_pipe.envelope import timestamp

            clauses.append(f"started_at {sign} ?")
            values.append(timestamp(ceil(round(seconds * 1e6) / 1000) / 1000))  # calls begin at whole milliseconds
    if wanted.threads:
        clauses.append("thread in (select value from json_each(?))")
        values.append(orjson.dumps(sorted(wanted.threads)).decode())
    return clauses, values


def _candidates(wanted: Selection) -> tuple[str, list[Any]]:
    """A question for (run, offset), the newest first, of the runs that may be meant, and its values.

    What is asked of a run may be true of one of its calls each: the first of it is asked of the row, to pass over most,
    and the rest of any call of its run.
    """
    of_call = Selection()
    of_call.asked = wanted.asked
    asked = [of_call, Selection(group=wanted.group), Selection(threads=wanted.threads),
             Selection(since=wanted.since), Selection(until=wanted.until)]  # fmt: skip
    conditions = [_where(one) for one in asked]
    if wanted.status in ("error", "unknown"):
        conditions.append((["status = ?"], [wanted.status]))
    elif wanted.status == "no":
        conditions.append((["run in (select run from noes)"], []))
    conditions = [one for one in conditions if one[0]]
    clauses, values = conditions[0] if conditions else ([], [])
    for more, theirs in conditions[1:]:
        clauses = [*clauses, "exists (select 1 from call as other join kind on kind.n = other.kind "
                             f"where other.run = call.run and {' and '.join(more)})"]  # fmt: skip
        values = [*values, *theirs]
    return f"select run, offset from call join kind on kind.n = call.kind{_sql(clauses)} order by offset desc", values


def _sql(clauses: list[str]) -> str:
    return f" where {' and '.join(clauses)}" if clauses else ""


def _may(action: int, *_: object) -> int:
    reading = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE)
    return sqlite3.SQLITE_OK if action in reading else sqlite3.SQLITE_DENY


def _distinct(names: list[str]) -> list[str]:
    """Names of columns; of equal ones the second has :1 after it, and so on."""
    made: list[str] = []
    for name in names:
        again = (f"{name}:{number}" for number in count(1))
        made.append(next(one for one in chain([name], again) if one not in made))
    return made


def _plain(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _lock(path: str) -> int:
    """A descriptor of the lock; -1 where there can be none: then no file is changed either."""
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return -1
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
    except OSError:  # as on some network file systems
        os.close(lock)
        return -1
    return lock


def _tidy(making: str) -> None:
    """Take away what is left of an index that was being made, and of its parts: whoever made it is gone."""
    folder, name = os.path.split(making)
    for left in os.listdir(folder):
        if left.startswith(name):
            os.unlink(os.path.join(folder, left))
