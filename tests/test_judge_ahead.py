"""A second process judges ahead: nothing changes but the time, and it never outlives the command."""

from __future__ import annotations

import os
import time
from pathlib import Path

import orjson
import pytest

from mllm_pipe.envelope import line_of
from mllm_pipe.errors import BadRecord, Usage
from mllm_pipe.forks import processors
from mllm_pipe.judging.ahead import started
from mllm_pipe.judging.judgement import Judged
from mllm_pipe.stream import Thread

pytestmark = pytest.mark.skipif(processors() < 2 or not os.path.isdir("/proc/self"), reason="needs two processors, and /proc")

MASK = """sed -E 's/[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f-]{21}/ID/g; s/"at":"[^"]*"/AT/g'"""
GONE = "for i in $(seq 600); do grep -qs 'State:.[^Z]' /proc/$child/status || break; sleep 0.1; done; echo $((i < 600))"
CHILD = "until child=$(cat /proc/$pid/task/$pid/children); [ $child ]; do kill -0 $pid || exit 9; done"


def lines_of(name: str, *said: tuple[str, str]) -> list[bytes]:
    """The messages of a thread, by role and text, as lines."""
    return [orjson.dumps({"v": 1, "type": "message", "thread": name, "id": f"{name}.{number}", "role": role, "content": text})
            for number, (role, text) in enumerate(said)]  # fmt: skip


def flat(threads: list[list[bytes]]) -> list[bytes]:
    return [line for thread in threads for line in thread]


def many(count: int) -> list[list[bytes]]:
    return [lines_of(f"t{n}", ("user", "How long is a day?"), ("assistant", f"The answer is {n}. " + "It is known. " * 60))
            for n in range(count)]  # fmt: skip


def odd(work: Path, count: int) -> None:
    """A file `in` of threads in which something is wrong here and there: at its ends, in the middle, on both sides."""
    threads = many(count)
    threads[count // 2] = lines_of("no", ("user", "q"), ("assistant", "nothing is said"))
    threads[count // 3] = lines_of("unanswered", ("user", "q"))
    threads[-2] = lines_of("also-unanswered", ("user", "q"))
    threads[count // 4] = [line.replace(b'"role":"user"', b'"role":7') for line in lines_of("bad", ("user", "q"), ("assistant", "a"))]
    lines = flat(threads)
    far = lines_of("far", ("user", "q"), ("assistant", "The answer is 7, it is known"), ("user", "sure?"), ("assistant", "no"))
    for line, place in zip(far, (0, len(lines) // 5, len(lines) // 2, len(lines)), strict=True):
        lines.insert(place, line)
    lines.insert(len(lines) // 3, b"{no record")
    lines.insert(len(lines) - 9, b"[7]")
    lines.insert(-7, lines[-9])  # once more, which counts for nothing
    lines.insert(-6, lines_of("t1", ("user", "another text"))[0])  # the same id
    lines.insert(-5, lines_of("long", ("user", "q"), ("assistant", "it is known " * 60_000))[1])
    (work / "in").write_bytes(b"\n".join(lines) + b"\n")


@pytest.mark.parametrize("line", [
    "judge CHECKS < in", "judge CHECKS --grouped < in", "judge CHECKS < in | cat", "judge CHECKS --reply --advise < in",
    "judge CHECKS --max-line 100000 < in", "judge CHECKS --format text < in", "judge CHECKS --format json < in",
    "judge CHECKS --min-pass-rate 0.9999 --junit x < in; cat x", "judge --check max-cost:1 < in",
    "judge --check similar:0.5:known < in", "{ head -n 1 > /dev/null; judge CHECKS; } < in", "judge -q CHECKS --need any < in",
])  # fmt: skip
def test_two_processes_write_what_one_does(sh, work, line):
    odd(work, 5000)
    line = line.replace("CHECKS", "--check contains:known --check max-chars:900 --check 'regex:answer is [0-9]+'")
    both = f"{{ {line}; }} > $name 2> $name.err; echo ${{PIPESTATUS[*]}} $? >> $name.err; {MASK} $name $name.err > $name.masked"
    ran = sh(f"name=two; {both}; name=one; taskset -cp {min(os.sched_getaffinity(0))} $$ > cpu; {both}; cmp one.masked two.masked; wc -l < one.masked")
    assert (ran.status, ran.err) == (0, "") and int(ran.out) > 4


def test_the_order_of_a_long_file_is_kept(sh, work):
    (work / "in").write_bytes(b"\n".join(flat(many(20_000))) + b"\n")
    ran = sh("judge --check contains:known < in > out; echo $?; grep -v verdict out | cmp - in; "
             "jq -r 'select(.type == \"verdict\") | .thread + \" \" + (.pass | tostring)' out | md5sum; "
             "seq -f 't%.0f true' 0 19999 | md5sum")  # fmt: skip
    status, found, wanted = ran.out.splitlines()
    assert (status, found, ran.err) == ("0", wanted, "")


def test_who_kills_the_other_process_loses_nothing(sh, work):
    (work / "in").write_bytes(b"\n".join(flat(many(20_000))) + b"\n")
    ran = sh(f"judge --check contains:known < in > out & pid=$!; {CHILD}; kill -9 $child; wait $pid; echo $?; "
             "grep -v verdict out | cmp - in; grep -c verdict out")  # fmt: skip
    assert ran == (0, "0\n20000\n", "")


@pytest.mark.parametrize("end", ["sleep 0.1; kill -9 $child", "sleep 0.2; kill -9 $child", "sleep 0.1; kill -STOP $child"])
def test_who_ends_the_other_process_in_the_midst_loses_nothing_either(sh, work, end):
    (work / "in").write_bytes(b"\n".join(flat(many(20_000))) + b"\n")
    ran = sh(f"judge --check contains:known < in > out & pid=$!; {CHILD}; {end} 2> /dev/null; wait $pid; echo $?; {GONE}; "
             "grep -v verdict out | cmp - in; jq -r 'select(.pass).thread' out | md5sum; seq -f 't%.0f' 0 19999 | md5sum")  # fmt: skip
    status, gone, found, wanted = ran.out.splitlines()
    assert (status, gone, found, ran.err) == ("0", "1", wanted, "")


def test_who_kills_the_command_in_the_midst_has_whole_verdicts_and_no_orphan(sh, work):
    """But for the last line: a kernel that is told to kill may stop in the middle of a write."""
    (work / "in").write_bytes(b"\n".join(flat(many(20_000))) + b"\n")
    ran = sh(f"judge --check contains:known < in > out & pid=$!; {CHILD}; until [ -s out ]; do :; done; kill -9 $pid; wait $pid; "
             f"echo $?; {GONE}; [ -z \"$(tail -c 1 out)\" ] || sed -i '$d' out; n=$(jq -r 'select(.pass).thread' out | wc -l); "
             "echo $((0 < n && n < 20000)); grep -v verdict out > said; head -n $(wc -l < said) in | cmp - said; "
             "m=$(($(wc -l < said) / 2)); echo $((n <= m && m <= n + 1))")  # fmt: skip
    assert (ran.status, ran.out) == (0, "137\n1\n1\n1\n")


@pytest.mark.parametrize(("end", "status"), [
    ("kill -9 $pid", 137), ("kill -TERM $pid", 143), ("kill -INT $pid", 130), ("exec 3<&-", 141),
])  # fmt: skip
def test_the_other_process_ends_with_the_command(sh, work, end, status):
    """Both are in a search when it comes to its end, for 5 seconds of a processor."""
    slow = lines_of("slow", ("user", "q"), ("assistant", "a" * 50 + "!"))
    (work / "in").write_bytes(b"\n".join([*slow, *flat(many(5000)), *[line.replace(b"slow", b"late") for line in slow]]) + b"\n")
    ran = sh(f"set -m; mkfifo f; exec 3<>f; judge --timeout 5 --check 'regex:(a+)+$' < in > f 2> /dev/null 3<&- & pid=$!; {CHILD}; sleep 0.3; {end}; "
             f"wait $pid; echo $?; {GONE}")  # fmt: skip
    assert ran.out == f"{status}\n1\n"


def test_where_nothing_can_be_written_the_other_process_ends_too(sh, work):
    """The first thread takes a second, so the other process is at work when the first write fails."""
    slow = lines_of("slow", ("user", "q"), ("assistant", "a" * 50 + "!"))
    (work / "in").write_bytes(b"\n".join([*slow, *flat(many(5000)), *[line.replace(b"slow", b"late") for line in slow]]) + b"\n")
    ran = sh(f"judge --timeout 1 --check 'regex:(a+)+$' < in > /dev/full & pid=$!; {CHILD}; wait $pid; echo $?; {GONE}")
    late = "thread slow: a --check took longer than 1 s; --timeout sets the limit"
    assert ran == (0, "74\n1\n", f"judge: {late}\njudge: stdout cannot be written: No space left on device\n")


def judged(thread: Thread) -> Judged:
    """What takes no part in what is tried here: a verdict that names the lines, or a failure."""
    if thread.id == "t5":
        return Judged([], Usage("nothing to judge"))
    verdict = {"v": 1, "type": "verdict", "thread": thread.id, "run": thread.run, "pass": thread.id != "t6", "of": len(thread.lines)}
    return Judged([verdict], None)


def complete(lines: list[bytes]) -> Thread:
    thread = Thread(orjson.loads(lines[0])["thread"])
    for line in lines:
        thread.add(orjson.loads(line), line)
    return thread


def test_what_was_made_of_other_lines_does_not_count(work):
    threads = many(1000)
    threads[3] *= 2
    (work / "in").write_bytes(b"\n".join(flat(threads)) + b"\n")
    with open(work / "in", "rb") as file:
        ahead = started(judged, file.fileno(), "run", [])
        assert ahead
        until = time.monotonic() + 60
        while "t0" not in ahead.messages and time.monotonic() < until:
            ahead.hear()
        ahead.end()
    changed = {1: [*threads[1], lines_of("t1", ("user", "more"))[0]], 2: threads[2][:1],
               4: [threads[4][0], threads[4][1].replace(b"known", b"wrong")]}  # fmt: skip
    came = [complete(changed.get(number, lines)) for number, lines in enumerate(threads)]
    came[7].fault = BadRecord("torn")
    taken = [ahead.take(thread) for thread in came]
    assert [number for number, one in enumerate(taken) if one is None] == [1, 2, 4, 7]
    assert (taken[6].negative(), taken[8].negative(), taken[8].failure) == (True, False, None)
    verdict = {"v": 1, "type": "verdict", "thread": "t8", "run": "run", "pass": True, "of": 2}
    assert (taken[8].lines(), taken[8].made, taken[8].verdicts) == ([line_of(verdict)[:-1]], [verdict], [verdict])
    assert (taken[5].failure.status, taken[5].failure.code, str(taken[5].failure)) == (2, "usage", "nothing to judge")
