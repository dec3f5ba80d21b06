"""thread-append: a line of shell and its whole output."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from pathlib import Path

import orjson
import pytest
from conftest import environment, masked

ONE = '{"v":1,"type":"message","thread":"t","id":"m1","role":"user","content":"hi"}\n'
HANDOFF = '{"v":1,"type":"handoff","thread":"t","status":"ok","parent_run_id":"r","at":"2026-01-01T00:00:00.000Z"}\n'


def stored(work: Path, name: str = "t") -> list[dict]:
    return [orjson.loads(line) for line in (work / name).read_bytes().splitlines()]


def test_new_starts_a_thread_and_reads_no_stdin(sh):
    ran = sh("yes | thread-append --new plan it | cat")
    assert (ran.status, ran.err) == (0, "")
    assert masked(ran.out) == (
        '{"v":1,"type":"begin","at":"TIME"}\n'
        '{"v":1,"type":"message","thread":"ID","id":"ID","at":"TIME","role":"user","content":"plan\\nit"}\n'
        '{"v":1,"type":"handoff","thread":"ID","status":"ok","parent_run_id":"ID","at":"TIME"}\n'
        '{"v":1,"type":"end","threads":1}\n'
    )


def test_control_records_go_to_pipes_only(sh, work):
    sh("thread-append --new hi > out; thread-append --new hi | tee saved >/dev/null")
    assert [record["type"] for record in stored(work, "out")] == ["message"]
    assert [record["type"] for record in stored(work, "saved")] == ["begin", "message", "handoff", "end"]
    sh("thread-append t < saved >/dev/null; thread-append - < saved > copy")
    assert [record["type"] for record in stored(work)] == ["message"]
    assert [record["type"] for record in stored(work, "copy")] == ["message"]


def test_a_file_is_extended_and_emitted_whole(sh, work):
    assert sh("thread-append t one").records[1]["content"] == "one"
    ran = sh("thread-append t two | cat")
    assert ran.kinds() == "begin user user ok end"
    assert [record["content"] for record in stored(work)] == ["one", "two"]
    assert stored(work)[1]["reply_to"] == stored(work)[0]["id"]


def test_a_new_file_is_private_also_under_an_open_umask(sh, work):
    sh("umask 000; thread-append t x >/dev/null")
    assert (work / "t").stat().st_mode & 0o777 == 0o600


def test_a_file_with_several_threads_wants_one_named(sh, work):
    sh("thread-append t --thread a x; thread-append t --thread b y")
    assert sh("thread-append t z") == (2, "", "thread-append: t has 2 threads; name one with --thread (a, b)\n")
    assert sh("thread-append t --thread b z | cat").kinds() == "begin user user ok end"
    assert [record["thread"] for record in stored(work)] == ["a", "b", "b"]


def test_text_is_read_from_a_file_or_stdin_when_asked(sh, work):
    (work / "q").write_text("what\nnow?")
    assert sh("thread-append --new @q").records[1]["content"] == "what\nnow?"
    assert sh("printf 'from stdin' | thread-append --new Say: @-").records[1]["content"] == "Say:\nfrom stdin"
    assert sh("thread-append --new @nowhere") == (66, "", "thread-append: nowhere: No such file or directory\n")
    assert sh("thread-append --new @") == (2, "", "thread-append: @ names no file; say @FILE, or @- for stdin\n")
    assert sh("printf '\\377' | thread-append --new @-") == (65, "", "thread-append: - is no UTF-8 text; attach it with -a\n")


def test_system_role_thread_and_messages(sh, work):
    sh("thread-append t --thread mine --system 'be brief' --role user hi >/dev/null")
    assert [(record["thread"], record["role"], record["content"]) for record in stored(work)] == [
        ("mine", "system", "be brief"), ("mine", "user", "hi")]  # fmt: skip
    sh("thread-append t --role assistant hello | dispatch --to echo more | thread-append t --messages >/dev/null")
    assert [record["role"] for record in stored(work)] == ["system", "user", "assistant", "user", "assistant"]


def test_at_forks_where_it_says(sh, work):
    sh("for x in one two; do thread-append t $x >/dev/null; done")
    first = stored(work)[0]["id"]
    sh(f"thread-append t --at {first} other >/dev/null")
    assert stored(work)[2]["reply_to"] == first
    assert sh("dispatch --to echo < t").err.startswith("dispatch: thread ")
    assert sh("dispatch --to replay:/dev/null --dry-run < t").status == 0
    ran = sh("thread-append t --at nobody x")
    assert (ran.status, ran.out) == (66, "")
    assert ran.err.endswith("has no message nobody to reply to\n")


def test_an_attachment_is_embedded_with_its_type(sh, work):
    (work / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n rest")
    (work / "notes.md").write_text("hello")
    content = sh("thread-append --new look -a a.png -a notes.md").records[1]["content"]
    assert content[0] == {"type": "text", "text": "look"}
    assert (content[1]["media_type"], content[1]["name"]) == ("image/png", "a.png")
    assert base64.b64decode(content[1]["data"]) == b"\x89PNG\r\n\x1a\n rest"
    assert content[2]["media_type"] == "text/markdown"


def test_bare_messages_are_completed(sh, work):
    bare = """printf '{"role":"user","content":"a"}\\n{"role":"assistant","content":"b","meta":{"k":1}}\\n'"""
    first, second = sh(f"{bare} | thread-append - > out; cat out").records
    assert (first["content"], second["content"], second["meta"]) == ("a", "b", {"k": 1})
    assert first["thread"] == second["thread"] and second["reply_to"] == first["id"]
    assert sh(f"{bare} | thread-append - --thread mine > out; cat out").records[0]["thread"] == "mine"
    assert sh(f"{bare} | dispatch --to echo").status == 65


def test_a_bare_message_for_a_file_goes_on_with_its_whole_thread(sh, work):
    sh("thread-append t first | dispatch --to echo | thread-append t >/dev/null")
    ran = sh("""printf '{"role":"user","content":"second"}\\n' | thread-append t | dispatch --to echo | cat""")
    assert ran.kinds() == "begin user assistant span user assistant span ok end"
    assert stored(work)[-1]["reply_to"] == stored(work)[1]["id"]


def test_what_the_file_has_is_not_stored_twice(sh, work):
    (work / "t").write_text(ONE)
    sh("dispatch --to echo < t > answered; for i in 1 2 3; do thread-append t < answered >/dev/null; done")
    assert [record["type"] for record in stored(work)] == ["message", "message", "span"]


@pytest.mark.parametrize(("there", "came", "same"), [
    ('{"a":0.0,"b":[1.0,{"c":1e2}]}', '{ "b": [1, {"c":100}],\t"a":0}', True),
    ('{"text":"é/\\n\U0001f600"}', r'{"text":"\u00e9\/\u000a\ud83d\ude00"}', True),
    ('{"n":9007199254740993,"m":null}', '{"m":null,"n":9007199254740993}', True),
    ("9007199254740993", "9007199254740992.0", False), ("18446744073709551615", "18446744073709551615.0", False),
    ("18446744073709551616", "18446744073709551617", False), ("1", "true", False), ("0", "false", False), ("0", '"0"', False),
    ('{"a":null}', "{}", False), ("[1,2]", "[2,1]", False), ('["\\u00e9"]', '["e"]', False),
    (f'{900 * "["}0.0,18446744073709551616{900 * "]"}', f'{900 * "["}0,18446744073709551616{900 * "]"}', False),
    ('"' + 9000 * "x" + 'é"', '"' + 9000 * "x" + '\\u00e9"', True), ('"' + 9000 * "x" + '"', '"' + 8999 * "x" + '"', False),
])  # fmt: skip
def test_a_record_with_other_bytes_is_there_if_it_is_the_same_value(sh, work, there, came, same):
    """In a file, and twice in a stream; what the file has stays as it is."""
    file, stream = (ONE + ONE.replace("m1", "m2").replace("}", f',"meta":{{"x":{value}}}}}', 1) for value in (there, came))
    (work / "t").write_text(file)
    (work / "came").write_text(stream)
    ran = sh("thread-append t < came > out; cat out; cat t came | thread-append both >/dev/null; cmp t both")
    said = "" if same else "thread-append: t: thread t: record m2 is there and differs; not stored\n" \
        "thread-append: stdin: thread t: record m2 comes twice and differs; the first one counts\n"  # fmt: skip
    assert ran == (0, stream, said)
    assert sh("thread-append t < came >/dev/null").status == (0 if same else 65)
    assert (work / "t").read_text() == file


@pytest.mark.parametrize("filter_", ["jq -c .", "jq -ca .", "jq -cS ."])
def test_jq_may_stand_anywhere(sh, work, filter_):
    ran = sh("thread-append t --thread é 'Wie heißt du?' | dispatch -q --to echo | thread-append t >/dev/null; "
             f"thread-append t More | {filter_} | dispatch -q --to echo | {filter_} | thread-append t >/dev/null; echo ${{PIPESTATUS[*]}}")  # fmt: skip
    assert ran == (0, "0 0 0 0 0\n", "")
    assert [record["type"] for record in stored(work)] == ["message", "message", "span"] * 2


def test_an_id_with_another_value_is_reported_and_not_stored(sh, work):
    (work / "t").write_text(ONE)
    ran = sh("""sed 's/"hi"/"ho"/' t | thread-append t""")
    assert ran.status == 65
    assert ran.err == "thread-append: t: thread t: record m1 is there and differs; not stored\n"
    assert (work / "t").read_text() == ONE


def test_a_failed_thread_is_stored_too_and_the_failure_goes_on(sh, work):
    ran = sh("thread-append t q | dispatch --to exec:false 2>/dev/null | thread-append t | trace >/dev/null; echo ${PIPESTATUS[@]}")
    assert ran.out == "0 3 3 3\n"
    assert [record["type"] for record in stored(work)] == ["message", "span", "error"]


def test_another_command_of_the_same_pipe_may_read_the_file(sh, work):
    sh("for i in 1 2 3; do thread-append t --thread $i q$i >/dev/null; done")
    assert sh("dispatch --to echo --grouped < t | thread-append t >/dev/null").status == 0
    assert sh("cat t | dispatch --to echo --skip-answered | thread-append t >/dev/null").status == 0
    assert len(stored(work)) == 9


def test_a_torn_tail_is_closed_and_named(sh, work):
    torn = '{"v":1,"type":"mess'
    (work / "t").write_text(ONE + torn)
    ran = sh("thread-append t more | thread-append copy | trace; echo ${PIPESTATUS[@]}")
    known = "line 2: torn by a write that was killed; known, nothing else is lost"
    assert ran == (0, "0 0 0\n", f"thread-append: t: {known}\n")
    lines = (work / "t").read_text().splitlines()
    assert lines[1] == torn
    note = orjson.loads(lines[2])
    assert (note["type"], note["code"], note["length"]) == ("error", "torn", len(torn))
    assert orjson.loads(lines[3])["content"] == "more"


def test_a_last_line_that_only_lacks_its_newline_is_whole(sh, work):
    (work / "t").write_text(ONE.rstrip())
    assert sh("thread-append t more >/dev/null") == (0, "", "")
    assert [record["content"] for record in stored(work)] == ["hi", "more"]


def test_sync_is_taken(sh, work):
    assert sh("strace -f -e trace=fdatasync,fsync -o calls true 2>/dev/null; thread-append t --sync x >/dev/null").status == 0
    assert len(stored(work)) == 1


@pytest.mark.parametrize(
    ("line", "status", "err"),
    [
        ("thread-append", 2, "no FILE; say FILE, - for the thread on stdin, or --new"),
        ("thread-append --new", 2, "--new: no TEXT; an empty message is never sent"),
        ("thread-append --new ''", 2, "TEXT is empty; an empty message is never sent"),
        ("thread-append t", 2, "nothing to append: say a TEXT, or pipe records in: ... | thread-append t"),
        ("thread-append -", 2, "no thread on stdin; to start one: thread-append --new TEXT"),
        ("thread-append - @-", 2, "stdin is the thread, so @- and -a - have nothing to read; to start one with them, say --new"),
        ("echo x | thread-append - -a -", 2, "stdin is the thread, so @- and -a - have nothing to read; to start one with them, say --new"),
        ("thread-append . x", 74, ".: Is a directory"),
        ("thread-append /dev/null x", 2, "/dev/null is no regular file; a thread is kept in one"),
        ("thread-append no/where x", 74, "no/where: No such file or directory"),
        ("echo hello | thread-append t", 65, "stdin is plain text, not records; to ask it: thread-append FILE @-"),
        ("thread-append --new x -a /nowhere", 66, "/nowhere: No such file or directory"),
        ("thread-append --tpo", 2, "No such option '--tpo'. Did you mean '--to'?; see thread-append --help"),
    ],
)
def test_errors_are_one_line_with_the_next_step(sh, work, line, status, err):
    ran = sh(line)
    assert (ran.status, ran.out) == (status, "")
    if "--tpo" not in line:
        assert ran.err == f"thread-append: {err}\n"
    assert ran.err.count("\n") == 1
    assert not (work / "t").exists() or line.startswith("echo")


def test_a_terminal_gets_the_answer_as_text_once(work, home):
    """A pty as stdout; the escape in the answer is written out."""
    line = "thread-append t 'a\033[31mb' | dispatch --to echo | thread-append t"
    code = "import pty,sys; sys.exit(pty.spawn(['bash','-c',sys.argv[1]]) >> 8)"
    ran = subprocess.run([sys.executable, "-c", code, line], cwd=work, env=environment(home, CI="1"), stdin=subprocess.DEVNULL,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    assert (ran.returncode, ran.stdout.replace(b"\r", b"")) == (0, b"a\\u001b[31mb\n")


AT_TERMINAL = "python -c 'import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)' bash -c"


@pytest.mark.parametrize("stages", [
    "dispatch --to exec:cat",  # it is seen as it comes
    "dispatch -q --to exec:cat", "MLLM_QUIET=1 dispatch --to exec:cat", "CI=1 dispatch --to exec:cat", "dispatch -j 2 --to exec:cat",
    "dispatch --cache --to exec:cat", "cat",
    "dispatch --to exec:cat | judge -q --check contains:hello",
    "dispatch -q --to exec:cat | judge -q --check contains:hello | thread-append u",
    "dispatch --to exec:cat | thread-append -q u | thread-append - | cat",
    "dispatch --to 'exec:sed s/.*/draft/' 2>/dev/null | dispatch -q --as b --to 'exec:echo hello' again",
    "dispatch -q --to 'exec:sed s/.*/draft/' | dispatch --as b --to 'exec:echo hello' again",
])  # fmt: skip
def test_an_answer_is_shown_once_at_a_terminal_whoever_stands_between(sh, work, stages):
    sh("thread-append --new --thread c hello | dispatch -q --to exec:cat > kept")
    (work / "line").write_text(f"{'cat kept' if stages == 'cat' else 'thread-append --new --thread t hello'} | {stages} | thread-append t")
    ran = sh(f'{AT_TERMINAL} "$(cat line)"')
    assert (ran.status, ran.out.replace("\r\n", "\n"), ran.err) == (0, "hello\n", "")


@pytest.mark.parametrize("line", [
    "dispatch --text --to exec:cat --new hello > out", "dispatch --format text --to exec:cat --new hello | cat > out",
    "dispatch --to exec:cat --new hello | thread-append --format text t > out",
    "dispatch --to exec:cat --new hello | thread-append --format text t | cat > out",
])  # fmt: skip
def test_text_that_goes_elsewhere_than_to_the_terminal_has_the_answer_whether_or_not_it_was_seen(sh, work, line):
    (work / "line").write_text(line)
    ran = sh(f'{AT_TERMINAL} "$(cat line)"; cat out >&2')
    assert (ran.status, ran.out.replace("\r\n", "\n"), ran.err) == (0, "hello\n", "hello\n")


def test_twenty_pipes_at_once_on_one_file(sh, work):
    line = "thread-append t.jsonl --thread $i \"q $i\" | dispatch --to echo | thread-append t.jsonl >/dev/null"
    assert sh(f"for i in $(seq 20); do {line} & done; wait") == (0, "", "")
    records = stored(work, "t.jsonl")
    assert len({(record["thread"], record["id"]) for record in records}) == len(records) == 60
    for i in range(1, 21):
        mine = [record for record in records if record["thread"] == str(i)]
        assert [record.get("content") for record in mine] == [f"q {i}", f"q {i}", None]


def test_writers_that_are_killed_lose_nothing_acknowledged(work, home):
    """The short form of tests/storm.py: sixteen writers, random kill -9."""
    storm = Path(__file__).parent / "storm.py"
    ran = subprocess.run([sys.executable, storm, "--seconds", "5", "--file", work / "storm.jsonl"], env=environment(home),
                         capture_output=True, text=True)  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert " lost 0 " in ran.stdout and " glued 0 " in ran.stdout


@pytest.mark.skipif(not os.path.exists("/usr/bin/strace"), reason="strace is not installed")
@pytest.mark.parametrize("fault", ["signal=SIGKILL", "error=EIO", "error=ENOSPC"])
def test_every_write_to_the_file_may_fail(sh, work, fault):
    for nth in (1, 2):
        (work / "t").write_text(ONE)
        ran = sh(f"strace -f -qq -o /dev/null -e trace=write -e inject=write:{fault}:when={nth} -P {work}/t thread-append t more")
        if ran.status == 0:
            assert [record["content"] for record in stored(work)] == ["hi", "more"]
        else:
            assert (work / "t").read_text() == ONE


@pytest.mark.parametrize(
    ("line", "status", "err"),
    [
        ("head -c 50M /dev/zero > long; thread-append new -a long", 65,
         "new: thread ID: the new message has 69905309 bytes; a line has at most 67108864"),
        ("thread-append new --thread t --at m9 hi", 66, "thread t has no message m9 to reply to"),
        ("head -c 3000 /dev/zero | tr '\\0' x > long; ulimit -f 1; thread-append new @long", 74,
         "new: File too large; nothing was added"),
    ],
)  # fmt: skip
def test_a_file_that_nothing_was_added_to_is_not_made(sh, work, line, status, err):
    ran = sh(f"touch there; {line}; was=$?; ls; exit $was")
    assert (ran.status, ran.out.replace("long\n", ""), masked(ran.err)) == (status, "there\n", f"thread-append: {err}\n")
    ran = sh(line.replace("new", "there"))
    assert (ran.status, (work / "there").read_bytes()) == (status, b"")  # it was here before


def test_whoever_waits_for_a_file_that_is_taken_away_makes_it_anew(sh, work):
    refused = "thread-append new --thread t --at m9 x & " * 20
    ran = sh(f"{refused}{refused.replace(' --at m9', '')}wait")
    assert ran.err.count("has no message m9") == 20
    assert len(stored(work, "new")) == 20
