"""One call of a runtime, tried as its patience allows, with its two lines in the journal: for dispatch and judge."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count
from typing import Any

from mllm_pipe.calling import journal
from mllm_pipe.calling.gate import FAULTS, LeftAlone
from mllm_pipe.calling.inflight import Sent, journalled, live, settled
from mllm_pipe.calling.patience import Patience
from mllm_pipe.calling.recall import Claimed, answer_of, kept_result
from mllm_pipe.calling.span import Io, Result, ms, span_of
from mllm_pipe.envelope import Record, new_id, timestamp
from mllm_pipe.errors import CallFailed, Failure, OverBudget, Stopped, WriteFailed
from mllm_pipe.runtimes import load, worded
from mllm_pipe.runtimes._shape import heard
from mllm_pipe.terminal import note
from mllm_pipe.waiting import sleep

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
    patience, run = patience or Patience(), about["parent_run_id"]
    key = journal.key_of(target, request, run)
    if patience.memory and (known := _recalled(patience, key, target, about, make)):
        return known
    run_id, attempts = new_id(), list[Record]()
    began, started_at = time.monotonic(), timestamp()
    last, result, failure, io = target, None, None, Io(timeout_s)
    cut: list[dict[str, Any]] = []
    for candidate in (target, *patience.fallbacks):
        if failure and not _worth_asking(candidate, last, failure):
            continue
        if candidate is not target:
            key = journal.key_of(candidate, request, run)
        if failure and on_text and io.pieces:
            on_text("\n")  # what was shown of the one that failed is no part of this one's answer
            note(f"thread {about['thread']}: {last['runtime']}: {failure}; {candidate['runtime']} is asked instead")
        io = Io(min(timeout_s, candidate.get("timeout_s") or timeout_s), on_text, run, strict)
        last = candidate
        alone = candidate is (patience.fallbacks[-1] if patience.fallbacks else target)
        try:
            result, failure = _tried(candidate, request, about, io, (run_id, key), patience, attempts, alone)
        except OverBudget:
            if not attempts:
                raise
            break  # what the first one said is why the thread fails
        except Claimed:  # between our look and our turn another process that resumes this run has asked
            return _recalled(patience, key, target, about, make) or _unheard(target, about)
        cut += io.cut
        if failure is None:
            break
    with settled():
        live.pop(run_id, None)
        result = _priced(last, request, result, failure, io.started_at)
        span = span_of(last, about, io, run_id, result or {}, failure)
        span |= {"started_at": started_at, "duration_ms": ms(time.monotonic() - began), "attempts": attempts}
        made = make(result, span) if result and result["parts"] else []
        span["output_ids"] = [record["id"] for record in made]
        call = Call(span, result, failure, made)
        try:
            kept = kept_result(result, made) if result and not failure else None
            cut = cut[:-1] if failure and result else cut  # the last one is in `made`
            journal.conclude(run_id, key, span["status"], [span, *made], kept, cut)
            journalled.append(run_id)
        except WriteFailed as lost:
            call.unkept = str(lost)
    return call


def _tried(
    target: dict[str, Any],
    request: dict[str, Any],
    about: dict[str, Any],
    io: Io,
    ids: tuple[str, str],
    patience: Patience,
    attempts: list[Record],
    alone: bool,
) -> tuple[Result | None, CallFailed | None]:
    """Ask one target, again after a wait while it is sure that nothing was paid for; each attempt is noted.

    ids: of the call, and its key. alone: there is no other to ask, so the way to this one is waited for.
    """
    runtime, gate = load(target["kind"]), patience.gates.of(target)
    name = {"runtime": target["runtime"], "model": target.get("model")}
    worst = patience.budget.reserve(target, request) if patience.budget else None
    wait = 0.0
    result: Result | None = None
    failure: CallFailed | None = None
    try:
        for number in count(1):
            waiting = time.monotonic()
            try:
                entered = gate.enter(alone)
            except LeftAlone as sick:
                why = f"left alone after {FAULTS} failures in a row, the last: {sick}"
                failure = failure or CallFailed(sick.code, why, billed="no")
                attempts.append(name | {"status": "error", "code": failure.code, "duration_ms": 0})
                return None, failure
            io.started += time.monotonic() - waiting  # the deadline is for the call
            try:
                _intend(ids[0], (target, about, io, ids[1], attempts), patience, worst)
            except (Failure, Claimed):
                gate.turn_back(entered)
                raise
            began = time.monotonic()
            asked, io.ignored = worded(target, request)
            attempt: Record = name | {"status": "ok"} | ({"wait_ms": ms(wait)} if wait else {})
            attempts.append(attempt)
            result, failure, code = None, None, "stopped"
            try:
                io.lost(io.ignored)
                result, code = heard(runtime.call, target, asked, io), ""
                return result, None
            except CallFailed as failed:
                unsure = failed.billed == "unknown"
                code = failed.code
                attempt |= {"status": "unknown" if unsure else "error", "code": code}
                result, failure = failed.result, failed
                if result and result["parts"]:
                    io.cut.append(name | {"code": code, "parts": result["parts"]})
                next_wait = patience.wait_s(number, failed)
                if next_wait is None or next_wait >= io.left_or_none():
                    if number > 1:
                        failed.args = (f"{failed}, gave up after {number} tries",)
                    return result, failed
                if unsure:
                    where = f"thread {about['thread']}: {target['runtime']}"
                    if io.on_text and io.pieces:
                        io.on_text("\n")
                    note(f"{where}: {failed}; asked again, though it may be billed twice")
            except Failure:
                journal.conclude(*ids, "error", [])  # refused on our side: nothing was sent
                live.pop(ids[0], None)
                raise
            except Stopped:
                attempt |= {"status": "unknown", "code": "stopped"}
                raise  # what had come is written down by `abandon`
            finally:
                attempt["duration_ms"] = ms(time.monotonic() - began)
                gate.leave(entered, code, str(failure or ""))
            wait = next_wait
            sleep(wait)
        raise AssertionError("the last try returns")
    finally:
        if patience.budget and worst:
            said = _priced(target, request, result, failure, io.started_at) or {}
            unpaid = all(attempt["status"] == "error" for attempt in attempts)
            patience.budget.settle(ids, worst, said.get("cost_usd"), said.get("usage"), unpaid)


def _intend(run_id: str, sent: Sent, patience: Patience, worst: Any) -> None:
    """Write that the call is about to be sent, as soon as budgets that others share allow it; from then on it counts
    as in flight."""
    target, about, io, key, _ = sent
    entry, admit, until = about | {"runtime": target["runtime"], "model": target.get("model")}, None, 0.0
    if worst:
        from mllm_pipe.calling import budget

        assert patience.budget
        until = time.time() + io.left_or_none()
        admit = patience.budget.admit((run_id, key), about["parent_run_id"], worst, until)
        entry["worst"] = budget.entry_of(worst, until)
    if patience.memory and patience.memory.run:
        admit = patience.memory.unclaimed(key, run_id, patience.retry_unknown, admit)
    while True:
        with settled():
            if journal.intend(run_id, key, entry, admit):
                live[run_id] = sent
                return
        budget.tell_waiting()
        sleep(budget.LOOK_AGAIN_S)


def _recalled(
    patience: Patience,
    key: str,
    target: dict[str, Any],
    about: dict[str, Any],
    make: Callable[[Result, Record], list[Record]],
) -> Call | None:
    """The call as it went before, by the journal; None if it is new, or to be asked again."""
    assert patience.memory
    found = patience.memory.find(key)
    if isinstance(found, str):
        if patience.retry_unknown:
            return None
        return _unheard(target, about)
    result = answer_of(found) if found else None
    if not found or not result:
        return None
    span, *made = found["records"]
    if patience.memory.run is None:
        if result["finish"] in ("length", "filter", "refusal"):
            return None
        io = Io(0.0, None, about["parent_run_id"])
        result |= {"usage": None, "cost_usd": 0.0, "cost_source": "cache"}
        before = {"model": span["model"], "cached_run_id": span["id"]}
        span, made = span_of(target, about, io, new_id(), result, None) | before, []
    elif span["thread"] != about["thread"] or span["input_id"] != about["input_id"]:
        span, made = span | about, []  # the same question, asked from another place
    if not made:
        made = make(result, span)
        span["output_ids"] = [record["id"] for record in made]
    if patience.memory.run is None:
        journal.conclude(span["id"], key, "taken", [span])
    return Call(span, result, None, made)


def _unheard(target: dict[str, Any], about: dict[str, Any]) -> Call:
    """The call that is not made, as nobody knows whether it was paid for."""
    why = ("this run has asked and not heard the answer, which may be billed; unless another process is still at it, "
           "--retry-unknown asks again")  # fmt: skip
    failure = CallFailed("unheard", why)
    io = Io(0.0, None, about["parent_run_id"])
    return Call(span_of(target, about, io, new_id(), {}, failure), None, failure, [])


def _worth_asking(candidate: dict[str, Any], last: dict[str, Any], failure: CallFailed) -> bool:
    """True if a fallback may do what the last one could not; of what was too large, if its window may be larger."""
    if failure.code != "too_large":
        return failure.code not in NO_FALLBACK
    from mllm_pipe import models

    room, had = (models.window(models.of(one)) for one in (candidate, last))
    return not room or not had or room > had


def _priced(
    target: dict[str, Any],
    request: dict[str, Any],
    result: Result | None,
    failure: CallFailed | None,
    started_at: str,
) -> Result | None:
    """The result, with a cost by the table of models where nobody else said one, and what a prompt cache saved.

    Of a cut answer the usage is no whole one, and its cost unknown.
    """
    cut = failure is not None and failure.billed != "yes"
    if cut or not result or not result.get("usage"):
        return result
    cached = result["usage"].get("cache_read_tokens") or result["usage"].get("cache_write_tokens")
    if result.get("cost_usd") is not None and not cached:
        return result
    from datetime import datetime

    from mllm_pipe.prices import cost_of_call, saved_by_cache

    at = datetime.fromisoformat(started_at)
    saved = saved_by_cache(target, request, result, at)
    result = result if saved is None else result | {"saved_usd": float(saved)}
    if result.get("cost_usd") is not None:
        return result
    cost = cost_of_call(target, request, result, at)
    return result if cost is None else result | {"cost_usd": float(cost), "cost_source": "table"}
