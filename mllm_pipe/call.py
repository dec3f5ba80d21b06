"""One call of a runtime, with its clock, its span and its two lines in the journal. What dispatch and judge share."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from random import random
from typing import Any

from mllm_pipe import journal
from mllm_pipe.agents import find
from mllm_pipe.envelope import Record, new_id, timestamp
from mllm_pipe.errors import CallFailed, Failure, Stopped, WriteFailed
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
        self.ignored: list[dict[str, Any]] = []  # losses: what the runtime takes no notice of
        self.pieces: list[str] = []  # of the answer, for the journal if it is cut off

    def text(self, piece: str) -> None:
        """A piece of the answer has come."""
        if self.first_text is None:
            self.first_text = time.monotonic()
        self.pieces.append(piece)
        if self.on_text:
            self.on_text(piece)

    def lost(self, losses: list[dict[str, Any]]) -> None:
        """What cannot be sent as it is, told before anything is sent. CallFailed("losses") if nothing may be lost."""
        if self.strict and losses:
            first = losses[0]
            more = f", and {len(losses) - 1} more" if len(losses) > 1 else ""
            why = f": {first['why']}" if first.get("why") else ""
            raise CallFailed("losses", f"--strict: {first['what']} would be {first['action']}{why}{more}", billed="no")

    def left_or_none(self) -> float:
        """Seconds left of the deadline, 0 if there are none."""
        return max(0.0, self.started + self.timeout_s - time.monotonic())

    def left(self) -> float:
        """Seconds left of the deadline. CallFailed("timeout") when there are none."""
        left = self.started + self.timeout_s - time.monotonic()
        if left <= 0:
            raise CallFailed("timeout", f"no whole answer within {self.timeout_s:g} s; --timeout sets the limit")
        return left


class Patience:
    """How often a target is asked again, and who is asked when it cannot answer."""

    def __init__(
        self, max_retries: int = 0, retry_after_cap_s: float = 60.0, fallbacks: Sequence[dict[str, Any]] = ()
    ) -> None:
        self.max_retries, self.retry_after_cap_s, self.fallbacks = max_retries, retry_after_cap_s, fallbacks

    def wait_s(self, tries: int, failure: CallFailed) -> float | None:
        """Seconds to wait after so many tries, None to give up. Only what was surely not paid for is asked again.

        What the other side asks for counts, up to the cap, beyond which it is left alone; else full jitter over
        0.5 s doubled with each try, at most 8 s.
        """
        if tries > self.max_retries or not failure.retryable:
            return None
        asked = failure.retry_after_s
        if asked is not None:
            return asked if asked <= self.retry_after_cap_s else None
        return random() * min(8.0, 0.5 * 2.0**tries)


def patience_of(flags: dict[str, Any]) -> Patience:
    """Takes what is about retries and fallbacks out of a command's flags. Usage if a fallback is unknown."""
    limits = {"first_byte_s": flags["first_byte_s"]}
    fallbacks = [find(spec, **limits)[0] for spec in flags.pop("fallbacks")]
    for target in fallbacks:
        load(target["kind"])
    return Patience(flags.pop("max_retries"), flags.pop("retry_after_cap_s"), fallbacks)


# Another target would not do better, or must not: content policy is nobody's to get around.
NO_FALLBACK = ("losses", "refusal", "filter", "length")


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
    patience: Patience | None = None,
) -> Call:
    """Ask the target, and where it cannot answer, again or another, as `patience` allows.

    `about` is what the span says of the work: thread, op, parent_run_id, slot, agent, input_id.

    `make` turns a result, whole or partial, into the records to keep; they go into the journal with the span before
    anything else happens. WriteFailed, and nothing is sent, if the journal cannot be written.
    """
    patience = patience or Patience()
    run_id, attempts = new_id(), list[Record]()
    began, started_at = time.monotonic(), timestamp()
    for candidate in (target, *patience.fallbacks):
        io = Io(timeout_s, on_text, about["parent_run_id"], strict)
        key, result, failure = _tried(candidate, request, about, io, run_id, patience, attempts)
        if failure is None or failure.code in NO_FALLBACK:
            break
    with _settled():
        result = _priced(candidate, request, result, failure, io.started_at)
        span = span_of(candidate, about, io, run_id, result or {}, failure)
        span |= {"started_at": started_at, "duration_ms": _ms(time.monotonic() - began), "attempts": attempts}
        made = make(result, span) if result and result["parts"] else []
        span["output_ids"] = [record["id"] for record in made]
        call = Call(span, result, failure, made)
        try:
            journal.conclude(run_id, key, span["status"], [span, *made])
            _kept.append(run_id)
        except WriteFailed as lost:
            call.unkept = str(lost)
    return call


def _tried(
    target: dict[str, Any],
    request: dict[str, Any],
    about: dict[str, Any],
    io: Io,
    run_id: str,
    patience: Patience,
    attempts: list[Record],
) -> tuple[str, Result | None, CallFailed | None]:
    """Ask one target, again after a wait while it is sure that nothing was paid for; each attempt is noted."""
    key, runtime = journal.key_of(target, request), load(target["kind"])
    name = {"runtime": target["runtime"], "model": target.get("model")}
    wait = 0.0
    for number in range(1, patience.max_retries + 2):
        journal.intend(run_id, key, about | name)
        began = time.monotonic()
        io.ignored = ignored(target, request, getattr(runtime, "TAKES_OPTIONS", False))
        attempt: Record = name | {"status": "ok"} | ({"wait_ms": _ms(wait)} if wait else {})
        attempts.append(attempt)
        try:
            io.lost(io.ignored)
            return key, runtime.call(target, request, io), None
        except CallFailed as failure:
            unsure = failure.billed == "unknown"
            attempt |= {"status": "unknown" if unsure else "error", "code": failure.code}
            next_wait = patience.wait_s(number, failure)
            if next_wait is None or next_wait >= io.left_or_none():
                if number > 1:
                    failure.args = (f"{failure}, gave up after {number} tries",)
                return key, failure.result, failure
        except Failure:
            journal.conclude(run_id, key, "error", [])  # refused on our side: nothing was sent
            raise
        except Stopped:
            attempt |= {"status": "unknown", "code": "stopped"}
            _keep_pieces(target, about, io, run_id, key, attempts)
            raise
        finally:
            attempt["duration_ms"] = _ms(time.monotonic() - began)
        wait = next_wait
        time.sleep(wait)
    raise AssertionError("the last try returns")


def _priced(
    target: dict[str, Any],
    request: dict[str, Any],
    result: Result | None,
    failure: CallFailed | None,
    started_at: str,
) -> Result | None:
    """The result, with a cost by the table of models where nobody else said one; of a cut answer the usage is no whole
    one, and its cost unknown."""
    cut = failure is not None and failure.billed != "yes"
    if cut or not result or not result.get("usage") or result.get("cost_usd") is not None:
        return result
    from datetime import datetime

    from mllm_pipe.prices import cost_of_call

    cost = cost_of_call(target, request, result, datetime.fromisoformat(started_at))
    return result if cost is None else result | {"cost_usd": float(cost), "cost_source": "table"}


def ignored(target: dict[str, Any], request: dict[str, Any], takes_options: bool) -> list[dict[str, Any]]:
    """The losses of a request to a runtime that takes no options and no tools."""
    if takes_options:
        return []
    names = [f"option {name}" for name in request.get("options", {})]
    names += [f"tool {tool['name']}" for tool in request.get("tools", [])]
    return [{"what": name, "action": "dropped", "why": f"{target['runtime']} takes none"} for name in names]


def _keep_pieces(
    target: dict[str, Any], about: dict[str, Any], io: Io, run_id: str, key: str, attempts: list[Record]
) -> None:
    """What had come of an answer when a signal ended us: it may have to be paid for."""
    with _settled():
        stopped = CallFailed("cut", "a signal ended the command")
        span = span_of(target, about, io, run_id, {}, stopped) | {"attempts": attempts, "output_ids": []}
        error: Record = {"v": 1, "type": "error", "thread": about["thread"], "id": new_id(), "at": timestamp()}
        error |= {"code": "cut", "message": str(stopped), "billed": "unknown", "run_id": run_id}
        heard = "".join(io.pieces).encode(errors="replace").decode()
        journal.conclude(run_id, key, "unknown", [span, error | {"content": heard}])


def span_of(
    target: dict[str, Any], about: dict[str, Any], io: Io, run_id: str, result: Result, failure: CallFailed | None
) -> Record:
    """The span of a call that ends now. result: {} if nothing came."""
    duration_ms = _ms(time.monotonic() - io.started)
    status = "ok" if failure is None else "unknown" if failure.billed == "unknown" else "error"
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
    }
    losses = [*about.get("losses", []), *io.ignored, *result.get("losses", [])]
    return span | ({"losses": losses} if losses else {})


def where_answers_are() -> str:
    """For a message that stdout could not be written: where to find what was paid for."""
    return f"; what was answered is in {journal.path()}, see mllm-pipe(7)" if _kept and journal.mode() == "full" else ""


_kept: list[str] = []  # run ids of this process that the journal has


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
