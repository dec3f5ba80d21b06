"""The only stdin and stdout: threads gathered by their handoffs, threads out whole, and the baton with them.

Control records (begin, handoff, end) live in pipes only. A stream that has any of them and no end was cut.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator

from mllm_pipe.envelope import Record, line_of, new_id, same_value, seconds_of, timestamp
from mllm_pipe.errors import FAILED, BadRecord, Failure, InputCut, Outcome, Stopped, Usage, WriteFailed
from mllm_pipe.lineage import inherited_run, offered_run, traceparent
from mllm_pipe.lines import MAX_LINE, Lines, Long, bad_line, blank, closes, named_thread, parse
from mllm_pipe.terminal import kind_of, note, program, safe, say

STARTED = time.time()
PassOn = Callable[[Record], None]
AT_ONCE = 4096  # lines
GATHERED, GATHER_S = 1 << 16, 0.1  # bytes, and how long they may wait for more
FRESH_S = 60.0  # a handoff made longer ago than this before our start belongs to an earlier run


def refuse_own_output() -> None:
    """Usage if stdin and stdout are the same regular file (law 7): it would be emptied, or read for ever."""
    if kind_of(0) == "file" and kind_of(1) == "file" and os.path.samestat(os.fstat(0), os.fstat(1)):
        raise Usage("stdin and stdout are the same file; write to it with: | thread-append FILE")


def refuse_text(first_line: bytes | Long, name: str = "stdin") -> None:
    """Plain text is no stream; it is taken neither for a prompt nor for damage. BadRecord with what works."""
    text = (first_line.head if isinstance(first_line, Long) else first_line).lstrip()
    if text.startswith(b"["):
        raise BadRecord(f"{name} is a JSON array, not a record a line; take it apart with: jq -c '.[]'")
    if text.startswith(b"\xef\xbb\xbf"):
        raise BadRecord(f"{name} begins with a byte order mark; take it off with: tail -c +4")
    if not text.startswith(b"{"):
        instead = {
            "thread-append": "thread-append FILE @-",
            "dispatch": "thread-append --new @- | dispatch",
        }.get(program(), f"thread-append --new @- | dispatch --to SPEC | {program()}")
        raise BadRecord(f"{name} is plain text, not records; to ask it: {instead}")


# -- threads in


class Thread:
    """A thread as it was gathered: its lines as they came, the records to use, and what its handoff said."""

    __slots__ = ("id", "lines", "records", "raws", "run", "status", "shown", "handed", "fault",
                 "conflicts")  # fmt: skip

    def __init__(self, ident: str) -> None:
        self.id = ident
        self.lines: list[bytes] = []
        self.records: list[Record] = []  # each id once
        self.raws: dict[str, bytes] = {}  # line of each id
        self.run = ""
        self.status = "ok"
        self.shown = ""  # id of the answer that a person has seen as it came
        self.handed = False  # by a handoff
        self.fault: Failure | None = None
        self.conflicts: list[str] = []

    def add(self, record: Record, line: bytes) -> None:
        """Take one record; one whose id was here before is copied, and not used again (DESIGN §1)."""
        self.lines.append(line)
        first = self.raws.setdefault(record["id"], line)
        if first is line:
            self.records.append(record)
        elif record.get("code") != "bad_line" and not same_value(first, line):
            self.conflicts.append(record["id"])

    def with_more(self, made: list[Record]) -> Thread:
        """A copy that has further records, made here; this one stays as it is."""
        copy = Thread(self.id)
        copy.lines, copy.records, copy.raws = list(self.lines), list(self.records), dict(self.raws)
        copy.run, copy.status, copy.shown = self.run, self.status, self.shown
        copy.handed, copy.fault = self.handed, self.fault
        for record in made:
            copy.add(record, line_of(record)[:-1])
        return copy


class Source:
    """A stream on a descriptor, read as threads. Bad lines go to `pass_on` as error records, at once."""

    def __init__(
        self,
        outcome: Outcome,
        pass_on: PassOn,
        *,
        descriptor: int = 0,
        grouped: bool = False,
        max_line: int = MAX_LINE,
        complete: Callable[[Record], Record | None] | None = None,
        again: bool = False,
        may_be_empty: bool = False,
        run: str = "",
        name: str = "stdin",
    ) -> None:
        """complete: makes a record of a bare message, or gives None. again: a thread may come back (for storing).
        run: the one that all threads belong to, whatever their handoffs and the environment say."""
        self.may_be_empty = may_be_empty
        self.outcome, self.pass_on, self.name = outcome, pass_on, name
        self.lines = Lines(descriptor, max_line)
        self.grouped, self.complete, self.again = grouped, complete, again
        self.from_pipe = kind_of(descriptor) == "pipe"
        self.pending: dict[str, Thread] = {}
        self.handed: set[str] = set()
        self.bad_lines_before = 0
        self.cut = False
        self.count = 0
        self._given_run = self._run = run

    def threads(self) -> Iterator[Thread]:
        """Each thread, when it is complete: at its handoff, at the end, or (grouped) when the next one begins."""
        return (thread for thread in self._threads() if thread)

    def blocks(self, most: int) -> Iterator[list[Thread]]:
        """The threads, in lists of at most so many: none of them has to wait for a further read. A list is empty where
        one follows and no thread is complete."""
        block: list[Thread] = []
        for thread in self._threads():
            if thread:
                block.append(thread)
            if thread is None or len(block) == most:
                yield block
                block = []
        if block:
            yield block

    def _threads(self) -> Iterator[Thread | None]:
        """Each thread, and None where a read follows, which may have to wait."""
        number, current, open_stream, any_line = 0, "-", False, False
        held: tuple[bytes | Long, int, str, str] | None = None  # a bad line, until we know whether it is known damage
        for batch in self.lines.batches():
            for line in batch:
                number += 1
                if not line:
                    continue
                record, fault = parse(line)
                if fault and blank(line):
                    continue
                if fault and self.complete and record and (made := self.complete(record)):
                    record, fault, line = made, "", line_of(made)[:-1]
                if not any_line:
                    refuse_text(line, self.name)
                any_line = True
                if held:
                    self._report(*held, known=not fault and closes(record, held[0]))
                    held = None
                if fault:
                    held = line, number, current, fault
                    continue
                assert isinstance(line, bytes)
                kind = record["type"]
                if kind == "handoff":
                    open_stream = True
                    thread = self.pending.pop(record["thread"], None) or self._failed_alone(record)
                    if thread:
                        yield self._hand_over(thread, record)
                elif kind == "begin":
                    open_stream = True
                elif kind == "end":
                    open_stream = False
                    self._take_end(record)
                elif kind == "error" and record.get("code") in ("bad_line", "torn"):
                    self.pass_on(record)
                else:
                    if self.grouped and current != record["thread"] and current in self.pending:
                        yield self._complete(self.pending.pop(current))
                    current = record["thread"]
                    self._thread(current).add(record, line)
            yield None
        if not any_line and not self.may_be_empty:
            raise Usage(f"{self.name} is empty: did the command before fail?")
        tail: bytes | Long | None = None
        if held:
            tail = held[0] if self.lines.torn else None
            self._report(*held, known=False)
        if tail is not None:
            self._fail_torn(tail)
        if open_stream:
            self.cut = True
            self.outcome.fail(FAILED)
            say("input ended early: the command before was killed, or a filter dropped the end record")
        for thread in list(self.pending.values()):
            if open_stream:
                thread.fault = InputCut("input ended early")
            yield self._complete(self.pending.pop(thread.id))
        if not self.count and not self.outcome.bad_lines and not self.outcome.failures and not self.may_be_empty:
            raise Usage(f"{self.name} holds no thread: did a filter drop it?")

    def _thread(self, ident: str) -> Thread:
        thread = self.pending.get(ident)
        if thread is None:
            thread = self.pending[ident] = Thread(ident)
            if ident in self.handed and not self.again:
                how = "is not grouped" if self.grouped else "comes back after its handoff"
                thread.fault = BadRecord(f"the thread {how}: it would be answered without its first part")
        return thread

    def _complete(self, thread: Thread) -> Thread:
        self.handed.add(thread.id)
        self.count += 1
        thread.run = thread.run or self.run()
        for ident in thread.conflicts:
            self.outcome.bad_lines += 1
            say(f"{self.name}: thread {thread.id}: record {ident} comes twice and differs; the first one counts")
        return thread

    def _hand_over(self, thread: Thread, handoff: Record) -> Thread:
        thread.status = str(handoff["status"]) if handoff.get("status") in ("ok", "no") else "failed"
        thread.handed = True
        stamp = seconds_of(str(handoff.get("at"))) if isinstance(handoff.get("at"), str) else None
        if self.from_pipe and stamp is not None and stamp >= STARTED - FRESH_S:
            inherited = handoff.get("parent_run_id")
            if isinstance(inherited, str) and 0 < len(inherited) <= 200:
                thread.run = self._given_run or inherited_run() or inherited
            thread.shown = str(handoff.get("shown", ""))
        return self._complete(thread)

    def _failed_alone(self, handoff: Record) -> Thread | None:
        """A handoff without records of its thread says nothing, unless it is a failed one, which is obeyed."""
        return Thread(handoff["thread"]) if handoff.get("status") not in ("ok", "no") else None

    def run(self) -> str:
        """The run of a thread that inherits none: $MLLM_PARENT_RUN_ID, or one new run for this command."""
        self._run = self._run or inherited_run() or offered_run() or new_id()
        return self._run

    def _report(self, line: bytes | Long, number: int, thread: str, why: str, *, known: bool) -> None:
        where = f"{self.name}: line {number}"
        if known:
            note(f"{where}: torn by a write that was killed; known, nothing else is lost")
        else:
            self.outcome.bad_lines += 1
            say(f"{where}: {why}; passed on as an error record")
        self.pass_on(bad_line(line, number, thread, why))

    def _take_end(self, end: Record) -> None:
        passed = end.get("bad_lines")
        if isinstance(passed, int):
            self.outcome.bad_lines += passed
        if end.get("status") == "no":
            self.outcome.said_no = self.outcome.all_no = True

    def _fail_torn(self, tail: bytes | Long) -> None:
        """The last line had no newline and is no record: its thread is not sent; if it names none, none is."""
        name = named_thread(tail.head if isinstance(tail, Long) else tail)
        threads = [self._thread(name)] if name else list(self.pending.values())
        for thread in threads:
            thread.fault = thread.fault or BadRecord("the last line is torn, so the thread may not be whole")


# -- threads out


class Sink:
    """stdout. Threads leave whole, each with its handoff, in one write; control records only if it is a pipe."""

    def __init__(self, *, records: bool = True) -> None:
        """records: False when stdout is to carry text for a person, and no records at all."""
        self.records = records
        self.terminal = kind_of(1) == "terminal"
        self.baton = records and kind_of(1) == "pipe"
        self.begun = False
        self.handed = 0
        self.one = threading.RLock()  # bad lines are passed on while threads go out
        self.gathers = False  # where no thread takes long: several leave in one write, before what may have to wait
        self.gathered: list[bytes] = []
        self.size, self.late = 0, 0.0  # of these, and when they have waited long enough

    def thread(self, thread: Thread, made: list[Record], status: str) -> None:
        """Write a thread and what was made, and hand it over with this status."""
        self.hand_over(thread, [line_of(record)[:-1] for record in made], status)

    def hand_over(self, thread: Thread, made: list[bytes], status: str) -> None:
        """The same of what was made as lines without their newline."""
        lines = [*thread.lines, *made]
        if self.baton:
            self.handed += 1
            handoff: Record = {"v": 1, "type": "handoff", "thread": thread.id, "status": status}
            handoff |= {"parent_run_id": thread.run, "at": timestamp()}
            if traceparent():
                handoff["traceparent"] = traceparent()
            if thread.shown:
                handoff["shown"] = thread.shown
            lines.append(line_of(handoff)[:-1])
        self.lines(lines)

    def record(self, record: Record) -> None:
        """Write one record that belongs to no thread under way."""
        self.lines([line_of(record)[:-1]])

    def lines(self, lines: list[bytes]) -> None:
        """Write lines, at once and whole."""
        if not self.records or not lines:
            return
        with self.one:
            if self.baton and not self.begun:
                lines = [line_of({"v": 1, "type": "begin", "at": timestamp()})[:-1], *lines]
            self.begun = True
            for at in range(0, len(lines), AT_ONCE):  # a long thread is not kept a second time
                self.gathered.append(b"\n".join([*lines[at : at + AT_ONCE], b""]))
                self.size += len(self.gathered[-1])
                if not self.gathers or self.size > GATHERED or time.monotonic() > self.late:
                    self.flush()

    def flush(self) -> None:
        """Write what is gathered."""
        with self.one:
            data, self.size = b"".join(self.gathered), 0  # of one piece it is the piece itself
            self.gathered.clear()
            self.late = time.monotonic() + GATHER_S
            write(safe(data.decode("utf-8", "replace")).encode() if self.terminal else data)

    def end(self, source: Source | None, outcome: Outcome) -> None:
        """Write the end record, unless the input itself was cut: then the next command shall see it too."""
        if self.baton and not (source and source.cut):
            end: Record = {"v": 1, "type": "end", "threads": self.handed}
            if outcome.bad_lines:
                end["bad_lines"] = outcome.bad_lines
            if outcome.all_no:
                end["status"] = "no"
            self.lines([line_of(end)[:-1]])
        self.flush()


def write(data: bytes, descriptor: int = 1) -> None:
    """All of the bytes, or WriteFailed; a reader that left is Stopped(SIGPIPE)."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:  # a child or a terminal made the pipe non-blocking
            select.select([], [descriptor], [])
        except BrokenPipeError:
            raise Stopped(signal.SIGPIPE) from None
        except OSError as error:
            if error.errno == errno.EINTR:
                continue
            raise WriteFailed(f"stdout cannot be written: {error.strerror}") from None


def show(text: str) -> None:
    """Text for a person on stdout: made safe if stdout is a terminal, as it is otherwise."""
    write((safe(text) if kind_of(1) == "terminal" else text).encode("utf-8", "replace"))


class Live:
    """An answer as it comes: on stdout if that is a terminal and gets text, else on stderr if a person looks on."""

    def __init__(self, as_text: bool, quiet: bool) -> None:
        self.descriptor: int | None = None
        if as_text and kind_of(1) == "terminal":
            self.descriptor = 1
        elif not quiet and not os.environ.get("CI") and kind_of(2) == "terminal":
            self.descriptor = 2
        self.last = ""

    def text(self, piece: str) -> None:
        """Show a piece of an answer."""
        if self.descriptor is not None and piece:
            self.last = piece
            write(safe(piece).encode("utf-8", "replace"), self.descriptor)

    def end(self) -> int | None:
        """End the line of an answer; the descriptor on which it has been shown, None if it has not."""
        last, self.last = self.last, ""
        if not last or self.descriptor is None:
            return None
        if not last.endswith("\n"):
            write(b"\n", self.descriptor)
        return self.descriptor


def read_share() -> float | None:
    """How much of stdin has been read, 0 to 1; None if it is no file, and so of no known length."""
    if kind_of(0) != "file":
        return None
    size = os.fstat(0).st_size
    return os.lseek(0, 0, os.SEEK_CUR) / size if size else None
