"""Signals: whenever one comes, and however often, what was asked and paid for is in the journal, and we end by it."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import socket
import sys
import threading
import time

import orjson
import pytest
from loopback.play import Play


@pytest.fixture
def outcomes(home):
    """The outcomes in the journal."""

    def found():
        lines = (home / ".local/state/mllm-pipe/journal.jsonl").read_bytes().splitlines()
        return [entry for entry in map(orjson.loads, lines) if entry["type"] == "outcome"]

    return found


def test_a_second_signal_does_not_break_into_what_the_first_one_has_written_down(sh, outcomes, batch):
    batch(30)
    over = threading.Event()
    with Play(lambda number, text: (200, {}, "late" * over.wait())) as server:
        ran = sh(f"dispatch -j 30 --to openai-chat:m --base-url {server.url} < in > out & pid=$!; "
                 "until [ \"$(grep -c intent ~/.local/state/mllm-pipe/journal.jsonl 2>/dev/null)\" = 30 ]; do :; done; "
                 "kill -TERM $pid; kill -HUP $pid; kill -TERM $pid; wait $pid; echo $?")
        over.set()
    assert ran.out in ("143\n", "129\n") and "dispatch:" not in ran.err, ran
    assert [entry["status"] for entry in outcomes()] == ["unknown"] * 30


@pytest.mark.skipif(not os.path.exists("/proc/locks"), reason="who waits for a lock is told by Linux")
def test_a_signal_while_an_answer_is_written_down_does_not_lose_it(sh, work, home, outcomes):
    """stdout is a pipe: another thread than the main one watches its reader, and may be given the signal."""

    def play(number, text):
        held = open(home / ".local/state/mllm-pipe/journal.jsonl", "ab")  # noqa: SIM115
        fcntl.flock(held, fcntl.LOCK_EX)
        threading.Thread(target=interrupt, args=(held,)).start()
        return 200, {}, "paid"

    def interrupt(held):
        pid = int((work / "pid").read_text())
        with open("/proc/locks") as locks:
            while not re.search(rf"-> FLOCK +ADVISORY +WRITE {pid} ", locks.read()):
                locks.seek(0)
        os.kill(pid, signal.SIGTERM)
        held.close()

    with Play(play) as server:
        line = f"exec dispatch --to openai-chat:m --base-url {server.url} --new q"
        ran = sh(f"sh -c 'echo $$ > pid; {line}' | cat; exit ${{PIPESTATUS[0]}}")
    assert (ran.status, ran.err) == (143, "")
    assert [(entry["status"], entry["records"][1]["content"]) for entry in outcomes()] == [("ok", "paid")]


class Waited(Play):
    """Makes the file `heard` once a client has closed its connection, and so has heard the answer."""

    def __init__(self, play, work):
        super().__init__(play)
        self.heard = work / "heard"

    def shutdown_request(self, request):
        request.shutdown(socket.SHUT_WR)
        while request.recv(1 << 16):
            pass
        self.heard.touch()
        super().shutdown_request(request)


def test_what_waits_to_be_asked_again_and_was_not_paid_for_is_no_unknown_call(sh, work, outcomes):
    with Waited(lambda number, text: (429, {"Retry-After": "40"} if number == 1 else {}, ""), work) as server:
        line = f"dispatch --to openai-chat:m --base-url {server.url} --resume r --new q"
        waits = "[ -e heard ] && ! grep -q '^State:.[RD]' /proc/$pid/task/*/status 2>/dev/null"
        ran = sh(f"{line} </dev/null & pid=$!; until {waits}; do sleep 0.2; done; kill -TERM $pid; wait $pid", MLLM_PARENT_RUN_ID="r")
        assert (ran.status, ran.err) == (143, "")
        (entry,) = outcomes()
        span, error = entry["records"]
        assert (entry["status"], span["status"], [attempt["code"] for attempt in span["attempts"]]) == ("error", "error", ["rate_limit"])
        assert (error["code"], error["billed"]) == ("rate_limit", "no")
        assert sh(f"{line} --max-retries 0 </dev/null", MLLM_PARENT_RUN_ID="r").status == 75 and server.count == 2


def test_who_sends_signals_for_longer_than_it_takes_to_end_is_heard(sh, work, home):
    """Another process keeps the journal, so that what had come cannot be written down."""
    held = []

    def play(number, text):
        held.append(open(home / ".local/state/mllm-pipe/journal.jsonl", "ab"))  # noqa: SIM115
        fcntl.flock(held[0], fcntl.LOCK_EX)
        began.append(time.monotonic())
        (work / "asked").touch()
        over.wait()
        return 200, {}, "late"

    over, began = threading.Event(), []
    with Play(play) as server:
        ran = sh(f"dispatch --to openai-chat:m --base-url {server.url} --new q </dev/null >out & pid=$!; "
                 "until [ -e asked ]; do :; done; while kill -TERM $pid 2>/dev/null; do sleep 0.1; done; wait $pid")
        took = time.monotonic() - began[0]
        over.set()
    held[0].close()
    assert ran.status == 143 and 2 < took < 10, (ran, took)


IN_A_DESTRUCTOR = """
import os, signal
from mllm_pipe import signals
from mllm_pipe.errors import Stopped
signals.listen()
class Leaving:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        print("not reached")
Leaving()
try:
    while True:
        pass
except Stopped as stopped:
    print(stopped.signum)
"""


def test_a_signal_that_comes_in_a_destructor_ends_us_too(sh, work):
    (work / "destructor.py").write_text(IN_A_DESTRUCTOR)
    ran = sh(f"{sys.executable} destructor.py")
    assert (ran.out, ran.err) == ("15\n", "")


def test_the_limit_that_ended_a_request_is_the_one_that_is_named(sh):
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        port = deaf.getsockname()[1]
        ran = sh("head -c 30000000 /dev/zero | tr '\\0' x > big; "
                 f"dispatch --timeout 1 --to openai-chat:m --base-url http://127.0.0.1:{port}/v1 --new @big")
    assert (ran.status, re.sub(r"thread \S+:", "thread ID:", ran.err)) == (
        124, "dispatch: thread ID: openai-chat: no whole answer within 1 s; --timeout sets the limit\n")  # fmt: skip


@pytest.mark.parametrize("name", ["thread_append", "dispatch", "trace"])
def test_one_that_still_loads_is_ended_by_ctrl_c_without_a_traceback(sh, work, name):
    (work / "c").write_text("import mllm_pipe.commands, importlib, os, signal, sys\n"
                            "importlib.import_module(sys.argv[1]); os.kill(os.getpid(), signal.SIGINT); print('lives')\n")  # fmt: skip
    line = f"python -c \"$(cat c)\" mllm_pipe.commands.{name}"
    assert sh(f"{line}; echo $?") == (0, "130\n", "")
    assert sh(f"trap '' INT; {line}; echo $?") == (0, "lives\n0\n", ""), "ignored, as in the background, it stays so"
