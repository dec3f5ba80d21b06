"""The calls that are in flight: whatever ends this process, what had come of them is written down first."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from mllm_pipe.calling import journal
from mllm_pipe.calling.span import Io, span_of
from mllm_pipe.envelope import Record, new_id, timestamp
from mllm_pipe.errors import CallFailed, WriteFailed
from mllm_pipe.reader import watch_reader
from mllm_pipe.signals import held
from mllm_pipe.waiting import Changed

Sent = tuple[dict[str, Any], dict[str, Any], Io, str, list[Record]]  # target, about, io, key, attempts
live: dict[str, Sent] = {}  # calls that were sent and are not settled, by id
journalled: list[str] = []  # run ids of this process that the journal has


class _Settling:
    """How many settle something now: many at once, and none any more once it is over."""

    def __init__(self) -> None:
        self.changed, self.count, self.over = Changed(), 0, False

    def __enter__(self) -> None:
        with self.changed:
            while self.over:
                self.changed.wait()
            self.count += 1

    def __exit__(self, *_: object) -> None:
        with self.changed:
            self.count -= 1
            if self.over:
                self.changed.notify_all()

    def end(self, seconds: float) -> None:
        """Those who are at it are waited for, so long; nobody begins after this."""
        with self.changed:
            self.over = True
            self.changed.wait_for(lambda: not self.count, seconds)


_settling = _Settling()
_abandoning = threading.Lock()


def where_answers_are() -> str:
    """For a message that stdout could not be written: where to find what was paid for."""
    if not journalled or journal.mode() != "full":
        return ""
    return f"; what was answered is in {journal.path()}, see mllm-pipe(7)"


def abandon() -> None:
    """The process is about to end. What had come of the answers in flight may have to be paid for: it is written down
    as unknown, and their programs are ended. An answer that has just come is written down first. What waits to be asked
    again, and was surely not paid for, is written down as that."""
    with _abandoning:  # a signal and a reader that leaves may come at once
        _settling.end(10)
        for run_id, (target, about, io, key, attempts) in list(live.items()):
            unpaid = bool(attempts) and all(attempt["status"] == "error" for attempt in attempts)
            if unpaid:  # it waits to be asked again, which it will not be
                why = "the command was ended before it was asked again"
                stopped = CallFailed(attempts[-1]["code"], why, billed="no")
            else:
                stopped = CallFailed("cut", "the command was ended")
            span = span_of(target, about, io, run_id, {}, stopped) | {"attempts": attempts, "output_ids": []}
            error: Record = {"v": 1, "type": "error", "thread": about["thread"], "id": new_id(), "at": timestamp()}
            error |= {"code": stopped.code, "message": str(stopped), "billed": stopped.billed, "run_id": run_id}
            heard = "".join(io.pieces).encode(errors="replace").decode()
            with suppress(WriteFailed):
                status = "error" if unpaid else "unknown"
                journal.conclude(run_id, key, status, [span, error | {"content": heard}])
        live.clear()
        child = sys.modules.get("mllm_pipe.runtimes._child")
        if child:
            child.kill_all()


def stop_when_reader_leaves() -> None:
    """From now on, a reader of stdout that leaves ends us at once: children killed, requests in flight cancelled."""

    def stop() -> None:
        abandon()
        os._exit(128 + signal.SIGPIPE)

    watch_reader(stop)


@contextmanager
def settled() -> Iterator[None]:
    """What is sent and what has been paid for is written down whole before anything ends us: a reader that leaves, or a
    signal."""
    with held, _settling:
        yield
