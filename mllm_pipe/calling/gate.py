"""The way to one target, shared by the calls of a process: how fast it is asked, and when it is left alone.

Pace: nothing is slowed down before the target says 429. Then the calls are spaced: multiplicative decrease on a 429
of a call that began after the last decrease, increase with every answer: doubled within a second while no pace was
ever too much (the slow start of TCP, RFC 5681), then quick up to 95% of the pace that was too much, slow around it,
and quick again well beyond (as CUBIC, RFC 9438). A 5xx says nothing about pace and changes none.

Breaker: after FAULTS failures in a row the target is left alone for 1 s, then one call tries it; each try that fails
doubles the wait. Meanwhile a call with a fallback goes there, another waits; after PROBES tries none waits any more.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from mllm_pipe.waiting import Changed

FAULTS, PROBES, LONGEST_S = 5, 5, 30.0
_SICK = ("network", "server", "overloaded", "timeout", "cut", "malformed", "empty")
_HOPELESS = ("auth", "permission", "billing", "missing", "bad_model")  # nothing to wait for

CUT, CUT_AGAIN = 0.9, 0.5  # of the pace; the second where a decrease follows another at once
START, QUICK, SLOW = 1.0, 0.2, 0.01  # what every answer adds to the pace: within a second 170%, 22% and 1% of it
NEAR, BEYOND = 0.95, 1.1  # of the pace that was too much
SETTLED_S = 2.0
SLOWEST = 0.2  # calls a second


class LeftAlone(Exception):
    """The target has failed so often that it is not asked now; `code` and the text are those of its last failure."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Gate:
    """The way to one target."""

    def __init__(self, rate: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """rate: calls a second that the user allows."""
        self.free, self.clock = Changed(), clock
        self.rate, self.pace, self.too_much = rate, rate, float("inf")
        self.next_at = self.cut_at = 0.0
        self.answers = deque[float](maxlen=500)  # when the newest came, to know the pace when there was none
        self.failed, self.tries, self.open_at = 0, 0, 0.0
        self.trial: float | None = None  # what `enter` gave to the call that tries a target that was left alone
        self.why = ("", "")

    def enter(self, may_wait: bool) -> float:
        """Wait for one's turn; gives the moment (of the clock) it came. LeftAlone if the target is left alone and there
        is nothing to wait for, or the caller has a better place to go."""
        with self.free:
            while True:
                now = self.clock()
                if self.failed >= FAULTS:
                    if self.trial is None and now >= self.open_at:
                        self.trial = now
                        return now
                    if not may_wait or self.tries > PROBES or self.why[0] in _HOPELESS:
                        raise LeftAlone(*self.why)
                    self.free.wait(None if self.trial is not None else self.open_at - now)
                elif self.pace and now < self.next_at:
                    self.free.wait(self.next_at - now)
                else:
                    self.next_at = max(now, self.next_at) + 1 / self.pace if self.pace else 0.0
                    return now

    def turn_back(self, entered: float) -> None:
        """Whoever has entered does not ask after all; if that was to be the try, another may make it."""
        with self.free:
            if entered == self.trial:
                self.trial = None
                self.free.notify_all()

    def leave(self, entered: float, code: str, message: str) -> None:
        """How it went: "" for an answer, else the code of the failure. entered: what `enter` gave."""
        with self.free:
            now = self.clock()
            if code in _SICK or code in _HOPELESS:
                self._fail(now, entered, code, message)
            else:  # it answered, be it with a refusal
                self.failed = self.tries = 0
                self.trial = None
            if code == "rate_limit":
                self._slow_down(now, entered)
            elif not code:
                self._speed_up(now)
            self.free.notify_all()

    def _fail(self, now: float, entered: float, code: str, message: str) -> None:
        self.failed += 1
        self.why = code, message
        if self.failed == FAULTS or entered == self.trial:
            self.open_at = now + min(LONGEST_S, 2.0**self.tries)
            self.tries += 1
            self.trial = None

    def _slow_down(self, now: float, entered: float) -> None:
        if entered < self.cut_at:
            return  # sent before the pace was last cut: it says nothing new
        if self.pace is None:
            recent = [moment for moment in self.answers if moment > now - 1]
            self.pace = max(float(len(recent)), 1.0)
        else:
            settled = now - self.cut_at > SETTLED_S  # else what came before may be what is counted against us
            if settled or self.too_much == float("inf"):  # and be it so, the slow start is over
                self.too_much = self.pace
            self.pace = max(self.pace * (CUT if settled else CUT_AGAIN), SLOWEST)
        self.cut_at = now
        self.next_at = max(self.next_at, now)

    def _speed_up(self, now: float) -> None:
        if self.pace is None:
            self.answers.append(now)
        elif self.pace != self.rate:
            near = NEAR * self.too_much <= self.pace <= BEYOND * self.too_much
            share = START if self.too_much == float("inf") else SLOW if near else QUICK
            self.pace = min(self.pace + share, self.rate or float("inf"))


class Gates:
    """The gates of a command, one for each target."""

    def __init__(self, rate: float | None = None) -> None:
        self.rate, self.gates = rate, dict[Any, Gate]()

    def of(self, target: dict[str, Any]) -> Gate:
        """The gate of a target: of one place, model and key."""
        name = (target["runtime"], target["model"], target["base_url"], target["key_env"])
        return self.gates.get(name) or self.gates.setdefault(name, Gate(self.rate))
