"""Answers that were paid for before, taken from the journal instead of being asked for again: --resume and --cache."""

from __future__ import annotations

import os
from collections.abc import Callable
from threading import Lock
from typing import Any

import orjson

from mllm_pipe.calling import journal, living
from mllm_pipe.envelope import Record, seconds_of
from mllm_pipe.errors import Missing, Usage
from mllm_pipe.storage import Appender

_BLOCK = 1 << 20

UNHEARD = "unheard"  # asked by the run that is resumed, and nobody knows what came of it


class Claimed(Exception):
    """Another process has just asked the same for the same run."""


class Memory:
    """What the journal knows of requests by their key: the newest answer of each, of one run or of all."""

    def __init__(self, run: str | None = None, *, youngest: float = 0.0) -> None:
        """run: --resume, the answers of this run alone, by its id or the unique beginning of one. youngest: nothing
        that is older, as seconds of the epoch. Missing if there is no such run; Usage if there is no journal."""
        if journal.mode() != "full":
            raise Usage(f"MLLM_JOURNAL={journal.mode()} keeps no answers; --resume and --cache take them from there")
        self.youngest, self.offset, self.descriptor = youngest, 0, -1
        self.reading = Lock()
        self.answers: dict[str, tuple[int, int]] = {}  # key: where its outcome stands
        self.unheard: dict[str, set[str]] = {}  # key: the calls of the run with no outcome, or an unknown one
        self.keys: dict[str, str] = {}  # of the run's intents, the first one of each call
        self.asking: dict[str, int] = {}  # calls of the run that have no outcome, and the process that asks
        self.run = run_of(run) if run else None
        self._read_on()

    def find(self, key: str) -> Record | str | None:
        """The outcome with this key; UNHEARD if the resumed run asked it and never noted an answer; None if it is new.

        Whoever has only just been answered by another process is found too.
        """
        with self.reading:
            if key not in self.answers:
                self._read_on()
            if key in self.answers:
                offset, length = self.answers[key]
                if found := _whole(os.pread(self.descriptor, length, offset)):
                    return found
                del self.answers[key]  # torn: its writer was killed
            return UNHEARD if self.unheard.get(key) else None

    def unclaimed(
        self, key: str, ident: str, again: bool, admit: Callable[[Appender], bool] | None
    ) -> Callable[[Appender], bool]:
        """For `journal.intend`: `admit`, but Claimed where another process that resumes the run has asked meanwhile.

        It is asked under the lock of the journal, so of two only one asks. ident: the call that wants to.
        again: --retry-unknown, so that only an answer is in its way, or who is at it.
        """

        def check(appender: Appender) -> bool:
            with self.reading:
                self._read_on()
                others = self.unheard.get(key, set()) - {ident}
                if key in self.answers or (others and not again) or any(map(self._is_asked, others)):
                    raise Claimed
            return admit(appender) if admit else True

        return check

    def _is_asked(self, ident: str) -> bool:
        """True if another process waits for what comes of this call."""
        process = self.asking.get(ident)
        return process is not None and process != living.ours() and living.lives(process)

    def _read_on(self) -> None:
        """Take note of what the journal has gained, up to its last whole line. It stays open: another may prune it."""
        if self.descriptor < 0:
            try:
                self.descriptor = journal.opened()
            except Missing:
                return
        rest = b""
        while block := os.pread(self.descriptor, _BLOCK, self.offset + len(rest)):
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                self._take(line)
                self.offset += len(line) + 1

    def _take(self, line: bytes) -> None:
        head = journal.HEAD.match(line)
        if not head or (self.youngest and (seconds_of(head[4].decode()) or 0) < self.youngest):
            return
        ident, key = head[2].decode(), head[3].decode()
        if head[1] == b"intent":
            if self.run and ident not in self.keys and (intent := _of_run(line, self.run)):
                self.keys[ident] = key
                self.unheard.setdefault(key, set()).add(ident)
                if type(intent.get("process")) is int:
                    self.asking[ident] = intent["process"]
        elif self.run:
            self.asking.pop(ident, None)
            asked = self.keys.get(ident)  # not by its own key: it may be that of a fallback
            if asked and head[5] == b"ok":
                self.answers[asked] = self.offset, len(line)
            elif asked and head[5] == b"error":
                self.unheard[asked].discard(ident)
        elif head[5] == b"ok":
            self.answers[key] = self.offset, len(line)


def answer_of(outcome: Record) -> dict[str, Any] | None:
    """The result of a call, in the shape of mllm_pipe.runtimes, from its outcome; None if it was not kept."""
    if "result" in outcome:
        kept: dict[str, Any] = outcome["result"]
        return kept
    span = next(record for record in outcome["records"] if record["type"] == "span")
    message = next((record for record in outcome["records"] if record["type"] == "message"), None)
    if message is None:
        return None
    content = message["content"]
    return {
        "parts": content if isinstance(content, list) else [{"type": "text", "text": content}],
        "finish": message["finish"], "model": message["author"].get("model"),
        "provider": message["author"].get("provider"), "origin": message.get("origin"),
        "usage": span.get("usage"), "cost_usd": span.get("cost_usd"), "cost_source": span.get("cost_source"),
        "losses": [],
    }  # fmt: skip


def kept_result(result: dict[str, Any], made: list[Record]) -> dict[str, Any] | None:
    """What the journal must keep of a result beside what was made of it; None if that is a message, which says all."""
    if any(record["type"] == "message" for record in made):
        return None
    return {name: result.get(name) for name in ("parts", "finish", "model", "provider", "usage")}


def _of_run(line: bytes, run: str) -> Record | None:
    """The intent in a line, if it is of this run."""
    said = _whole(line) if b'"parent_run_id":' in line else {}
    return said if said.get("parent_run_id") == run else None


def _whole(line: bytes) -> Record:
    """What a line of the journal says; nothing if it is torn."""
    try:
        said: Record = orjson.loads(line)
    except orjson.JSONDecodeError:
        return {}
    return said


def run_of(wanted: str) -> str:
    """The run that is meant, by its whole id or a unique beginning. Missing if there is none, Usage if several."""
    found = _begun(wanted)
    if wanted in found or wanted == os.environ.get("MLLM_PARENT_RUN_ID"):
        return wanted  # one that the user named may begin now
    if not found:
        raise Missing(f"--resume {wanted}: the journal has no such run; trace --journal lists them")
    if len(found) > 1:
        raise Usage(f"--resume {wanted}: {len(found)} runs begin like that: {', '.join(found[:3])}")
    return found[0]


def can_go_on(run: str) -> bool:
    """True if `--resume RUN` has something to go on with: a call of this run, in a journal that keeps answers."""
    return journal.mode() == "full" and run in _begun(run)


def _begun(wanted: str) -> list[str]:
    """The runs of the journal whose id begins so, sorted."""
    runs = set()
    try:
        with open(journal.opened(), "rb") as file:
            for line in file:
                if line.startswith(b'{"v":1,"type":"intent"') and wanted.encode() in line and line.endswith(b"\n"):
                    runs.add(_whole(line).get("parent_run_id", ""))
    except Missing:
        pass
    return sorted(run for run in runs if run.startswith(wanted))
