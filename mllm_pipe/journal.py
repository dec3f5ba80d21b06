"""The journal: before a call one line, after it one more with what it made, so that a paid answer is never lost.

$XDG_STATE_HOME/mllm-pipe/journal.jsonl, mode 0600. MLLM_JOURNAL=off keeps none, spans keeps no text, full is default.

    {"v": 1, "type": "intent", "id": run_id, "key": ..., "at": ..., "parent_run_id", "thread", "op", "runtime", "model"}
    {"v": 1, "type": "outcome", "id": run_id, "key": ..., "at": ..., "status", "records": [...]}
"""

from __future__ import annotations

import os
from typing import Any

import orjson

from mllm_pipe import places
from mllm_pipe.envelope import Record, line_of, timestamp
from mllm_pipe.errors import Usage, WriteFailed
from mllm_pipe.lines import digest
from mllm_pipe.storage import Appender

_OPTIONS_OF_TARGET = ("runtime", "kind", "model", "argv", "path", "base_url", "max_tokens")


def path() -> str:
    """Where the journal lies."""
    return os.path.join(places.state(), "journal.jsonl")


def mode() -> str:
    """off, spans or full, by $MLLM_JOURNAL. Usage if it is none of them."""
    value = os.environ.get("MLLM_JOURNAL") or "full"
    if value not in ("off", "spans", "full"):
        raise Usage(f"MLLM_JOURNAL is {value!r}; it takes off, spans or full")
    return value


def key_of(target: dict[str, Any], request: dict[str, Any]) -> str:
    """The digest by which equal requests are known: target, model, options, system and view; no ids, no times."""
    asked = {
        "target": {name: target.get(name) for name in _OPTIONS_OF_TARGET},
        "request": {name: value for name, value in request.items() if name != "turns"},
        "turns": [{"role": turn["role"], "parts": turn["parts"]} for turn in request["turns"]],
    }
    return digest(orjson.dumps(asked, option=orjson.OPT_SORT_KEYS))


def intend(run_id: str, key: str, about: Record) -> None:
    """Write that a call is about to be sent. WriteFailed: then it must not be sent."""
    _write({"v": 1, "type": "intent", "id": run_id, "key": key, "at": timestamp()} | about)


def conclude(run_id: str, key: str, status: str, records: list[Record]) -> None:
    """Write how it ended (ok, error or unknown) and the records that it made. WriteFailed if that cannot be."""
    if mode() == "spans":
        records = [record for record in records if record["type"] == "span"]
    outcome = {"v": 1, "type": "outcome", "id": run_id, "key": key, "at": timestamp()}
    _write(outcome | {"status": status, "records": records})


def _write(entry: Record) -> None:
    if mode() == "off":
        return
    appender = Appender(path(), make_folder=True)
    try:
        with appender:
            appender.append(line_of(entry))
    except WriteFailed as failure:
        raise WriteFailed(f"the journal cannot be written: {failure}; MLLM_JOURNAL=off goes without") from None
    finally:
        appender.close()
