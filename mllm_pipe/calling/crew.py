"""Who works off what is in flight: one thread that reads what there is to do, and one for all workers.

Python's executors and futures do the same for threads, and take a fifth of all that a call takes; threads for the
workers take as long as half of the call itself (mllm_pipe.waiting).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from mllm_pipe.calling.loop import Loop, Queue
from mllm_pipe.waiting import Taken

Item = TypeVar("Item")
Made = TypeVar("Made")

AHEAD = 4  # items that are read for each worker: one slow answer holds the others back only beyond these
LOOK_UP_S = 0.5
CAME, READ, DONE, FAILED = "came", "read", "done", "failed"  # an item, all of them, the work on one, anything
Event = tuple[str, int, Any, Any]  # what has happened, of which number, to which item, and what came of it


class Crew(Generic[Item, Made]):
    """A reader of items, and workers who share a thread: each goes on until it waits."""

    def __init__(self, items: Iterable[Item], work: Callable[[Item], Made], size: int, *, tell: bool) -> None:
        """tell: items that come are told of, and wait for `begin`."""
        self.items, self.work, self.size, self.tell = items, work, size, tell
        self.room = threading.BoundedSemaphore(size * AHEAD)
        self.happened: SimpleQueue[list[Event]] = SimpleQueue()
        self.heard: list[Event] = []  # of these, what `next` has not given yet, the newest first
        self.done: list[Event] = []  # what is to be told of next
        self.loop = Loop()
        self.todo: Queue[tuple[int, Item] | None] = Queue(self.loop)
        self.lock, self.over, self.workers = threading.Lock(), False, 0
        self.thread = threading.Thread(target=self._run, name="workers", daemon=True)
        self.thread.start()
        threading.Thread(target=self._read, name="reader", daemon=True).start()

    def next(self) -> Event:
        """The next thing that has happened; to be waited for.

        A signal that comes at the last moment before the wait begins does not end it, so the wait is a short one: else
        a command that was told to end, once, would go on for as long as its calls take.
        """
        while not self.heard:
            with suppress(Empty):
                self.heard = self.happened.get(timeout=LOOK_UP_S)[::-1]
        return self.heard.pop()

    def rest(self) -> list[Event]:
        """What else has happened by now."""
        rest, self.heard = self.heard[::-1], []
        while not self.happened.empty():
            rest += self.happened.get()
        return rest

    def begin(self, number: int, item: Item) -> None:
        """Have an item worked off, unless it is over."""
        with self.lock:
            if self.over:
                return
            self.todo.put((number, item))
            if self.workers < self.size:
                self.workers += 1
                self.loop.start(self._work)

    def end(self) -> None:
        """Nothing is begun any more; return when what was begun has ended."""
        with self.lock:
            self.over = True
            self.todo.clear()
            for _ in range(self.workers):
                self.todo.put(None)
            self.loop.end()
        self.thread.join()

    def _run(self) -> None:
        with Taken() as taken:
            self.loop.run()
        if taken.error:  # nobody works any more
            self.happened.put([(FAILED, 0, None, taken.error)])

    def _read(self) -> None:
        number = 0
        with Taken() as taken:
            for item in self.items:
                self.room.acquire()
                if self.tell:
                    self.happened.put([(CAME, number, item, None)])
                else:
                    self.begin(number, item)
                number += 1
        self.happened.put([(FAILED, 0, None, taken.error) if taken.error else (READ, number, None, None)])

    def _work(self) -> None:
        with Taken() as taken:
            while task := self.todo.get():
                number, item = task
                self._tell((DONE, number, item, self.work(item)))
        if taken.error:
            self._tell((FAILED, 0, None, taken.error))

    def _tell(self, event: Event) -> None:
        """What happens at one time is told at once: each time, whoever hears it takes Python's lock from the calls."""
        self.done.append(event)
        if len(self.done) == 1:
            self.loop.tell(self._tell_all)

    def _tell_all(self) -> None:
        done, self.done = self.done, []
        self.happened.put(done)
