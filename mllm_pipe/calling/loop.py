"""Calls in flight that share a thread: each is a greenlet, and goes on until it waits.

Threads of Python hand its one lock over at every system call, to another processor each time: with hundreds of calls
in flight that took as long as half of the work.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections import deque
from collections.abc import Callable
from contextvars import Context
from functools import partial
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Any, Generic, TypeVar

from greenlet import getcurrent, greenlet

from mllm_pipe.waiting import READ, Wait, here

FEW = 1000
Item = TypeVar("Item")


class Loop:
    """Calls that share the thread which runs it; each goes on until it waits."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.bell, self.ear = socket.socketpair()
        for end in (self.bell, self.ear):
            end.setblocking(False)
        self.selector.register(self.ear, READ)
        self.due: deque[Callable[[], None]] = deque()  # what other threads have for us to do
        self.limits: list[tuple[float, int, Wait]] = []  # when a wait ends at the latest, as a heap
        self.number = count()
        self.rest: list[Context] = []  # of calls that have ended: with their connections, for those that begin
        self.alive, self.over, self.asleep = 0, False, False

    # for any thread

    def start(self, work: Callable[[], None]) -> None:
        """Have this done as a call of its own."""
        self.tell(partial(self._start, work))

    def wake(self, wait: Wait) -> None:
        """What it waits for has come."""
        self.tell(partial(self.go_on, wait, True))

    def end(self) -> None:
        """Let `run` return when all calls have ended."""
        self.tell(self._end)

    def tell(self, what: Callable[[], None]) -> None:
        """Have this done at once, between two calls: it must not wait."""
        self.due.append(what)
        if self.asleep:
            self.asleep = False
            self.bell.send(b"!")

    # for calls of it

    def wait_for(self, sock: socket.socket, event: int, seconds: float) -> bool:
        """As `ready`."""
        wait = Wait()
        self.selector.register(sock, event, wait)
        try:
            return bool(self.wait(wait, seconds))
        finally:
            self.selector.unregister(sock)

    def wait(self, wait: Wait, seconds: float | None) -> Any:
        """Let others go on until `go_on`, which says what it gives; False if that does not come within so many
        seconds."""
        wait.who = getcurrent()
        if seconds is not None:
            heappush(self.limits, (time.monotonic() + seconds, next(self.number), wait))
            if len(self.limits) > FEW + 2 * self.alive:
                self.limits = [limit for limit in self.limits if limit[2].who]
                heapify(self.limits)
        return self.main.switch()

    # the thread itself

    def run(self) -> None:
        """Run the calls until `end`, and they have ended."""
        here.loop = self
        self.main = getcurrent()
        with self.selector, self.bell, self.ear:
            self._run()

    def _run(self) -> None:
        while True:
            while self.due:
                self.due.popleft()()
            if self.over and not self.alive:
                return
            now = time.monotonic()  # late is who was so before we look: we may have been stopped, or busy, meanwhile
            self.asleep = True
            events = self.selector.select(0 if self.due else self._patience())
            self.asleep = False
            for key, _ in events:
                if key.data:
                    self.go_on(key.data, True)
                else:
                    self.ear.recv(1 << 12)
            while self.limits and (self.limits[0][0] <= now or not self.limits[0][2].who):
                self.go_on(heappop(self.limits)[2], False)

    def _patience(self) -> float | None:
        return max(0.0, self.limits[0][0] - time.monotonic()) if self.limits else None

    def _start(self, work: Callable[[], None]) -> None:
        self.alive += 1
        context = self.rest.pop() if self.rest else Context()
        call = greenlet(partial(self._work, work, context))
        call.gr_context = context
        call.switch()

    def _work(self, work: Callable[[], None], context: Context) -> None:
        try:
            work()
        finally:
            self.alive -= 1
            self.rest.append(context)

    def _end(self) -> None:
        self.over = True

    def go_on(self, wait: Wait, came: Any) -> None:
        """Let a call go on, unless its wait is over."""
        who, wait.who = wait.who, None
        if who:
            who.switch(came)


class Queue(Generic[Item]):
    """As queue.SimpleQueue, where calls of a loop take what other threads put."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.items: deque[Item] = deque()
        self.idle: deque[Wait] = deque()

    def put(self, item: Item) -> None:
        """Add one. From any thread."""
        self.loop.tell(partial(self._take, item))

    def get(self) -> Item:
        """The one that waits for the longest time; wait if there is none. For calls of the loop."""
        if self.items:
            return self.items.popleft()
        wait = Wait()
        self.idle.append(wait)
        item: Item = self.loop.wait(wait, None)
        return item

    def clear(self) -> None:
        """Take all away that wait. From any thread."""
        self.loop.tell(self.items.clear)

    def _take(self, item: Item) -> None:
        if self.idle:
            self.loop.go_on(self.idle.popleft(), item)
        else:
            self.items.append(item)
