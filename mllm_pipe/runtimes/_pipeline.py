"""Children joined by pipes, as a shell joins them: the stages of a group.

Unlike the programs that answer a call (`_child.run`), they share our stderr, and what flows from one to the next does
not pass through us.
"""

from __future__ import annotations

import _thread
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import monotonic

from mllm_pipe.errors import CallFailed
from mllm_pipe.runtimes import _child
from mllm_pipe.runtimes._child import Child, find, signal_group, tend
from mllm_pipe.runtimes._pipes import pipe

GRACE_S = 10.0  # between TERM and KILL: stages write down what was paid for before they end


class Pipeline:
    """Programs that run at once, each one's stdout the next one's stdin, as a shell joins them."""

    def __init__(self) -> None:
        self.children: list[Child] = []
        self.woken: list[int] = []  # of each child: at its end when the child is

    def statuses(self) -> list[int]:
        """The exit status of each program (128 + n for signal n), when all have ended."""
        for fd in self.woken:
            os.read(fd, 1)
        return [child.status for child in self.children]

    def stop(self) -> None:
        """Ends all that still run: TERM to each group, GRACE_S for their leaders together, KILL to what is left.
        From any thread."""
        running = _child.unwanted(self.children)
        try:
            for child in reversed(running):  # or one would see that the stream to it is cut, and say so
                signal_group(child.pid, signal.SIGTERM)
            until = monotonic() + GRACE_S
            for child in running:
                if child.ended.acquire(timeout=max(0.0, until - monotonic())):
                    child.ended.release()
        finally:  # a second signal to us must not save them
            for child in running:
                signal_group(child.pid, signal.SIGKILL)


@contextmanager
def pipeline(
    stages: Sequence[tuple[Sequence[str], Mapping[str, str]]], stdin: int, stdout: int
) -> Iterator[Pipeline]:
    """Starts programs joined by pipes, each of `stages` an (argv, environment), between two open descriptors.

    The descriptors stay open here; stderr is ours. Whoever still runs when the block ends is ended. CallFailed
    "missing" if one of them cannot be started, before any is started where that can be seen.
    """
    programs = []
    for argv, env in stages:
        if (program := find(argv[0], env.get("PATH"))) is None:
            raise CallFailed("missing", f"{argv[0]}: no such program on PATH; install it or fix PATH", billed="no")
        programs.append(program)
    made, source = Pipeline(), os.dup(stdin)
    try:
        for number, ((argv, env), program) in enumerate(zip(stages, programs, strict=True), 1):
            read, write = pipe() if number < len(stages) else (-1, os.dup(stdout))
            woken, wake = pipe()
            child, streams = Child(), (source, write, os.dup(2))
            source = read
            made.children.append(child)
            made.woken.append(woken)
            _thread.start_new_thread(tend, (child, program, argv, env, streams, wake))
            child.started.acquire()
            if child.fault:
                raise CallFailed("missing", f"{argv[0]}: cannot be started: {child.fault}", billed="no")
        yield made
    finally:
        if source >= 0:
            os.close(source)
        made.stop()
        for fd in made.woken:
            os.close(fd)
