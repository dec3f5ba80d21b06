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
from time import monotonic
from typing import Any, NamedTuple

from mllm_pipe.errors import CallFailed

GRACE_S = 1.0  # between TERM and KILL
STAGE_GRACE_S = 10.0  # the same for stages of a group, which write down what was paid for before they end
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


def allowed_env(prefixes: Sequence[str] = (), extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """An environment for a child that is not the user's own: an allowlist, so that no key reaches it by chance.

    prefixes: of further names that it needs (its vendor's own). extra: what is set on top.
    """
    wanted = (*SAFE_PREFIXES, *prefixes)
    ours = {k: v for k, v in os.environ.items() if k in SAFE_NAMES or k.startswith(wanted)}
    return {**ours, **(extra or {})}


def find(program: str, path: str | None = None) -> str | None:
    """The absolute path of a program, looked up as a shell does, or None. (`shutil.which`, without its import.)"""
    directories = [""] if "/" in program else (path or os.environ.get("PATH", os.defpath)).split(os.pathsep)
    for directory in directories:
        candidate = os.path.abspath(os.path.join(directory, program))
        if os.access(candidate, os.X_OK) and not os.path.isdir(candidate):
            return candidate
    return None


def by_line(on_line: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """An `on_bytes` for `run` that calls `on_line` with each line, without its newline; the last may lack one."""
    rest: list[bytes] = []

    def on_bytes(data: bytes) -> None:
        head, *lines = data.split(b"\n")
        rest.append(head)
        if lines or not data:
            for line in (b"".join(rest), *lines[:-1]):
                if line:
                    on_line(line)
            rest[:] = lines[-1:]

    return on_bytes


def last_line(text: str, secrets: Sequence[str] = ()) -> str:
    """The last line of a text that says something, fit for an error message: short, no controls, no secrets."""
    from mllm_pipe.runtimes._faults import tidy

    lines = [tidy(re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", line), secrets) for line in text.split("\n")]
    return next((line for line in reversed(lines) if line), "")


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
    deadline, raising CallFailed("timeout") when it has passed. cwd: None is ours. Works in any thread.
    CallFailed "missing" if it cannot be started, "malformed" if it writes more than MAX_OUTPUT. On any exception,
    from here, from `left` or from `on_bytes`, the group is gone before it goes up: TERM, GRACE_S, KILL.
    """
    if (program := find(argv[0], env.get("PATH"))) is None:
        raise CallFailed("missing", f"{argv[0]}: no such program on PATH; install it or fix PATH", billed="no")
    command = [program, *argv[1:]]
    if cwd is not None:
        # posix_spawn has no working directory; sh also sets PWD, which some programs believe.
        program, command = "/bin/sh", ["sh", "-c", 'cd -- "$0" && exec "$@"', cwd, *command]
    (child_in, our_in), (our_out, child_out), (our_err, child_err), (woken, wake) = (_pipe() for _ in range(4))
    child, fds, streams = _Child(), (our_in, our_out, our_err, woken), (child_in, child_out, child_err)
    ours = set(fds)
    _widen(our_out)
    try:
        _thread.start_new_thread(_tend, (child, program, command, env, streams, wake))
        child.started.acquire()
        if child.fault:
            raise CallFailed("missing", f"{argv[0]}: cannot be started: {child.fault}", billed="no")
        tail = _pump(ours, fds, stdin, left, on_bytes)
        return Exit(child.status, tail)
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
            _signal(pid, signal.SIGKILL)
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


# -- children joined by pipes ------------------------------------------------------------------------------------------


class Pipeline:
    """Programs that run at once, each one's stdout the next one's stdin, as a shell joins them."""

    def __init__(self) -> None:
        self.children: list[_Child] = []
        self.woken: list[int] = []  # of each child: at its end when the child is

    def statuses(self) -> list[int]:
        """The exit status of each program (128 + n for signal n), when all have ended."""
        for fd in self.woken:
            os.read(fd, 1)
        return [child.status for child in self.children]

    def stop(self) -> None:
        """Ends all that still run: TERM to each group, STAGE_GRACE_S for their leaders together, KILL to what is left.
        From any thread."""
        with _lock:
            for child in self.children:
                child.wanted = False
            running = [child for child in self.children if child.pid in _live]
        try:
            for child in running:
                _signal(child.pid, signal.SIGTERM)
            until = monotonic() + STAGE_GRACE_S
            for child in running:
                if child.ended.acquire(timeout=max(0.0, until - monotonic())):
                    child.ended.release()
        finally:  # a second signal to us must not save them
            for child in running:
                _signal(child.pid, signal.SIGKILL)


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
            read, write = _pipe() if number < len(stages) else (-1, os.dup(stdout))
            woken, wake = _pipe()
            child, streams = _Child(), (source, write, os.dup(2))
            source = read
            made.children.append(child)
            made.woken.append(woken)
            _thread.start_new_thread(_tend, (child, program, argv, env, streams, wake))
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


# -- one child --------------------------------------------------------------------------------------------------------


class _Child:
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


def _tend(
    child: _Child, program: str, command: Sequence[str], env: Mapping[str, str], streams: tuple[int, ...], wake: int
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
        _signal(child.pid, signal.SIGKILL)
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
        file_actions=[*actions, *((os.POSIX_SPAWN_CLOSE, fd) for fd in _inherited())],
        setsid=True,
        setsigmask=[],
        setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
    )


def _pipe() -> tuple[int, int]:
    """A pipe of which no end is a standard stream, not even when ours are closed: putting one in place would hit it."""
    ends = os.pipe()
    if min(ends) > 2:
        return ends
    import fcntl

    moved = tuple(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in ends)
    for fd in ends:
        os.close(fd)
    return moved[0], moved[1]


def _widen(pipe: int) -> None:
    """Lets a pipe hold 1 MiB, where that can be done: claude ends without what its full pipe did not take (seen)."""
    import fcntl

    with suppress(AttributeError, OSError):  # not Linux; over the user's limit
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 1 << 20)


def _inherited() -> list[int]:
    """The open files beyond stderr that a child would inherit; our own pipes are not among them (PEP 446)."""
    found = []
    for fd in map(int, os.listdir("/dev/fd")):
        with suppress(OSError):  # the one that listdir had open
            found += [fd] if fd > 2 and os.get_inheritable(fd) else []
    return found


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


def _stop(child: _Child) -> None:
    """Ends a child that is still there: TERM to its group, GRACE_S for the leader, KILL to what is left."""
    with _lock:
        child.wanted = False
        if child.pid not in _live:
            return
    try:
        _signal(child.pid, signal.SIGTERM)
        if child.ended.acquire(timeout=GRACE_S):
            child.ended.release()
    finally:  # a second signal to us must not save it
        _signal(child.pid, signal.SIGKILL)
        child.ended.acquire(timeout=GRACE_S)


def _signal(pid: int, signum: int) -> None:
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
            read, _leash_fd = _pipe()
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
