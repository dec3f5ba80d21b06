"""What each wait of a call over the network may take, and how a connection fails. Pure."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any, Protocol

CONNECT_S = 10.0
SLICE_S = 0.5  # the longest single wait: after it, io.left() is asked again and may end the call from elsewhere


class Broken(Exception):
    """A connection that did not come about, or that does not go on."""


class Late(Broken):
    """A wait that met its limit."""


class Refused(Broken):
    """A proxy would not go on."""


class Left(Protocol):
    """What is used of mllm_pipe.calling.span.Io."""

    def left(self) -> float: ...


_SAID = re.compile(rb"(?:\A|[\r\n])[^:\r\n]")  # a line of an event stream that is no comment


class Clock:
    """What each wait of one call may take. phase: connect, sent (nothing came yet), head (but a head), body."""

    def __init__(self, io: Left, first_byte_s: float, idle_s: float) -> None:
        self.io, self.first_byte_s, self.idle_s = io, first_byte_s, idle_s
        self.phase, self.sent_at, self.opening = "connect", 0.0, b""

    def limit(self) -> float:
        """Seconds that the next wait may take: of the answer's beginning what is left of one limit, else idle."""
        return self.idle_s if self.phase == "body" else self.sent_at + self.first_byte_s - time.monotonic()

    def sending(self) -> float:
        """Seconds that the next piece of a request may take to go out; from now on the answer is waited for."""
        self.phase, self.sent_at = "sent", time.monotonic()
        return min(self.idle_s, self.io.left())

    def hear(self, piece: bytes) -> None:
        """The answer begins with the first line that is no comment: gateways send those while they wait themselves."""
        heard = self.opening + piece if self.phase == "head" else b""
        if heard.strip(b"\r\n"):
            self.phase = "body" if _SAID.search(heard) else "head"
            self.opening = heard[max(heard.rfind(b"\n"), heard.rfind(b"\r")) + 1 :][:1]

    def wait(self, limit: float, step: Callable[[float], Any]) -> Any:
        """step(seconds) in slices until it gives something, or `limit` (raises its Late), or io.left() raises."""
        ends = time.monotonic() + limit
        while True:
            left = min(self.io.left(), ends - time.monotonic())
            try:
                return step(max(min(left, SLICE_S), 0.001))
            except Late:
                if time.monotonic() >= ends:
                    raise
