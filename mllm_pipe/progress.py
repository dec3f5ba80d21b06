"""A line on a terminal that says how far a batch is: done, failed, in flight, tokens a second, cost, time left."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from mllm_pipe import terminal
from mllm_pipe.envelope import Record
from mllm_pipe.stream import read_share

AFTER_S, EVERY_S = 0.5, 0.1  # not before, and at most this often


class Progress:
    """What is shown while threads are in flight; on a terminal alone, never in a pipe, under CI or -q."""

    def __init__(self, hidden: bool) -> None:
        self.shown = not hidden and not os.environ.get("CI") and terminal.kind_of(2) == "terminal"
        self.lock = Lock()
        self.started = time.monotonic()
        self.next_at, self.there = self.started + AFTER_S, False
        self.whole = self.failed = self.inside = self.tokens = self.unpriced = 0
        self.cost_usd = 0.0

    @contextmanager
    def working(self) -> Iterator[None]:
        """One more is in flight."""
        with self.lock:
            self.inside += 1
        try:
            yield
        finally:
            with self.lock:
                self.inside -= 1

    def done(self, made: list[Record], whole: bool) -> None:
        """A thread has gone out, with what was made for it."""
        if not self.shown:
            return
        self.whole, self.failed = self.whole + whole, self.failed + (not whole)
        for span in made:
            if span["type"] == "span":
                self.tokens += (span["usage"] or {}).get("output_tokens", 0)
                self.cost_usd += span["cost_usd"] or 0.0
                self.unpriced += span["cost_usd"] is None and span["status"] == "ok"
        if time.monotonic() >= self.next_at:
            self.next_at, self.there = time.monotonic() + EVERY_S, True
            terminal.show_status(self.line(time.monotonic() - self.started, read_share()))

    def line(self, passed_s: float, share: float | None) -> str:
        """The line after so many seconds; share: of the input that was read, None if nobody knows how long it is."""
        said = [f"{self.whole} done"]
        said += [f"{self.failed} failed"] if self.failed else []
        said += [f"{self.inside} in flight"]
        said += [f"{self.tokens / passed_s:.0f} tokens/s"] if self.tokens and passed_s else []
        said += [f"{'at least ' if self.unpriced else ''}${self.cost_usd:.4f}"] if self.cost_usd else []
        ended = self.whole + self.failed
        if share and ended:
            total = (ended + self.inside) / share
            left = max(0.0, total - ended) * passed_s / ended
            said += [f"{int(left // 60)}:{int(left % 60):02} left"]
        return ", ".join(said)

    def end(self) -> None:
        """Take the line away, if it is there."""
        if self.there:
            terminal.show_status("")
