"""What a last stage that is no command of ours writes, on its way to our stdout.

It is passed on as it comes, and read as the next command would read it: only so is it seen that the stream was cut, or
what a judge in it has said. Where the stage was to be seen at a terminal it is not asked to write into a pipe.
"""

from __future__ import annotations

import os
import select
import signal

from mllm_pipe.copying import Baton
from mllm_pipe.envelope import CONTROL
from mllm_pipe.errors import FAILED, OK, Outcome, Stopped, WriteFailed
from mllm_pipe.lines import blank, parse
from mllm_pipe.runtimes._pipes import pipe
from mllm_pipe.stream import write
from mllm_pipe.terminal import kind_of

CHUNK = 1 << 16
LONGEST = 1 << 16  # bytes of a line that may be a control record; what is longer is not kept until it ends
_SIGNS = tuple(b'"%s"' % kind.encode() for kind in CONTROL)


class Passage:
    """A pipe to our stdout. `fault` is why that could not be written; `left`: nobody reads it any more."""

    def __init__(self) -> None:
        self.read, self.end = pipe()
        self.fault: WriteFailed | None = None
        self.left = False
        self._to_file = kind_of(1) == "file"  # no command writes control records there
        self._outcome = Outcome()
        self._baton = Baton(self._outcome)
        self._rest = b""  # the beginning of a line
        self._inside = False  # a line that is longer than LONGEST
        self._kind = ""  # records or text, known by the first line

    def __enter__(self) -> Passage:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def run(self, ended: int) -> None:
        """Pass on what comes until the stage has ended, at which `ended` can be read. Where nobody takes it any more
        the pipe is closed, so that the stage is told so as it would have been."""
        os.close(self.end)
        self.end = -1
        try:
            self._pass_on(ended)
        except WriteFailed as fault:
            self.fault = fault
        except Stopped as stopped:
            if stopped.signum != signal.SIGPIPE:
                raise
            self.left = True
        self._close()

    def status(self) -> int:
        """The exit status of a command that had read what was passed on: of text that is no records, 0."""
        if self.left:
            return OK
        return FAILED if self.cut else self._outcome.status()

    @property
    def cut(self) -> bool:
        """True if a stream was begun and not ended."""
        return self._baton.unended

    def _close(self) -> None:
        for fd in (self.read, self.end):
            if fd >= 0:
                os.close(fd)
        self.read = self.end = -1

    def _pass_on(self, ended: int) -> None:
        poll = select.poll()
        poll.register(self.read, select.POLLIN)
        poll.register(ended, select.POLLIN)
        if kind_of(1) == "pipe":
            poll.register(1, 0)
        wait = None
        while ready := {fd for fd, _ in poll.poll(wait)}:
            if 1 in ready:
                self.left = True
                return
            if ended in ready:  # what has left the group of the stage may hold the pipe open for ever
                poll.unregister(ended)
                wait = 0
            if self.read in ready:
                chunk = os.read(self.read, CHUNK)
                if not chunk:
                    break
                write(self._taken(chunk))
        last, self._rest = self._rest, b""
        if last and not self._is_control(last) and self._to_file:
            write(last)

    def _taken(self, chunk: bytes) -> bytes:
        """Read what came; what of it goes on: all, but into a file no control record, nor what may become one."""
        if self._kind == "text":
            return chunk
        *lines, rest = (self._rest + chunk).split(b"\n")
        kept = []
        for line in lines:
            if self._inside or not self._is_control(line):
                kept.append(line + b"\n")
            self._inside = False
        if self._inside or len(rest) > LONGEST or self._kind == "text":
            kept.append(rest)
            rest, self._inside = b"", True
        self._rest = rest
        return b"".join(kept) if self._to_file else chunk

    def _is_control(self, line: bytes) -> bool:
        """Whether a line is a control record, which then is heard."""
        if not self._kind and not blank(line):
            self._kind = "text" if parse(line)[1] else "records"
        if self._kind != "records" or not any(sign in line for sign in _SIGNS):
            return False
        record, fault = parse(line)
        if fault or record["type"] not in CONTROL:
            return False
        self._baton.take(record)
        return True
