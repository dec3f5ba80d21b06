"""A second process judges ahead, where nobody is asked, stdin is a file, and a second processor is there.

It is a copy of this one that takes the file from its end, a piece at a time, while we take it from its beginning.
Neither waits for the other, and what leaves is in the order of the file. What it made of a thread counts if it had the
very lines that the thread has once it is complete; what it has not told of by then is judged here. So however it ends,
nothing is lost but its help.
"""

from __future__ import annotations

import marshal
import os
import signal
import time
from collections.abc import Callable, Iterator, Sized
from contextlib import suppress
from typing import Any

from orjson import loads

from mllm_pipe.envelope import CONTROL
from mllm_pipe.errors import Failure
from mllm_pipe.forks import fork, kill, processors
from mllm_pipe.judging.judgement import Judged
from mllm_pipe.lines import parse
from mllm_pipe.runtimes._pipes import pipe, widen
from mllm_pipe.stream import Thread

PIECE = 1 << 18  # bytes of the file that are taken in one go
TELL_S, HEAR_S, ALIVE_S = 0.02, 0.002, 0.1  # how often it tells, we hear, it looks whether we are still there
MOST = 20_000  # threads that it may have told of and we are not at yet, where no more than that are gathered
NICE = 10
HEAD = 8  # bytes of a message that say how long the rest is

Judge = Callable[[Thread], Judged]
Made = tuple[str, int, list[bytes], bool, tuple[int, str, str] | None]  # thread, hash of its lines, of Foretold


class Foretold(Judged):
    """What comes of a thread as it was told: the records are lines, which few look into."""

    __slots__ = ("told", "says_no")

    def __init__(self, told: list[bytes], says_no: bool, failed: tuple[int, str, str] | None) -> None:
        """failed: status, code and message of the failure."""
        self.told, self.says_no, self.failure = told, says_no, None
        if failed:
            self.failure = Failure(failed[2])
            self.failure.status, self.failure.code = failed[:2]

    def lines(self) -> list[bytes]:
        return self.told

    def negative(self) -> bool:
        return self.says_no

    def __getattr__(self, name: str) -> Any:
        super().__init__([loads(line) for line in self.told], self.failure)
        return getattr(self, name)


def started(judge: Judge, descriptor: int, run: str, gathered: Sized) -> Ahead | None:
    """The other process, which judges the threads of a file; None where there is one processor, or it cannot be.

    judge: says nothing, and gives the same for the same thread. run: of all threads. gathered: those that are not
    complete; what is told of no more threads than these are, or MOST, is kept. No thread of ours may run by now: a lock
    that it holds would be held in the copy for ever.
    """
    begin, end = os.lseek(descriptor, 0, os.SEEK_CUR), os.fstat(descriptor).st_size
    if processors() < 2:
        return None
    back, to = pipe()
    widen(to)
    parent = os.getpid()

    def work() -> None:
        os.close(back)
        _live_with(parent)
        for piece in _pieces(descriptor, begin, end):
            _tell(judge, list(_threads(piece, run).values()), to)

    try:
        return Ahead(fork(work), back, gathered)
    except OSError:
        os.close(back)
        return None
    finally:
        os.close(to)


class Ahead:
    """The other process, and what it has told."""

    def __init__(self, child: int, back: int, gathered: Sized) -> None:
        self.child, self.back, self.gathered = child, back, gathered
        self.heard, self.due = bytearray(), 0.0
        self.messages: dict[str, tuple[int, bytes]] = {}  # by the first thread, about how many each is
        self.told = 0  # of how many threads they are
        self.made: dict[str, Made] = {}  # by thread, of the message that we are at
        self.ended = False
        os.set_blocking(back, False)

    def hear(self) -> None:
        """Take in what it has told."""
        with suppress(BlockingIOError):
            while self._hears() and (data := os.read(self.back, 1 << 20)):
                self.heard += data
                self._split()
        self.due = time.monotonic() + HEAR_S

    def _hears(self) -> bool:
        return not self.ended and self.told < max(MOST, len(self.gathered))

    def _split(self) -> None:
        """Take the messages that are whole out of what was heard."""
        while len(self.heard) > HEAD and len(self.heard) >= (end := HEAD + int.from_bytes(self.heard[:HEAD], "big")):
            first, count, message = marshal.loads(self.heard[HEAD:end])
            self.messages[first] = count, message
            self.told += count
            del self.heard[:end]

    def take(self, thread: Thread) -> Judged | None:
        """What it has made of a thread that is complete; None if the thread is to be judged here."""
        if time.monotonic() > self.due:
            self.hear()
        if message := self.messages.pop(thread.id, None):
            self.told -= message[0]
            self.made = {made[0]: made for made in marshal.loads(message[1])}
        made = self.made.get(thread.id)
        if not made or thread.fault or made[1] != hash(tuple(thread.lines)):
            return None
        self.end()  # it has told of all that comes behind this one
        return Foretold(*made[2:])

    def end(self) -> None:
        """Nothing more is wanted of it."""
        if not self.ended:
            self.ended = True
            kill(self.child)
            os.close(self.back)


# -- in the other process


def _live_with(parent: int) -> None:
    """End soon after the parent does, whatever is done then; be no writer of its output, nor say anything; and take of
    the processors what nobody else wants."""
    os.nice(NICE)
    signal.signal(signal.SIGALRM, lambda *_: None if os.getppid() == parent else os._exit(0))
    signal.setitimer(signal.ITIMER_REAL, ALIVE_S, ALIVE_S)
    nobody = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nobody, 1)
    os.dup2(nobody, 2)


def _pieces(descriptor: int, begin: int, end: int) -> Iterator[bytes]:
    """The lines of a part of a file, some of them at a time, from its end."""
    size = PIECE
    while end > begin:
        start = max(begin, end - size)
        data = os.pread(descriptor, end - start, start)
        cut = data.find(b"\n", 0, -1) + 1
        if start == begin:
            cut = 0
        elif not cut:  # a line is longer
            size *= 2
            continue
        yield data[cut:]
        end, size = start + cut, PIECE


def _threads(piece: bytes, run: str) -> dict[str, Thread]:
    """The threads of some lines, as far as these have them."""
    threads: dict[str, Thread] = {}
    for line in piece.split(b"\n"):
        record, fault = parse(line)
        if fault or record["type"] in CONTROL:
            continue
        ident = record["thread"]
        if ident not in threads:
            threads[ident] = Thread(ident)
            threads[ident].run = run
        threads[ident].add(record, line)
    return threads


def _tell(judge: Judge, threads: list[Thread], to: int) -> None:
    """Judge threads, the last one first, and tell of those that are done every now and then."""
    made, due = list[Made](), time.monotonic() + TELL_S
    while threads:
        thread = threads.pop()
        judged = judge(thread)
        failed = judged.failure and (judged.failure.status, judged.failure.code, str(judged.failure))
        made.append((thread.id, hash(tuple(thread.lines)), judged.lines(), judged.negative(), failed or None))
        if not threads or time.monotonic() > due:
            message = marshal.dumps((thread.id, len(made), marshal.dumps(made)))
            view = memoryview(len(message).to_bytes(HEAD, "big") + message)
            while view:
                view = view[os.write(to, view) :]
            made, due = [], time.monotonic() + TELL_S
