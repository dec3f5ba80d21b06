"""Sessions of opencode, as 1.18.33 keeps, exports and imports them.

They lie in one database, $XDG_DATA_HOME/opencode/opencode.db, which is read as it is; `opencode export` prints the
same as a document, {info, messages: [{info, parts}]}, which is read too. A new one goes in by `opencode import`, the
program's own way. A message has its calls with their results in them; each step of an answer is a message.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import orjson

from mllm_pipe import places
from mllm_pipe.envelope import timestamp
from mllm_pipe.errors import CallFailed, Missing, WriteFailed
from mllm_pipe.runtimes import _child
from mllm_pipe.runtimes._program import uuid_of
from mllm_pipe.sessions import BESIDE_TURNS, HALF, message, opaque, record, span, word
from mllm_pipe.sessions.opencode_document import VERSION, session, session_id
from mllm_pipe.sessions.store import Held, Reader, Whole, alone

Json = dict[str, Any]

PROGRAM, KNOWN = "opencode", VERSION
# Parts that are bookkeeping of the program.
BESIDE = frozenset(("step-start", "step-finish", "snapshot", "patch", "retry", "compaction", "agent"))
FINISH = {"stop": "stop", "length": "length", "content-filter": "filter", "tool-calls": "tool"}
IMPORT_S = 120.0
OFF = ("AUTOUPDATE", "MODELS_FETCH", "DEFAULT_PLUGINS", "LSP_DOWNLOAD", "SHARE", "PROJECT_CONFIG")
__all__ = ["PROGRAM", "KNOWN", "held", "reader", "records", "session", "session_id", "keeps", "put", "go_on"]


# -- where they are ---------------------------------------------------------------------------------------------------


def held(cwd: str | None) -> list[Held]:
    """The sessions of a directory, or of all; without those that an agent of another session held."""
    path = _database()
    if not os.path.exists(path):
        return []
    from mllm_pipe.sessions.database import opened

    asked = "SELECT s.id, s.time_updated, (SELECT sum(length(data)) FROM part p WHERE p.session_id = s.id) " \
            "FROM session s WHERE s.parent_id IS NULL AND (?1 IS NULL OR s.directory = ?1)"  # fmt: skip
    with opened(path) as database:
        rows = database.execute(asked, (cwd,)).fetchall()
    return [Held(path, str(ident), at / 1000 if type(at) is int else 0.0, size or 0) for ident, at, size in rows]


def reader(path: str, ident: str) -> Reader:
    """What reads a session of the database, or a document."""
    from mllm_pipe.sessions.database import is_database

    return _Rows(path, ident) if is_database(path) else Whole(path)


class _Rows(Reader):
    """A session as its database has it: what `opencode export` would say of it. The newest if none is named."""

    def entries(self) -> Iterator[Json]:
        """The session's own values, then its messages with their parts."""
        from mllm_pipe.sessions.database import opened

        with opened(self.path) as database:
            newest = "SELECT * FROM session WHERE id = ?1 OR ?1 = '' ORDER BY time_updated DESC LIMIT 1"
            row = database.execute(newest, (self.ident,)).fetchone()
            if row is None:
                raise Missing(f"{self.path}: it has no session {self.ident}".rstrip())
            revert = orjson.loads(row["revert"]) if row["revert"] else None
            yield {"info": {"id": row["id"], "version": row["version"], "revert": revert}}
            parts: dict[str, list[Json]] = {}
            for at in database.execute("SELECT id, message_id, data FROM part WHERE session_id = ? ORDER BY id",
                                       (row["id"],)):  # fmt: skip
                parts.setdefault(at["message_id"], []).append(orjson.loads(at["data"]) | {"id": at["id"]})
            for at in database.execute("SELECT id, data FROM message WHERE session_id = ? ORDER BY time_created, id",
                                       (row["id"],)):  # fmt: skip
                yield {"info": orjson.loads(at["data"]) | {"id": at["id"]}, "parts": parts.pop(at["id"], [])}


def go_on(ident: str, _path: str) -> list[str]:
    """The command that resumes a session, in its directory."""
    return ["opencode", "--session", ident]


def keeps(answer: Json, own: bool) -> Sequence[str]:
    """What of an answer has a place beside what it says (see mllm_pipe.sessions): it names a model by its provider."""
    return BESIDE_TURNS if own else ("model",) if answer.get("author", {}).get("provider") else ()


def put(data: bytes, ident: str, cwd: str, _at: str) -> str | None:
    """Have opencode import a document (see mllm_pipe.sessions).

    CallFailed("missing") without the program; WriteFailed if it does not take it. It merges what has one id, so that
    two that import at once take turns.
    """
    path = _database()
    with alone(os.path.dirname(path)):
        if not _is_taken(ident):
            _import(data, cwd)
            return path
        there = records(reader(path, ident).entries(), ident)["records"]
        return path if there == records(_entries(orjson.loads(data)), ident)["records"] else None


def _is_taken(ident: str) -> bool:
    """True if a session has the id, also one that an agent of another session held."""
    if not os.path.exists(_database()):
        return False
    from mllm_pipe.sessions.database import opened

    with opened(_database()) as database:
        return database.execute("SELECT 1 FROM session WHERE id = ?", (ident,)).fetchone() is not None


def _import(data: bytes, cwd: str) -> None:
    env = dict(os.environ) | {f"OPENCODE_DISABLE_{name}": "1" for name in OFF}
    with _child.scratch() as folder:
        path = os.path.join(folder, "session.json")
        with open(path, "wb") as file:
            file.write(data)
        argv = ["opencode", "import", path]
        ended = _child.run(argv, stdin=b"", env=env, cwd=cwd, left=_left(), on_bytes=lambda _: None)
    if ended.status:
        raise WriteFailed(f"opencode import: {_child.last_line(ended.tail) or ended.status}")


def _left() -> Any:
    import time

    end = time.monotonic() + IMPORT_S

    def left() -> float:
        if time.monotonic() > end:
            raise CallFailed("timeout", f"opencode import did not end within {IMPORT_S:.0f} s", billed="no")
        return end - time.monotonic()

    return left


def _database() -> str:
    return os.path.join(places.base("XDG_DATA_HOME", ".local", "share"), "opencode", "opencode.db")


# -- from a session ---------------------------------------------------------------------------------------------------


def _entries(value: Any) -> Iterator[Json]:
    """A document as what `_Rows` gives."""
    if isinstance(value, dict) and isinstance(value.get("messages"), list):
        yield {"info": value.get("info")}
        yield from (one for one in value["messages"] if isinstance(one, dict))
    elif isinstance(value, dict):
        yield value


def records(entries: Iterable[Json], name: str) -> Json:
    """The session as records (see mllm_pipe.sessions)."""
    thread, version, until = name, "", None
    out: list[Json] = []
    notes: list[str] = []
    seen: set[str] = set()
    half: list[Json] = []  # the records of an answer that has not ended, while nothing came after it
    for entry in (inner for outer in entries for inner in _entries(outer)):
        info, parts = entry.get("info"), entry.get("parts")
        info = info if isinstance(info, dict) else {}
        if "parts" not in entry:
            thread = str(info["id"])[:190] if info.get("id") and isinstance(info["id"], str) else thread
            version = str(info.get("version") or "")
            until = info["revert"].get("messageID") if isinstance(info.get("revert"), dict) else None
            continue
        ident = info.get("id")
        if not isinstance(ident, str) or not 0 < len(ident) <= 180 or ident in seen:
            if not isinstance(ident, str) or ident not in seen:
                out.append(_unknown(thread, entry))
            continue
        seen.add(ident)
        out += half
        half = []
        if until is not None and ident >= str(until):
            notes[:] = ["what was said after the point that it was taken back to is left out"]
            continue
        given = [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
        if info.get("role") == "user":
            said = [made for part in given if (made := _part(part))]
            if said:
                out.append(message(thread, ident, _at(info, "created"), "user", said))
        elif info.get("role") == "assistant" and info.get("summary") is True:
            said = [made for part in given if (made := _part(part)) and made["type"] == "text"]
            covers = [one["id"] for one in out if one["type"] == "message"]
            if said and covers:
                out.append(record("summary", thread, ident, _at(info, "created"), content=said, covers=covers))
        elif info.get("role") == "assistant":
            half = _answer(thread, info, given, next((one.get("at") for one in reversed(out)), None))
            if _ended(info):
                out += half
                half = []
        else:
            out.append(_unknown(thread, entry))
    return {"thread": thread, "version": version, "records": out, "notes": notes + [HALF] * bool(half)}


def _ended(info: Json) -> bool:
    """False while the program says neither when an answer ended nor why."""
    times = info.get("time")
    return not isinstance(times, dict) or bool(times.get("completed") or info.get("finish") or info.get("error"))


def _answer(thread: str, info: Json, given: list[Json], asked_at: str | None) -> list[Json]:
    """A message of the model as records: an answer, its span, and the results of its calls; each step anew."""
    out: list[Json] = []
    steps: list[list[Json]] = [[]]
    for part in given:
        if part.get("type") == "step-start" and any(one.get("type") == "tool" for one in steps[-1]):
            steps.append([])
        steps[-1].append(part)
    model = info["modelID"] if isinstance(info.get("modelID"), str) else None
    provider = info["providerID"] if isinstance(info.get("providerID"), str) else None
    failed, reason = info.get("error"), info.get("finish")
    for number, step in enumerate(steps):
        ident = f"{info['id']}.{number}" if number else str(info["id"])
        parts = [made for part in step if (made := _part(part))]
        results = [made for part in step if (made := _result(part))]
        if not parts:
            continue
        calls = any(part["type"] == "tool_call" for part in parts)
        finish = "tool" if calls else FINISH.get(str(reason), "stop")
        if isinstance(failed, dict) and not (failed.get("name") == "MessageAbortedError" and _spoken(parts)):
            finish = "error"
        last = number == len(steps) - 1
        answer = message(
            thread, ident, _at(info, "completed") or _at(info, "created"), "assistant", parts, finish=finish,
            author={"runtime": "opencode", "model": model, "provider": provider},
            origin={"api": "opencode", "model": model, **({"raw_finish": reason} if isinstance(reason, str) else {})},
        )  # fmt: skip
        out.append(answer)
        if last and isinstance(info.get("tokens"), dict):
            answer["run_id"] = f"span-{ident}"
            paid = {"cost_usd": float(info["cost"]), "cost_source": "runtime"} if _paid(info) else {}
            out.append(span(answer, asked_at, _usage(info["tokens"])) | paid)
        if results:
            out.append(message(thread, f"{ident}.results", answer.get("at"), "tool", results))
    return out


def _paid(info: Json) -> bool:
    """True if it says what the answer cost; 0 is what it says of a model whose price it does not know."""
    cost = info.get("cost")
    return isinstance(cost, (int, float)) and not isinstance(cost, bool) and cost > 0


def _spoken(parts: Sequence[Json]) -> bool:
    return any(part["type"] != "reasoning" for part in parts)


def _unknown(thread: str, entry: Json) -> Json:
    """A message of a kind that is not known, kept as it is."""
    return record("opaque", thread, f"line-{uuid_of(entry)}", None, program="opencode", raw=entry)


def _at(info: Json, moment: str) -> str | None:
    """A time of a message as the envelope has it; None if it says none."""
    times = info.get("time")
    ms = times.get(moment) if isinstance(times, dict) else None
    return timestamp(ms / 1000) if type(ms) is int and 0 <= ms < 1 << 47 else None


def _part(part: Json) -> Json | None:
    """A part as one of ours; None for bookkeeping, and for what the program itself wrote."""
    kind = word(part.get("type"))
    if kind in BESIDE or part.get("synthetic") is True or part.get("ignored") is True:
        return None
    own = {name: value for name, value in part.items() if name not in ("id", "sessionID", "messageID", "time")}
    if kind in ("text", "reasoning") and isinstance(part.get("text"), str):
        exact = {"raw": own} if kind == "reasoning" or own.keys() > {"type", "text"} else {}
        return {"type": kind, "text": part["text"], **exact} if part["text"] or exact else None
    state = part.get("state")
    if kind == "tool" and isinstance(state, dict) and part.get("callID") and part.get("tool"):
        arguments = state.get("input")
        if isinstance(arguments, dict) and isinstance(part["callID"], str) and isinstance(part["tool"], str):
            return {"type": "tool_call", "id": part["callID"], "name": part["tool"], "arguments": arguments}
    found = re.match(r"data:([\w.+-]+/[\w.+-]+)(?:;[\w=-]+)*;base64,", str(part.get("url")))
    if kind == "file" and found:
        named = {"name": part["filename"]} if isinstance(part.get("filename"), str) else {}
        return {"type": "file", "media_type": found[1], "data": part["url"][found.end() :], **named}
    return opaque(own)


def _result(part: Json) -> Json | None:
    """The result that stands in a call; None while it has none."""
    state, call = part.get("state"), part.get("callID")
    if part.get("type") != "tool" or not isinstance(state, dict) or not isinstance(call, str) or not call:
        return None
    if state.get("status") == "error":
        return {"type": "tool_result", "call_id": call, "content": str(state.get("error", "")), "is_error": True}
    if state.get("status") != "completed":
        return None
    said, files = str(state.get("output", "")), state.get("attachments")
    shown = [_part(one) for one in files if isinstance(one, dict)] if isinstance(files, list) else []
    content: Any = [{"type": "text", "text": said}, *(one for one in shown if one)] if any(shown) else said
    kept = {name: state[name] for name in ("title", "metadata") if state.get(name)}
    exact = {"raw": kept} if kept else {}
    return {"type": "tool_result", "call_id": call, "content": content, **exact}


def _usage(tokens: Json) -> Json:
    """Tokens in our terms: their input leaves out what a cache held, their output the reasoning."""
    cache = tokens["cache"] if isinstance(tokens.get("cache"), dict) else {}
    count = {name: value for name, value in {**tokens, **cache}.items() if type(value) is int and value >= 0}
    read, write, thought = (count.get(name, 0) for name in ("read", "write", "reasoning"))
    return {"input_tokens": count.get("input", 0) + read + write, "cache_read_tokens": read,
            "cache_write_tokens": write, "output_tokens": count.get("output", 0) + thought,
            "reasoning_tokens": thought}  # fmt: skip
