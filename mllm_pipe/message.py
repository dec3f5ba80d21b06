"""Making messages: what is completed of a bare one, and where in a thread a new one stands."""

from __future__ import annotations

from collections.abc import Callable

from mllm_pipe.envelope import Record, explain, holds, line_of, new_id, timestamp
from mllm_pipe.errors import BadRecord, Missing
from mllm_pipe.lines import MAX_LINE
from mllm_pipe.stream import Thread
from mllm_pipe.thread import parents, tip_of


def extend(thread: Thread, messages: list[Record], at: str | None = None) -> list[Record]:
    """Complete bare messages and add them to the thread, at its tip or as a reply to `at`; the records added.

    They say what they reply to, so that what others append meanwhile does not come between. Missing if `at` is no
    message of the thread; BadRecord if a message does not hold to the envelope, or the thread is unsound.
    """
    known = parents(thread.records)
    if at is not None and at not in known:
        raise Missing(f"thread {thread.id} has no message {at} to reply to")
    tip = at or tip_of(thread.records, known)
    made = []
    for message in messages:
        record = completed(message, thread.id, tip)
        if not holds(record):
            raise BadRecord(f"the new message does not hold to the envelope: {explain(record)}")
        tip = record["id"]
        line = line_of(record)
        if len(line) > MAX_LINE:
            raise BadRecord(f"the new message has {len(line)} bytes; a line has at most {MAX_LINE}")
        thread.add(record, line[:-1])
        made.append(record)
    return made


def completed(message: Record, thread: str, reply_to: str | None) -> Record:
    """A bare message as a record of the thread; fields that it has stay."""
    record: Record = {"v": 1, "type": "message", "thread": thread, "id": new_id(), "at": timestamp()} | message
    if reply_to and "reply_to" not in message:
        record["reply_to"] = reply_to
    return record


class Completer:
    """Makes records of the bare {"role", "content"} objects of a stream: jq and printf can write messages.

    One that names no thread belongs to `wanted`, else to the one that `default()` gives, else to one new thread.
    The first of a thread replies to `tip(thread)`, the others each to the one before.
    """

    def __init__(
        self,
        wanted: str | None,
        default: Callable[[], str] = lambda: "",
        tip: Callable[[str], str | None] = lambda _: None,
    ) -> None:
        self.wanted, self.default, self.tip = wanted, default, tip
        self.last: dict[str, str] = {}  # thread: the id of its last completed message

    def __call__(self, bare: Record) -> Record | None:
        """The record, or None if the object is no bare message or would not hold to the envelope."""
        if "v" in bare or "role" not in bare or "content" not in bare:
            return None
        thread = bare.get("thread") or self.wanted
        if not thread:
            thread = self.wanted = self.default() or new_id()
        if not isinstance(thread, str) or not holds(completed(bare, thread, None)):
            return None
        record = completed(bare, thread, self.last[thread] if thread in self.last else self.tip(thread))
        self.last[thread] = record["id"]
        return record
