"""Conversations of llm, as 0.36 logs, prints (`llm logs --json`) and goes on with them.

One row is a call: what was said to the model since the last one (system, prompt, attachments, results of tools) and
what it answered. logs.db has them in two generations of tables, both read as such rows. A new conversation is a
database of its own, in the older tables, which every version since 2025 reads and brings up to date by itself.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import orjson

from mllm_pipe import places
from mllm_pipe.errors import Missing
from mllm_pipe.sessions import message, opaque, record, span
from mllm_pipe.sessions.llm_database import session, session_id
from mllm_pipe.sessions.store import Held, Reader, Whole, create

if TYPE_CHECKING:
    from sqlite3 import Connection, Row

Json = dict[str, Any]

PROGRAM, KNOWN = "llm", "schema 27"
OF_TURN = ("id", "model", "resolved_model", "duration_ms", "datetime_utc", "input_tokens", "output_tokens")
UTC = re.compile(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d(?:\.\d{1,9})?)(?:\+00:00|Z)?", re.ASCII)
__all__ = ["PROGRAM", "KNOWN", "held", "reader", "records", "session", "session_id", "keeps", "put", "go_on"]


# -- where they are ---------------------------------------------------------------------------------------------------


def held(_cwd: str | None) -> list[Held]:
    """Its conversations; they belong to no directory."""
    path = os.path.join(_home(), "logs.db")
    if not os.path.exists(path):
        return []
    from mllm_pipe.envelope import seconds_of
    from mllm_pipe.sessions.database import opened

    with opened(path) as database:
        rows = [row for asked in _tables(database, _NEWEST, _NEWEST_LEGACY) for row in database.execute(asked)]
    newest: dict[str, Held] = {}
    for ident, at, size in rows:
        stamp = seconds_of(_time(at) or "") or 0.0
        if ident and (ident not in newest or newest[ident].at < stamp):
            newest[ident] = Held(path, str(ident), stamp, size or 0)
    return list(newest.values())


_NEWEST = "SELECT thread_id, max(datetime_utc), sum(length(response_json)) FROM turns GROUP BY thread_id"
_NEWEST_LEGACY = "SELECT conversation_id, max(datetime_utc), sum(length(prompt) + length(response)) FROM responses " \
                 "GROUP BY conversation_id"  # fmt: skip


def _tables(database: Connection, newer: str, older: str) -> list[str]:
    """Of the two questions those whose tables are there."""
    there = {row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    return [asked for asked, table in ((newer, "turns"), (older, "responses")) if table in there]


def reader(path: str, ident: str) -> Reader:
    """What reads a conversation of a database, or what `logs --json` printed."""
    from mllm_pipe.sessions.database import is_database

    return _Rows(path, ident) if is_database(path) else _Printed(path, ident)


def keeps(_answer: Json, _own: bool) -> Sequence[str]:
    """What of an answer has a place beside what it says (see mllm_pipe.sessions)."""
    return "model", "usage"


def put(data: bytes, ident: str, _cwd: str, _at: str) -> str | None:
    """Make the database (see mllm_pipe.sessions); it lies beside the user's own, and is named by its path."""
    path = os.path.join(_home(), "mllm", f"{ident}.db")
    return path if create(path, data) else None


def go_on(_ident: str, path: str) -> list[str]:
    """The command that goes on."""
    return ["llm", "chat", "--continue", "--database", path]


def _home() -> str:
    named = os.environ.get("LLM_USER_PATH")
    return named or os.path.join(places.base("XDG_CONFIG_HOME", ".config"), "io.datasette.llm")


class _Printed(Whole):
    """The rows that `llm logs --json` printed, of one conversation: the named one, or that of the last row."""

    def entries(self) -> Iterator[Json]:
        """The rows, oldest first."""
        rows = list(super().entries())
        idents = [str(row.get("conversation_id")) for row in rows]
        wanted = [ident for ident in idents if not self.ident or ident.startswith(self.ident)]
        if self.ident and not wanted and self.ident not in self.path:
            raise Missing(f"{self.path}: it has no conversation {self.ident}")
        chosen = (wanted or idents or [""])[-1]
        yield from (row for row, ident in zip(rows, idents, strict=True) if ident == chosen)


class _Rows(Reader):
    """A conversation of logs.db as rows of that form. The newest if none is named."""

    def entries(self) -> Iterator[Json]:
        """The schema's number, then the rows, oldest first."""
        from mllm_pipe.sessions.database import opened

        with opened(self.path) as database:
            asked = _tables(database, "SELECT thread_id, id FROM turns", "SELECT conversation_id, id FROM responses")
            known = sorted((str(row[1]), str(row[0])) for one in asked for row in database.execute(one) if row[0])
            known = [one for one in known if one[1].startswith(self.ident)]
            if not known:
                raise Missing(f"{self.path}: it has no conversation {self.ident}".rstrip())
            ident = known[-1][1]
            applied = [row[0] for row in database.execute("SELECT name FROM _llm_migrations")]
            numbers = [int(number) for name in applied for number in re.findall(r"\Am(\d+)", str(name))]
            yield {"schema": max(numbers, default=0)}
            turns = list(_turns(database, ident)) if "thread_id" in asked[0] else []
            yield from turns if turns else _legacy(database, ident)


def _turns(database: Connection, ident: str) -> Iterator[Json]:
    """The rows of the newer tables: each call's own share of a chain of messages."""
    before: str | None = None
    for turn in database.execute("SELECT * FROM turns WHERE thread_id = ? ORDER BY id", (ident,)):
        row = {name: turn[name] for name in OF_TURN} | {"conversation_id": ident}
        given = _chain(database, turn["parent_message_hash"], before)
        made = _chain(database, turn["tip_message_hash"], turn["parent_message_hash"])
        before = turn["tip_message_hash"]
        for role, field in (("system", "system"), ("user", "prompt")):
            row[field] = "\n\n".join(text for said, parts in given if said == role for text in _texts(parts, "text"))
        row["attachments"] = [one for said, parts in given if said == "user" for part in parts
                              for one in _attached(database, part, "attachment")]  # fmt: skip
        row["tool_results"] = [part | {"attachments": list(_attached(database, part, "attachments"))}
                               for _, parts in given for part in parts if part["type"] == "tool_result"]  # fmt: skip
        row["response"] = "".join(text for _, parts in made for text in _texts(parts, "text"))
        row["reasoning"] = "".join(text for _, parts in made for text in _texts(parts, "reasoning"))
        row["tool_calls"] = [part for _, parts in made for part in parts if part["type"] == "tool_call"]
        yield row


def _chain(database: Connection, tip: str | None, until: str | None) -> list[tuple[str, list[Json]]]:
    """The messages from after `until`, or the first, to the tip: (role, parts) each."""
    found: list[tuple[str, list[Json]]] = []
    seen: set[str] = set()
    while tip and tip != until and tip not in seen:
        seen.add(tip)
        row = database.execute("SELECT parent_hash, role FROM messages WHERE hash = ?", (tip,)).fetchone()
        if row is None:
            break
        parts = []
        for part in database.execute("SELECT * FROM parts WHERE message_hash = ? ORDER BY position", (tip,)):
            made = orjson.loads(part["payload"]) if part["payload"] else {}
            pieces = made.pop("text_ref", None)
            text = part["text"] if pieces is None else "".join(_piece(database, one) for one in pieces)
            parts.append({**made, "type": part["type"], "text": text})
        found.append((row["role"], parts))
        tip = row["parent_hash"]
    return found[::-1]


def _piece(database: Connection, piece: Json) -> str:
    """A piece of a text: itself, or a fragment that is kept once."""
    if "literal" in piece:
        return str(piece["literal"])
    row = database.execute("SELECT content FROM fragments WHERE id = ?", (piece.get("fragment"),)).fetchone()
    return str(row["content"]) if row else ""


def _texts(parts: list[Json], kind: str) -> list[str]:
    return [part["text"] for part in parts if part["type"] == kind and part["text"]]


def _attached(database: Connection, part: Json, field: str) -> Iterator[Json]:
    """The rows of what a part has attached."""
    named = part.get(field) if part["type"] in ("attachment", "tool_result") else None
    for one in [named] if isinstance(named, dict) else named if isinstance(named, list) else []:
        for row in database.execute("SELECT * FROM attachments WHERE id = ?", (one.get("id"),)):
            yield dict(row)


def _legacy(database: Connection, ident: str) -> Iterator[Json]:
    """The rows of the older tables."""
    for found in database.execute("SELECT * FROM responses WHERE conversation_id = ? ORDER BY id", (ident,)):
        row: Json = dict(found)
        for field in ("prompt", "system"):
            kept = f"SELECT content FROM {field}_fragments p JOIN fragments f ON f.id = p.fragment_id " \
                   'WHERE response_id = ? ORDER BY "order"'  # fmt: skip
            said = [one["content"] for one in _maybe(database, kept, row["id"])] + [row.get(field) or ""]
            row[field] = "\n".join(text for text in said if text)
        calls = _maybe(database, "SELECT * FROM tool_calls WHERE response_id = ? ORDER BY id", row["id"])
        row["tool_calls"] = [dict(one) | {"arguments": _object(one["arguments"])} for one in calls]
        results = _maybe(database, "SELECT * FROM tool_results WHERE response_id = ? ORDER BY id", row["id"])
        row["tool_results"] = [dict(one) for one in results]
        attached = 'SELECT a.* FROM attachments a JOIN prompt_attachments p ON p.attachment_id = a.id ' \
                   'WHERE p.response_id = ? ORDER BY p."order"'  # fmt: skip
        row["attachments"] = [dict(one) for one in _maybe(database, attached, row["id"])]
        yield row


def _maybe(database: Connection, asked: str, ident: str) -> list[Row]:
    """The rows, none where an older version had no such table."""
    import sqlite3

    try:
        return database.execute(asked, (ident,)).fetchall()
    except sqlite3.OperationalError:
        return []


def _object(text: Any) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


# -- from a conversation ----------------------------------------------------------------------------------------------


def records(entries: Iterable[Json], name: str) -> Json:
    """The conversation as records (see mllm_pipe.sessions)."""
    thread, version, system = name, "", ""
    out: list[Json] = []
    called: list[str] = []  # ids of the calls of the answer before
    seen: set[str] = set()
    for row in entries:
        if "schema" in row and "id" not in row:
            version = f"schema {row['schema']}"
            continue
        ident, conversation = row.get("id"), row.get("conversation_id")
        if not isinstance(ident, str) or not 0 < len(ident) <= 180 or ident in seen:
            if not isinstance(ident, str) or ident not in seen:
                out.append(record("opaque", thread, f"line-{len(out)}", None, program="llm", raw=row))
            continue
        seen.add(ident)
        thread = conversation[:190] if isinstance(conversation, str) and conversation else thread
        at = _time(row.get("datetime_utc"))
        if isinstance(row.get("system"), str) and row["system"] not in ("", system):
            system = row["system"]
            out.append(message(thread, f"{ident}.system", at, "system", [{"type": "text", "text": system}]))
        results = [_result(one, called, index) for index, one in enumerate(_objects(row.get("tool_results")))]
        if results:
            out.append(message(thread, f"{ident}.results", at, "tool", results))
        said = row["prompt"] if isinstance(row.get("prompt"), str) else ""
        asked = [{"type": "text", "text": said}] if said else []
        asked += [_file(one) for one in _objects(row.get("attachments"))]
        if asked:
            out.append(message(thread, f"{ident}.prompt", at, "user", asked))
        calls = [_call(one, f"{ident}.{index}") for index, one in enumerate(_objects(row.get("tool_calls")))]
        called = [one.get("id", "") for one in calls]
        made = [{"type": kind, "text": row[field]} for kind, field in (("reasoning", "reasoning"), ("text", "response"))
                if isinstance(row.get(field), str) and row[field]]  # fmt: skip
        if made or calls:
            out += _answer(thread, ident, at, row, [*made, *calls])
    return {"thread": thread, "version": version, "records": [one | {"thread": thread} for one in out], "notes": []}


def _answer(thread: str, ident: str, at: str | None, row: Json, parts: list[Json]) -> list[Json]:
    """An answer and its span."""
    named = row.get("resolved_model") or row.get("model")
    model = named if isinstance(named, str) else None
    calls = any(part["type"] == "tool_call" for part in parts)
    answer = message(thread, ident, at, "assistant", parts, finish="tool" if calls else "stop", run_id=f"span-{ident}",
                     author={"runtime": "llm", "model": model, "provider": None},
                     origin={"api": "llm", "model": model})  # fmt: skip
    counts = {name: row.get(name) for name in ("input_tokens", "output_tokens")}
    used = {name: count for name, count in counts.items() if type(count) is int and count >= 0}
    took = row.get("duration_ms")
    made = span(answer, at, used)
    return [answer, made | ({"duration_ms": took} if type(took) is int and took >= 0 else {})]


def _objects(value: Any) -> list[Json]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _time(stamp: Any) -> str | None:
    """A time of llm's as the envelope has it."""
    found = UTC.fullmatch(stamp) if isinstance(stamp, str) else None
    return f"{found[1]}T{found[2]}Z" if found else None


def _call(one: Json, made: str) -> Json:
    ident, name, arguments = one.get("tool_call_id") or made, one.get("name"), one.get("arguments")
    if not isinstance(name, str) or not name or not isinstance(ident, str):
        return opaque(one)
    if isinstance(arguments, dict):
        return {"type": "tool_call", "id": ident, "name": name, "arguments": arguments}
    return {"type": "tool_call", "id": ident, "name": name, "arguments": {}, "arguments_raw": str(arguments)}


def _result(one: Json, called: list[str], index: int) -> Json:
    ident = one.get("tool_call_id") or (called[index] if index < len(called) else "")
    output = one.get("output")
    if not isinstance(ident, str) or not ident:
        return opaque({name: value for name, value in one.items() if name != "attachments"})
    files = [_file(file) for file in _objects(one.get("attachments"))]
    text = output if isinstance(output, str) else orjson.dumps(output).decode()
    content: Any = [{"type": "text", "text": text}, *files] if files else text
    failed = {"is_error": True} if one.get("exception") else {}
    return {"type": "tool_result", "call_id": ident, "content": content, **failed}


def _file(one: Json) -> Json:
    """What was attached, by its bytes, its place on disk (with the digest that it must have) or its address."""
    kind = one.get("type")
    made: Json = {"type": "file", "media_type": kind if isinstance(kind, str) and kind else "application/octet-stream"}
    content, path, url, digest = (one.get(name) for name in ("content", "path", "url", "id"))
    if isinstance(content, bytes):
        return made | {"data": base64.b64encode(content).decode()}
    if isinstance(path, str) and path and isinstance(digest, str) and re.fullmatch(r"[0-9a-f]{64}", digest):
        return made | {"path": path, "sha256": digest, "name": os.path.basename(path)}
    if isinstance(url, str) and url:
        return made | {"url": url}
    return opaque({name: value for name, value in one.items() if not isinstance(value, bytes)})
