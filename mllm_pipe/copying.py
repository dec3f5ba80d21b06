"""cat for records: every line is checked for what a record must have, and nothing is kept but the batch at hand."""

from __future__ import annotations

from collections.abc import Callable

from mllm_pipe.envelope import CONTROL, Record, line_of, timestamp
from mllm_pipe.errors import FAILED, Outcome, Usage
from mllm_pipe.lines import Lines, Long, bad_line, blank, closes, parse
from mllm_pipe.stream import refuse_text, write
from mllm_pipe.terminal import kind_of, note, safe, say


def copy(outcome: Outcome, complete: Callable[[Record], Record | None], max_line: int) -> int:
    """Copy stdin to stdout; the exit status. `complete` makes a record of a bare message, or gives None.

    A line that is no record goes on as an error record. Control records go on into a pipe only, and are obeyed; into
    a pipe a stream without them gets its begin and its end, so that the next command notices if we are killed.
    """
    lines, copier = Lines(0, max_line), _Copier(outcome, complete)
    for batch in lines.batches():
        out = copier.batch(batch)
        if out:
            out.append(b"")
            data = b"\n".join(out)
            write(safe(data.decode("utf-8", "replace")).encode() if copier.terminal else data)
    if not copier.records:
        raise Usage("stdin is empty: did the command before fail?")
    last = copier.end(lines.torn)
    if last:
        write(b"\n".join([*last, b""]))
    return outcome.status()


class Baton:
    """What the control records of a stream have said so far: of its threads, in the outcome, and of itself."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome, self.seen, self.unended = outcome, False, False

    def take(self, control: Record) -> None:
        """Remember what one of them says."""
        self.seen, self.unended = True, control["type"] != "end"
        if control["type"] == "handoff" and control.get("status") != "ok":
            if control.get("status") == "no":
                self.outcome.said_no = True
            else:
                self.outcome.fail(FAILED)
        elif control["type"] == "end":
            self.outcome.said_no = self.outcome.said_no or control.get("status") == "no"
            if isinstance(control.get("bad_lines"), int):
                self.outcome.bad_lines += control["bad_lines"]


class _Copier:
    """What has to be known of the lines before: whether the stream began, a bad line that may be known damage."""

    def __init__(self, outcome: Outcome, complete: Callable[[Record], Record | None]) -> None:
        self.outcome, self.complete = outcome, complete
        self.pipe, self.terminal = kind_of(1) == "pipe", kind_of(1) == "terminal"
        self.number = self.records = 0
        self.baton = Baton(outcome)
        self.held: tuple[bytes | Long, int, str] | None = None

    def batch(self, batch: list[bytes | Long]) -> list[bytes]:
        """The lines to write for a batch of lines."""
        out: list[bytes] = []
        for line in batch:
            self.number += 1
            record, fault = parse(line)
            if fault or self.held or not self.records or record["type"] in CONTROL or isinstance(line, Long):
                if fault and blank(line):
                    continue
                self._unusual(line, record, fault, out)
            else:
                out.append(line)
        return out

    def _unusual(self, line: bytes | Long, record: Record, fault: str, out: list[bytes]) -> None:
        """The first line, a control record, a bare message, a bad line or one after it."""
        if self.held:
            out.append(self._report(known=not fault and closes(record, self.held[0])))
        if not self.records:
            refuse_text(line)
            if self.pipe and record.get("type") not in CONTROL:
                out.append(line_of({"v": 1, "type": "begin", "at": timestamp()})[:-1])
        self.records += 1
        if not fault and record["type"] in CONTROL:
            goes_on = self._obeyed(record, line)
            if self.pipe:
                out.append(goes_on)
        elif not fault:
            assert isinstance(line, bytes)
            out.append(line)
        elif record and (made := self.complete(record)):
            out.append(line_of(made)[:-1])
        else:
            self.held = line, self.number, fault

    def end(self, torn: bool) -> list[bytes]:
        """What is to be written after the last line. A stream that was cut gets no end: the next one shall see it."""
        out = [self._report(known=False)] if self.held else []
        cut = torn and bool(out)
        if self.baton.unended:
            self.outcome.fail(FAILED)
            say("input ended early: the command before was killed, or a filter dropped the end record")
        if self.pipe and not self.baton.seen and not cut:
            end: Record = {"v": 1, "type": "end", "threads": 0}
            out.append(line_of(self._with_bad_lines(end))[:-1])
        return out

    def _report(self, *, known: bool) -> bytes:
        assert self.held
        line, number, fault = self.held
        self.held = None
        if known:
            note(f"stdin: line {number}: torn by a write that was killed; known, nothing else is lost")
        else:
            self.outcome.bad_lines += 1
            say(f"stdin: line {number}: {fault}; passed on as an error record")
        return line_of(bad_line(line, number, "-", fault))[:-1]

    def _obeyed(self, control: Record, line: bytes | Long) -> bytes:
        """Remember what a control record says of the threads before it; the line that goes on."""
        ours = self.outcome.bad_lines
        self.baton.take(control)
        if ours and control["type"] == "end":
            return line_of(self._with_bad_lines(control))[:-1]
        assert isinstance(line, bytes)
        return line

    def _with_bad_lines(self, end: Record) -> Record:
        return end | ({"bad_lines": self.outcome.bad_lines} if self.outcome.bad_lines else {})
