"""Whoever reads our stdout: that he has left is seen while we wait for an answer (law 8)."""

from __future__ import annotations

import select
import threading
from collections.abc import Callable
from typing import Any

from mllm_pipe.terminal import kind_of


def watch_reader(on_left: Callable[[], Any]) -> None:
    """Call `on_left` in a thread of its own as soon as the reader of stdout has left (law 8), once.

    poll() reports POLLERR on the write end of a pipe whose last reader is gone, also while we wait for an answer.
    """
    if kind_of(1) != "pipe":
        return

    def wait() -> None:
        poll = select.poll()
        poll.register(1, 0)
        poll.poll()
        on_left()

    threading.Thread(target=wait, name="reader-watch", daemon=True).start()


def reader_left() -> bool:
    """True if stdout is a pipe that nobody reads any more."""
    poll = select.poll()
    poll.register(1, 0)
    return kind_of(1) == "pipe" and bool(poll.poll(0))
