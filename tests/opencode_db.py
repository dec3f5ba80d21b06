"""A database as opencode 1.18.33 keeps it, made of a document of its `export`: the tables and columns that count here."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

TABLES = """
CREATE TABLE project (id text PRIMARY KEY, worktree text NOT NULL);
CREATE TABLE session (id text PRIMARY KEY, project_id text NOT NULL, parent_id text, slug text NOT NULL,
  directory text NOT NULL, title text NOT NULL, version text NOT NULL, revert text, permission text,
  time_created integer NOT NULL, time_updated integer NOT NULL, time_archived integer);
CREATE TABLE message (id text PRIMARY KEY, session_id text NOT NULL, time_created integer NOT NULL,
  time_updated integer NOT NULL, data text NOT NULL);
CREATE TABLE part (id text PRIMARY KEY, message_id text NOT NULL, session_id text NOT NULL,
  time_created integer NOT NULL, time_updated integer NOT NULL, data text NOT NULL);
"""


def keep(path: Path, document: dict[str, Any], *, live: bool = False) -> sqlite3.Connection:
    """Puts a document into a database; live: what was written stands in its log, as while the program runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(path)
    database.executescript("PRAGMA journal_mode=WAL;" + (TABLES if not database.execute("PRAGMA user_version").fetchone()[0] else "") + "PRAGMA user_version=1")
    if not live:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    info = document["info"]
    row = (info["id"], "global", info.get("parentID"), info["slug"], info["directory"], info["title"], info["version"],
           json.dumps(info["revert"]) if "revert" in info else None, info["time"]["created"], info["time"]["updated"])  # fmt: skip
    database.execute("INSERT INTO session (id, project_id, parent_id, slug, directory, title, version, revert, "
                     "time_created, time_updated) VALUES (?,?,?,?,?,?,?,?,?,?)", row)  # fmt: skip
    for message in document["messages"]:
        said = {name: value for name, value in message["info"].items() if name not in ("id", "sessionID")}
        at = said["time"]["created"]
        database.execute("INSERT INTO message VALUES (?,?,?,?,?)", (message["info"]["id"], info["id"], at, at, json.dumps(said)))
        for part in message["parts"]:
            data = {name: value for name, value in part.items() if name not in ("id", "sessionID", "messageID")}
            database.execute("INSERT INTO part VALUES (?,?,?,?,?,?)",
                             (part["id"], message["info"]["id"], info["id"], at, at, json.dumps(data)))  # fmt: skip
    database.commit()
    if not live:
        database.close()  # takes the log in
    return database
