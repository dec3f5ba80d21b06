"""What the journal says of runs: the records of its outcomes, and calls of which no outcome was written."""

from __future__ import annotations

import os
from collections.abc import Iterator

import orjson

from mllm_pipe.calling import journal
from mllm_pipe.envelope import Record, holds
from mllm_pipe.runs import KINDS, Fold
from mllm_pipe.terminal import note

OUTCOME = b'{"v":1,"type":"outcome","id":"'  # how journal.conclude begins a line
INTENT = b'{"v":1,"type":"intent","id":"'
_BLOCK = 4 << 20
_RUN = b'"parent_run_id":"'


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
    records = entry.get("records", [])
    whole = type(records) is list and all(type(record) is dict and "type" in record for record in records)
    return entry if whole and (entry["type"] == "intent" or "records" in entry) else None


def unheard(intent: Record) -> Record:
    """The span of a call that was about to be sent, and of which no outcome was written: it may be under way, or its
    process was killed. Nobody knows what it cost."""
    names = ("thread", "id", "parent_run_id", "op", "slot", "agent", "input_id", "handed_id", "runtime", "model",
             "group", "stage")  # fmt: skip
    known = {name: intent[name] for name in names if name in intent}
    return {"v": 1, "type": "span", **known, "started_at": intent.get("at"), "duration_ms": 0.0, "status": "unknown",
            "cost_usd": None}  # fmt: skip


def fold_entries(fold: Fold, entries: Iterator[Record]) -> None:
    """Use the records of entries; a call has its outcome, or, where none comes, what its last intent says.

    What does not hold to the envelope is left out, and told of: anybody may have written to the file.
    """
    intents: dict[str, Record] = {}
    unsound = 0
    for entry in entries:
        if entry["type"] == "intent":
            intents.setdefault(entry["id"], entry)
            continue
        intents.pop(entry["id"], None)
        made = [record for record in entry["records"] if record["type"] in KINDS]
        if not all(map(holds, made[:1])):
            made = []
            unsound += 1
        for record in made:
            joined = _joined(record, made[0])
            if record is made[0] or holds(joined):
                fold.take(joined)
            else:
                unsound += 1
    spans = list(map(unheard, intents.values()))
    for span in spans:
        if holds(span):
            fold.take(span)
        else:
            unsound += 1
    tell_of(unsound)


def tell_of(unsound: int) -> None:
    """Say that so many lines of the journal were left out, if any were."""
    if unsound:
        lines = "a line of a call does" if unsound == 1 else f"{unsound} lines of calls do"
        note(f"{journal.path()}: {lines} not hold to the envelope; left out")


def _joined(record: Record, span: Record) -> Record:
    """A record of an outcome belongs to its span, also where it does not say so itself."""
    if record is span or span["type"] != "span" or record["type"] == "error":
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
    descriptor = journal.opened()
    try:
        rest = b""
        while block := os.read(descriptor, _BLOCK):
            *lines, rest = (rest + block).split(b"\n")
            yield from lines
    finally:
        os.close(descriptor)
