"""How the answer of a program is heard: line by line, and for how long its beginning is waited for."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from mllm_pipe.errors import CallFailed
from mllm_pipe.runtimes._shape import trusting


def by_line(on_line: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """An `on_bytes` for `_child.run` that calls `on_line` with each line, without its newline; the last may lack one.

    It may take the program's JSON at its word: CallFailed("malformed") for what is shaped otherwise.
    """
    rest: list[bytes] = []

    def on_bytes(data: bytes) -> None:
        head, *lines = data.split(b"\n")
        rest.append(head)
        if lines or not data:
            for line in (b"".join(rest), *lines[:-1]):
                if line:
                    trusting(on_line, line)
            rest[:] = lines[-1:]

    return on_bytes


def patient(target: Mapping[str, Any], left: Callable[[], float], begun: Callable[[], object]) -> Callable[[], float]:
    """A `left` for `_child.run`, over too when a program has not begun to answer within target["first_byte_s"]."""
    limit: float | None = target.get("first_byte_s")
    if not limit:
        return left
    until, heard = time.monotonic() + limit, False

    def shorter() -> float:
        nonlocal heard
        heard = heard or bool(begun())
        if heard:
            return left()
        wait = until - time.monotonic()
        if wait <= 0:
            raise CallFailed("timeout", f"no answer within {limit:g} s")
        return min(left(), wait)

    return shorter
