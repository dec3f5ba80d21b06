"""The journal's index: a SQLite file beside it that may be deleted at any time, and is then made anew.

It follows the journal: what has been appended since is read when it is opened. The first filling is made beside it and
put in its place whole; later ones are transactions. Both are done by one process at a time, while none reads: SQLite
finds an unfinished transaction by the name of the file, and so could not tell the old file from the new one. Where it
cannot be written, or somebody reads on and on, it is made in memory.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from heapq import merge
from itertools import repeat
from math import ceil
from time import monotonic, sleep
from typing import Any

from orjson import loads

from mllm_pipe.calling import journal
from mllm_pipe.envelope import Record, timestamp
from mllm_pipe.tracing import journalled, ledger, schema
from mllm_pipe.tracing.chunks import Call, Chunks, columns_where, make_rows
from mllm_pipe.tracing.columns import USAGE
from mllm_pipe.tracing.filling import Filling, tail
from mllm_pipe.tracing.parts import connect, fill, made, whole
from mllm_pipe.tracing.selection import Selection

_FEW = 100  # keys: their times are counted by the chunk, so that they are not all in memory
_READERS_S = 2.0  # readers are waited for, by who has something to write


class Index:
    """The index, as far as the journal goes now. Use as a context: inside, it can be asked, and does not change."""

    def __init__(self, *, rows: bool = False) -> None:
        """rows: those of `call`, and the views over it, are wanted. Missing if there is no journal."""
        self.rows = rows
        self.journal = journal.opened()
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
            asked = "select version, device, inode, head, offset, tail, rowed from meta"
            *same, offset, before, rowed = db.execute(asked).fetchone() or (0, 0, "", 0)
            if tuple(same) == self.same and offset <= self.size and before == tail(self.journal, offset):
                new = whole(self.journal, offset, self.size) > offset or self.rows and rowed < offset
                if new and copied:
                    memory = connect(":memory:")
                    db.backup(memory)
                    db.close()
                    db = memory
                if new and (alone or copied):
                    self._follow(db, offset)
                if not new or alone or copied:
                    return db
        except (sqlite3.DatabaseError, ValueError):  # damaged, or not to be written, or of another version
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
        db.execute("insert into meta values (?, ?, ?, ?, 0, '', 0, 0, 0)", self.same)
        fill(db, self.journal, place)
        db.executescript(schema.INDEXES + schema.VIEWS)
        if self.rows:
            db.execute("begin")
            make_rows(db)
            db.execute("commit")
        return db

    def _follow(self, db: sqlite3.Connection, begin: int) -> None:
        """Take in what the journal has gained, in one transaction."""
        db.execute("begin immediate")
        try:
            filling = Filling(db)
            filling.store(filling.read(self.journal, begin, self.size))
            if self.rows:
                make_rows(db)
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
        chunks = Chunks(self.db)
        heard = ((call.run, call.offset) for call in self._candidates(chunks, wanted))
        for run, _ in merge(heard, reversed(places), key=lambda found: found[1], reverse=True):
            if run not in seen:
                seen.add(run)
                found = [(call.offset, call.length) for call in chunks.of(run)]
                yield run, [*journalled.at(self.journal, found), *unheard.get(run, [])]

    def _candidates(self, chunks: Chunks, wanted: Selection) -> Iterator[Call]:
        """Calls of the runs that may be meant, the newest first. What is asked of a run may be true of one of its calls
        each: the first of it is asked of the call, to pass over most, and the rest of any call of its run."""
        first, *rest = self._conditions(wanted) or [lambda _: True]
        for call in chunks.newest():
            if first(call) and all(any(map(asked, chunks.of(call.run))) for asked in rest):
                yield call

    def _conditions(self, wanted: Selection) -> list[Callable[[Call], bool]]:
        """What is asked of the calls of a run, each for itself."""
        of_call, in_group, ended = Selection(), Selection(group=wanted.group), Selection(status=wanted.status)
        of_call.asked = wanted.asked
        made: list[Callable[[Call], bool]] = []
        if wanted.asked:
            made.append(self._of_kind(of_call))
        if wanted.group is not None:
            made.append(self._of_kind(in_group))
        if threads := wanted.threads:
            made.append(lambda call: call.thread in threads)
        since, until = _times(wanted)
        if since:
            made.append(lambda call: call.started_at >= since)
        if until:
            made.append(lambda call: call.started_at < until)
        if wanted.status in ("error", "unknown"):
            made.append(self._of_kind(ended))
        elif wanted.status == "no":
            noes = {run for (run,) in self.db.execute("select run from noes")}
            made.append(lambda call: call.run in noes)
        return made

    def _of_kind(self, wanted: Selection) -> Callable[[Call], bool]:
        kinds = self._kinds(wanted)
        return lambda call: call.kind in kinds

    def _pending(self) -> list[Record]:
        found = self.db.execute("select offset, length from pending order by offset").fetchall()
        return list(journalled.at(self.journal, found))

    def by(self, key: str, wanted: Selection) -> list[dict[str, Any]]:
        """The lines of `ledger.by` over all calls that are meant."""
        sums: dict[str | None, ledger.Sum] = {}
        unheard = [journalled.unheard(intent) for intent in self._pending()]
        run = wanted.run and self._ident(wanted, unheard)
        if wanted.since is wanted.until is None and not wanted.threads and not run and key not in ("thread", "day"):
            self._totals(key, wanted, sums)
        else:
            self._counted(key, wanted, run, sums)
        for span in unheard:
            if wanted.counts(span) and (not run or span.get("parent_run_id", "-") == run):
                sums.setdefault(ledger.value_of(span, key), ledger.Sum()).add(span)
        return ledger.rows_of(sums, key)

    def _ident(self, wanted: Selection, unheard: list[Record]) -> str:
        """The run that is meant. Missing if there is none; Usage if several begin like it."""
        found = self.db.execute("select distinct run from held where substr(run, 1, ?) = ?",
                                (len(str(wanted.run)), wanted.run)).fetchall()  # fmt: skip
        return wanted.ident([*{run for (run,) in found} | {span.get("parent_run_id", "-") for span in unheard}])

    def _totals(self, key: str, wanted: Selection, sums: dict[str | None, ledger.Sum]) -> None:
        """By the sums that were made when the index was filled: no call is looked at."""
        kinds = self._kinds(wanted, key)
        for kind, calls, unpriced, cost, *used in self.db.execute("select * from total"):
            if kind in kinds:
                value, failed = kinds[kind]
                found = sums.setdefault(value, ledger.Sum())
                found.calls += calls
                found.failed += failed * calls
                found.unpriced += unpriced
                found.cost += cost
                found.use(zip(USAGE, used, strict=True))
        for kind, first, times in self.db.execute("select * from pace"):
            if kind in kinds:
                found = sums[kinds[kind][0]]
                counted = found.firsts if first else found.durations
                for text, calls in loads(times).items():
                    counted[float(text)] += calls

    def _counted(self, key: str, wanted: Selection, run: str | None, sums: dict[str | None, ledger.Sum]) -> None:
        """By the calls themselves."""
        kinds = self._kinds(wanted, key if key not in ("thread", "day") else None)
        since, until = _times(wanted)
        names = ("run", "thread", "kind", "started_at", "duration_ms", "first_token_ms", "cost", *USAGE)
        times: dict[str | None, tuple[list[float], list[float]]] = {}
        asked, values = "newest >= ? and oldest < ?", [since, until or "~"]
        if run:
            asked += " and n in (select chunk from held where run = ?)"
            values.append(run)
        for found in columns_where(self.db, names, asked, values):
            about, used = found[: -len(USAGE)], dict(zip(USAGE, found[-len(USAGE) :], strict=True))
            used = {name: column for name, column in used.items() if any(one is not None for one in column)}
            tokens = zip(*used.values(), strict=True) if used else repeat(())
            for (in_run, thread, kind, at, took, first, cost), counts in zip(zip(*about, strict=True), tokens):  # noqa: B905
                if (kind not in kinds or at < since or until and at >= until or run and in_run != run
                        or wanted.threads and thread not in wanted.threads):  # fmt: skip
                    continue
                value, failed = kinds[kind]
                value = thread if key == "thread" else at[:10] if key == "day" else value
                if value not in sums:
                    sums[value] = ledger.Sum()
                if value not in times:
                    times[value] = [], []
                one = sums[value]
                one.calls += 1
                one.failed += failed
                if cost is None:
                    one.unpriced += 1
                else:
                    one.cost += cost
                usage = one.usage
                for name, count in zip(used, counts, strict=True):
                    if count is not None:
                        usage[name] = usage.get(name, 0) + count
                times[value][0].append(took)
                if first is not None:
                    times[value][1].append(first)
            if len(times) < _FEW:
                _count_times(times, sums)
        _count_times(times, sums)

    def _kinds(self, wanted: Selection, key: str | None = None) -> dict[int, tuple[str | None, int]]:
        """Of the kinds of call that are meant the value of the key, as `ledger.value_of` says, and 1 if it failed."""
        clauses = [f'"{name}" = ?' for name in wanted.asked]
        values = [*wanted.asked.values()]
        if wanted.group is not None:
            clauses.append("""instr('/' || "group" || '/', ?)""")
            values.append(f"/{wanted.group}/")
        if wanted.status:
            clauses.append("status = ?")
            values.append(wanted.status)
        value = f'"{key}"' if key else "null"
        if key == "group":
            value = """substr("group", 1, instr("group" || '/', '/') - 1)"""
        where = f" where {' and '.join(clauses)}" if clauses else ""
        found = self.db.execute(f"select n, {value}, status <> 'ok' from kind{where}", values)
        return {n: (of_kind, failed) for n, of_kind, failed in found}


def _count_times(times: dict[str | None, tuple[list[float], list[float]]], sums: dict[str | None, ledger.Sum]) -> None:
    """Count what calls took into the sums, and forget it."""
    for value, (durations, firsts) in times.items():
        for counted, milliseconds in ((sums[value].durations, durations), (sums[value].firsts, firsts)):
            for text, calls in Counter(ledger.digits(milliseconds)).items():
                counted[float(text)] += calls
    times.clear()


def _times(wanted: Selection) -> tuple[str, str]:
    """The times that are meant, as spans have them: from, and before; empty where none is set."""
    since, until = (timestamp(ceil(round(seconds * 1e6) / 1000) / 1000) if seconds is not None else ""
                    for seconds in (wanted.since, wanted.until))  # calls begin at whole milliseconds  # fmt: skip
    return since, until


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
