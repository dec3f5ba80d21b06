"""--sql: a SELECT over the views of the journal's index, which cannot write."""

from __future__ import annotations

import signal
import sqlite3
from functools import partial
from itertools import chain, count
from typing import Any

import orjson

from mllm_pipe.errors import Stopped, Usage
from mllm_pipe.runs import digest_of
from mllm_pipe.tracing import journalled, schema
from mllm_pipe.tracing.index import Index

_LONG = 64 << 20  # bytes of a line that are read without a look whether there is such a one


def query(index: Index, sql: str) -> list[dict[str, Any]]:
    """The rows of one SELECT over the views. Usage if it is none, or fails; nothing can be written by it."""
    _add_unheard(index)
    index.db.execute("pragma query_only = on")
    index.db.create_function("in_journal", 4, partial(_in_journal, index), deterministic=True)
    index.db.set_authorizer(_may)
    index.db.set_progress_handler(lambda: 0, 1 << 16)  # a signal is heard there, and ends the query
    try:
        found = index.db.execute(sql)
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


def _add_unheard(index: Index) -> None:
    """Have the views, for this connection, show the calls of which no outcome was written."""
    found = index.db.execute("select offset, length from pending order by offset").fetchall()
    calls, kinds = [], []
    for offset, length in found:
        for span in map(journalled.unheard, journalled.at(index.journal, [(offset, length)])):
            calls.append((offset, length, span["id"], span.get("parent_run_id", "-"), span["thread"], -offset,
                          span["started_at"], span["duration_ms"], span.get("input_id"), span.get("handed_id")))
            kinds.append((-offset, *map(span.get, ("op", "slot", "agent", "runtime", "model", "group", "status",
                                                   "stage"))))  # fmt: skip
    if not calls:
        return
    for table in ("call", "kind"):
        index.db.execute(f"create temp table unheard_{table} as select * from main.{table} limit 0")
        index.db.execute(f"create temp view {table} as select * from main.{table} union all "
                         f"select * from temp.unheard_{table}")  # fmt: skip
    index.db.executemany("insert into unheard_call (offset, length, id, run, thread, kind, started_at, duration_ms, "
                         "input_id, handed_id) values (?,?,?,?,?,?,?,?,?,?)", calls)  # fmt: skip
    index.db.executemany('insert into unheard_kind (n, op, slot, agent, runtime, model, "group", status, stage) '
                        "values (?,?,?,?,?,?,?,?,?)", kinds)  # fmt: skip
    index.db.executescript(schema.VIEWS.replace("create view", "create temp view"))


def _in_journal(index: Index, offset: int | None, length: int | None, ident: str, field: str) -> Any:
    """A field of a record that an outcome holds; bytes and sha256 are those of its content."""
    if length and length > _LONG and not index.db.execute("select 1 from call where offset = ? and length = ?",
                                                         (offset, length)).fetchone():  # fmt: skip
        return None  # only of what is there can we have that much in memory
    for entry in journalled.at(index.journal, [(offset, length)] if offset is not None and length else []):
        for record in entry.get("records", []):
            if record.get("id") == ident:
                if field in ("bytes", "sha256"):
                    return digest_of(record)[field] if "content" in record else None
                value = record.get(field)
                return orjson.dumps(value).decode() if isinstance(value, list | dict) else value
    return None


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
