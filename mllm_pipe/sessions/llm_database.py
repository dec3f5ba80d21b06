"""A database of llm that has one conversation, in the tables that its versions since 2025 read. Pure: its bytes."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable
from typing import Any

import orjson

from mllm_pipe.errors import Missing
from mllm_pipe.runtimes import _files, _turns
from mllm_pipe.runtimes._program import FIXED_TIME, uuid_of
from mllm_pipe.sessions import UNKNOWN_MODEL, settled
from mllm_pipe.thread import speaker, text_of

Json = dict[str, Any]

ULID = re.compile(r"[0-9a-z]{26}", re.ASCII)
# What llm has done to a database of this form; it does the rest when it opens it.
MIGRATIONS = (
    "m001_initial", "m002_id_primary_key", "m003_chat_id_foreign_key", "m004_column_order", "m004_drop_provider",
    "m005_debug", "m006_new_logs_table", "m007_finish_logs_table", "m008_reply_to_id_foreign_key",
    "m008_fix_column_order_in_logs", "m009_delete_logs_table_if_empty", "m010_create_new_log_tables",
    "m011_fts_for_responses", "m012_attachments_tables", "m013_usage", "m014_schemas", "m015_fragments_tables",
    "m016_fragments_table_pks", "m017_tools_tables", "m017_tools_plugin", "m018_tool_instances", "m019_resolved_model",
    "m020_tool_results_attachments", "m021_tool_results_exception", "m022_response_reasoning",
)  # fmt: skip
TABLES = """
CREATE TABLE _llm_migrations (name TEXT PRIMARY KEY, applied_at TEXT);
CREATE TABLE conversations (id TEXT PRIMARY KEY, name TEXT, model TEXT);
CREATE TABLE attachments (id TEXT PRIMARY KEY, type TEXT, path TEXT, url TEXT, content BLOB);
CREATE TABLE schemas (id TEXT PRIMARY KEY, content TEXT);
CREATE TABLE responses (id TEXT PRIMARY KEY, model TEXT, prompt TEXT, system TEXT, prompt_json TEXT, options_json TEXT,
  response TEXT, response_json TEXT, conversation_id TEXT REFERENCES conversations(id), duration_ms INTEGER,
  datetime_utc TEXT, input_tokens INTEGER, output_tokens INTEGER, token_details TEXT,
  schema_id TEXT REFERENCES schemas(id), resolved_model TEXT, reasoning TEXT);
CREATE TABLE prompt_attachments (response_id TEXT REFERENCES responses(id),
  attachment_id TEXT REFERENCES attachments(id), "order" INTEGER, PRIMARY KEY (response_id, attachment_id));
CREATE TABLE fragments (id INTEGER PRIMARY KEY, hash TEXT, content TEXT, datetime_utc TEXT, source TEXT);
CREATE UNIQUE INDEX idx_fragments_hash ON fragments (hash);
CREATE TABLE fragment_aliases (alias TEXT PRIMARY KEY, fragment_id INTEGER REFERENCES fragments(id));
CREATE TABLE prompt_fragments (response_id TEXT REFERENCES responses(id), fragment_id INTEGER REFERENCES fragments(id),
  "order" INTEGER, PRIMARY KEY (response_id, fragment_id, "order"));
CREATE TABLE system_fragments (response_id TEXT REFERENCES responses(id), fragment_id INTEGER REFERENCES fragments(id),
  "order" INTEGER, PRIMARY KEY (response_id, fragment_id, "order"));
CREATE TABLE tools (id INTEGER PRIMARY KEY, hash TEXT, name TEXT, description TEXT, input_schema TEXT, plugin TEXT);
CREATE UNIQUE INDEX idx_tools_hash ON tools (hash);
CREATE TABLE tool_responses (tool_id INTEGER REFERENCES tools(id), response_id TEXT REFERENCES responses(id),
  PRIMARY KEY (tool_id, response_id));
CREATE TABLE tool_calls (id INTEGER PRIMARY KEY, response_id TEXT REFERENCES responses(id),
  tool_id INTEGER REFERENCES tools(id), name TEXT, arguments TEXT, tool_call_id TEXT);
CREATE TABLE tool_instances (id INTEGER PRIMARY KEY, plugin TEXT, name TEXT, arguments TEXT);
CREATE TABLE tool_results (id INTEGER PRIMARY KEY, response_id TEXT REFERENCES responses(id),
  tool_id INTEGER REFERENCES tools(id), name TEXT, output TEXT, tool_call_id TEXT,
  instance_id INTEGER REFERENCES tool_instances(id), exception TEXT);
CREATE TABLE tool_results_attachments (tool_result_id INTEGER REFERENCES tool_results(id),
  attachment_id TEXT REFERENCES attachments(id), "order" INTEGER, PRIMARY KEY (tool_result_id, attachment_id));
"""


def session_id(thread: str, *more: Any) -> str:
    """The id of a thread's conversation: its own, or one made of it and of what else it depends on."""
    return thread if ULID.fullmatch(thread) and not more else uuid_of(thread, *more).replace("-", "")[:26]


def session(messages: list[Json], spans: dict[str, Json], ident: str, cwd: str, agent: str,
            wanted: str | None = None) -> tuple[bytes, list[Json]]:  # fmt: skip
    """A branch as a database, and what of it is lost. spans: by the id of the answer. wanted: the model to go on with;
    llm knows no other, and wants to know those of old answers too."""
    import sqlite3

    rule = _turns.rules("llm", "", ids="[!-~]{1,64}", names=".{1,128}", objects=True, result_files=False, system="text",
                        user_first=False)  # fmt: skip
    system, rest = _system(messages)
    pieces, losses = settled(rest, agent, rule)
    by_id = {one["id"]: one for one in rest}
    database = sqlite3.connect(":memory:")
    database.executescript(TABLES)
    database.executemany("INSERT INTO _llm_migrations VALUES (?, ?)", [(name, FIXED_TIME) for name in MIGRATIONS])
    before, number, model, time = "", 0, UNKNOWN_MODEL, FIXED_TIME
    given: list[Json] = []
    waiting: list[str] = []  # the messages that these are of
    title = ""
    for piece in pieces:
        if piece["role"] != "assistant":
            given += piece["parts"]
            waiting += [piece["id"]] if piece["id"] in by_id else []
            continue
        source = by_id.get(piece["id"], {})
        author, used = source.get("author", {}), spans.get(piece["id"], {})
        time, model = source.get("at", time), author.get("model") or model
        ours = bool(piece["origin"]) and _turns.own(piece, rule)
        number += 1
        kept = ULID.fullmatch(piece["id"]) and piece["id"] > before
        own = piece["id"] if kept else f"{before[:26] or '0' * 26}.{number:06d}"  # it reads them in this order
        before = own
        asked, said = _text(given), _text(piece["parts"])
        title = title or asked
        thought = "".join(part["text"] for part in piece["parts"] if part["type"] == "reasoning" and ours)
        if not thought and any(part["type"] == "reasoning" for part in piece["parts"]):
            _turns.loss(losses, {"ids": [piece["id"]]}, "reasoning", "dropped", "another vendor's model made it")
        usage = used.get("usage") or {}
        database.execute(
            "INSERT INTO responses (id, model, prompt, system, options_json, response, conversation_id, duration_ms, "
            "datetime_utc, input_tokens, output_tokens, reasoning, resolved_model) "
            "VALUES (?,?,?,?,'{}',?,?,?,?,?,?,?,?)",
            (own, wanted or model, asked, system, said, ident, round(used.get("duration_ms", 0)), f"{time[:-1]}+00:00",
             usage.get("input_tokens"), usage.get("output_tokens"), thought or None,
             model if wanted and wanted != model else None),
        )  # fmt: skip
        _keep(database, own, given, piece["parts"])
        given, waiting = [], []
    if not number:
        names = [speaker(one) for one in messages if one["role"] == "assistant"]
        why = "it has none; dispatch it first"
        if names:
            why = f"{agent} gave none; say whose are its own: --as {names[-1]}"
        raise Missing(f"llm keeps answers, and {why}")
    for ident in waiting:
        what = {"ids": [ident]}
        _turns.loss(losses, what, "all", "dropped", "llm keeps what was answered; say it again when you go on")
    name = " ".join(title.split())[:100] or ident
    database.execute("INSERT INTO conversations VALUES (?, ?, ?)", (ident, name, wanted or model))
    database.commit()
    return database.serialize(), losses


def _system(messages: list[Json]) -> tuple[str | None, list[Json]]:
    """The system text that a branch begins with, and the messages after it."""
    count = next((index for index, one in enumerate(messages) if one["role"] != "system"), len(messages))
    return "\n\n".join(text_of(one["content"]) for one in messages[:count]) or None, messages[count:]


def _text(parts: Iterable[Json]) -> str:
    """What is said in words; text files with their names."""
    said = [part["text"] for part in parts if part["type"] == "text"]
    said += [text for part in parts if part["type"] == "file" and (text := _files.as_text(part)) is not None]
    return "\n\n".join(said)


def _keep(database: Any, own: str, given: list[Json], made: list[Json]) -> None:
    """The files and results that a call was given, and the calls that it made."""
    for part in given:
        if part["type"] == "tool_result":
            failed = part["content"] if part.get("is_error") else None
            row = (own, part["name"], part["content"], part["call_id"], failed)
            database.execute("INSERT INTO tool_results (response_id, name, output, tool_call_id, exception) "
                             "VALUES (?,?,?,?,?)", row)  # fmt: skip
        if part["type"] != "file" or _files.as_text(part) is not None:
            continue
        try:
            data = base64.b64decode(part["data"]) if "data" in part else None
        except ValueError:
            raise _files.not_taken(part, "llm") from None
        digest = hashlib.sha256(data if data is not None else orjson.dumps({"url": part["url"]})).hexdigest()
        file = (digest, part["media_type"], None, part.get("url"), data)
        database.execute("INSERT OR IGNORE INTO attachments VALUES (?,?,?,?,?)", file)
        order = database.execute("SELECT count(*) FROM prompt_attachments WHERE response_id = ?", (own,)).fetchone()[0]
        database.execute("INSERT OR IGNORE INTO prompt_attachments VALUES (?,?,?)", (own, digest, order))
    for part in made:
        if part["type"] == "tool_call":
            arguments = orjson.dumps(part["arguments"]).decode()
            database.execute("INSERT INTO tool_calls (response_id, name, arguments, tool_call_id) VALUES (?,?,?,?)",
                             (own, part["name"], arguments, part["id"]))  # fmt: skip
