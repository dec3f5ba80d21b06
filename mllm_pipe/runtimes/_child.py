"""The only starter of processes.

A child gets pipes for all three of its streams (a Node program that shared our stdout would make it non-blocking),
a session and process group of its own, and an end: its deadline is ours to keep, and whatever ends this call ends
the whole group. For the one end that we cannot handle, SIGKILL, there is the leash (see `_LEASH`).

`os.posix_spawn` and not `subprocess`, whose import alone is 5 ms, a quarter of what a command may take to start.
"""

from __future__ import annotations

import _thread
import os
import re
import select
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from mllm_pipe.errors import CallFailed
from mllm_pipe.runtimes._pipes import inherited, pipe, widen
from mllm_pipe.waiting import apart

GRACE_S = 1.0  # between TERM and KILL
MAX_OUTPUT = 64 << 20  # bytes; more than that is no answer, and no line that the next command would take
CHUNK = 1 << 16

SAFE_NAMES = frozenset((
    "HOME", "PATH", "LANG", "LANGUAGE", "TERM", "TMPDIR", "USER", "LOGNAME", "SHELL", "TZ",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy", "all_proxy",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS", "TRACEPARENT", "MLLM_PARENT_RUN_ID",
))  # fmt: skip
SAFE_PREFIXES = ("LC_", "XDG_")


class Exit(NamedTuple):
    """How a child ended: its exit status (128 + n for signal n), and the end of what it wrote on stderr."""

    status: int
    tail: str


class Enough(Exception):
    """What `on_bytes` raises to say that nothing more is wanted of a child: it is killed at once, without a grace."""


def allowed_env(prefixes: Sequence[str] = (), extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """An environment for a child that is not the user's own: an allowlist, so that no key reaches it by chance.

    prefixes: of further names that it needs (its vendor's own). extra: what is set on top.
    """
    wanted = (*SAFE_PREFIXES, *prefixes)
    ours = {k: v for k, v in os.environ.items() if k in SAFE_NAMES or k.startswith(wanted)}
    return {**ours, **(extra or {})}


def find(program: str, path: str | None = None) -> str | None:
    """The absolute path of a program, looked up as a shell does, or None. (`shutil.which`, without its import.)"""
    if "\0" in program:
        return None
    directories = [""] if "/" in program else (path or os.environ.get("PATH", os.defpath)).split(os.pathsep)
    for directory in directories:
        candidate = os.path.abspath(os.path.join(directory, program))
        if os.access(candidate, os.X_OK) and not os.path.isdir(candidate):
            return candidate
    return None


def last_line(text: str, secrets: Sequence[str] = ()) -> str:
    """The last line of a text that says something, fit for an error message: short, no controls, no secrets."""
    from mllm_pipe.runtimes._faults import tidy

    lines = [tidy(re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", line), secrets) for line in text.split("\n")]
    return next((line for line in reversed(lines) if line), "")


@apart
def run(
    argv: Sequence[str],
    *,
    stdin: bytes,
    env: Mapping[str, str],
    cwd: str | None,
    left: Callable[[], float],
    on_bytes: Callable[[bytes], None],
) -> Exit:
    """Runs a program with `stdin` as its input, and calls `on_bytes` with each piece of its stdout, b"" at the end.

    The call is over when the program is; what it left running in its group is killed. left: seconds until the
    deadline, raising CallFailed("timeout") when it has passed. cwd: None is ours. Works in any thread; `left` and
    `on_bytes` may be called in another, while the caller waits.
    CallFailed "missing" if it cannot be started, "malformed" if it writes more than MAX_OUTPUT. On any exception,
    from here, from `left` or from `on_bytes`, the group is gone before it goes up: TERM, GRACE_S, KILL; KILL on Enough.
    """
    if (program := find(argv[0], env.get("PATH"))) is None:
        raise CallFailed("missing", f"{argv[0]}: no such program on PATH; install it or fix PATH", billed="no")
    command = [program, *argv[1:]]
    if cwd is not None:
        # posix_spawn has no working directory; sh also sets PWD, which some programs believe.
        program, command = "/bin/sh", ["sh", "-c", 'cd -- "$0" && exec "$@"', cwd, *command]
    (child_in, our_in), (our_out, child_out), (our_err, child_err), (woken, wake) = (pipe() for _ in range(4))
    child, fds, streams = Child(), (our_in, our_out, our_err, woken), (child_in, child_out, child_err)
    ours = set(fds)
    widen(our_out)
    try:
        _thread.start_new_thread(tend, (child, program, command, env, streams, wake))
        child.started.acquire()
        if child.fault:
            raise CallFailed("missing", f"{argv[0]}: cannot be started: {child.fault}", billed="no")
        tail = _pump(ours, fds, stdin, left, on_bytes)
        return Exit(child.status, tail)
    except Enough:
        signal_group(child.pid, signal.SIGKILL)
        raise
    finally:
        for fd in ours:
            os.close(fd)
        _stop(child)


def kill_all() -> None:
    """Ends every child group at once, for good: no further child is started. For a process that is about to end.

    May be called from any thread.
    """
    global _closed
    with _lock:
        _closed = True
        for pid in _live:
            signal_group(pid, signal.SIGKILL)
        scratches = list(_scratches)
    if scratches:
        import shutil

        for path in scratches:
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def scratch(base: str | None = None) -> Iterator[str]:
    """A new empty directory, mode 0700, under `base` (default: the temp directory), removed at the end of the block.

    It is removed too when the block is ended by `kill_all` or by SIGKILL.
    """
    import shutil
    import tempfile

    path = os.path.join(os.path.realpath(base or tempfile.gettempdir()), f"mllm-{os.urandom(8).hex()}")
    with _lock:
        _scratches.append(path)
        _tell("+", path)
    try:
        os.makedirs(path, mode=0o700)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        with _lock:
            _scratches.remove(path)
            _tell("-", path)


# -- one child --------------------------------------------------------------------------------------------------------


class Child:
    """What the thread that tends a child and the one that waits for its answer tell each other."""

    def __init__(self) -> None:
        # Held until it is so. Plain locks: a signal handler that raises breaks an Event that is being waited for.
        self.started, self.ended = threading.Lock(), threading.Lock()
        self.started.acquire()
        self.ended.acquire()
        self.wanted = True
        self.pid = 0
        self.status = 0
        self.fault = ""


def tend(
    child: Child, program: str, command: Sequence[str], env: Mapping[str, str], streams: tuple[int, ...], wake: int
) -> None:
    """Starts a child, waits for its end, kills what it leaves of its group, and closes `wake`.

    In a thread, because a signal handler that raises (it runs in the main thread only) must not strike between the
    start of a child and our knowing its number. Between that start and the leash's knowing are some microseconds, in
    which our death by SIGKILL leaves the child an empty stdin.
    """
    try:
        with _lock:
            if _closed or not child.wanted:
                child.fault = "this command is ending"
                return
            _leash()
            child.pid = _spawn(program, command, env, [(os.POSIX_SPAWN_DUP2, fd, i) for i, fd in enumerate(streams)])
            _live.add(child.pid)
            _tell("+", str(child.pid))
    except (OSError, ValueError) as error:  # ValueError: a NUL in an argument
        child.fault = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return
    finally:
        for fd in streams:
            os.close(fd)
        if child.fault:
            os.close(wake)
        child.started.release()
    try:
        child.status = os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])
    except ChildProcessError:
        child.status = 0  # who started us has SIGCHLD ignored: nobody knows the status
    if child.status < 0:
        child.status = 128 - child.status
    with _lock:
        signal_group(child.pid, signal.SIGKILL)
        _live.discard(child.pid)
        _tell("-", str(child.pid))
    os.close(wake)
    child.ended.release()


def _spawn(program: str, command: Sequence[str], env: Mapping[str, str], actions: Sequence[tuple[Any, ...]]) -> int:
    """posix_spawn in a new session, with default signals, and none of the files that we inherited beyond stderr."""
    return os.posix_spawn(
        program,
        list(command),
        env,
        file_actions=[*actions, *((os.POSIX_SPAWN_CLOSE, fd) for fd in inherited())],
        setsid=True,
        setsigmask=[],
        setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
    )


def _pump(
    ours: set[int], fds: tuple[int, ...], data: bytes, left: Callable[[], float], on_bytes: Callable[[bytes], None]
) -> str:
    """Writes `data`, reads both outputs until they end, or the child does (`woken`); the tail of stderr.

    What it closes it takes out of `ours`: the number may be another thread's at once.
    """
    to, out, err, woken = fds
    os.set_blocking(to, False)
    poll = select.poll()
    poll.register(to, select.POLLOUT)
    for fd in (out, err, woken):
        poll.register(fd, select.POLLIN)
    view, tail, size, running, reading = memoryview(data), b"", 0, True, {out, err}
    while running or reading:
        # When it has ended there is only what stands in the pipes, and who left its group may hold them open.
        ready = poll.poll(min(left(), 3600 if running else 0.1) * 1000 + 1)
        if not ready and not running:
            break
        for fd, _ in ready:
            if fd == woken:
                poll.unregister(woken)
                running = False
            elif fd == to:
                try:
                    view = view[os.write(to, view[:CHUNK]) :] if view else view
                except BlockingIOError:
                    continue
                except BrokenPipeError:
                    view = view[:0]  # it has read enough
                if not view:
                    poll.unregister(to)
                    ours.discard(to)
                    os.close(to)
            elif not (chunk := os.read(fd, CHUNK)):
                poll.unregister(fd)
                reading.discard(fd)
            elif fd == err:
                tail = (tail + chunk)[-4096:]
            else:
                size += len(chunk)
                if size > MAX_OUTPUT:
                    raise CallFailed("malformed", f"its output is longer than {MAX_OUTPUT >> 20} MiB")
                on_bytes(chunk)
    on_bytes(b"")
    return tail.decode("utf-8", "replace")


def unwanted(children: Sequence[Child]) -> list[Child]:
    """Lets none of the children be started any more; those that run."""
    with _lock:
        for child in children:
            child.wanted = False
        return [child for child in children if child.pid in _live]


def _stop(child: Child) -> None:
    """Ends a child that is still there: TERM to its group, GRACE_S for the leader, KILL to what is left."""
    if not unwanted([child]):
        return
    try:
        signal_group(child.pid, signal.SIGTERM)
        if child.ended.acquire(timeout=GRACE_S):
            child.ended.release()
    finally:  # a second signal to us must not save it
        signal_group(child.pid, signal.SIGKILL)
        child.ended.acquire(timeout=GRACE_S)


def signal_group(pid: int, signum: int) -> None:
    """Sends a signal to a group that is still ours to signal: a number may be given anew once it was waited for."""
    with _lock:
        if pid in _live:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signum)


# -- the leash --------------------------------------------------------------------------------------------------------

# One small shell beside us, in a session of its own and deaf to signals. It reads `+ X` and `- X`, X the number of a
# group or the absolute path of a scratch; its stdin ends when we do, and what is then on the list goes.
_LEASH = r"""trap '' HUP INT QUIT TERM TSTP PIPE
cd /
set -f
n='
'
l=$n
while IFS= read -r x; do
  case $x in
  '+ '*) l=$l${x#+ }$n ;;
  '- '*) x=$n${x#- }$n; l=${l%%"$x"*}$n${l#*"$x"} ;;
  esac
done
IFS=$n
each() {
  for e in $l; do
    case $e in
    /*) [ "$1" = rm ] && rm -rf -- "$e" ;;
    *) [ "$1" != rm ] && kill -s "$1" -- "-$e" 2>&- && some=1 ;;
    esac
  done
}
each TERM
for i in 1 2 3 4 5 6 7 8 9 10; do
  some=
  each 0
  [ "$some" ] || break
  sleep 0.1
done
each KILL
each rm
"""

_lock = threading.RLock()
_live: set[int] = set()
_scratches: list[str] = []
_closed = False
_leash_fd: int | None = None


def _leash() -> int:
    """Starts the leash, once; the pipe to it."""
    global _leash_fd
    with _lock:
        if _leash_fd is None:
            read, _leash_fd = pipe()
            null = (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)
            actions = [(os.POSIX_SPAWN_DUP2, read, 0), null, (os.POSIX_SPAWN_DUP2, 1, 2)]
            _spawn("/bin/sh", ["sh", "-c", _LEASH], {"PATH": "/usr/bin:/bin"}, actions)
            os.close(read)
        return _leash_fd


def _tell(sign: str, what: str) -> None:
    """Puts a group or a path on the leash's list, or takes it off; a path that is no line stays off."""
    with suppress(BrokenPipeError):  # who kills the leash has what a program without one has
        if "\n" not in what:
            os.write(_leash(), os.fsencode(f"{sign} {what}\n"))
