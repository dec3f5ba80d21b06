"""Many threads of conversation in flight: work goes on at once, outcomes are given in input order or as they come."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from mllm_pipe.calling.inflight import live
from mllm_pipe.terminal import note

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

Item = TypeVar("Item")
Made = TypeVar("Made")

AHEAD = 4  # items that are read for each worker: one slow answer holds the others back only beyond these
FILES_EACH, FILES_BESIDE = 8, 64  # a connection is one, a program has some pipes
SWITCH_S = 0.05
COLLECT_AFTER = 20_000  # objects


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
    from concurrent.futures import Future, ThreadPoolExecutor
    from functools import partial
    from queue import SimpleQueue
    from threading import BoundedSemaphore

    jobs = _at_most(jobs)
    # Workers wait for the network most of the time, and give way each time they do: to take turns by force, as Python
    # does every 5 ms, costs a fifth of the processor where there are hundreds.
    sys.setswitchinterval(SWITCH_S)
    # A call leaves a thousand small objects and no cycle: to look for some after every 700 takes a fifteenth of it.
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)
    workers, reader = ThreadPoolExecutor(jobs, "worker"), ThreadPoolExecutor(1, "reader")
    _crews.append(workers)
    room = BoundedSemaphore(jobs * AHEAD)
    # What has ended: a number, an item and its work; -1: the reader, with the number of items. None: a new item.
    ended: SimpleQueue[tuple[int, Any, Future[Any] | None]] = SimpleQueue()

    def tell(place: int, item: Any, done: Future[Any]) -> None:
        ended.put((place, item, done))

    def begin(number: int, item: Any) -> None:
        workers.submit(work, item).add_done_callback(partial(tell, number, item))

    def read() -> int:
        number = -1
        for number, item in enumerate(items):
            room.acquire()
            if first:
                ended.put((number, item, None))
            else:
                begin(number, item)
        return number + 1

    reader.submit(read).add_done_callback(partial(tell, -1, None))
    waiting: dict[int, tuple[Item, Made]] = {}
    given, expected, made_room = 0, None, 0
    while given != expected:
        number, item, future = ended.get()
        if future is None:
            assert first
            first(item)
            begin(number, item)
            continue
        if number < 0:
            expected = future.result()
            continue
        if failure := future.exception():
            hear_out()
            while not ended.empty():
                number, item, future = ended.get()
                if number >= 0 and future and not future.cancelled() and not future.exception():
                    waiting[number] = item, future.result()
            for done in sorted(waiting):  # what is finished was paid for, and may be nowhere else
                yield waiting[done]
            raise failure
        waiting[number] = item, future.result()
        while (number := given if ordered else number) in waiting:
            yield waiting.pop(number)
            given += 1
            made_room += 1
        if made_room * 2 >= jobs:  # the reader wakes for several at once
            room.release(made_room)
            made_room = 0


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


_crews: list[ThreadPoolExecutor] = []


def hear_out() -> None:
    """Nobody is asked any more; who was asked already is heard out, for the answer may have been paid for."""
    if live:
        note(f"{len(live)} calls are in flight, and heard out; Ctrl-C ends them")
    for crew in _crews:
        crew.shutdown(cancel_futures=True)


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
