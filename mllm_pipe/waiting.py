"""Waiting in the midst of a call. A call that has a thread of its own just blocks; of those that share one (see
mllm_pipe.calling.loop), each lets the others go on meanwhile.

What cannot wait in this way (a name service, a program) steps aside, into a thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    import socket

    from mllm_pipe.calling.loop import Loop

READ, WRITE = 1, 2  # as selectors has them
Item = TypeVar("Item")
Made = TypeVar("Made")
Given = ParamSpec("Given")

here = threading.local()  # .loop: the one that this thread runs


def _loop() -> Loop | None:
    return getattr(here, "loop", None)


def ready(sock: socket.socket, event: int, seconds: float) -> bool:
    """Wait until a socket can be read or written; False if it cannot within so many seconds."""
    if loop := _loop():
        return loop.wait_for(sock, event, seconds)
    import select

    poll = select.poll()
    poll.register(sock, select.POLLIN if event == READ else select.POLLOUT)
    return bool(poll.poll(seconds * 1000))


def sleep(seconds: float) -> None:
    """Wait for so many seconds."""
    if loop := _loop():
        loop.wait(Wait(), seconds)
    else:
        time.sleep(seconds)


def aside(work: Callable[[], Made]) -> Made:
    """What `work` gives or raises, where it may block in a way that nobody else can make up for."""
    loop = _loop()
    if not loop:
        return work()
    wait, taken, made = Wait(), Taken(), list[Made]()

    def go() -> None:
        with taken:
            made.append(work())
        loop.wake(wait)

    threading.Thread(target=go, name="aside", daemon=True).start()
    loop.wait(wait, None)
    if taken.error:
        raise taken.error
    return made[0]


def apart(work: Callable[Given, Made]) -> Callable[Given, Made]:
    """The same function, done aside."""

    @wraps(work)
    def done(*given: Given.args, **named: Given.kwargs) -> Made:
        return aside(partial(work, *given, **named))

    return done


def shared() -> bool:
    """True if this thread is shared by calls that wait by what is here."""
    return _loop() is not None


def each(work: Callable[[Item], Made], items: list[Item]) -> list[Made]:
    """A map whose calls go on at once, in a shared thread. What one of them raises is raised when all have ended."""
    loop = _loop()
    assert loop
    wait, made, all_taken = Wait(), dict[int, Made](), [Taken() for _ in items]
    left = len(items)

    def one(place: int) -> None:
        nonlocal left
        with all_taken[place]:
            made[place] = work(items[place])
        left -= 1
        if not left:
            loop.wake(wait)

    for place in range(1, len(items)):
        loop.start(partial(one, place))
    one(0)
    loop.wait(wait, None)
    for taken in all_taken:
        if taken.error:
            raise taken.error
    return [made[place] for place in range(len(items))]


class Taken:
    """Whatever ends the block is taken, for another to raise it."""

    error: BaseException | None = None

    def __enter__(self) -> Taken:
        return self

    def __exit__(self, _: Any, error: BaseException | None, __: Any) -> bool:
        self.error = error
        return True


class Changed(threading.Condition):
    """A condition on which calls may wait, be it in threads or in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[tuple[Loop, Wait]] = []

    def wait(self, timeout: float | None = None) -> bool:
        """As of threading.Condition: the lock, once held, is given back meanwhile."""
        loop = _loop()
        if not loop:
            return super().wait(timeout)
        mine = loop, Wait()
        self.waits.append(mine)
        self.release()
        try:
            return bool(loop.wait(mine[1], timeout))
        finally:
            self.acquire()
            if mine in self.waits:
                self.waits.remove(mine)

    def notify_all(self) -> None:
        """All that wait look again."""
        super().notify_all()
        waits, self.waits = self.waits, []
        for loop, wait in waits:
            loop.wake(wait)


class Turn:
    """A lock that a call may hold while it waits."""

    def __init__(self) -> None:
        self.free, self.taken = Changed(), False

    def __enter__(self) -> None:
        with self.free:
            while self.taken:
                self.free.wait()
            self.taken = True

    def __exit__(self, *_: object) -> None:
        with self.free:
            self.taken = False
            self.free.notify_all()


class Wait:
    """One wait of one call in a loop, over once `who` is None."""

    __slots__ = ("who",)

    def __init__(self) -> None:
        self.who: Any = None  # the greenlet
