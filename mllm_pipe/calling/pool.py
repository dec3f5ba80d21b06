"""Many threads of conversation in flight: work goes on at once, outcomes are given in input order or as they come."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from mllm_pipe.calling.inflight import live
from mllm_pipe.terminal import note
from mllm_pipe.waiting import each, shared

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from mllm_pipe.calling.crew import Crew

Item = TypeVar("Item")
Made = TypeVar("Made")

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
    jobs = _at_most(jobs)
    # Each of our threads gives way by itself, often; to take turns by force, as Python does every 5 ms, takes time.
    sys.setswitchinterval(SWITCH_S)
    collect_seldom()
    from mllm_pipe.calling.crew import CAME, DONE, FAILED, READ, Crew

    crew: Crew[Item, Made] = Crew(items, work, jobs, tell=first is not None)
    _crews.append(crew)
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
            for what, number, item, also_made in crew.rest():
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


_crews: list[Crew[Any, Any]] = []


def hear_out() -> None:
    """Nobody is asked any more; who was asked already is heard out, for the answer may have been paid for."""
    if live:
        note(f"{len(live)} calls are in flight, and heard out; Ctrl-C ends them")
    for crew in _crews:
        crew.end()


def several(workers: int) -> Callable[[Callable[[Item], Made], list[Item]], list[Made]]:
    """A map whose calls go on at once: the first item as the call of the caller, the others as calls beside it; where
    its thread is not shared, in `workers` threads."""
    if not workers:
        return lambda work, items: [work(item) for item in items]

    @cache
    def helpers() -> Executor:
        from concurrent.futures import ThreadPoolExecutor

        return ThreadPoolExecutor(workers, "sibling")

    def at_once(work: Callable[[Item], Made], items: list[Item]) -> list[Made]:
        if shared():
            return each(work, items)
        others = [helpers().submit(work, item) for item in items[1:]]
        return [work(items[0]), *(other.result() for other in others)]

    return at_once
