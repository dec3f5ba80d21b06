"""A file of threads: read its threads, store what it lacks."""

from __future__ import annotations

import os

from mllm_pipe.envelope import CONTROL, Record, line_of, same_value
from mllm_pipe.errors import Outcome
from mllm_pipe.lines import parse
from mllm_pipe.storage import Appender, line_at, read_new
from mllm_pipe.stream import PassOn, Source, Thread
from mllm_pipe.terminal import say
from mllm_pipe.thread import only_thread

_HASH = (1 << 60) - 1


class ThreadFile:
    """What a file holds, by thread and id: read once, then only what the file has gained.

    Methods whose name ends in `_locked` are called inside `with file.appender`; the others take the lock themselves.
    """

    def __init__(self, appender: Appender, *, messages_only: bool = False) -> None:
        self.appender, self.messages_only = appender, messages_only
        self.offset = 0
        self.stored: dict[str, int] = {}  # thread and id: where the line begins, and below it 60 bits of its hash
        self.tips: dict[str, str | None] = {}  # of its threads, in order: the message that each stands at

    def threads_locked(self, outcome: Outcome, pass_on: PassOn) -> dict[str, Thread]:
        """All threads of the file, by id. Its bad lines are told of and passed on."""
        self.appender.close_tail()
        os.lseek(self.appender.descriptor, 0, os.SEEK_SET)
        if not os.fstat(self.appender.descriptor).st_size:
            return {}
        source = Source(outcome, pass_on, descriptor=self.appender.descriptor, again=True, may_be_empty=True,
                        name=self.appender.path)  # fmt: skip
        found: dict[str, Thread] = {}
        for thread in source.threads():
            known = found.setdefault(thread.id, thread)
            if known is not thread:
                for record in thread.records:
                    known.add(record, thread.raws[record["id"]])
        return found

    def only(self) -> str:
        """The id of the file's only thread, "" if it has none yet. Usage if it has several."""
        with self.appender:
            self._refresh()
        return only_thread(list(self.tips), None, self.appender.path)

    def whole(self, ident: str) -> Thread:
        """A thread as the file has it; what is wrong with other lines was told when they were met."""
        with self.appender:
            return self.threads_locked(Outcome(), lambda _: None).get(ident) or Thread(ident)

    def tip(self, ident: str) -> str | None:
        """The message that a thread of the file stands at."""
        with self.appender:
            self._refresh()
        return self.tips.get(ident)

    def add_locked(self, thread: Thread, outcome: Outcome) -> list[Record]:
        """Append, in one write, the records of the thread that the file lacks; those records."""
        self._refresh()
        new = []
        for record in thread.records:
            line = thread.raws[record["id"]]
            there = self.stored.get(_key(record))
            if there is None:
                if not self.messages_only or record["type"] == "message":
                    new.append((record, line))
            elif (there ^ hash(line)) & _HASH and record.get("code") != "bad_line" and not self._has(line, there >> 60):
                outcome.bad_lines += 1
                say(f"{self.appender.path}: thread {thread.id}: record {record['id']} is there and differs; not stored")
        if new:
            self.appender.append(b"".join(line + b"\n" for _, line in new), thread.id)
        return [record for record, _ in new]

    def add_loose_locked(self, records: list[Record]) -> None:
        """Append error records of bad lines that the file lacks, and empty the list."""
        self._refresh()
        lines = {record["id"]: line_of(record) for record in records if _key(record) not in self.stored}
        if lines and not self.messages_only:
            self.appender.append(b"".join(lines.values()))
        records.clear()

    def _refresh(self) -> None:
        read_new(self.appender, self.offset, self._note)

    def _has(self, line: bytes, offset: int) -> bool:
        """True if the line of the file that begins at the offset says the same, as after `jq -c .`."""
        there = line_at(self.appender, offset)
        return not parse(there)[1] and same_value(line, there)

    def _note(self, line: bytes) -> None:
        begins, self.offset = self.offset, self.offset + len(line) + 1
        record, fault = parse(line)
        if not fault and record["type"] not in CONTROL:
            self.stored.setdefault(_key(record), begins << 60 | hash(line) & _HASH)
            if record["type"] == "message":
                self.tips[record["thread"]] = record["id"]
            elif record["type"] == "verdict" and "preferred" in record:
                self.tips[record["thread"]] = record["preferred"]
            elif record["type"] != "error":
                self.tips.setdefault(record["thread"])


def _key(record: Record) -> str:
    return f"{record['thread']}\n{record['id']}"
