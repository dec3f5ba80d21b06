"""The journal's index: a SQLite file beside it that may be deleted at any time, and is then made anew.

It follows the journal: what has been appended since is read when it is opened. The first filling is made beside it and
put in its place whole; later ones are transactions, so that several can look at once. Where it cannot be written, it
is made in memory.
"""

from __future__ import annotations

import os
import signal
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import orjson

from mllm_pipe import journal
from mllm_pipe.envelope import Record
from mllm_pipe.errors import Stopped, Usage
from mllm_pipe.runs import digest_of
from mllm_pipe.storage import Appender, read_new
from mllm_pipe.tracing import journalled, ledger, schema
from mllm_pipe.tracing.selection import Selection

_ROWS = 4096  # are written at once
_CALL = "insert into call values (null" + ",?" * 22 + ")"
_USAGE = ("input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")
_TEXT = 1 << 20


class Index:
    """The index, as far as the journal goes now."""

    def __init__(self) -> None:
        """Missing if there is no journal."""
        self.journal = journalled.opened()
        self.path = os.path.join(os.path.dirname(journal.path()), "index.sqlite")
        try:
            self.db = self._current()
        except sqlite3.DatabaseError:  # damaged, of another version, or not to be written: made anew
            with suppress(OSError):
                os.unlink(self.path)
            self.db = self._current()

    def _current(self) -> sqlite3.Connection:
        there = os.fstat(self.journal)
        same = (schema.VERSION, there.st_dev, there.st_ino, os.pread(self.journal, 100, 0).hex())
        if os.path.exists(self.path):
            db = _connect(self.path)
            with suppress(sqlite3.OperationalError):  # no table of that name
                found = db.execute("select version, device, inode, head, offset from meta").fetchone()
                if found and found[:4] == same and found[4] <= there.st_size:
                    if found[4] < there.st_size:
                        _Filling(db, self.journal).follow()
                    return db
            db.close()
        return self._anew(same)

    def _anew(self, same: tuple[int, int, int, str]) -> sqlite3.Connection:
        """Make the index beside its place, then put it there."""
        making = f"{self.path}.{os.getpid()}"
        folder = os.path.dirname(self.path)
        place = making if os.access(folder, os.W_OK) else ":memory:"
        try:
            if place == making:
                os.close(os.open(making, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600))
            db = _connect(place)
            db.execute("pragma journal_mode = off")
            db.execute("pragma synchronous = off")
            db.execute("pragma page_size = 16384")
            db.executescript(schema.TABLES)
            db.execute("insert into meta values (?, ?, ?, ?, 0)", same)
            _Filling(db, self.journal).follow(first=True)
            db.executescript(schema.INDEXES + schema.VIEWS)
            if place == making:
                db.close()
                os.replace(making, self.path)
                db = _connect(self.path)
            return db
        finally:
            with suppress(FileNotFoundError):
                os.unlink(making)

    def runs(self, wanted: Selection) -> Iterator[tuple[str, list[Record]]]:
        """Runs that may be meant, the newest first, each with its entries of the journal."""
        clauses, values = _where(wanted)
        if wanted.status in ("error", "unknown"):
            clauses.append("status = ?")
            values.append(wanted.status)
        elif wanted.status == "no":
            clauses.append("run in (select run from verdict where pass is not 1)")
        seen = set()
        open_runs: dict[str, list[Record]] = {}
        for entry in self._pending():
            open_runs.setdefault(str(entry.get("parent_run_id")), []).append(entry)
        for run, entries in reversed(open_runs.items()):
            seen.add(run)
            yield run, [*self._entries(run), *entries]
        asked = f"select run from call join kind on kind.n = call.kind{_sql(clauses)} order by call.n desc"
        for (run,) in self.db.execute(asked, values):
            if run not in seen:
                seen.add(run)
                yield run, list(self._entries(run))

    def _entries(self, run: str) -> Iterator[Record]:
        found = self.db.execute("select offset, length from call where run = ? order by n", (run,)).fetchall()
        return journalled.at(self.journal, found)

    def _pending(self) -> list[Record]:
        found = self.db.execute("select offset, length from pending order by offset").fetchall()
        return list(journalled.at(self.journal, found))

    def by(self, key: str, wanted: Selection) -> list[dict[str, Any]]:
        """The lines of `ledger.by` over all calls that are meant."""
        sums: dict[str | None, ledger.Sum] = {}
        clauses, values = _where(wanted)
        if wanted.status:
            clauses.append("status = ?")
            values.append(wanted.status)
        totals = key not in ("day", "thread") and wanted.since is wanted.until is None and not wanted.threads
        if totals and not wanted.run:
            self._totals(key, clauses, values, sums)
        else:
            self._counted(key, clauses, values, sums, wanted)
        for intent in self._pending():
            span = journalled.unheard(intent)
            if wanted.counts(span) and (not wanted.run or str(span.get("parent_run_id")).startswith(wanted.run)):
                value = span["started_at"][:10] if key == "day" else span.get(key)
                sums.setdefault(value, ledger.Sum()).add(span)
        return ledger.rows_of(sums, key)

    def _totals(self, key: str, clauses: list[str], values: list[Any], sums: dict[str | None, ledger.Sum]) -> None:
        """By the sums that were made when the index was filled: no call is looked at."""
        usage = ", ".join(f"sum({name})" for name in _USAGE)
        asked = (f'select "{key}", sum(calls), sum(calls * (status <> \'ok\')), sum(unpriced), sum(cost), {usage} '
                 f"from total join kind on kind.n = total.kind{_sql(clauses)} group by 1")  # fmt: skip
        for value, calls, failed, unpriced, cost, *used in self.db.execute(asked, values):
            found = sums.setdefault(value, ledger.Sum())
            found.calls, found.failed, found.unpriced, found.cost = calls, failed, unpriced, cost
            found.usage = {name: count for name, count in zip(_USAGE, used, strict=True) if count is not None}
        asked = (f'select "{key}", first, value, sum(calls) from pace join kind on kind.n = pace.kind{_sql(clauses)} '
                 "group by 1, 2, 3")  # fmt: skip
        for value, first, milliseconds, calls in self.db.execute(asked, values):
            found = sums[value]
            (found.firsts if first else found.durations)[milliseconds] = calls

    def _counted(self, key: str, clauses: list[str], values: list[Any], sums: dict[str | None, ledger.Sum],
                 wanted: Selection) -> None:  # fmt: skip
        """Call by call."""
        if wanted.run:
            clauses.append("substr(run, 1, ?) = ?")
            values += [len(wanted.run), wanted.run]
        column = "substr(started_at, 1, 10)" if key == "day" else f'"{key}"'
        asked = (f"select {column}, status, duration_ms, first_token_ms, cost, {', '.join(_USAGE)}, started_at "
                 f"from call join kind on kind.n = call.kind{_sql(clauses)}")  # fmt: skip
        for value, status, duration, first, cost, *used, _ in self.db.execute(asked, values):
            found = sums.setdefault(value, ledger.Sum())
            found.calls += 1
            found.failed += status != "ok"
            found.unpriced += cost is None
            found.cost += cost or 0
            for name, count in zip(_USAGE, used, strict=True):
                if count is not None:
                    found.usage[name] = found.usage.get(name, 0) + count
            found.durations[ledger.rounded(duration)] += 1
            if first is not None:
                found.firsts[ledger.rounded(first)] += 1

    def query(self, sql: str) -> list[dict[str, Any]]:
        """The rows of one SELECT over the views. Usage if it is none, or fails; nothing can be written by it."""
        self.db.execute("pragma query_only = on")
        self.db.create_function("in_journal", 4, self._in_journal, deterministic=True)
        self.db.set_authorizer(_may)
        self.db.set_progress_handler(lambda: 0, 1 << 16)  # a signal is heard there, and ends the query
        try:
            found = self.db.execute(sql)
            if not found.description:
                raise Usage("--sql: it asks nothing; say select ... from spans")
            names = [column[0] for column in found.description]
            return [dict(zip(names, map(_plain, row), strict=True)) for row in found]
        except sqlite3.OperationalError as error:
            if str(error) == "interrupted":
                raise Stopped(signal.SIGINT) from None
            raise Usage(f"--sql: {error}") from None
        except (sqlite3.Error, sqlite3.Warning) as error:
            raise Usage(f"--sql: {error}") from None

    def _in_journal(self, offset: int | None, length: int | None, ident: str, field: str) -> Any:
        """A field of a record that an outcome holds; bytes and sha256 are those of its content."""
        for entry in journalled.at(self.journal, [(offset, length)] if offset is not None and length else []):
            for record in entry.get("records", []):
                if record["id"] == ident:
                    if field in ("bytes", "sha256"):
                        return digest_of(record)[field] if "content" in record else None
                    value = record.get(field)
                    return orjson.dumps(value).decode() if isinstance(value, list | dict) else value
        return None


class _Filling:
    """Takes what the journal has gained into the index, in one transaction."""

    def __init__(self, db: sqlite3.Connection, descriptor: int) -> None:
        self.db, self.reader = db, Appender(journal.path())
        self.reader.descriptor = descriptor
        self.kinds: dict[tuple[Any, ...], int] = {}
        self.pending: dict[str, tuple[int, int]] = {}
        self.rows: list[tuple[Any, ...]] = []
        self.totals: dict[tuple[int, str], list[Any]] = {}
        self.pace: Counter[tuple[int, int, str]] = Counter()
        self.offset = 0
        self.ids: set[str] | None = None

    def follow(self, first: bool = False) -> None:
        """Read on to the journal's last whole line."""
        db = self.db
        db.execute("begin immediate")
        try:
            self.offset = start = db.execute("select offset from meta").fetchone()[0]
            self.kinds = {tuple(rest): n for n, *rest in db.execute("select * from kind")}
            self.pending = {ident: (offset, length) for ident, offset, length in db.execute("select * from pending")}
            known = len(self.kinds)
            end = read_new(self.reader, start, self._take)
            self._write()
            db.executemany("insert into kind values (?,?,?,?,?,?,?,?)",
                           [(n, *kind) for kind, n in list(self.kinds.items())[known:]])  # fmt: skip
            db.execute("delete from pending")
            db.executemany("insert into pending values (?,?,?)", [(i, *place) for i, place in self.pending.items()])
            sums = ", ".join(f"{name} = coalesce({name} + excluded.{name}, {name}, excluded.{name})" for name in _USAGE)
            db.executemany("insert into total values (?,?,?,?,?,?,?,?,?,?) on conflict do update set "
                           "calls = calls + excluded.calls, unpriced = unpriced + excluded.unpriced, "
                           f"cost = cost + excluded.cost, {sums}",
                           [(*key, *found) for key, found in self.totals.items()])  # fmt: skip
            db.executemany(
                "insert into pace values (?,?,?,?) on conflict do update set calls = calls + excluded.calls",
                [(kind, first, float(value), n) for (kind, first, value), n in self.pace.items()],
            )
            db.execute("update meta set offset = ?", (end,))
            db.execute("commit")
        except BaseException:
            db.execute("rollback")
            raise

    def _take(self, line: bytes) -> None:
        offset, length = self.offset, len(line)
        self.offset += length + 1
        if line.startswith(journalled.OUTCOME):
            ident = line[30 : line.index(b'"', 30)].decode()
            self.pending.pop(ident, None)
            # its span is all that is needed: the answer that follows is not parsed. Such bytes cannot stand in a text,
            # where a quote has its backslash.
            start = line.find(b'"records":[{') + 11
            stop = line.find(b'},{"v":1,"type":"', start) + 1
            if start > 11:
                try:
                    span = orjson.loads(line[start:stop] if stop else line[start : line.rindex(b"}]") + 1])
                except (orjson.JSONDecodeError, ValueError):
                    entry = journalled.entry_of(line)
                    span = entry["records"][0] if entry and entry["records"] else {}
                if span.get("type") == "span":
                    self._call(span, line, offset, length)
        elif line.startswith(journalled.INTENT):
            self.pending[line[29 : line.index(b'"', 29)].decode()] = offset, length

    def _call(self, span: Record, line: bytes, offset: int, length: int) -> None:
        get = span.get
        kind = (span["op"], get("slot"), get("agent"), get("runtime"), get("model"), get("group"), span["status"])
        n = self.kinds.get(kind)
        if n is None:
            n = self.kinds[kind] = len(self.kinds) + 1
        usage, cost, started, outputs = get("usage") or {}, get("cost_usd"), span["started_at"], get("output_ids")
        use = usage.get
        used = (use("input_tokens"), use("cache_read_tokens"), use("cache_write_tokens"), use("output_tokens"),
                use("reasoning_tokens"))  # fmt: skip
        amount = None if cost is None else ledger.picodollars(cost)
        duration, first, attempts = span["duration_ms"], get("first_token_ms"), get("attempts")
        plain = not attempts or len(attempts) == 1 and attempts[0]["status"] == "ok"
        stage = get("stage")
        self.rows.append(
            (span["id"], get("parent_run_id", "-"), span["thread"], n, None if stage is None else str(stage), started,
             duration, first, *used, amount, get("cost_source"), get("input_id"), get("handed_id"),
             f'["{outputs[0]}"]' if outputs and len(outputs) == 1 and outputs[0].isalnum()
             else orjson.dumps(outputs).decode() if outputs else None,
             None if plain else orjson.dumps(attempts).decode(), len(get("losses", ())), offset, length)
        )  # fmt: skip
        total = self.totals.get((n, started[:10]))
        if total is None:
            self.totals[n, started[:10]] = [1, cost is None, amount or 0, *used]
        else:
            total[0] += 1
            total[1] += cost is None
            total[2] += amount or 0
            for place, count in enumerate(used, 3):
                if count is not None:
                    total[place] = (total[place] or 0) + count
        self.pace[n, 0, f"{duration:.3g}"] += 1
        if first is not None:
            self.pace[n, 1, f"{first:.3g}"] += 1
        if span["op"] == "judge":
            self._verdicts(span, line)
        if len(self.rows) >= _ROWS:
            self._write()

    def _verdicts(self, span: Record, line: bytes) -> None:
        entry = journalled.entry_of(line)
        for record in entry["records"] if entry else []:
            if record["type"] == "verdict":
                author = record.get("author", {})
                self.db.execute(
                    "insert into verdict values (" + ",".join("?" * 13) + ")",
                    (record["id"], span.get("parent_run_id", "-"), span["id"], span["thread"],
                     orjson.dumps(record["about"]).decode(), record.get("rubric"), record["pass"], record.get("score"),
                     record.get("preferred"), record.get("consistent"), record.get("self_judged"),
                     author.get("runtime"), author.get("model")),
                )  # fmt: skip

    def _write(self) -> None:
        self.db.executemany(_CALL, self.rows)
        self.rows.clear()


def _connect(path: str) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=120, isolation_level=None)


def _where(wanted: Selection) -> tuple[list[str], list[Any]]:
    """Clauses on calls, and their values."""
    clauses, values = [], list[Any]()
    for name, value in [*wanted.asked.items(), ("group", wanted.group)]:
        if value is not None:
            clauses.append(f'"{name}" = ?')
            values.append(value)
    for name, sign in (("since", ">="), ("until", "<")):
        seconds = getattr(wanted, name)
        if seconds is not None:
            from mllm_pipe.envelope import timestamp

            clauses.append(f"started_at {sign} ?")
            values.append(timestamp(seconds))
    if wanted.threads:
        clauses.append("thread in (select value from json_each(?))")
        values.append(orjson.dumps(sorted(wanted.threads)).decode())
    return clauses, values


def _sql(clauses: list[str]) -> str:
    return f" where {' and '.join(clauses)}" if clauses else ""


def _may(action: int, *_: object) -> int:
    reading = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE)
    return sqlite3.SQLITE_OK if action in reading else sqlite3.SQLITE_DENY


def _plain(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
