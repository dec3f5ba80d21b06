"""Laws of calls that share a thread: each goes on until it waits, and none is held up by what another waits for."""

from __future__ import annotations

import contextlib
import gzip
import os
import signal
import socket
import threading
import time

import pytest
from loopback.play import Play
from test_http import Io, server, whole

from mllm_pipe import waiting
from mllm_pipe.calling.crew import FAILED, READ, Crew
from mllm_pipe.calling.loop import FEW, Loop, Queue
from mllm_pipe.runtimes import _http, _socket
from mllm_pipe.runtimes._clock import Broken, Clock

LONG_S = 120.0  # only what hangs takes so long


@contextlib.contextmanager
def running():
    """A loop in a thread of its own, which has ended after the block."""
    loop = Loop()
    thread = threading.Thread(target=loop.run)
    thread.start()
    yield loop
    loop.end()
    thread.join(LONG_S)
    assert not thread.is_alive()


def done_by(*works):
    """What the calls give or raise, all begun at once."""
    results = {}
    with running() as loop:
        for number, work in enumerate(works):

            def one(number=number, work=work):
                with waiting.Taken() as taken:
                    results[number] = work()
                if taken.error:
                    results[number] = taken.error

            loop.start(one)
    return [results[number] for number in range(len(works))]


def test_all_calls_are_in_one_thread_and_go_on_in_the_order_in_which_their_waits_end():
    order, threads = [], set()

    def after(seconds):
        until = time.monotonic() + seconds  # who begins later, on a machine that is busy, waits for longer
        waiting.sleep(seconds)
        assert time.monotonic() >= until
        order.append(until)
        threads.add(threading.get_ident())

    assert done_by(*(lambda seconds=seconds: after(seconds) for seconds in (0.3, 0.1, 0.2, 0.0))) == [None] * 4
    assert len(order) == 4 and order == sorted(order) and len(threads) == 1


def test_who_waits_for_a_socket_lets_the_others_go_on():
    here, there = socket.socketpair()
    with here, there:

        def reads():
            assert not waiting.ready(here, waiting.READ, 0.05), "nothing is there yet"
            assert waiting.ready(here, waiting.READ, LONG_S)
            return here.recv(10)

        def writes():
            waiting.sleep(0.2)
            assert waiting.ready(there, waiting.WRITE, LONG_S)
            return there.send(b"word")

        assert done_by(reads, writes) == [b"word", 4]
    assert not waiting.shared()


def test_what_came_while_another_call_was_busy_is_not_late():
    late = True
    while late:  # a machine that is busy itself may have the word sent after the limit
        (here, there), (heard, told) = socket.socketpair(), socket.socketpair()
        with here, there, heard, told:
            limit, sent = [], []

            def waits(here=here, told=told, limit=limit):
                told.send(b"!")
                limit.append(time.monotonic() + 0.1)
                return waiting.ready(here, waiting.READ, 0.1)

            def busy(heard=heard, there=there, sent=sent):
                assert waiting.ready(heard, waiting.READ, LONG_S)
                there.send(b"word")
                sent.append(time.monotonic())
                time.sleep(0.3)  # as to look through a long answer takes

            found = done_by(waits, busy)
            late = sent > limit
    assert found == [True, None]


def test_what_came_while_the_command_was_stopped_is_not_late(sh, work, batch):
    batch(5)
    there, stopped = threading.Barrier(5), threading.Event()
    limit_s = 0.0  # none at first, to know how long all takes here and now

    def play(number, text):
        if there.wait(LONG_S) == 0 and limit_s:
            command = int((work / "pid").read_text())
            os.kill(command, signal.SIGSTOP)
            threading.Timer(limit_s + 0.5, os.kill, (command, signal.SIGCONT)).start()
            stopped.set()
        assert not limit_s or stopped.wait(LONG_S)
        return 200, {}, "yes"

    with Play(play) as server:
        line = f"dispatch -q -j 5 --max-retries 0 --to openai-chat:m --base-url {server.url}"
        began = time.monotonic()
        assert sh(f"set -o pipefail; {line} < in | grep -c '\"content\":\"yes\"'") == (0, "5\n", "")
        limit_s = 1.0 + 5 * (time.monotonic() - began)
        ran = sh(f"set -o pipefail; sh -c 'echo $$ > pid; exec {line} --first-token {limit_s}' < in | grep -c '\"content\":\"yes\"'")
    assert ran == (0, "5\n", "")


def test_a_short_answer_that_unzips_to_a_long_one_holds_nobody_up():
    pieces, turns = [], []

    def long(url):
        pieces.extend(_http.post(url, {}, b"{}", Io(LONG_S)))

    def other():
        while sum(map(len, pieces)) < 60 << 20:
            if pieces:
                turns.append(len(pieces))
            waiting.sleep(0)

    with server(whole(gzip.compress(bytes(60 << 20)), more="content-encoding: gzip\r\n")) as (url, _):
        done_by(lambda: long(url), other)
    assert len(set(turns)) > 50


def test_what_blocks_steps_aside():
    """As a name service does, and a program that is started."""
    other = threading.Event()

    def blocks():
        return waiting.aside(lambda: other.wait(LONG_S) and threading.get_ident())

    def frees():
        other.set()
        return threading.get_ident()

    aside, ours = done_by(blocks, frees)
    assert aside and aside != ours


def test_what_is_raised_comes_to_who_asked_and_to_nobody_else():
    def fails():
        return waiting.aside(lambda: 1 / 0)

    first, second = done_by(fails, lambda: "fine")
    assert isinstance(first, ZeroDivisionError) and second == "fine"


def test_a_map_begins_all_at_once_and_raises_when_all_have_ended():
    begun, ended = [], []

    def one(number):
        begun.append(number)
        until = time.monotonic() + 0.1 * number
        waiting.sleep(0.1 * number)
        ended.append((until, len(begun)))
        if number == 1:
            raise ValueError("one")
        return number * 10

    assert done_by(lambda: waiting.each(one, [0, 2, 3])) == [[0, 20, 30]]
    ended.clear()
    begun.clear()
    (failure,) = done_by(lambda: waiting.each(one, [3, 1, 2]))
    assert isinstance(failure, ValueError) and sorted(begun) == [1, 2, 3]
    assert ended == sorted(ended) and [there for _, there in ended] == [3, 3, 3]


def test_news_reach_who_waits_whether_a_call_or_a_thread_has_them():
    changed, there = waiting.Changed(), []

    def waits():
        with changed:
            while not there:
                assert changed.wait(LONG_S)
        return there[0]

    def tells():
        waiting.sleep(0.05)
        with changed:
            there.append("news")
            changed.notify_all()

    def late():
        with changed:
            return changed.wait(0.05)

    assert done_by(waits, waits, tells)[:2] == ["news", "news"]
    there.clear()
    thread = threading.Thread(target=tells)
    thread.start()
    assert done_by(waits) == ["news"] and done_by(late) == [False] and not changed.waits
    thread.join()


def test_what_other_threads_put_is_taken_once_in_its_order():
    taken = []
    with running() as loop:
        queue = Queue(loop)

        def takes():
            while (item := queue.get()) is not None:
                taken.append(item)
                if item % 7 == 0:
                    waiting.sleep(0.001)

        for _ in range(3):
            loop.start(takes)
        for item in range(5000):
            queue.put(item)
        for _ in range(3):
            queue.put(None)
    assert sorted(taken) == list(range(5000))


def test_where_nobody_works_any_more_nobody_waits_for_it():
    """A defect of the loop itself, or no memory left."""
    crew = Crew(iter([]), str, 2, tell=False)
    crew.loop.tell(lambda: 1 / 0)
    what, _, _, error = next(event for event in iter(crew.next, None) if event[0] != READ)
    assert what == FAILED and isinstance(error, ZeroDivisionError)
    crew.end()


def test_limits_that_were_not_met_are_forgotten():
    here, there = socket.socketpair()
    with here, there:
        there.send(b"x")
        with running() as loop:
            loop.start(lambda: [waiting.ready(here, waiting.READ, 600) for _ in range(3 * FEW)])
    assert len(loop.limits) <= FEW + 2


def test_programs_in_flight_are_at_once(sh, work, batch):
    """Each says something when all eight are there."""
    batch(8)
    (work / "bot").write_text('touch "here.$$"; until [ "$(ls here.* | wc -l)" = 8 ]; do sleep 0.01; done; echo yes\n')
    assert sh(f"timeout {LONG_S} dispatch -j 8 --to 'exec:sh bot' < in | grep -c '\"content\":\"yes\"'") == (0, "8\n", "")


def test_who_are_asked_the_same_are_asked_at_once_in_flight(sh, batch):
    batch(3)
    there = threading.Barrier(6)  # three threads, two agents

    def play(number, text):
        there.wait(LONG_S)
        return 200, {}, "yes"

    with Play(play) as server:
        ran = sh(f"OPENAI_BASE_URL={server.url} OPENAI_API_KEY=k dispatch -q -j 3 --to openai-chat:a --to openai-chat:b < in"
                 " | grep -c '\"content\":\"yes\"'")  # fmt: skip
    assert ran == (0, "6\n", "")


@pytest.mark.parametrize(("said", "why"), [([], "nowhere.example has no address"), (socket.gaierror("no such name"), "no such name")])
def test_a_name_is_asked_for_once_by_all_who_come_meanwhile(monkeypatch, said, why):
    asked, all_here = [], threading.Event()

    def name_service(host, port, **_):
        asked.append(host)
        assert all_here.wait(LONG_S)
        if isinstance(said, OSError):
            raise said
        return said

    def ask():
        _socket.reached("nowhere.example", 80, Clock(Io(LONG_S), LONG_S, LONG_S))

    monkeypatch.setattr(socket, "getaddrinfo", name_service)
    *failures, _ = done_by(*[ask] * 30, all_here.set)
    assert {(type(one), str(one)) for one in failures} == {(Broken, why)} and asked == ["nowhere.example"]
    with pytest.raises(Broken, match=why):
        ask()
    assert len(asked) == 2, "a failure is not kept"


def test_calls_to_a_server_share_a_thread(sh, batch):
    batch(60)
    there, free = threading.Barrier(61), threading.Event()

    def play(number, text):
        there.wait(LONG_S)
        free.wait(LONG_S)
        return 200, {}, "yes"

    def looks():
        there.wait(LONG_S)
        free.set()

    with Play(play) as server:
        watcher = threading.Thread(target=looks)
        watcher.start()
        line = f"dispatch -q -j 60 --to openai-chat:m --base-url {server.url} < in > out & pid=$!; "
        ran = sh(line + "while sed -n 's/^Threads:\t//p' /proc/$pid/status; do sleep 0.01; done 2>/dev/null | sort -n | tail -n 1")
        watcher.join()
    assert ran.status == 0 and int(ran.out) <= 4, "who writes, who reads, the calls, and for a moment a name service"
