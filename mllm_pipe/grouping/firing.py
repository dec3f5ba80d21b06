"""Firing a group: its stages as real processes joined by pipes, once, or in rounds until a judge says yes.

A status is the group's by these rules. The first stage that failed by itself says why: not one that saw an earlier
failure come by (3), or whose reader had left (141). 1 means no of a command of ours, and a failure of any other, which
does not know what the handoffs say: then the group's is 3. If none failed, the last stage that is a command of ours
says whether the answer is no (1), and after it what the last stage of all has passed on.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from mllm_pipe.envelope import Record, line_of, timestamp
from mllm_pipe.errors import DEADLINE, FAILED, NO, OK, InputCut, Outcome
from mllm_pipe.grouping.passage import Passage
from mllm_pipe.grouping.plan import Plan, of_round, variables
from mllm_pipe.reader import watch_reader
from mllm_pipe.runtimes._pipeline import Pipeline, pipeline
from mllm_pipe.stream import Sink, Source, Thread, show
from mllm_pipe.terminal import kind_of, note
from mllm_pipe.thread import branch, text_of
from mllm_pipe.turn import complaint

LEFT = 141  # a stage whose reader left
OURS = ("thread-append", "dispatch", "route", "judge", "trace", "thread-import", "thread-export", "group", "mllm")


def environment(more: Mapping[str, str]) -> dict[str, str]:
    """What all stages see: ours, with the commands of this very installation first on PATH, and `more`."""
    folder, path = _own_commands(), os.environ.get("PATH", os.defpath)
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{path}" if folder else path, **more}


def _own_commands() -> str:
    """The folder that this installation's commands are in: where we were started, beside Python, or of the checkout.

    "" if they are in none of these; then those on PATH are taken. Never the current directory, for what that holds.
    """
    started = os.path.dirname(os.path.abspath(sys.argv[0])) if "/" in sys.argv[0] else ""
    checkout = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "bin")
    folders = (started, os.path.dirname(sys.executable), checkout)
    return next((one for one in folders if one and os.access(os.path.join(one, "dispatch"), os.X_OK)), "")


def _is_ours(argv: list[str]) -> bool:
    """True of a stage that is a command of ours; of another one nobody knows what its status says."""
    return os.path.basename(argv[0]) in OURS


def _name(label: str, argv: list[str]) -> str:
    return f"stage {label} ({os.path.basename(argv[0])})"


class Firing:
    """A group that is fired: what holds for all its rounds."""

    def __init__(self, plan: Plan, more: Mapping[str, str], timeout_s: float | None) -> None:
        """more: variables for all stages. timeout_s: limit of the whole, None for none."""
        self.plan, self.environment, self.timeout_s = plan, environment(more), timeout_s
        self.late = self.as_text = False
        self.running: Pipeline | None = None
        self.why = ""  # which stage failed, in words

    def once(self) -> int:
        """Fire the stages between our stdin and our stdout; the exit status. WriteFailed as a stage of ours has it."""
        if _is_ours(of_round(self.plan, 1)[-1][1]) or kind_of(1) == "terminal":
            with self._clock(), self._stages(1, 0, 1) as running:
                return self._status(running.statuses(), 1)
        with Passage() as passage, self._clock(), self._stages(1, 0, passage.end) as running:
            passage.run(running.woken[-1])
            status = self._status(running.statuses(), 1, passage)
        if passage.fault:
            raise passage.fault
        return status

    def rounds(self, sink: Sink, outcome: Outcome, as_text: bool) -> None:
        """Fire round after round. A thread that the judge passes, or that fails, goes out at once; the others go round
        once more, and after the last round as they are. What came of them is noted in the outcome.

        as_text: a person gets the answers, but those that were seen as they came.
        """
        self.as_text = as_text
        watch_reader(self._leave)
        waiting: list[Thread] | None = None
        with self._clock():
            for number in range(1, self.plan["max_rounds"] + 1):
                waiting = self._round(number, waiting, sink, outcome)
                if not waiting or self.late:
                    break
            for thread in waiting or ():
                note(f"thread {thread.id}: still no after {self.plan['max_rounds']} rounds")
                outcome.said_no = True
                self._give(thread, "no", sink)

    def _round(self, number: int, waiting: list[Thread] | None, sink: Sink, outcome: Outcome) -> list[Thread]:
        """One round: of what is on stdin, or of the threads that wait. The threads that are to go round again.

        Of those that waited none is lost: where a stage fails, and one does not come back whole, what went in goes out.
        """
        again: list[Thread] = []
        inside, before = {thread.id: thread for thread in waiting or ()}, set(outcome.failures)
        read, out = os.pipe()
        feed = None if waiting is None else _Feed(waiting)
        try:
            with self._stages(number, 0 if feed is None else feed.end, out) as running:
                os.close(out)
                out = -1
                if feed:
                    feed.start()
                source = Source(outcome, sink.record, descriptor=read, may_be_empty=True, name=f"round {number}")
                for thread in source.threads():
                    sent, fault = inside.pop(thread.id, None), thread.fault
                    if sent and (fault or thread.status == "failed"):
                        thread = _both(sent, thread)
                    if fault:
                        self._give(thread, "failed", sink, [complaint(fault, thread)])
                    elif thread.status == "no" and (number == self.plan["max_rounds"] or _asked_again(thread)):
                        again.append(thread)
                    else:
                        outcome.said_no = outcome.said_no or thread.status == "no"  # a gate's, of an answer that stays
                        self._give(thread, thread.status, sink)
                status = self._status(running.statuses(), number)
                if status not in (OK, NO):
                    outcome.failures = before | {status}  # a stream that was cut is that stage's doing
                    for thread in inside.values():
                        gone = InputCut(f"it did not come back from round {number}: {self.why}")
                        self._give(thread, "failed", sink, [complaint(gone, thread)])
        finally:
            for fd in (read, out):
                if fd >= 0:
                    os.close(fd)
            if feed:
                feed.close()
        return again

    def _give(self, thread: Thread, status: str, sink: Sink, made: list[Record] | None = None) -> None:
        """Let a thread go out; a person gets its answer, once."""
        if self.as_text:
            answers = [record for record in branch(thread.records) if record["role"] == "assistant"]
            if answers and answers[-1]["id"] != thread.shown:
                show(text_of(answers[-1]["content"]).rstrip("\n") + "\n")
        sink.thread(thread, made or [], status)

    @contextmanager
    def _stages(self, number: int, stdin: int, stdout: int) -> Iterator[Pipeline]:
        """The stages of a round, started. CallFailed if one is not there."""
        told = [(argv, self.environment | variables(self.plan, label)) for label, argv in of_round(self.plan, number)]
        with pipeline(told, stdin, stdout) as self.running:
            yield self.running

    def _status(self, statuses: list[int], number: int, passage: Passage | None = None) -> int:
        """The exit status of a round, by those of its stages, all of which have ended, and what was passed on."""
        if self.late:
            return DEADLINE
        heard = passage.status() if passage else OK
        if passage and passage.left and statuses[-1] != OK:
            statuses[-1] = LEFT  # in whatever way the stage takes it
        ended = [(*stage, status) for stage, status in zip(of_round(self.plan, number), statuses, strict=True)]
        failed = [one for one in ended if one[2] not in (OK, LEFT) and (one[2] != NO or not _is_ours(one[1]))]
        if statuses[-1] == LEFT:
            failed = [one for one in failed if one[2] != NO]  # so ends who is not ended by SIGPIPE
        elif failed == ended[-1:] and (statuses[-1], heard) == (NO, NO):
            failed = []  # a judge in other clothes
        if failed:
            label, argv, status = next((one for one in failed if one[2] != FAILED), failed[0])
            self.why = f"{_name(label, argv)} ended with status {status}"
            return FAILED if status == NO else status
        if statuses[-1] == LEFT:
            return LEFT
        if passage and heard not in (OK, NO):
            what = "cut the stream, or dropped its end record" if passage.cut else "passed on what had failed"
            self.why = f"{_name(*ended[-1][:2])} {what}"
            return heard
        ours = [status for _, argv, status in ended if _is_ours(argv)]
        return NO if NO in (heard, *ours[-1:]) else OK

    @contextmanager
    def _clock(self) -> Iterator[None]:
        """Ends the stages when the time is over."""
        if self.timeout_s is None:
            yield
            return
        clock = threading.Timer(self.timeout_s, self._stop_late)
        clock.daemon = True
        clock.start()
        try:
            yield
        finally:
            clock.cancel()

    def _stop_late(self) -> None:
        self.late = True
        self.why = f"not done within {self.timeout_s:g} s, which --timeout sets"
        if self.running:
            self.running.stop()

    def _leave(self) -> None:
        """The reader of our stdout has left: so do we, when the stages have written down what was paid for. That this
        cuts the stream between them is not worth a word (law 8)."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        if self.running:
            self.running.stop()
        os._exit(LEFT)


class _Feed:
    """Threads as the stream that a round reads: in a thread of its own, for the round writes while it reads."""

    def __init__(self, threads: list[Thread]) -> None:
        self.end, self.write = os.pipe()
        self.threads = threads
        self.feeder = threading.Thread(target=self._feed, name="feeder", daemon=True)

    def start(self) -> None:
        """Begin to write; the stages have their own end of the pipe by now."""
        os.close(self.end)
        self.end = -1
        self.feeder.start()

    def close(self) -> None:
        """Let go of what was not used."""
        if self.end >= 0:
            os.close(self.end)
            os.close(self.write)
        else:
            self.feeder.join()

    def _feed(self) -> None:
        lines = [line_of({"v": 1, "type": "begin", "at": timestamp()})]
        for thread in self.threads:
            handoff: Record = {"v": 1, "type": "handoff", "thread": thread.id, "status": "no"}
            handoff |= {"parent_run_id": thread.run, "at": timestamp()}
            handoff |= {"shown": thread.shown} if thread.shown else {}
            lines += [*(line + b"\n" for line in thread.lines), line_of(handoff)]
        lines.append(line_of({"v": 1, "type": "end", "threads": len(self.threads)}))
        try:
            for line in lines:
                _write_all(self.write, line)
        except BrokenPipeError:
            pass  # the stage has ended; its status says why
        finally:
            os.close(self.write)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _asked_again(thread: Thread) -> bool:
    """True if the judge of the loop has asked for another answer (`--reply`). A handoff's "no" may be that of a gate
    among the stages, and then there is nothing to answer in a further round."""
    return bool(branch(thread.records)[-1]["role"] != "assistant")


def _both(sent: Thread, cut: Thread) -> Thread:
    """A thread as it went in, and what of it came back that is new."""
    both = sent.with_more([])
    both.status, both.shown = cut.status, cut.shown or both.shown
    for record in cut.records:
        if record["id"] not in sent.raws:
            both.add(record, cut.raws[record["id"]])
    return both
