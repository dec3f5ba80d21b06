"""A log that routers are measured on and learn from: a prompt a line, with where it should go or who was right.

    {"prompt": TEXT, "target": NAME}                       where it should go
    {"prompt": TEXT, "weak": true, "strong": false}        which of two agents was right; a number from 0 to 1 too
    a thread file                                          each thread that has a verdict on an answer to its question

A row may have `meta`. In a thread file the newest verdict on an answer says whether its agent was right; of two agents
the one that is right more often is the strong one, and where only one was judged on a thread, the other counts as on
the average. Of other numbers of agents, a thread should go to one that was right.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson

from mllm_pipe.envelope import CONTROL, Record, admit, has_envelope
from mllm_pipe.errors import BadRecord
from mllm_pipe.files import lines
from mllm_pipe.routing.subject import Subject
from mllm_pipe.stream import Thread
from mllm_pipe.thread import branch, speaker


class Row(NamedTuple):
    """A question, with the messages before it, and its label: a target, or how right (0 to 1) each of two was."""

    messages: list[Record]
    target: str | None
    weak: float
    strong: float

    @property
    def text(self) -> str:
        return Subject(self.messages).text


class Log(NamedTuple):
    """The rows of a file; all have a target, or all outcomes. agents: (weak, strong) where a thread file names them."""

    rows: list[Row]
    of_targets: bool
    agents: tuple[str, str] | None


def read(path: str) -> Log:
    """The log in a file. Missing if it cannot be read; BadRecord, with the line, for what is no row."""
    values: list[tuple[int, bytes, Any]] = []
    for number, line in enumerate(lines(path), 1):
        if line.strip():
            try:
                values.append((number, line, orjson.loads(line)))
            except orjson.JSONDecodeError as error:
                raise BadRecord(f"{path}: line {number}: no JSON: {error.msg}") from None
    if not values:
        raise BadRecord(f"{path} is empty")
    if has_envelope(values[0][2]):
        return _of_threads(path, values)
    rows = [_row(value, f"{path}: line {number}", number) for number, _, value in values]
    kinds = {row.target is not None for row in rows}
    if len(kinds) > 1:
        raise BadRecord(f"{path} mixes rows that have a target with rows of weak and strong")
    return Log(rows, kinds.pop(), None)


def _row(value: Any, where: str, number: int) -> Row:
    if not isinstance(value, dict) or not isinstance(value.get("prompt"), str):
        raise BadRecord(f"{where}: no row: it has no prompt that is a text")
    message: Record = {"v": 1, "type": "message", "thread": f"row {number}", "id": "1", "role": "user"}
    message["content"] = value["prompt"]
    if isinstance(value.get("meta"), dict):
        message["meta"] = value["meta"]
    if isinstance(value.get("target"), str):
        return Row([message], value["target"], 0.0, 0.0)
    right = [value[name] for name in ("weak", "strong") if isinstance(value.get(name), (bool, int, float))]
    if len(right) < 2 or not all([0 <= one <= 1 for one in right]):
        raise BadRecord(f"{where}: no row: it has neither a target nor weak and strong, each true, false or 0 to 1")
    return Row([message], None, float(right[0]), float(right[1]))


def _of_threads(path: str, values: list[tuple[int, bytes, Any]]) -> Log:
    threads: dict[str, Thread] = {}
    for number, line, value in values:
        if has_envelope(value) and value["type"] in CONTROL:
            continue  # of a stream that was saved as it was
        if not has_envelope(value) or "id" not in value:
            raise BadRecord(f"{path}: line {number}: no record")
        if value["type"] in ("message", "verdict"):
            try:
                admit(value, line)
            except BadRecord as fault:
                raise BadRecord(f"{path}: line {number}: {fault}") from None
        threads.setdefault(value["thread"], Thread(value["thread"])).add(value, line)
    judged = []
    for thread in threads.values():
        try:
            judged += _judged(thread)
        except BadRecord as fault:
            raise BadRecord(f"{path}: thread {thread.id}: {fault}") from None
    names = sorted({agent for _, found in judged for agent in found})
    if len(names) != 2:
        rows = [Row(messages, agent, 0.0, 0.0) for messages, found in judged for agent, right in found.items() if right]
        if not rows:
            raise BadRecord(f"{path}: no thread has a verdict on an answer of a named agent that passes")
        return Log(rows, True, None)
    mean = {name: _mean([found[name] for _, found in judged if name in found]) for name in names}
    weak, strong = sorted(names, key=mean.__getitem__)
    rows = [Row(messages, None, found.get(weak, mean[weak]), found.get(strong, mean[strong]))
            for messages, found in judged]  # fmt: skip
    return Log(rows, False, (weak, strong))


def _judged(thread: Thread) -> list[tuple[list[Record], dict[str, float]]]:
    """Each question of a thread with how right the agents were that answered it, by the newest verdict."""
    verdicts = {about: record["pass"] for record in thread.records if record["type"] == "verdict"
                and record["pass"] is not None for about in record["about"]}  # fmt: skip
    found: dict[str, tuple[list[Record], dict[str, float]]] = {}
    for record in thread.records:
        if record["type"] == "message" and record["role"] == "assistant" and record["id"] in verdicts:
            before = branch(thread.records, record["id"])[:-1]
            if before and before[-1]["role"] == "user":
                of_agents = found.setdefault(before[-1]["id"], (before, {}))[1]
                of_agents[speaker(record)] = float(verdicts[record["id"]])
    return list(found.values())


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
