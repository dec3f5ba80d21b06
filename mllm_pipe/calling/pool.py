"""Many threads of conversation in flight: work goes on at once, outcomes are given in input order or as they come."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from mllm_pipe.calling.inflight import live
from mllm_pipe.terminal import note

if TYPE_CHECKING:
    from queue import SimpleQueue

Item = TypeVar("Item")
Made = TypeVar("Made")

AHEAD = 4  # items that are read for each worker: one slow answer holds the others back only beyond these
FILES_EACH, FILES_BESIDE = 8, 64  # a connection is one, a program has some pipes
SWITCH_S = 0.05
COLLECT_AFTER = 20_000  # objects
LOOK_UP_S = 0.5
CAME, READ, DONE, FAILED = "came", "read", "done", "failed"  # an item, all of them, the work on one, anything


def in_flight(
    items: Iterable[Item],
    work: Callable[[Item], Made],
    jobs: int,
    *,
    ordered: bool = True,
    first: Callable[[Item], Any] | None = None,
) -> Iterator[tuple[Item, Made]]:
    """Each item with what `work` made of it, `jobs` at a time; in input order unless `ordered` is False.

    With one job everything happens in the thread of the caller. Else `items` is read in a thread of its own, so that
    what is done goes out while the next is waited for, and at most jobs * AHEAD items are here at once. `first` is done
    with each item before, one at a time and always in the thread of the caller. What `work`, `first` or `items` raises
    is raised when those who are at work have ended, and what they made was given.
    """
    if jobs == 1:
        for item in items:
            if first:
                first(item)
            yield item, work(item)
        return
    jobs = _at_most(jobs)
    # Workers wait for the network most of the time, and give way each time they do: to take turns by force, as Python
    # does every 5 ms, costs a fifth of the processor where there are hundreds.
    sys.setswitchinterval(SWITCH_S)
    collect_seldom()
    crew: _Crew[Item, Made] = _Crew(items, work, jobs, tell=first is not None)
    waiting: dict[int, tuple[Item, Made]] = {}
    given, expected, made_room = 0, None, 0
    while given != expected:
        what, number, item, made = crew.next()
        if what == CAME:
            assert first
            first(item)
            crew.begin(number, item)
            continue
        if what == READ:
            expected = number
            continue
        if what == FAILED:
            hear_out()
            while not crew.happened.empty():
                what, number, item, also_made = crew.happened.get()
                if what == DONE:
                    waiting[number] = item, also_made
            for done in sorted(waiting):  # what is finished was paid for, and may be nowhere else
                yield waiting[done]
            raise made
        waiting[number] = item, made
        while (number := given if ordered else number) in waiting:
            yield waiting.pop(number)
            given += 1
            made_room += 1
        if made_room * 2 >= jobs:  # the reader wakes for several at once
            crew.room.release(made_room)
            made_room = 0


def collect_seldom() -> None:
    """Look for cycles of objects less often. Threads and calls are a thousand small objects each and no cycle: to look
    for some after every 700 takes a twentieth of the time."""
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)


class _Crew(Generic[Item, Made]):
    """A reader of items, and threads that work them off. Python's executors and futures do the same, and take a fifth
    of all that a call takes."""

    def __init__(self, items: Iterable[Item], work: Callable[[Item], Made], size: int, *, tell: bool) -> None:
        """tell: items that come are told of, and wait for `begin`."""
        from queue import SimpleQueue

        self.items, self.work, self.size, self.tell = items, work, size, tell
        self.room = threading.BoundedSemaphore(size * AHEAD)
        self.todo: SimpleQueue[tuple[int, Item] | None] = SimpleQueue()
        self.happened: SimpleQueue[tuple[str, int, Any, Any]] = SimpleQueue()  # what, of which number, item, what came
        self.lock, self.over = threading.Lock(), False
        self.workers: list[threading.Thread] = []
        _crews.append(self)
        threading.excepthook = self._failed  # of what ends one of them
        threading.Thread(target=self._read, name="reader", daemon=True).start()

    def next(self) -> tuple[str, int, Any, Any]:
        """What has happened, of which number, to which item, and what came of it; to be waited for.

        A signal that comes at the last moment before the wait begins does not end it, so the wait is a short one: else
        a command that was told to end, once, would go on for as long as its calls take.
        """
        from queue import Empty

        while True:
            with suppress(Empty):
                return self.happened.get(timeout=LOOK_UP_S)

    def begin(self, number: int, item: Item) -> None:
        """Have an item worked off, unless it is over."""
        with self.lock:
            if self.over:
                return
            self.todo.put((number, item))
            if len(self.workers) < self.size:
                worker = threading.Thread(target=self._work, name="worker", daemon=True)
                worker.start()
                self.workers.append(worker)

    def end(self) -> None:
        """Nothing is begun any more; return when what was begun has ended."""
        from queue import Empty

        with self.lock:
            self.over = True
            with suppress(Empty):
                while True:
                    self.todo.get_nowait()
            for _ in self.workers:
                self.todo.put(None)
        for worker in self.workers:
            worker.join()

    def _read(self) -> None:
        number = 0
        for item in self.items:
            self.room.acquire()
            if self.tell:
                self.happened.put((CAME, number, item, None))
            else:
                self.begin(number, item)
            number += 1
        self.happened.put((READ, number, None, None))

    def _work(self) -> None:
        while one := self.todo.get():
            number, item = one
            self.happened.put((DONE, number, item, self.work(item)))

    def _failed(self, thread: threading.ExceptHookArgs) -> None:
        self.happened.put((FAILED, 0, None, thread.exc_value))


def _at_most(jobs: int) -> int:
    """So many jobs as one may have files open for; the limit is raised as far as it goes. A note if it is less."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = jobs * FILES_EACH + FILES_BESIDE
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return jobs
    may = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    with suppress(ValueError, OSError):  # macOS has a further limit, and says none
        resource.setrlimit(resource.RLIMIT_NOFILE, (may, hard))
        soft = may
    most = max(1, soft - FILES_BESIDE)
    if most < jobs:
        note(f"-j {jobs}: {most} at once, as a process may have no more than {soft} files open here (ulimit -n)")
    return min(jobs, most)


_crews: list[_Crew[Any, Any]] = []


def hear_out() -> None:
    """Nobody is asked any more; who was asked already is heard out, for the answer may have been paid for."""
    if live:
        note(f"{len(live)} calls are in flight, and heard out; Ctrl-C ends them")
    for crew in _crews:
        crew.end()


def several(workers: int) -> Callable[[Callable[[Item], Made], list[Item]], list[Made]]:
    """A map whose calls go on at once: the first item in the thread of the caller, the others in `workers` threads
    that all callers share."""
    if not workers:
        return lambda work, items: [work(item) for item in items]
    from concurrent.futures import ThreadPoolExecutor

    helpers = ThreadPoolExecutor(workers, "sibling")

    def at_once(work: Callable[[Item], Made], items: list[Item]) -> list[Made]:
        others = [helpers.submit(work, item) for item in items[1:]]
        return [work(items[0]), *(other.result() for other in others)]

    return at_once
