"""DESIGN §1: the laws of every command, each by its own name."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import orjson
import pytest
from conftest import DATA, environment

MESSAGE = '{"v":1,"type":"message","thread":"%s","id":"%s","role":"user","content":"%s"}'
ONE = MESSAGE % ("t", "m1", "hi")
ROUTE = f"route --rules {DATA}/rules.toml"
FILTERS = ["thread-append -", "thread-append - more", "dispatch --to echo", ROUTE, "judge --check json", "trace"]


def write(work: Path, name: str, *lines: str) -> None:
    (work / name).write_text("".join(line + "\n" for line in lines))


def journal(home: Path) -> list[dict]:
    path = home / ".local/state/mllm-pipe/journal.jsonl"
    return [orjson.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


# -- law 1


def test_law_1_it_is_cat_until_it_has_something_to_add(sh, work):
    odd = '{"type" : "x-new", "v":1.0, "id":"\\u0041", "thread":"t", "far": {"future": [1e3, 2]}}'
    write(work, "t", odd, ONE)
    assert sh("thread-append - < t > out; cat out") == (0, f"{odd}\n{ONE}\n", "")
    assert sh("thread-append - < t | sed -e 1d -e '$d'") == (0, f"{odd}\n{ONE}\n", ""), "control records aside"
    assert sh("dispatch --to echo < t > out && head -n 2 out") == (0, f"{odd}\n{ONE}\n", "")


# -- law 2


def test_law_2_a_thread_leaves_whole_with_its_handoff(sh, work):
    write(work, "t", MESSAGE % ("a", "1", "x"), MESSAGE % ("b", "1", "y"), MESSAGE % ("a", "2", "z"))
    ran = sh("dispatch --to echo < t | cat")
    assert [record.get("thread") for record in ran.records] == [None] + ["a"] * 5 + ["b"] * 4 + [None]
    assert ran.kinds() == "begin user user assistant span ok user assistant span ok end"


@pytest.mark.parametrize("command, kinds", [
    ("dispatch --to echo", "begin message message span handoff"),
    ("judge --check contains:hi", "begin message error handoff"),  # it asks nobody, so several may leave in one write
])  # fmt: skip
def test_law_2_each_thread_is_flushed_when_it_is_done(work, home, command, kinds):
    """A writer that never ends: the first thread arrives while the second is not there yet."""
    write(work, "t", ONE, '{"v":1,"type":"handoff","thread":"t","status":"ok","parent_run_id":"r","at":"2026-01-01T00:00:00.000Z"}')
    line = f"{{ cat t; cat <&3; }} | {command}"
    read_end, write_end = os.pipe()
    with subprocess.Popen(["bash", "-c", line.replace("<&3", f"<&{read_end}")], stdout=subprocess.PIPE, cwd=work,
                          env=environment(home), pass_fds=[read_end]) as child:  # fmt: skip
        assert child.stdout
        came = [orjson.loads(child.stdout.readline())["type"] for _ in kinds.split()]
        os.close(write_end)
        os.close(read_end)
        child.stdout.read()
    assert came == kinds.split()


# -- law 3


def test_law_3_failure_travels_three_ways(sh, work):
    write(work, "t", ONE)
    ran = sh("dispatch --to exec:false < t | cat; exit ${PIPESTATUS[0]}")
    assert ran.status == 3
    assert ran.err == "dispatch: thread t: exec: false: exit status 1\n"
    assert ran.kinds() == "begin user span error failed end"
    error = ran.records[3]
    assert (error["code"], error["stage"], error["billed"]) == ("exit", "dispatch", "unknown")


# -- law 4


def test_law_4_a_bad_line_stops_nothing_and_is_not_lost(sh, work, home):
    write(work, "t", MESSAGE % ("a", "1", "x"), "{broken", MESSAGE % ("b", "1", "y"))
    ran = sh("dispatch --to echo < t | cat; exit ${PIPESTATUS[0]}")
    assert ran.status == 65
    assert ran.kinds() == "begin error user assistant span ok user assistant span ok end"
    assert ran.records[1]["raw"] == "{broken" and ran.records[1]["line"] == 2
    assert ran.err.startswith("dispatch: stdin: line 2: no JSON:")
    assert sum(entry["type"] == "intent" for entry in journal(home)) == 2


def test_law_4_the_next_command_hears_of_a_bad_line_too(sh, work):
    write(work, "t", ONE, "{broken")
    assert sh("dispatch --to echo < t 2>/dev/null | dispatch --to echo more | trace >/dev/null").status == 65


def test_law_4_a_bad_line_that_is_no_utf8_or_very_long_is_carried(sh, work):
    (work / "t").write_bytes(b'{"\xff\n{' + b"x" * 9000 + b"\n" + ONE.encode() + b"\n")
    first, second, _ = sh("thread-append - < t > out; cat out").records
    assert first["raw_base64"] == "eyL/"
    assert (len(second["raw"]), second["length"], len(second["sha256"])) == (4096, 9001, 64)


@pytest.mark.parametrize("tail", ['{"v":1,"type":"message","thread":"b","id":"2","ro', '{"v":1,"type":"mess', '{"'])
def test_law_4_half_a_line_is_never_sent(sh, work, home, tail):
    """The torn line's thread is not sent; if the line does not say which, none is."""
    (work / "t").write_text("\n".join([MESSAGE % ("a", "1", "x"), MESSAGE % ("b", "1", "y"), tail]))
    ran = sh("dispatch --to echo < t | cat; exit ${PIPESTATUS[0]}")
    assert ran.status == 65
    assert [entry["thread"] for entry in journal(home) if entry["type"] == "intent"] == (["a"] if '"b"' in tail else [])
    assert ran.kinds().count("failed") == (1 if '"b"' in tail else 2)


def test_law_4_every_prefix_of_a_thread_is_whole_or_not_sent(sh, work, home):
    whole = (MESSAGE % ("t", "1", "one") + "\n" + MESSAGE % ("t", "2", "two") + "\n").encode()
    first = whole.index(b"\n") + 1
    for cut in [*range(1, 12), *range(12, len(whole), 17), first - 1, first, len(whole) - 1]:
        (work / "t").write_bytes(whole[:cut])
        before = len(journal(home))
        status = sh("dispatch --to echo < t").status
        complete = cut in (first - 1, first, len(whole) - 1)
        assert (status, len(journal(home)) > before) == ((0, True) if complete else (65, False)), whole[:cut]


def test_law_4_a_torn_tail_that_was_closed_is_known_damage(sh, work):
    (work / "t").write_text(ONE + '\n{"v":1,"type":"message","thread":"t","id":"m2","ro')
    sh("thread-append t later")
    ran = sh("dispatch --to echo < t")
    assert ran.status == 0
    assert ran.err == "dispatch: stdin: line 2: torn by a write that was killed; known, nothing else is lost\n"


# -- law 5


def test_law_5_stdout_is_data_only_and_text_on_request(sh, work):
    write(work, "t", ONE)
    assert sh("dispatch --to echo --text < t") == (0, "hi\n", "")
    assert sh("dispatch --to echo --format ndjson < t").records[1]["content"] == "hi"


# -- law 6


@pytest.mark.parametrize("command", FILTERS)
def test_law_6_an_empty_stdin_is_a_usage_error_and_never_a_request(sh, home, command):
    for line in (f": | {command}", f"{command} < <(:)", f"touch e; {command} < e"):
        ran = sh(line)
        assert (ran.status, ran.out) == (2, ""), line
        assert ran.err == f"{command.split()[0]}: stdin is empty: did the command before fail?\n"
    assert journal(home) == []


def test_law_6_only_new_or_no_stdin_lets_a_prompt_start_a_thread(sh):
    assert sh("dispatch --to echo --text hello </dev/null") == (0, "hello\n", "")
    assert sh("printf 'a\\nb\\n' | while read x; do dispatch --to echo --new --text $x; done") == (0, "a\nb\n", "")
    assert sh("dispatch --to echo </dev/null").status == 2


# -- law 7


@pytest.mark.parametrize("command", FILTERS)
def test_law_7_the_same_file_as_stdin_and_stdout_is_refused(sh, work, home, command):
    for redirect in ("< t >> t", "< t 1<> t"):
        write(work, "t", ONE)
        ran = sh(f"{command} {redirect}")
        assert ran == (2, "", f"{command.split()[0]}: stdin and stdout are the same file; "
                              "write to it with: | thread-append FILE\n")  # fmt: skip
        assert (work / "t").read_text() == ONE + "\n"
    assert journal(home) == []


# -- law 8


def test_law_8_a_reader_that_leaves_stops_the_work_in_silence(sh, work):
    write(work, "t", ONE)
    ran = sh('yes "$(tail -n 1 t)" | thread-append - | head -1; echo "${PIPESTATUS[@]}"')
    assert (ran.status, ran.err) == (0, "")
    begin, statuses = ran.out.splitlines()
    assert orjson.loads(begin)["type"] == "begin" and statuses == "141 141 0"


def test_law_8_a_reader_that_leaves_stops_also_who_has_nothing_for_him_yet(sh):
    ran = sh("yes garbage | mllm validate 2>&1 | head -1; echo ${PIPESTATUS[*]}")
    assert ran == (0, "mllm: stdin: line 1: no JSON: unexpected character, expected a JSON value at column 1\n141 141 0\n", "")


def test_law_8_a_reader_that_leaves_cancels_the_call_in_flight(sh, work):
    """The child writes its pid, then works for ever; the reader leaves once it has been started."""
    write(work, "t", ONE)
    (work / "slow").write_text("#!/bin/sh\nmkfifo never\necho $$ > pid\ncat never\n")
    os.chmod(work / "slow", 0o755)
    ran = sh("dispatch --to exec:./slow < t | until [ -s pid ]; do :; done; echo ${PIPESTATUS[0]}; "
             'while kill -0 "$(cat pid)" 2>/dev/null; do :; done')  # fmt: skip
    assert ran == (0, "141\n", "")


def over(pid: int) -> bool:
    """True if a process has ended, be it that nobody has asked yet how."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_law_8_a_signal_ends_it_as_that_signal_and_no_child_stays(work, home, signum):
    (work / "slow").write_text("#!/bin/sh\ntrap '' INT TERM HUP\nmkfifo never\necho $$ > pid.new\nmv pid.new pid\ncat never\n")
    os.chmod(work / "slow", 0o755)
    with subprocess.Popen(["dispatch", "--to", "exec:./slow", "--new", "x"], stdout=subprocess.PIPE, cwd=work,
                          stderr=subprocess.PIPE, env=environment(home)) as child:  # fmt: skip
        while not (work / "pid").exists():
            assert child.poll() is None
        pid = int((work / "pid").read_text())
        child.send_signal(signum)
        out, err = child.communicate()
    assert (child.returncode, out, err) == (-signum, b"", b"")
    until = time.monotonic() + 60  # what was killed takes a moment to end
    while not over(pid) and time.monotonic() < until:
        time.sleep(0.01)
    assert over(pid)


# -- law 9


@pytest.mark.parametrize("command", [*FILTERS, "thread-append f x", "thread-append --new x", "mllm validate",
                                     "mllm doctor", "dispatch --help", "trace --version", "mllm completion bash"])  # fmt: skip
def test_law_9_a_write_that_fails_is_reported(sh, work, command):
    write(work, "t", ONE if "judge" not in command else ONE.replace("user", "assistant"))
    name = command.split()[0]
    sh("dispatch --to echo < t >> t2; [ ! -s t2 ] || mv t2 t") if name == "trace" else None
    full = sh(f"{command} < t > /dev/full")
    assert (full.status, full.out, full.err.count("\n")) == (74, "", 1)
    assert full.err.startswith(f"{name}: stdout cannot be written: No space left on device")
    closed = sh(f"{command} < t >&-")
    assert closed == (74, "", f"{name}: stdout is closed; send it to a file, a pipe or /dev/null\n")


def test_law_9_nothing_is_sent_if_the_journal_cannot_be_written(sh, work, home):
    write(work, "t", ONE)
    (home / ".local").write_text("in the way")
    line = "dispatch --to 'exec:touch sent' < t"
    ran = sh(line)
    assert ran.status == 74 and not (work / "sent").exists()
    assert ran.err == f"dispatch: the journal cannot be written: {home}/.local/state/mllm-pipe/journal.jsonl: " \
                      "Not a directory; MLLM_JOURNAL=off goes without\n"  # fmt: skip
    sh(line, MLLM_JOURNAL="off")
    assert (work / "sent").exists()


def test_law_9_a_full_disk_takes_nothing_back_that_was_there(sh, work):
    write(work, "t", ONE)
    ran = sh("ulimit -f 1; thread-append t " + "x" * 4000)
    assert (ran.status, ran.err) == (74, "thread-append: t: File too large; nothing was added\n")
    assert (work / "t").read_text() == ONE + "\n"


# -- law 10


OLDER = "cat > old; judge --against old --by echo --rubric style < plain"


@pytest.mark.parametrize("command", [*FILTERS, "thread-append kept", "mllm validate", OLDER])
def test_law_10_a_line_of_blanks_is_none_also_with_the_line_ends_of_windows(sh, work, command):
    two = ONE.replace("m1", "m2")
    (work / "windows").write_bytes(f"\r\n{ONE}\r\n\r\n \t\r\n\n{two}\r\n\r".encode())
    write(work, "plain", ONE, two)
    line = f"rm -f kept; {{ {command}; }} < %s > out; was=$?; wc -l < out; exit $was"
    assert sh(line % "windows") == sh(line % "plain")


def test_law_10_lines_end_at_a_newline_only(sh, work):
    odd = MESSAGE % ("t", "1", "a\u2028b\u0085c\x7f") + "\r"
    (work / "t").write_bytes(odd.encode() + b"\n")
    assert sh("thread-append - < t > out; od -c out | tail -n 3").out.split()[-3:-1] == ["\\r", "\\n"]
    assert sh("dispatch --to echo --text < t").out == "a\u2028b\u0085c\x7f\n"


@pytest.mark.parametrize(
    ("field", "why"),
    [
        ('"n":NaN', "no JSON"),
        ('"n":"\\ud800"', "no JSON"),
        ('"n":18446744073709551616', "an integer is beyond 64 bits"),
        ('"n":' + "[" * 129 + "]" * 129, "it is nested deeper than 128 levels"),
        ('"role":"boss"', 'role is "boss", expected one of "system", "user", "assistant", "tool"'),
    ],
)
def test_law_10_what_cannot_be_written_again_is_not_sent(sh, work, home, field, why):
    write(work, "t", ONE[:-1] + "," + field + "}")
    ran = sh("dispatch --to echo < t")
    assert ran.status == (65 if "no JSON" not in why else 65)
    assert why in ran.err
    assert journal(home) == []


def test_law_10_what_is_only_copied_is_not_judged(sh, work):
    line = ONE[:-1] + ',"n":18446744073709551616,"role":"boss"}'
    write(work, "t", line)
    assert sh("thread-append - < t > out; cat out") == (0, line + "\n", "")


def test_law_10_a_line_beyond_the_limit_is_a_clear_error(sh, work):
    write(work, "t", MESSAGE % ("t", "1", "x" * 5000), ONE)
    ran = sh("thread-append - --max-line 1000 < t > out; s=$?; cat out; exit $s")
    assert ran.status == 65
    assert ran.err == "thread-append: stdin: line 1: too long, 5073 bytes; --max-line sets the limit; " \
                      "passed on as an error record\n"  # fmt: skip
    assert ran.records[0]["length"] == 5073 and ran.out.splitlines()[1] == ONE


# -- law 11


def test_law_11_a_copy_takes_the_memory_of_one_read(work, home):
    line = (MESSAGE % ("t", "1", "x" * 900) + "\n").encode()
    with subprocess.Popen(["thread-append", "-"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd=work,
                          env=environment(home)) as child:  # fmt: skip
        assert child.stdin
        for _ in range(60):
            child.stdin.write(line * 1000)
        child.stdin.flush()
        peak = int(next(row for row in Path(f"/proc/{child.pid}/status").read_text().splitlines()
                        if row.startswith("VmHWM")).split()[1])  # fmt: skip
        child.stdin.close()
    assert child.returncode == 0
    assert peak < 60_000, "KiB"


# -- law 12


def test_law_12_a_path_in_a_record_is_not_opened(sh, work, home):
    secret = work / "secret"
    secret.write_text("canary")
    part = '[{"type":"file","media_type":"text/plain","path":"%s","sha256":"%s"},{"type":"text","text":"go"}]'
    write(work, "t", ONE.replace('"hi"', part % (secret, "0" * 64)))
    assert "canary" not in sh("dispatch --to exec:cat --text < t").out
    ran = sh("truncate -s 1T secret; ulimit -v 2000000; dispatch -q --to openai-chat:m --base-url http://127.0.0.1:9/v1 --text < t")
    assert ran == (3, "", f"dispatch: thread t: openai-chat: {secret}: it has more than 64 MiB; is it the file that was meant?; "
                          "the thread has it by path\n")  # fmt: skip


# -- the order of exit statuses


def test_statuses_combine_in_the_order_of_the_table(sh, work):
    ok, silent = MESSAGE % ("ok", "1", "x"), '{"v":1,"type":"summary","thread":"s","id":"1","content":"x","covers":["0"]}'
    bad = ONE[:-1] + ',"role":"boss"}'
    write(work, "usage", ok, silent)
    write(work, "mixed", ok, bad, silent)
    write(work, "line", ok, "{")
    assert sh("dispatch --to echo < usage").status == 2
    assert sh("dispatch --to echo < mixed").status == 2
    assert sh("dispatch --to exec:false < line").status == 3
    assert sh("dispatch --to echo < line").status == 65
    assert sh("dispatch --to echo < line | judge --check json").status == 65
    assert sh("dispatch --to /dev/null < line").status == 2


# -- a copy is a stage of the pipe like any other


def test_a_copy_that_is_killed_is_noticed_by_the_next_command(sh, work, home):
    """Half a thread has gone through when the copy ends: it must not be asked."""
    write(work, "t", ONE, MESSAGE % ("t", "m2", "but wait"))
    ran = sh("{ thread-append - < t | head -n 2; } | dispatch --to echo; exit ${PIPESTATUS[1]}")
    assert ran.status == 3 and journal(home) == []


def test_a_bad_line_in_a_copy_is_heard_of_to_the_end_of_the_pipe(sh, work):
    write(work, "t", ONE, '{"role":"user","content":5}')
    ran = sh("thread-append - < t | dispatch --to echo | judge --check regex:. > out")
    assert ran.status == 65
    assert "a bare message that is none: content is 5, expected of type string or array" in ran.err


def test_a_torn_line_in_a_copy_is_not_made_whole(sh, work, home):
    (work / "t").write_text(ONE + '\n{"v":1,"type":"message","thread":"t","id":"m2","ro')
    assert sh("thread-append - < t 2>/dev/null | dispatch --to echo > out").status == 3
    assert journal(home) == []


@pytest.mark.parametrize("command", ["dispatch --to echo more", ROUTE, "judge --check json", "trace", "thread-append f"])
def test_a_stream_without_a_thread_is_no_success(sh, work, home, command):
    write(work, "t", ONE)
    ran = sh(f"dispatch --to echo < t | jq -c 'select(.thread == \"typo\" or .type == \"end\")' | {command}")
    assert ran == (2, "", f"{command.split()[0]}: stdin holds no thread: did a filter drop it?\n")
    assert len(journal(home)) == 2


# -- start-up


@pytest.mark.parametrize("line, loaded", [
    ("thread-append --help", ""),
    ("thread-append - more < t", ""),
    ("dispatch --to echo --new x", "mllm_pipe.calling.call\n"),
    ("dispatch --to exec:cat --new x", "mllm_pipe.calling.call\n"),
    ('dispatch --to echo --new "$(seq 20000)"', "mllm_pipe.calling.call\n_hashlib\n"),  # OpenSSL: long texts are worth it
])  # fmt: skip
def test_a_command_loads_what_it_needs_and_no_more(sh, work, line, loaded):
    write(work, "t", ONE)
    name, arguments = line.split(" ", 1)
    seen = "grep -oE '(_hashlib|httpx|jsonschema|sqlite3|tomllib|lzma|mllm_pipe.calling.call)$'"
    ran = sh(f'python -X importtime "$(command -v {name})" {arguments} 2>&1 >/dev/null | {seen}; true')
    assert (ran.out, ran.err) == (loaded, "")


def test_a_digest_is_the_same_of_what_is_long_and_of_what_is_short(sh, work):
    write(work, "t", ONE)
    for length in (65, 1 << 16, (1 << 16) + 1):
        (work / "bad").write_bytes(b"x" * length)
        made = "jq -r 'select(.code == \"bad_line\").id'"
        ran = sh(f'{{ cat t bad; echo; }} | thread-append -q - 2>/dev/null | {made}; echo "line-$(sha256sum < bad | cut -c 1-32)"')
        first, second = ran.out.splitlines()
        assert first == second and len(first) == 37


@pytest.mark.parametrize("columns, widest", [("", 78), ("60", 58), ("200", 98), ("10", 50), ("x", 78)])
def test_help_is_as_wide_as_the_terminal_and_no_wider_than_can_be_read(sh, columns, widest):
    ran = sh("judge --help | awk '{ if (length > n) n = length } END { print n }'", COLUMNS=columns)
    assert (ran.status, ran.err) == (0, "") and widest - 4 <= int(ran.out) <= widest
