"""Children and the kind "command": every end of ours, of theirs and of the clock leaves nothing running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from programs import Brief

from mllm_pipe.errors import CallFailed
from mllm_pipe.runtimes import _child, _key, _listening, command

ENV = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


class Io:
    """What a runtime is given: keeps the pieces of the answer and a deadline."""

    def __init__(self, seconds: float = 120.0) -> None:
        self.pieces: list[str] = []
        self.run = "run-1"
        self.end = time.monotonic() + seconds

    def text(self, piece: str) -> None:
        self.pieces.append(piece)

    def lost(self, losses: list[dict[str, Any]]) -> None:
        pass

    def left(self) -> float:
        left = self.end - time.monotonic()
        if left <= 0:
            raise CallFailed("timeout", "late")
        return left


def view(text: str, system: str | None = None) -> dict[str, Any]:
    turn = {"role": "user", "parts": [{"type": "text", "text": text}], "ids": ["1"], "origin": None}
    return {"system": system, "turns": [turn], "schema": None}


def ask(*argv: str, text: str = "hi", seconds: float = 120.0, **target: Any) -> tuple[dict[str, Any], Io]:
    io = Io(seconds)
    return command.call({"argv": list(argv)} | target, view(text), io), io


def failure(*argv: str, text: str = "hi", seconds: float = 120.0, **target: Any) -> CallFailed:
    with pytest.raises(CallFailed) as caught:
        ask(*argv, text=text, seconds=seconds, **target)
    return caught.value


def text_of(result: dict[str, Any]) -> str:
    assert [part["type"] for part in result["parts"]] == ["text"]
    return str(result["parts"][0]["text"])


def carrying(mark: str) -> list[int]:
    """The processes that have the mark in their environment, zombies aside."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def late(argv: list[str], said: str) -> CallFailed:
    """The failure of a call whose deadline comes as soon as the program has said this."""
    io = Brief(lambda: said in "".join(io.pieces))
    with pytest.raises(CallFailed) as caught:
        command.call({"argv": argv}, view("hi"), io)
    assert caught.value.code == "timeout"
    return caught.value


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Waits for a condition, and fails when it does not come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        threading.Event().wait(0.01)


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[str]:
    """A text in our environment by which the processes of a test are known; those left are ended."""
    name = f"mllm-test-{os.getpid()}-{request.node.name}"
    monkeypatch.setenv("MLLM_TEST_MARK", name)
    yield name
    for pid in carrying(name):
        with suppress(ProcessLookupError):  # it has ended meanwhile
            if pid != os.getpid():
                os.kill(pid, signal.SIGKILL)


def test_prompt_in_answer_out_and_trailing_newlines_go() -> None:
    result, io = ask("cat", text="one\n\ntwo\n\n\n")
    assert text_of(result) == "one\n\ntwo" == "".join(io.pieces)
    assert {key: result[key] for key in ("finish", "model", "usage", "cost_usd", "losses")} == {
        "finish": "stop", "model": None, "usage": None, "cost_usd": None, "losses": []}  # fmt: skip


def test_history_or_system_text_makes_one_framed_text() -> None:
    answer = {"role": "assistant", "parts": [{"type": "text", "text": "a"}], "ids": ["2"], "origin": None}
    turns = [*view("first")["turns"], answer, *view("last")["turns"]]
    framed, losses = command.request({"system": "be brief", "turns": turns, "schema": None})
    assert losses == []
    assert [word in framed for word in ("be brief", "first", "last")] == [True, True, True]
    assert command.request(view("as it is\n")) == ("as it is\n", [])


def test_text_comes_as_it_is_written(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    io = Io()

    def open_gate() -> None:
        until(lambda: io.pieces == ["first"])
        gate.write_text("")

    opener = threading.Thread(target=open_gate)
    opener.start()
    result = command.call({"argv": ["sh", "-c", f"echo first; cat '{gate}'; echo second"]}, view("x"), io)
    opener.join()
    assert io.pieces == ["first", "\nsecond"]
    assert text_of(result) == "first\nsecond"


def test_bytes_that_are_no_utf8_are_replaced_and_listed() -> None:
    result, _ = ask("printf", r"a\377b")
    assert text_of(result) == "a\ufffdb"
    assert [loss["action"] for loss in result["losses"]] == ["downgraded"]
    assert ask("printf", "a\ufffdb")[0]["losses"] == []


@pytest.mark.parametrize(
    ("argv", "code", "billed", "message"),
    [
        (["no-such-program"], "missing", "no", "no-such-program: no such program on PATH; install it or fix PATH"),
        (["/etc"], "missing", "no", "/etc: no such program on PATH; install it or fix PATH"),
        (["cat", "\0"], "missing", "no", "cat: cannot be started: embedded null byte"),
        (["true"], "empty", "unknown", "true: exit status 0, but no answer on its stdout"),
        (["sh", "-c", "echo a >&2; printf '\\033[31mb\\n\\n' >&2; exit 3"], "exit", "unknown", "sh: exit status 3: b"),
        (["sh", "-c", "kill -9 $$"], "exit", "unknown", "sh: exit status 137"),
    ],
)
def test_failures_say_what_and_why(argv: list[str], code: str, billed: str, message: str) -> None:
    failed = failure(*argv)
    assert (failed.code, failed.billed, str(failed)) == (code, billed, message)


def test_a_script_without_its_interpreter_is_missing(tmp_path: Path) -> None:
    script = tmp_path / "bot"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    assert failure(str(script)).code == "missing"
    assert command.usable({"argv": [str(script)]}) == ""
    assert command.usable({"argv": ["no-such-program"]}) == "no-such-program: no such program"


def test_what_came_before_a_failure_is_kept() -> None:
    failed = failure("sh", "-c", "echo half; exit 1")
    assert failed.result is not None
    assert (failed.result["parts"], failed.result["finish"]) == ([{"type": "text", "text": "half"}], "error")


def test_megabytes_both_ways_do_not_block() -> None:
    text = "0123456789abcde\n" * (5 << 16)
    assert text_of(ask("cat", text=text)[0]) == text.rstrip("\n")
    script = "import sys; sys.stderr.write('e' * (5 << 20)); sys.stdout.write('o' * (5 << 20)); sys.stdin.read()"
    assert len(text_of(ask(sys.executable, "-c", script, text=text)[0])) == 5 << 20
    assert text_of(ask("sh", "-c", "exec <&-; echo I do not listen", text=text)[0]) == "I do not listen"


def test_a_flood_is_no_answer(mark: str) -> None:
    failed = failure("yes")
    assert (failed.code, str(failed)) == ("malformed", "its output is longer than 64 MiB")
    until(lambda: carrying(mark) in ([], [os.getpid()]))


def test_vendor_keys_reach_only_the_program_that_is_given_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in _key.VENDOR_KEYS:
        monkeypatch.setenv(name, "sk-canary")
    monkeypatch.setenv("MY_OWN", "stays")
    result, _ = ask("sh", "-c", "echo $MY_OWN; env | grep sk-canary; echo end")
    assert text_of(result) == "stays\nend"
    result, _ = ask("sh", "-c", "env | grep sk-canary", pass_env=["GROQ_API_KEY"])
    assert text_of(result) == "GROQ_API_KEY=sk-canary"
    failed = failure("sh", "-c", "echo I hate $GROQ_API_KEY >&2; exit 1", pass_env=["GROQ_API_KEY"])
    assert str(failed) == "sh: exit status 1: I hate ***"
    assert command.preview({"argv": ["cat"], "pass_env": ["GROQ_API_KEY"]}, view("x"))["env"] == {"GROQ_API_KEY": "***"}


def test_the_allowlist_lets_nothing_else_through(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY", "LD_PRELOAD", "PYTHONPATH", "LC_TIME", "https_proxy"):
        monkeypatch.setenv(name, "canary")
    env = _child.allowed_env(("OPENAI_",), {"X": "1"})
    assert {name for name, value in env.items() if value == "canary"} == {"LC_TIME", "OPENAI_API_KEY", "https_proxy"}
    assert env["X"] == "1"


def test_a_child_has_pipes_and_a_session_of_its_own() -> None:
    out, pieces = os.open("/dev/null", os.O_RDONLY), bytearray()
    os.set_inheritable(out, True)  # as a shell leaves one open for us: it is not for the child
    try:
        script = "ls -l /proc/self/fd | grep -o '[0-9]* -> [a-z/]*'; ps -o pid=,pgid=,sid= -p $$"
        _child.run(["sh", "-c", script], stdin=b"", env=ENV, cwd="/", left=lambda: 9.0, on_bytes=pieces.extend)
    finally:
        os.close(out)
    *files, ids = pieces.decode().splitlines()
    assert files[:3] == ["0 -> pipe", "1 -> pipe", "2 -> pipe"]
    assert [line for line in files[3:] if not line.endswith("/proc/")] == []  # ls's own
    assert len(set(ids.split())) == 1


def test_the_working_directory_is_the_one_asked_for(tmp_path: Path) -> None:
    pieces = bytearray()
    _child.run(["sh", "-c", "pwd -P; echo $PWD"], stdin=b"", env=ENV, cwd=str(tmp_path), left=lambda: 9.0,
               on_bytes=pieces.extend)  # fmt: skip
    assert pieces.decode().splitlines() == [str(tmp_path)] * 2


def test_the_deadline_ends_the_whole_group(mark: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As soon as its leader has gone: no grace is waited for to its end."""
    monkeypatch.setattr(_child, "GRACE_S", 90.0)
    begun = time.monotonic()
    failed = late(["sh", "-c", "sleep 99 & (trap '' TERM; echo half; sleep 99) & wait"], "half")
    assert failed.result is not None
    assert text_of(failed.result) == "half"
    assert time.monotonic() - begun < _child.GRACE_S
    until(lambda: carrying(mark) in ([], [os.getpid()]))


def test_one_that_is_deaf_to_term_is_killed(mark: str) -> None:
    late(["sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 1; done"], "deaf")
    until(lambda: carrying(mark) in ([], [os.getpid()]))


def test_what_a_program_leaves_running_does_not_keep_us(mark: str) -> None:
    assert text_of(ask("sh", "-c", "sleep 99 & echo done")[0]) == "done"
    assert text_of(ask("sh", "-c", "setsid sleep 9 & sleep 0.2; echo done")[0]) == "done"  # who left the group lives on


def test_an_exception_of_ours_ends_the_child(mark: str) -> None:
    class Gone(BaseException):
        pass

    def on_bytes(_: bytes) -> None:
        raise Gone

    with pytest.raises(Gone):
        _child.run(["sh", "-c", "echo x; sleep 99"], stdin=b"", env=dict(os.environ), cwd=None, left=lambda: 99.0,
                   on_bytes=on_bytes)  # fmt: skip
    until(lambda: carrying(mark) in ([], [os.getpid()]))


def test_many_at_once_in_threads() -> None:
    texts: dict[int, str] = {}

    def one(number: int) -> None:
        texts[number] = text_of(ask("cat", text=f"{number} " * 50_000)[0])

    threads = [threading.Thread(target=one, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {number: f"{number} " * 50_000 for number in range(16)}


# A program that runs a tree of children by way of us, and says when all of it is there.
OURS = """
import os, signal, sys, threading
from mllm_pipe.errors import Stopped
from mllm_pipe.runtimes import _child

def stop(signum, frame):
    raise Stopped(signum)

signal.signal(signal.SIGTERM, stop)
_child.GRACE_S = float(sys.argv[3])
seen = []
def heard(data):
    seen.append(data)
    if b"".join(seen).count(b"up") == 2 * int(sys.argv[1]):
        print("all up", flush=True)

def one():
    with _child.scratch() as path:
        open(os.path.join(path, "secret"), "w").close()
        tree = "trap '' TERM; (trap '' TERM; echo up; sleep 99) & echo up; wait; sleep 99"
        _child.run(["sh", "-c", tree], stdin=b"", env=dict(os.environ), cwd=path, left=lambda: 99.0, on_bytes=heard)

if sys.argv[2] == "main":
    try:
        one()
    except Stopped as stopped:
        sys.exit(128 + stopped.signum)
threads = [threading.Thread(target=one, daemon=True) for _ in range(int(sys.argv[1]))]
for thread in threads:
    thread.start()
sys.stdin.readline()
_child.kill_all()
os._exit(141)
"""


def tree(mark: str, tmp_path: Path, count: int, where: str, grace: float = 1.0) -> subprocess.Popen[bytes]:
    env = ENV | {"MLLM_TEST_MARK": mark, "TMPDIR": str(tmp_path)}
    ours = subprocess.Popen([sys.executable, "-c", OURS, str(count), where, str(grace)], env=env, stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE)  # fmt: skip
    assert ours.stdout is not None
    assert ours.stdout.readline() == b"all up\n"
    assert len(carrying(mark)) >= 2 * count
    assert len(list(tmp_path.iterdir())) == count
    return ours


def gone(ours: subprocess.Popen[bytes], mark: str, tmp_path: Path) -> None:
    ours.communicate()
    until(lambda: carrying(mark) in ([], [os.getpid()]))
    until(lambda: list(tmp_path.iterdir()) == [])


@pytest.mark.parametrize("count", [1, 8])
def test_kill_9_takes_the_whole_tree_and_its_scratch_along(mark: str, tmp_path: Path, count: int) -> None:
    ours = tree(mark, tmp_path, count, "threads")
    ours.kill()
    gone(ours, mark, tmp_path)


def test_a_signal_that_raises_in_the_main_thread_ends_the_tree(mark: str, tmp_path: Path) -> None:
    ours = tree(mark, tmp_path, 1, "main")
    ours.terminate()
    gone(ours, mark, tmp_path)
    assert ours.returncode == 143


def test_kill_all_ends_every_tree_at_once(mark: str, tmp_path: Path) -> None:
    ours = tree(mark, tmp_path, 4, "threads", grace=90.0)
    assert ours.stdin is not None
    begun = time.monotonic()
    ours.stdin.write(b"now\n")
    ours.stdin.flush()
    assert ours.wait() == 141
    assert time.monotonic() - begun < 60, "without any grace"
    gone(ours, mark, tmp_path)


def test_a_signal_at_any_moment_of_a_start_leaves_no_child(mark: str) -> None:
    script = """
import os, signal, sys
from mllm_pipe.errors import Stopped
from mllm_pipe.runtimes import _child

def stop(signum, frame):
    signal.setitimer(signal.ITIMER_REAL, 0)
    raise Stopped(signum)

signal.signal(signal.SIGALRM, stop)
_child.run(["true"], stdin=b"", env={}, cwd=None, left=lambda: 9.0, on_bytes=len)
for step in range(200):
    try:
        signal.setitimer(signal.ITIMER_REAL, 1e-5 * (step + 1))
        _child.run(["sleep", "99"], stdin=b"", env=dict(os.environ), cwd=None, left=lambda: 9.0, on_bytes=len)
    except Stopped:
        assert not _child._live, _child._live
"""
    env = ENV | {"MLLM_TEST_MARK": mark}
    ran = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, timeout=600)
    assert (ran.returncode, ran.stderr) == (0, b"")
    until(lambda: carrying(mark) in ([], [os.getpid()]))


def test_it_works_with_our_own_streams_closed() -> None:
    script = """
import os
for fd in range(3):
    os.close(fd)
from mllm_pipe.runtimes import _child
out = bytearray()
_child.run(["cat"], stdin=b"through", env={"PATH": os.defpath}, cwd=None, left=lambda: 9.0, on_bytes=out.extend)
os._exit(0 if out == b"through" else 1)
"""
    assert subprocess.run([sys.executable, "-c", script], env=ENV).returncode == 0


def test_lines_are_whole_however_they_come() -> None:
    for size in range(1, 12):
        lines: list[bytes] = []
        feed = _listening.by_line(lines.append)
        data = b"one\n\ntwo three\nfour"
        for start in range(0, len(data), size):
            feed(data[start : start + size])
        feed(b"")
        assert lines == [b"one", b"two three", b"four"]
