"""The clock of a call, and the span that is its record."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from mllm_pipe.envelope import Record, timestamp
from mllm_pipe.errors import CallFailed
from mllm_pipe.lineage import in_group, traceparent

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
        self.bent: list[dict[str, Any]] = []  # losses: of what was sent last
        self.pieces: list[str] = []  # of the answer, for the journal if it is cut off
        self.cut: list[dict[str, Any]] = []  # what had come of tries that failed: it may have been paid for

    def text(self, piece: str) -> None:
        """A piece of the answer has come. TypeError if it is no text."""
        if not isinstance(piece, str):
            raise TypeError("a piece of the answer is no text")
        if self.first_text is None:
            self.first_text = time.monotonic()
        self.pieces.append(piece)
        if self.on_text:
            self.on_text(piece)

    def lost(self, losses: list[dict[str, Any]]) -> None:
        """What cannot be sent as it is, told before anything is sent. CallFailed("losses") if nothing may be lost."""
        if losses is not self.ignored:
            self.bent = losses
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


def span_of(
    target: dict[str, Any], about: dict[str, Any], io: Io, run_id: str, result: Result, failure: CallFailed | None
) -> Record:
    """The span of a call that ends now. result: {} if nothing came."""
    duration_ms = ms(time.monotonic() - io.started)
    status = "ok" if failure is None else "unknown" if failure.billed == "unknown" else "error"
    span: Record = {"v": 1, "type": "span", "thread": about["thread"], "id": run_id, "at": timestamp()}
    span |= {name: value for name, value in about.items() if name != "thread"}
    if traceparent():
        span["traceparent"] = traceparent()
    span |= in_group()
    span |= {
        "runtime": target["runtime"],
        "model": result.get("model") or target.get("model"),
        "started_at": io.started_at,
        "duration_ms": duration_ms,
        "first_token_ms": ms(io.first_text - io.started) if io.first_text else None,
        "status": status,
        "usage": result.get("usage"),
        "cost_usd": result.get("cost_usd"),
        "cost_source": result.get("cost_source"),
    }
    if "saved_usd" in result:
        span["saved_usd"] = result["saved_usd"]
    losses = [*about.get("losses", []), *io.ignored, *(result.get("losses") or io.bent)]
    return span | ({"losses": losses} if losses else {})


def ms(seconds: float) -> float:
    """Milliseconds, as a span has them."""
    return round(seconds * 1000, 3)
