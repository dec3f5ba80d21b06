"""What the journal says of runs: the records of its outcomes, and calls of which no outcome was written."""

from __future__ import annotations

import os
from collections.abc import Iterator

import orjson

from mllm_pipe.calling import journal
from mllm_pipe.envelope import Record
from mllm_pipe.errors import Missing, WriteFailed
from mllm_pipe.runs import Fold

OUTCOME = b'{"v":1,"type":"outcome","id":"'  # how journal.conclude begins a line
INTENT = b'{"v":1,"type":"intent","id":"'
_BLOCK = 4 << 20
_RUN = b'"parent_run_id":"'


def opened() -> int:
    """A descriptor of the journal, for reading. Missing if there is none yet."""
    try:
        return os.open(journal.path(), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Missing(f"there is no journal yet ({journal.path()}); dispatch and judge write it") from None
    except OSError as error:
        raise WriteFailed(f"{journal.path()} cannot be read: {error.strerror}") from None


def place_of_index() -> str:
    """Where the index lies: beside the journal."""
    return os.path.join(os.path.dirname(journal.path()), "index.sqlite")


def entry_of(line: bytes) -> Record | None:
    """An intent or outcome; None if the line is neither (a torn one, or the note on it)."""
    if not line.startswith((OUTCOME, INTENT)):
        return None
    try:
        entry: Record = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return entry


def unheard(intent: Record) -> Record:
    """The span of a call that was about to be sent, and of which no outcome was written: it may be under way, or its
    process was killed. Nobody knows what it cost."""
    names = ("thread", "id", "parent_run_id", "op", "slot", "agent", "input_id", "handed_id", "runtime", "model",
             "group", "stage")  # fmt: skip
    known = {name: intent[name] for name in names if name in intent}
    return {"v": 1, "type": "span", **known, "started_at": intent["at"], "duration_ms": 0.0, "status": "unknown",
            "cost_usd": None}  # fmt: skip


def fold_entries(fold: Fold, entries: Iterator[Record]) -> None:
    """Use the records of entries; a call has its outcome, or, where none comes, what its last intent says."""
    intents: dict[str, Record] = {}
    for entry in entries:
        if entry["type"] == "intent":
            intents.setdefault(entry["id"], entry)
            continue
        intents.pop(entry["id"], None)
        for record in entry["records"]:
            fold.take(_joined(record, entry["records"][0]))
    for intent in intents.values():
        fold.take(unheard(intent))


def _joined(record: Record, span: Record) -> Record:
    """A record of an outcome belongs to its span, also where it does not say so itself."""
    if record is span or record["type"] == "error":
        return record
    return {"run_id": span["id"]} | record


def entries_of(run: str) -> Iterator[Record]:
    """The entries of the runs whose id begins with `run`, found by their bytes: no other line is parsed."""
    wanted = _RUN + orjson.dumps(run)[1:-1]
    ids: set[bytes] = set()
    for line in _lines():
        head = journal.HEAD.match(line)
        if head and (head[2] in ids or wanted in line):
            entry = entry_of(line)
            if entry and (head[2] in ids or str(_about(entry).get("parent_run_id")).startswith(run)):
                ids.add(head[2])
                yield entry


def entries_of_threads(threads: set[str]) -> Iterator[Record]:
    """The entries of threads, found by their bytes."""
    wanted = [b'"thread":' + orjson.dumps(thread) + b"," for thread in threads]
    for line in _lines():
        entry = entry_of(line) if any(one in line for one in wanted) else None
        if entry and _about(entry).get("thread") in threads:
            yield entry


def at(descriptor: int, places: list[tuple[int, int]]) -> Iterator[Record]:
    """The entries that stand at (offset, length)."""
    for offset, length in places:
        entry = entry_of(os.pread(descriptor, length, offset))
        if entry:
            yield entry


def _about(entry: Record) -> Record:
    """Where an entry says of what run and thread it is."""
    records: list[Record] = entry.get("records") or [entry]
    return records[0]


def _lines() -> Iterator[bytes]:
    descriptor = opened()
    try:
        rest = b""
        while block := os.read(descriptor, _BLOCK):
            *lines, rest = (rest + block).split(b"\n")
            yield from lines
    finally:
        os.close(descriptor)
