"""Several threads in flight (-j), several agents asked at once (--to a --to b), and how fast a target is asked."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import sys
import threading
import time

import orjson
import pytest
from loopback import serve
from loopback.play import Play
from loopback.unread import await_read

from mllm_pipe.calling.gate import FAULTS, Gate, LeftAlone
from mllm_pipe.envelope import seconds_of

LONG_S = 120.0  # only what hangs takes so long


def last_words(text: str) -> str:
    return text.rsplit(" ", 1)[-1]


# -- threads in flight


def test_answers_come_in_input_order_whatever_each_takes(sh, batch):
    batch(20)
    there = threading.Barrier(4)  # nobody answers before four are there

    def play(number, text):
        if number <= 4:
            there.wait(LONG_S)
        return 200, {}, last_words(text)

    with Play(play) as server:
        ran = sh(f"dispatch -j 4 --to openai-chat:m --base-url {server.url} < in | cat; exit ${{PIPESTATUS[0]}}")
    assert (ran.status, ran.err, server.most) == (0, "", 4)
    assert [record["content"] for record in ran.records if record.get("role") == "assistant"] == [str(n) for n in range(20)]
    assert ran.kinds() == "begin" + " user assistant span ok" * 20 + " end"


def test_unordered_gives_what_is_done_and_a_slow_one_holds_nobody_up(sh, batch):
    batch(6)
    others = threading.Semaphore(0)

    def play(number, text):
        if last_words(text) == "0":
            for _ in range(5):
                assert others.acquire(timeout=LONG_S)
        else:
            others.release()
        return 200, {}, last_words(text)

    with Play(play) as server:
        ran = sh(f"dispatch -j 2 --unordered --to openai-chat:m --base-url {server.url} < in")
    said = [record["content"] for record in ran.records if record.get("role") == "assistant"]
    assert (ran.status, ran.err) == (0, "")
    assert said[:4] == list("1234") and sorted(said) == list("012345")


def test_a_thread_goes_out_while_the_next_is_not_even_there(sh):
    line = "(printf '%s\\n' '{\"v\":1,\"type\":\"message\",\"thread\":\"a\",\"id\":\"1\",\"role\":\"user\",\"content\":\"x\"}'"
    first = '{"v":1,"type":"handoff","thread":"a","status":"ok","at":"2026-01-01T00:00:00.000Z","parent_run_id":"r"}'
    ran = sh(f"mkfifo go; {line}; echo '{first}'; cat go; echo '{{\"v\":1,\"type\":\"end\",\"threads\":1}}') "
             "| dispatch -j 3 --to echo | (sed '/handoff/q'; echo > go; cat >/dev/null)")  # fmt: skip
    assert ran.status == 0 and ran.kinds() == "begin user assistant span ok"


def test_no_more_is_read_than_the_window_holds(sh, batch):
    """What is read ahead is bounded: a batch larger than memory goes through."""
    batch(200)
    first, taken = threading.Event(), []

    def play(number, text):
        if last_words(text) == "0":
            first.wait(LONG_S)
        else:
            taken.append(text)
            if len(taken) == 7:  # all that fit beside the first: 2 jobs, 4 each
                first.set()
        return 200, {}, "x"

    with Play(play) as server:
        assert sh(f"dispatch -j 2 --to openai-chat:m --base-url {server.url} < in > out") == (0, "", "")
    assert len(taken) == 199


def test_one_that_fails_stops_no_other_and_bad_lines_go_through(sh, work, batch):
    batch(8)
    (work / "in").write_text((work / "in").read_text() + "no record\n")
    with serve("chat") as server:
        line = f"dispatch -j 3 --to openai-chat:m --base-url {server.url('400')}/v1 < in > out"
        ran = sh(line)
        assert ran.status == 3 and ran.err.count("openai-chat: ") == 8 and len(server.calls()) == 8
        assert sh("grep -c bad_line out").out == "1\n"
    ran = sh("dispatch -j 3 --to echo < in | tail -n 1")
    assert ran.out == '{"v":1,"type":"end","threads":8,"bad_lines":1}\n'


def test_a_failed_thread_is_copied_in_its_place(sh, batch):
    batch(3)
    ran = sh("dispatch --to 'exec:sh -c \"grep -q 1\"' < in 2>/dev/null | dispatch -j 3 --to echo again | cat")
    assert [record["status"] for record in ran.records if record["type"] == "handoff"] == ["failed", "ok", "failed"] or (
        [record["thread"] for record in ran.records if record["type"] == "handoff"] == ["t0", "t1", "t2"])  # fmt: skip


def test_a_signal_writes_down_what_had_come_of_all_and_ends_them(sh, work, home, batch):
    batch(3)
    (work / "bot.py").write_text("import fcntl, os, signal, termios\nos.write(1, b'half')\n"
                                 "while any(fcntl.ioctl(1, termios.FIONREAD, bytes(4))):\n    pass\n"  # until that is read
                                 "open(f'here{os.getpid()}', 'w').close()\nsignal.pause()\n")  # fmt: skip
    ran = sh("dispatch -j 3 --to 'exec:python3 bot.py' < in > out & pid=$!; "
             "until [ $(ls here* 2>/dev/null | wc -l) = 3 ]; do :; done; kill -TERM $pid; wait $pid; echo $?; "
             "alive() { for f in here*; do grep 'State:.[^ZX]' /proc/${f#here}/status 2>/dev/null; done; }; "
             "for i in $(seq 1200); do [ \"$(alive)\" ] || break; sleep 0.1; done; alive; true")  # killed, they may take a moment
    assert ran.out == "143\n"
    journal = (home / ".local/state/mllm-pipe/journal.jsonl").read_text()
    assert journal.count('"status":"unknown","records"') == 3 and journal.count('"content":"half"') == 3


def test_more_are_not_asked_at_once_than_a_process_may_have_connections(sh, batch):
    batch(120)
    with Play(lambda number, text: (200, {}, "yes")) as server:
        line = f"dispatch -j 100 --to openai-chat:m --base-url {server.url} < in > out"
        ran = sh(f"ulimit -n 100; {line}")
        assert (ran.status, ran.err) == (
            0, "dispatch: -j 100: 36 at once, as a process may have no more than 100 files open here (ulimit -n)\n")  # fmt: skip
        assert server.count == 120 and server.most <= 36
        ran = sh(f"ulimit -Sn 100; {line}")
        assert (ran.status, ran.err) == (0, ""), "a limit that may be raised is raised"


def test_a_reader_that_leaves_ends_all_that_is_in_flight(sh, work, home, batch):
    batch(40)
    ended = time.monotonic() + LONG_S

    def play(number, text):
        while last_words(text) != "0" and not (work / "left").exists() and time.monotonic() < ended:
            time.sleep(0.01)
        return 200, {}, "yes"

    with Play(play) as server:
        ran = sh(f"dispatch -j 4 --to openai-chat:m --base-url {server.url} < in | {{ head -n 1; exec <&-; touch left; }}; "
                 "exit ${PIPESTATUS[0]}")  # fmt: skip
        assert ran.status == 141 and ran.err == ""
        assert server.count < 40
    journal = (home / ".local/state/mllm-pipe/journal.jsonl").read_text()
    assert journal.count('"type":"intent"') == journal.count('"type":"outcome"'), "each call is accounted for"


def test_a_full_disk_ends_all_with_74(sh, batch):
    batch(40)
    ran = sh("dispatch -q -j 4 --to echo < in > /dev/full")
    assert ran.status == 74 and ran.err.startswith("dispatch: stdout cannot be written: No space left on device; ")


def test_a_full_disk_loses_no_answer_that_was_asked_for(sh, work, home, batch):
    batch(40)
    there, ended = threading.Barrier(4), time.monotonic() + LONG_S
    (work / "err").touch()

    def play(number, text):
        if number <= 4:
            there.wait(LONG_S)
        while last_words(text) != "0" and not (work / "err").read_text() and time.monotonic() < ended:
            time.sleep(0.01)  # until the first one could not be written
        return 200, {}, f"answer to {last_words(text)}."

    with Play(play) as server:
        ran = sh(f"dispatch -j 4 --to openai-chat:m --base-url {server.url} < in > /dev/full 2> err; was=$?; cat err >&2; exit $was")
    assert ran.status == 74 and "calls are in flight, and heard out; Ctrl-C ends them\n" in ran.err
    journal = (home / ".local/state/mllm-pipe/journal.jsonl").read_text()
    assert 4 <= server.count < 10 and journal.count('"content":"answer to ') == server.count


def test_a_journal_that_is_full_loses_no_answer_that_was_asked_for(sh, work, home, batch):
    batch(40)
    there = threading.Barrier(4)

    def play(number, text):
        if number <= 4:
            there.wait(LONG_S)
        return 200, {}, f"answer to {last_words(text)}."

    with Play(play) as server:
        line = f"dispatch -j 4 --to openai-chat:m --base-url {server.url} < in"
        ran = sh(f"(ulimit -f 5; {line}; echo $? > status) | cat > out")
    assert (work / "status").read_text() == "74\n" and "the journal cannot be written: " in ran.err
    kept = (home / ".local/state/mllm-pipe/journal.jsonl").read_text() + (work / "out").read_text()
    answers = set(re.findall(r'"content":"answer to ([0-9]+)\.', kept))
    assert 4 <= server.count < 40 and len(answers) == server.count


def test_who_keeps_the_lock_of_the_journal_keeps_no_answer_from_being_read(sh, home, batch):
    """As another command does that was stopped while it wrote. The answers are longer than what is read at once."""
    batch(5)
    there, first_read, never, held = threading.Barrier(5), threading.Event(), threading.Event(), []
    left = threading.Barrier(5, lambda: os.close(held[0]))

    def play(number, text):
        if there.wait(LONG_S) == 0:
            held.append(os.open(home / ".local/state/mllm-pipe/journal.jsonl", os.O_RDONLY))
            fcntl.flock(held[0], fcntl.LOCK_EX)
            first.append(number)
        else:
            first_read.wait(LONG_S)
        return 200, {}, "yes " * 100_000

    def sent(number, connection):
        await_read(connection, never)
        if number in first:
            time.sleep(0.3)  # by now it is to be written down
            first_read.set()
        left.wait(LONG_S)  # the lock is kept until all have been read

    first = []
    with Play(play, sent) as server:
        line = "dispatch -q -j 5 --max-retries 0 --timeout 30 --to openai-chat:m"
        ran = sh(f"{line} --base-url {server.url} < in | grep -c '\"content\":\"yes yes'")
    assert ran == (0, "5\n", "")


def test_a_defect_in_a_worker_is_told_as_one(sh, batch):
    batch(2)
    ran = sh("ulimit -u 1; ulimit -n 8; dispatch -j 2 --to echo < in > out; true")
    assert "Traceback" not in ran.err


def test_two_hundred_pipes_at_once_lose_nothing(sh, home):
    """Each with its own journal line before and after: in a fresh home, where all make the folder at once."""
    with Play(lambda number, text: (200, {}, last_words(text))) as server:
        pipe = f"thread-append --new 'question N' | dispatch --to openai-chat:m --base-url {server.url} > N.jsonl"
        assert sh(f'seq 200 | xargs -P 32 -I N bash -o pipefail -c "{pipe}"') == (0, "", "")
        assert server.count == 200
    assert sh("cat *.jsonl | grep -c '\"role\":\"assistant\"'; for n in $(seq 200); do grep -q 'content\":\"'$n'\"' $n.jsonl "
              "|| echo $n; done; cat *.jsonl | trace --all | wc -l").out == "200\n200\n"  # fmt: skip
    journal = (home / ".local/state/mllm-pipe/journal.jsonl").read_bytes().splitlines()
    kinds = [(entry["type"], entry.get("status")) for entry in map(orjson.loads, journal)]
    assert kinds.count(("intent", None)) == kinds.count(("outcome", "ok")) == 200 and len(kinds) == 400


# -- several at once


def test_several_are_asked_at_once_and_their_answers_are_siblings(sh):
    meet = threading.Barrier(3)
    words = iter("abc")

    def play(number, text):
        meet.wait(LONG_S)  # all three are there at the same time
        return 200, {}, next(words)

    with Play(play) as server:
        to = " ".join(f"--to openai-chat:m{n}" for n in range(3))
        line = f"dispatch {to} --new q | cat"
        ran = sh(line, OPENAI_BASE_URL=server.url, OPENAI_API_KEY="sk-x")
    assert (ran.status, ran.err) == (0, "")
    assert ran.kinds() == "begin user" + " assistant span" * 3 + " ok end"
    answers = [record for record in ran.records if record.get("role") == "assistant"]
    assert {answer["reply_to"] for answer in answers} == {ran.records[1]["id"]}
    assert sorted(answer["content"] for answer in answers) == ["a", "b", "c"]
    spans = [record for record in ran.records if record["type"] == "span"]
    assert len({span["id"] for span in spans}) == 3 and len({span["parent_run_id"] for span in spans}) == 1


def test_one_of_several_that_fails_does_not_fail_the_thread(sh):
    ran = sh("dispatch --to exec:false --to echo --new q | cat; exit ${PIPESTATUS[0]}")
    assert ran.status == 0 and ran.err.startswith("dispatch: thread ") and "exec: false: exit status 1\n" in ran.err
    assert ran.kinds() == "begin user span error assistant span ok end"
    ran = sh("dispatch --to exec:false --to exec:false --new q | cat; exit ${PIPESTATUS[0]}")
    assert ran.status == 3 and ran.err.count("exit status 1") == 2
    assert ran.kinds() == "begin user span error span error failed end"


def test_after_several_answers_the_next_says_which_one_it_goes_on_from(sh):
    both = "dispatch --to echo --to exec:tac --new q > t"
    assert sh(f"{both}; dispatch --to echo more < t").status == 2
    ran = sh("dispatch --to exec:cat --pick exec 'and then?' < t")
    assert (ran.status, ran.err) == (0, "")
    chosen = next(record for record in ran.records if record.get("author", {}).get("runtime") == "exec")
    asked = next(record for record in ran.records if record.get("content") == "and then?")
    assert asked["reply_to"] == chosen["id"]
    ran = sh("dispatch --to exec:cat --pick nobody 'and then?' < t")
    assert ran.status == 2 and "--pick nobody: none of the 2 answers is of that name (" in ran.err
    ran = sh("dispatch --to echo --to echo --new q > u; dispatch --to echo --pick echo x < u")
    assert ran.status == 2 and "--pick echo: 2 of the 2 answers is of that name" in ran.err


def test_a_person_is_told_who_says_what(sh):
    ran = sh("dispatch --to echo --to exec:tac --new q --text")
    assert ran.out.startswith("== echo:echo ==\nq\n\n== exec ==\n")


def test_flags_of_one_target_are_refused_for_several(sh):
    ran = sh("dispatch --to echo --to exec:cat -m x --new q")
    assert ran == (2, "", "dispatch: --model is for one --to alone; with several say --to RUNTIME:MODEL each\n")


def test_what_the_environment_names_is_one_target_with_its_blanks(sh):
    assert sh("dispatch --new q --text", MLLM_TO="exec:echo a b") == (0, "a b\n", "")


# -- how fast


@pytest.mark.parametrize("rate", ["20/s", "1200/m"])
def test_a_rate_is_kept(sh, home, rate, batch):
    batch(31)
    moments = []

    def play(number, text):
        moments.append(time.time())
        return 200, {}, "x"

    with Play(play) as server:
        assert sh(f"dispatch -j 8 --rate {rate} --to openai-chat:m --base-url {server.url} < in > out").status == 0
    journal = (home / ".local/state/mllm-pipe/journal.jsonl").read_bytes().splitlines()
    sent = sorted(seconds_of(entry["at"]) for entry in map(orjson.loads, journal) if entry["type"] == "intent")
    assert len(sent) == 31 and sent[-1] - sent[0] >= 29 / 20 - 0.01  # the first one may be late, and then the others are
    assert all(moment > intent - 0.01 for moment, intent in zip(sorted(moments), sent, strict=True)), "none was sent before"


@pytest.mark.parametrize("rate", ["fast", "0/s", "10", "10/y", "-1/s"])
def test_a_rate_that_is_none_is_told(sh, rate):
    ran = sh(f"dispatch --rate {rate} --to echo --new q")
    assert ran == (2, "", f"dispatch: --rate {rate}: no rate; say 10/s, 500/m or 1000/h\n")


def test_a_server_that_says_429_sets_the_pace_and_no_thread_is_lost(sh, batch):
    """30 a second, bucket of 3: nobody told us."""
    batch(100)
    lock, state = threading.Lock(), {"tokens": 3.0, "at": time.monotonic(), "refused": 0}

    def play(number, text):
        with lock:
            now = time.monotonic()
            state["tokens"] = min(3.0, state["tokens"] + (now - state["at"]) * 30)
            state["at"] = now
            if state["tokens"] < 1:
                state["refused"] += 1
                return 429, {"Retry-After": "0"}, ""
            state["tokens"] -= 1
        return 200, {}, last_words(text)

    with Play(play) as server:
        ran = sh(f"dispatch -j 20 --to openai-chat:m --base-url {server.url} < in > out")
    assert (ran.status, ran.err) == (0, "")
    assert state["refused"] < 60, "without a pace it would be several hundred"


def test_a_target_that_keeps_failing_is_left_alone_and_tried_again(sh, work, batch):
    batch(60)
    with Play(lambda number, text: (503, {}, "")) as server:
        line = f"dispatch -j 8 --max-retries 0 --fallback exec:cat --to openai-chat:m --base-url {server.url} < in > out"
        began = time.monotonic()
        ran = sh(line)
        assert (ran.status, ran.err) == (0, "")
        assert server.count < 20 + time.monotonic() - began, "5 in a row, those already under way, and a try a second"
    spans = [orjson.loads(line) for line in (work / "out").read_bytes().splitlines() if b'"type":"span"' in line]
    assert len(spans) == 60 and all(span["runtime"] == "exec" for span in spans)
    left = [span for span in spans if span["attempts"][0]["duration_ms"] == 0]
    assert len(left) + server.count == 60 and left[-1]["attempts"][0]["code"] == "overloaded"


def test_a_target_that_comes_back_is_waited_for(sh, batch):
    batch(30)

    def play(number, text):
        return (503, {}, "") if number <= 6 else (200, {}, "x")

    with Play(play) as server:
        ran = sh(f"dispatch -j 4 --max-retries 9 --to openai-chat:m --base-url {server.url} < in > out")
    assert (ran.status, ran.err) == (0, ""), ran.err
    assert server.count == 6 + 30


def test_a_key_that_is_refused_is_not_shown_to_the_server_a_thousand_times(sh, batch):
    batch(300)
    began = time.monotonic()
    with Play(lambda number, text: (401, {}, "")) as server:
        ran = sh(f"dispatch -j 4 --to openai-chat:m --base-url {server.url} < in > out")
    assert ran.status == 77 and server.count < 15 + time.monotonic() - began
    assert "left alone after 5 failures in a row, the last: " in ran.err


def test_a_pace_that_was_too_much_once_is_not_rushed_at_again():
    """Where each second 429 came within two seconds of the one before, the pace was doubled each second for ever."""
    gate = Gate(clock=lambda: 1000.0)  # all of it is at once
    gate.leave(gate.enter(True), "rate_limit", "slow down")
    for _ in range(20):  # answers to what was asked before
        gate.leave(0.0, "", "")
    assert gate.pace == 21.0
    gate.leave(gate.enter(True), "rate_limit", "slow down")
    assert gate.pace == 10.5
    for _ in range(10):
        gate.leave(0.0, "", "")
    assert gate.pace == pytest.approx(12.5), "a fifth of one for each answer"


def test_only_the_call_that_tries_a_target_again_ends_the_try():
    gate = Gate()
    entered = [gate.enter(True) for _ in range(FAULTS + 2)]
    for moment in entered[:FAULTS]:
        gate.leave(moment, "server", "broken")
    tries = gate.enter(True)  # after a second
    gate.leave(entered[FAULTS], "server", "late")  # asked before it was left alone
    gate.turn_back(entered[FAULTS + 1])
    with pytest.raises(LeftAlone, match="late"):
        gate.enter(False)
    gate.turn_back(tries)
    assert gate.enter(False) > tries, "another may try at once"


# -- a person looks on


def test_a_terminal_shows_how_far_it_is_and_a_pipe_does_not(sh, work, batch):
    batch(6)
    (work / "bot").write_text("sleep 0.3; echo hello\n")
    line = 'dispatch -j 2 --to "exec:sh bot" < in > out'
    shown = sh(f"script -qec 'stty cols 120; {line}' /dev/null < /dev/null")
    assert re.search(r"dispatch: [1-6] done, [0-2] in flight, \d:\d\d left", shown.out) and shown.out.endswith("\x1b[K")
    assert sh(f"script -qec '{line} -q' /dev/null < /dev/null").out == ""
    assert sh(line) == (0, "", "")


def test_a_journal_that_is_taken_away_meanwhile_is_begun_anew(sh, home, batch):
    batch(3)
    folder = home / ".local/state/mllm-pipe"

    def play(number, text):
        if number == 2:
            shutil.rmtree(folder)
        return 200, {}, "x"

    with Play(play) as server:
        assert sh(f"dispatch --to openai-chat:m --base-url {server.url} < in > out") == (0, "", "")
    kept = [orjson.loads(line)["type"] for line in (folder / "journal.jsonl").read_bytes().splitlines()]
    assert kept == ["outcome", "intent", "outcome"] and (folder / "journal.jsonl").stat().st_mode & 0o777 == 0o600


AT_ONCE = """
import fcntl, os, re, sys, threading
from mllm_pipe.calling import journal
def writes():
    return int(re.search(r"syscw: (\\d+)", open("/proc/self/io").read())[1])
journal.intend("first", "k", {})
held = open(journal.path(), "ab")
fcntl.flock(held, fcntl.LOCK_EX)
crew = [threading.Thread(target=journal.intend, args=(f"r{number}", "k", {})) for number in range(100)]
before = writes()
crew[0].start()
while journal._waiting or not journal._writing.taken:  # it has taken its own line alone, and waits for the lock
    pass
for one in crew[1:]:
    one.start()
while len(journal._waiting) < 99:
    pass
fcntl.flock(held, fcntl.LOCK_UN)
for one in crew:
    one.join()
print(writes() - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="who counts the writes of a process is Linux")
def test_lines_that_come_at_once_are_written_together_and_each_whole(sh, home, work):
    """A hundred threads that come while another process has the journal."""
    (work / "at_once.py").write_text(AT_ONCE)
    ran = sh(f"{sys.executable} at_once.py")
    assert ran.status == 0 and int(ran.out) < 50, ran
    lines = (home / ".local/state/mllm-pipe/journal.jsonl").read_bytes().splitlines()
    assert sorted(orjson.loads(line)["id"] for line in lines) == sorted(["first", *(f"r{number}" for number in range(100))])
