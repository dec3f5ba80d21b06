"""One call of a runtime, with its clock, its span and its two lines in the journal. What dispatch and judge share."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mllm_pipe import journal
from mllm_pipe.envelope import Record, new_id, timestamp
from mllm_pipe.errors import CallFailed, Failure, WriteFailed
from mllm_pipe.runtimes import load
from mllm_pipe.stream import traceparent, watch_reader

Result = dict[str, Any]


class Io:
    """What a runtime has of us during a call: who hears its text, and how long it may take."""

    def __init__(
        self, timeout_s: float, on_text: Callable[[str], None] | None = None, run: str = "", strict: bool = False
    ) -> None:
        """run: the run that this call is part of, which a program that is started may join. strict: no losses."""
        self.started, self.started_at = time.monotonic(), timestamp()
        self.run, self.strict = run, strict
        self.timeout_s, self.on_text = timeout_s, on_text
        self.first_text: float | None = None

    def text(self, piece: str) -> None:
        """A piece of the answer has come."""
        if self.first_text is None:
            self.first_text = time.monotonic()
        if self.on_text:
            self.on_text(piece)

    def lost(self, losses: list[dict[str, Any]]) -> None:
        """What cannot be sent as it is, told before anything is sent. CallFailed("losses") if nothing may be lost."""
        if self.strict and losses:
            first = losses[0]
            more = f", and {len(losses) - 1} more" if len(losses) > 1 else ""
            why = f": {first['why']}" if first.get("why") else ""
            raise CallFailed("losses", f"--strict: {first['what']} would be {first['action']}{why}{more}", billed="no")

    def left(self) -> float:
        """Seconds left of the deadline. CallFailed("timeout") when there are none."""
        left = self.started + self.timeout_s - time.monotonic()
        if left <= 0:
            raise CallFailed("timeout", f"no whole answer within {self.timeout_s:g} s; --timeout sets the limit")
        return left


class Call:
    """What came of a call: its span, and the result or the failure (or both: what had come when it failed).

    made: the records that `make` made of it. unkept: why the journal does not have them, "" if it has.
    """

    __slots__ = ("span", "result", "failure", "made", "unkept")

    def __init__(self, span: Record, result: Result | None, failure: CallFailed | None, made: list[Record]) -> None:
        self.span, self.result, self.failure, self.made = span, result, failure, made
        self.unkept = ""


def ask(
    target: dict[str, Any],
    request: dict[str, Any],
    about: dict[str, Any],
    *,
    timeout_s: float,
    on_text: Callable[[str], None] | None = None,
    make: Callable[[Result, Record], list[Record]],
    strict: bool = False,
) -> Call:
    """Ask the target. `about` is what the span says of the work: thread, op, parent_run_id, slot, agent, input_id.

    `make` turns a result, whole or partial, into the records to keep; they go into the journal with the span before
    anything else happens. WriteFailed, and nothing is sent, if the journal cannot be written.
    """
    runtime = load(target["kind"])
    run_id, key = new_id(), journal.key_of(target, request)
    journal.intend(run_id, key, about | {"runtime": target["runtime"], "model": target.get("model")})
    io = Io(timeout_s, on_text, about["parent_run_id"], strict)
    result: Result | None = None
    failure: CallFailed | None = None
    try:
        result = runtime.call(target, request, io)
    except CallFailed as failed:
        failure, result = failed, failed.result
    except Failure:
        journal.conclude(run_id, key, "error", [])  # refused on our side: nothing was sent
        raise
    with _settled():
        span = span_of(target, about, io, run_id, result or {}, failure)
        made = make(result, span) if result and result["parts"] else []
        span["output_ids"] = [record["id"] for record in made]
        call = Call(span, result, failure, made)
        try:
            journal.conclude(run_id, key, span["status"], [span, *made])
        except WriteFailed as lost:
            call.unkept = str(lost)
    return call


def span_of(
    target: dict[str, Any], about: dict[str, Any], io: Io, run_id: str, result: Result, failure: CallFailed | None
) -> Record:
    """The span of a call that ends now. result: {} if nothing came."""
    duration_ms = _ms(time.monotonic() - io.started)
    status = "ok" if failure is None else "unknown" if failure.billed == "unknown" else "error"
    attempt = {"runtime": target["runtime"], "model": target.get("model"), "status": status, "duration_ms": duration_ms}
    if failure:
        attempt["code"] = failure.code
    span: Record = {"v": 1, "type": "span", "thread": about["thread"], "id": run_id, "at": timestamp()}
    span |= {name: value for name, value in about.items() if name != "thread"}
    if traceparent():
        span["traceparent"] = traceparent()
    span |= {
        "runtime": target["runtime"],
        "model": result.get("model") or target.get("model"),
        "started_at": io.started_at,
        "duration_ms": duration_ms,
        "first_token_ms": _ms(io.first_text - io.started) if io.first_text else None,
        "status": status,
        "usage": result.get("usage"),
        "cost_usd": result.get("cost_usd"),
        "cost_source": result.get("cost_source"),
        "attempts": [attempt],
    }
    losses = [*about.get("losses", []), *result.get("losses", [])]
    return span | ({"losses": losses} if losses else {})


def stop_when_reader_leaves() -> None:
    """From now on, a reader of stdout that leaves ends us at once: children killed, requests in flight cancelled."""

    def stop() -> None:
        _settling.acquire(timeout=10)  # an answer that has come is in the journal before we go
        child = sys.modules.get("mllm_pipe.runtimes._child")
        if child:
            child.kill_all()
        os._exit(128 + signal.SIGPIPE)

    watch_reader(stop)


_settling = threading.Lock()


@contextmanager
def _settled() -> Iterator[None]:
    """What has been paid for is written down before anything ends us: a reader that leaves, or a signal."""
    signals = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    with _settling:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
