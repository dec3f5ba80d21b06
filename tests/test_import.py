"""thread-import: what the agent programs kept of a conversation, as records; of a damaged session, what can be read."""

from __future__ import annotations

import os
import pty
import shutil
import sqlite3
import subprocess

import orjson
import pytest
from conftest import DATA, environment
from hypothesis import given, settings
from hypothesis import strategies as st
from opencode_db import keep

from mllm_pipe import sessions
from mllm_pipe.envelope import holds

SESSIONS = DATA / "sessions"
IDS = {"claude": "cf295e0c-cd86-4ad3-99df-1b97ced372a8", "codex": "01a20495-f5ab-7490-89d8-a058b2c01283",
       "gemini": "9849d99d-c5fa-4406-b0a8-4979878d87e2", "opencode": "ses_dfb69bc1effeI2He1UQkhjOOY7"}  # fmt: skip
OTHER = dict.fromkeys(IDS, "01a20495-f5ab-4490-89d8-a058b2c01999") | {"opencode": "ses_cfb69bc1effeI2He1UQkhjO999"}
FILES = {"claude": SESSIONS / "claude-session-file.jsonl", "codex": SESSIONS / "codex-rollout-file.jsonl",
         "gemini": SESSIONS / "gemini-session-file.jsonl", "opencode": SESSIONS / "opencode-export.jsonl"}  # fmt: skip
TOOL = {"claude": ("Bash", {"command": "echo hi-from-tool", "description": "say hi"}),
        "codex": ("exec_command", {"cmd": "echo hi-from-tool"}),
        "gemini": ("list_directory", {"dir_path": "."}),
        "opencode": ("bash", {"command": "echo hi-from-tool", "description": "say hi"})}  # fmt: skip
SAYS = {"gemini": "Directory $WORK is empty."}  # the tool; else hi-from-tool


def lay(home, program, cwd, ident=None):
    """Puts the sample session where the program would have it for a directory."""
    ident = ident or IDS[program]
    text = FILES[program].read_text().replace("$WORK", str(cwd)).replace(IDS[program], ident)
    if program == "opencode":
        place = home / ".local" / "share" / "opencode" / "opencode.db"
        if ident != IDS[program]:  # ids of messages and parts are of the whole database
            text = text.replace("msg_2", "msg_1").replace("prt_2", "prt_1")
        keep(place, orjson.loads(text))
        return place
    if program == "claude":
        slug = "".join(letter if letter.isalnum() else "-" for letter in str(cwd))
        place = home / ".claude" / "projects" / slug / f"{ident}.jsonl"
    elif program == "codex":
        place = home / ".codex" / "sessions" / "2026" / "11" / "22" / f"rollout-2026-11-22T18-47-46-{ident}.jsonl"
    else:
        slug = cwd.name if hasattr(cwd, "name") else cwd.strip("/")
        place = home / ".gemini" / "tmp" / slug / "chats" / f"session-2026-11-22T18-47-{ident[:8]}.jsonl"
    place.parent.mkdir(parents=True, exist_ok=True)
    if program == "gemini":
        (place.parent.parent / ".project_root").write_text(str(cwd))
    place.write_text(text)
    return place


def state(folder):
    """Every path below, with what is in it and when it was written."""
    return sorted((str(path), path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
                  for path in folder.rglob("*"))  # fmt: skip


def line(uuid, parent, role="user", content="hi", **more):
    """A line of a Claude session."""
    said = {"role": role, "content": content} | ({"id": f"msg_{uuid}", "model": "m"} if role == "assistant" else {})
    return {"type": role, "uuid": uuid, "parentUuid": parent, "sessionId": "s", "timestamp": "2026-01-02T03:04:05.000Z",
            "message": said} | more  # fmt: skip


def write(path, lines):
    path.write_bytes(b"".join(orjson.dumps(one) + b"\n" for one in lines))


@pytest.mark.parametrize("program", sessions.PROGRAMS)
def test_a_session_with_a_tool_call_arrives_whole_and_without_what_the_program_put_in(sh, program):
    ran = sh(f"thread-import --from {program} {FILES[program]} > t; cat t")
    assert (ran.status, ran.err) == (0, "")
    records = ran.records
    records.sort(key=lambda one: one["type"] == "span")  # each stands right after its answer, or after the results
    user, call, result, answer, used = records[:5]
    name, arguments = TOOL[program]
    assert {one["thread"] for one in ran.records} == {IDS[program]}
    assert (user["role"], user["content"]) == ("user", "What is 2+2?")
    (part,) = call["content"]
    assert (part["type"], part["name"], part["arguments"], call["finish"]) == ("tool_call", name, arguments, "tool")
    assert (result["role"], result["content"][0]["call_id"]) == ("tool", part["id"])
    assert SAYS.get(program, "hi-from-tool") in result["content"][0]["content"]
    assert answer["content"].startswith("LOOPBACK-OK") and answer["author"]["runtime"] == program
    assert used["usage"]["output_tokens"] > 0 and used["output_ids"] == [call["id"]] and used["cost_usd"] is None
    assert call["at"] <= result["at"] < answer["at"]
    assert sh("mllm validate < t").status == 0


@pytest.mark.parametrize("program", sessions.PROGRAMS)
def test_importing_twice_appends_nothing_twice(sh, program):
    once = sh(f"thread-import --from {program} {FILES[program]} | thread-append t > /dev/null; cat t")
    twice = sh(f"thread-import --from {program} {FILES[program]} | thread-append t > /dev/null; cat t")
    assert (twice.status, twice.err, twice.out) == (0, "", once.out)


def test_a_session_of_gemini_has_each_call_and_each_result_once(sh):
    ran = sh(f"thread-import --from gemini {SESSIONS / 'gemini-session-file.jsonl'} > t; cat t")
    assert (ran.status, ran.err) == (0, "")
    assert [one.get("role", one["type"]) for one in ran.records] == [
        "user", "assistant", "span", "tool", "assistant", "span"]  # fmt: skip
    user, call, used, result, answer, _ = ran.records
    assert user["content"] == "What is 2+2?" and answer["content"].startswith("LOOPBACK-OK")
    assert call["content"][0]["name"] == "list_directory" and call["author"]["model"] == "gemini-2.5-flash"
    assert result["content"][0]["call_id"] == call["content"][0]["id"]
    assert used["usage"] == {"input_tokens": 31, "cache_read_tokens": 7, "output_tokens": 16, "reasoning_tokens": 3}
    assert sh("mllm validate < t").status == 0
    assert sh("dispatch -q --to exec:cat more < t").status == 0


def test_sessions_of_gemini_are_found_by_what_it_says_of_its_projects(sh, home, work):
    for project in ("work", "other"):
        chats = home / ".gemini" / "tmp" / project / "chats"
        chats.mkdir(parents=True)
        shutil.copy(SESSIONS / "gemini-session-file.jsonl", chats / "session-2026-11-22T18-47-9849d99d.jsonl")
    (home / ".gemini" / "projects.json").write_text(f'{{"projects": {{"{work}": "work", "/elsewhere": "../.."}}}}')
    (row,) = sh("thread-import --from gemini --list").records
    assert (row["path"].split("/")[-3], row["turns"], row["tokens"]) == ("work", 1, 94)
    assert len(sh("thread-import --from gemini --list --all").records) == 2


@pytest.mark.parametrize("program", sessions.PROGRAMS)
def test_sessions_are_found_by_directory_by_id_and_by_age(sh, home, work, program):
    other = lay(home, program, "/elsewhere", OTHER[program])
    place = lay(home, program, work)
    before = state(home)
    whole = sh(f"thread-import --from {program} '{place if program != 'opencode' else IDS[program]}' > t; cat t").out
    assert whole
    for asked in ("--last", IDS[program], IDS[program][:-4]):
        assert sh(f"thread-import --from {program} {asked} > t; cat t").out == whole, asked
    (row,) = sh(f"thread-import --from {program} --list").records
    assert (row["session"], row["turns"], row["first"], row["path"]) == (IDS[program], 1, "What is 2+2?", str(place))
    assert row["tokens"] > 0
    rows = sh(f"thread-import --from {program} --list --all").records
    assert sorted(row["path"] for row in rows) == sorted([str(place), str(other)])
    assert state(home) == before, "reading changes nothing"


def test_a_live_database_is_read_from_a_copy_and_stays_as_it_is(sh, home, work, tmp_path):
    """What is in the log of a running program counts, no lock stands in its way, and no file comes to lie beside it."""
    place = home / ".local" / "share" / "opencode" / "opencode.db"
    document = orjson.loads(FILES["opencode"].read_text().replace("$WORK", str(work)))
    writer = keep(place, document, live=True)
    assert place.with_name("opencode.db-wal").stat().st_size > 0
    writer.execute("BEGIN IMMEDIATE")
    before = state(home)
    (tmp_path / "tmp").mkdir()
    ran = sh("thread-import --from opencode --last | jq -r 'select(.role).role'", TMPDIR=str(tmp_path / "tmp"))
    assert ran == (0, "user\nassistant\ntool\nassistant\n", "")
    assert state(home) == before
    assert os.listdir(tmp_path / "tmp") == []
    writer.close()


def test_what_opencode_took_back_or_left_to_another_agent_is_left_out(sh, home, work):
    document = orjson.loads(FILES["opencode"].read_text().replace("$WORK", str(work)))
    document["info"]["revert"] = {"messageID": document["messages"][2]["info"]["id"]}
    place = home / ".local" / "share" / "opencode" / "opencode.db"
    keep(place, document)
    child = orjson.loads(orjson.dumps(document).replace(b"msg_2", b"msg_1").replace(b"prt_2", b"prt_1"))
    keep(place, child | {"info": child["info"] | {"id": "ses_0000000000000000000000child", "parentID": document["info"]["id"]}})
    assert len(sh("thread-import --from opencode --list --all").records) == 1
    ran = sh("thread-import --from opencode --last | jq -r 'select(.role).role'")
    assert ran.out == "user\nassistant\ntool\n"
    assert ran.err == f"thread-import: {place}: what was said after the point that it was taken back to is left out\n"


def test_a_database_that_is_none_is_said(sh, home):
    place = home / ".local" / "share" / "opencode" / "opencode.db"
    place.parent.mkdir(parents=True)
    for data, why in ((b"nothing", "file is not a database"), (b"", "no such table: session")):
        place.write_bytes(data)
        ran = sh("thread-import --from opencode --last --all")
        assert ran == (66, "", f"thread-import: {place}: no database that is known here: {why}\n")


@pytest.mark.parametrize(("program", "whole", "damaged"), [
    ("llm", b"CREATE TABLE", b"CREATE TAB\xffE"), ("llm", b"thread_id", b"thread\0id"),
    ("opencode", b'"role"', b'"role\xff'), ("opencode", b"revert", b"rev\xffrt"),
])  # fmt: skip
def test_a_database_that_is_damaged_is_said(sh, home, work, program, whole, damaged):
    if program == "llm":
        place = home / ".config" / "io.datasette.llm" / "logs.db"
        place.parent.mkdir(parents=True)
        database = sqlite3.connect(place)
        database.executescript((SESSIONS / "llm-logs.sql").read_text())
        database.close()
    else:
        place = lay(home, program, work)
    assert whole in place.read_bytes()
    place.write_bytes(place.read_bytes().replace(whole, damaged))
    for asked in ("--list --all", "--last --all", str(place)):
        ran = sh(f"thread-import --from {program} {asked}")
        assert (ran.status, ran.out) == (66, "") and ran.err.startswith(f"thread-import: {place}: no database that is known")


@pytest.mark.parametrize("line", [
    "thread-export --to claude < ../t", "thread-export --to codex --cwd . < ../t", "thread-import --from claude --last",
    "thread-import --from gemini --list", "dispatch --to claude --cwd . < ../t"])  # fmt: skip
def test_a_working_directory_that_is_gone_is_said_where_it_is_needed(sh, line):
    name = line.split()[0]
    ran = sh(f"thread-append --new --thread t hi > t; mkdir g; cd g; rmdir ../g; {line.replace('../t', '$OLDPWD/t')}")
    why = "the working directory is gone (No such file or directory); cd to one that is there"
    assert ran == (66, "", f"{name}: {why}\n")


def test_a_working_directory_that_is_gone_is_not_missed_where_it_is_not_needed(sh):
    ran = sh("thread-append --new --thread t hi > t; mkdir g; cd g; rmdir ../g; thread-export --to text < $OLDPWD/t; "
             "thread-export -q --to claude --cwd / < $OLDPWD/t >/dev/null; "
             "thread-import -q --from claude --last --all | jq -r 'select(.role).content'")  # fmt: skip
    assert ran == (0, "t\n\n== user\nhi\nhi\n", "")


@pytest.mark.parametrize(("asked", "status", "err"), [
    ("--last", 66, "claude has no session of this directory; --all looks everywhere"),
    ("--last --all", 66, "claude has no session"),
    ("nope", 66, "nope: no such session; --list --all shows them"),
    ("./nope", 66, "./nope: No such file or directory"),
    ("./", 66, "./: a directory, no session"),
    ("", 2, "say one of: a SESSION or its FILE, --last, --list"),
])  # fmt: skip
def test_what_is_not_there_is_said(sh, asked, status, err):
    ran = sh(f"thread-import --from claude {asked}")
    assert (ran.status, ran.out, ran.err) == (status, "", f"thread-import: {err}\n")


def test_a_message_of_codex_whose_role_is_not_known_is_kept_as_it_is(sh, work):
    said = [{"type": "message", "role": role, "content": [{"type": "input_text", "text": "Hi."}]} for role in ("user", "critic")]
    said.append({"type": "message", "content": []})
    write(work / "r.jsonl", [{"timestamp": "2026-01-02T03:04:05.000Z", "type": "response_item", "payload": one} for one in said])
    ran = sh("thread-import --from codex ./r.jsonl | jq -c 'select(.thread)|[.type,.raw.payload]'")
    assert (ran.status, ran.err) == (0, "")
    assert ran.records == [["message", None], ["opaque", said[1]], ["opaque", said[2]], ["handoff", None]]


def test_an_id_that_two_sessions_have_is_said_with_their_files(sh, home, work):
    ours, others = lay(home, "claude", work), lay(home, "claude", "/elsewhere")
    files = ", ".join(sorted(map(str, (ours, others))))
    said = f"{IDS['claude']}: 2 sessions have this id; say the FILE: {files}"
    assert sh(f"thread-import --from claude {IDS['claude']}") == (66, "", f"thread-import: {said}\n")


def test_a_session_is_picked_at_a_terminal(home, work):
    """The list and the question go to the terminal of stderr, the thread to stdout; Enter takes the newest."""
    older, _ = lay(home, "claude", work), lay(home, "claude", work, OTHER["claude"])
    os.utime(older, (1, 1))
    for key, expected in ((b"2\n", IDS["claude"]), (b"\n", OTHER["claude"]), (b"7\n", None)):
        ours, theirs = pty.openpty()
        with subprocess.Popen(["bash", "-c", "thread-import --from claude"], cwd=work, env=environment(home), stdin=theirs,
                              stderr=theirs, stdout=subprocess.PIPE) as child:  # fmt: skip
            os.close(theirs)
            shown = b""
            while b"Enter: 1] " not in shown:
                shown += os.read(ours, 4096)
            os.write(ours, key)
            out = child.stdout.read()
        os.close(ours)
        lines = shown.decode().replace("\r", "").splitlines()
        assert [one.split()[:2] for one in lines[:2]] == [["1", OTHER["claude"]], ["2", IDS["claude"]]]
        assert lines[2] == "Which? [1-2, Enter: 1] " and lines[0].endswith("What is 2+2?")
        threads = {orjson.loads(one).get("thread") for one in out.splitlines()} - {None}
        assert (child.returncode, threads) == ((2, set()) if expected is None else (0, {expected}))


def test_a_session_that_does_not_name_itself_is_named_by_its_file(sh, work):
    write(work / "talk.jsonl", [{key: value for key, value in line("u", None).items() if key != "sessionId"}])
    assert sh("thread-import --from claude ./talk.jsonl | jq -r 'select(.role).thread'") == (0, "talk\n", "")


def test_mllm_says_what_sessions_there_are(sh, home, work):
    place = lay(home, "claude", work)
    rows = orjson.loads(sh("mllm sessions --format json").out)
    assert [(row["program"], row["sessions"], row["bytes"]) for row in rows] == [
        ("claude", 1, place.stat().st_size), ("codex", 0, 0), ("gemini", 0, 0), ("opencode", 0, 0), ("llm", 0, 0)]
    assert rows[0]["folder"] == str(place.parent)
    shown = sh("mllm sessions").out.splitlines()
    assert shown[1:] == [f"{name:8}     0 sessions       0.0 MB" for name in ("codex", "gemini", "opencode", "llm")]
    assert shown[0].startswith("claude       1 sessions       0.0 MB  newest ")


def test_results_that_hang_from_their_calls_come_one_after_the_other(sh, work):
    calls = [{"type": "tool_use", "id": f"c{n}", "name": "Read", "input": {}} for n in (1, 2)]
    answer = {"id": "msg_a", "role": "assistant", "model": "m"}
    result = [{"type": "tool_result", "tool_use_id": f"c{n}", "content": str(n)} for n in (1, 2)]
    write(work / "s", [
        line("u", None), line("a1", "u", "assistant") | {"message": answer | {"content": calls[:1]}},
        line("r1", "a1", content=result[:1]), line("a2", "a1", "assistant") | {"message": answer | {"content": calls[1:]}},
        line("r2", "a2", content=result[1:]), line("b", "r2", "assistant", [{"type": "text", "text": "done"}]),
    ])  # fmt: skip
    ran = sh("thread-import --from claude ./s | jq -c 'select(.role) | [.id, .reply_to, (.content | length)]'")
    assert (ran.status, ran.err) == (0, "")
    assert [orjson.loads(one) for one in ran.out.splitlines()] == [
        ["u", None, 2], ["a1", None, 2], ["r1", None, 1], ["r2", None, 1], ["b", None, 4]]  # fmt: skip


def test_a_turn_that_was_taken_back_stays_as_a_branch(sh, work):
    said = [{"type": "text", "text": "yes"}]
    write(work / "s", [line("u", None), line("a", "u", "assistant", said), line("v", "a", content="wrong"),
                       line("b", "v", "assistant", said), line("w", "a", content="right")])  # fmt: skip
    ran = sh("thread-import --from claude ./s | tee t | jq -r 'select(.reply_to) | .id + .reply_to'")
    assert (ran.out, ran.err) == ("wa\n", "")
    assert sh("dispatch -q --to exec:cat < t | jq -r 'select(.author.runtime == \"exec\").content'").out.count("wrong") == 0


def test_reasoning_images_and_a_compaction_arrive_as_records(sh, work):
    thought = {"type": "thinking", "thinking": "Four.", "signature": "s"}
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw=="}}
    write(work / "s", [
        line("u", None, content=[{"type": "text", "text": "What is this?"}, image]),
        line("a", "u", "assistant", [thought, {"type": "text", "text": "A dot."}]),
        line("c", "a", content="They spoke of a dot.", isCompactSummary=True), line("v", "c", content="And now?"),
    ])  # fmt: skip
    ran = sh("thread-import --from claude ./s > t; cat t")
    assert (ran.status, ran.err) == (0, "")
    assert [(one["id"], one["type"], one["content"]) for one in ran.records] == [
        ("u", "message", [{"type": "text", "text": "What is this?"}, {"type": "file", "media_type": "image/png", "data": "iVBORw=="}]),
        ("a", "message", [{"type": "reasoning", "text": "Four.", "raw": thought}, {"type": "text", "text": "A dot."}]),
        ("c", "summary", [{"type": "text", "text": "They spoke of a dot."}]), ("v", "message", "And now?")]  # fmt: skip
    assert ran.records[2]["covers"] == ["u", "a"]
    back = sh("thread-export -q --to claude --format json < t | jq -r .path | tr '\\n' '\\0' | xargs -0 jq -c .message.content").out
    assert [orjson.loads(one) for one in back.splitlines()][:2] == [
        [{"type": "text", "text": "What is this?"}, image], [thought, {"type": "text", "text": "A dot."}]]  # fmt: skip


@pytest.mark.parametrize(("asked", "answered", "took"), [
    ("2026-01-02T03:04:05.250Z", "2026-01-02T03:05:06.000Z", 60750),
    ("2026-01-02T03:04:05.250Z", "2026-01-02T03:04:05.250500Z", 0),
    ("2026-12-31T23:59:60.500Z", "2027-01-01T00:00:00.000Z", 0),
    ("2026-13-40T03:04:05.250Z", "2026-01-02T03:04:05.250Z", 0),
    ("2026-01-02T03:04:05.250Z", "yesterday", 0),
    ("2026-01-02T03:04:06.000Z", "2026-01-02T03:04:05.250Z", 0),
])  # fmt: skip
def test_an_answer_took_the_time_since_what_it_answers_and_none_if_a_time_is_none(sh, work, asked, answered, took):
    answer = line("a", "u", "assistant", [{"type": "text", "text": "yes"}], timestamp=answered)
    answer["message"]["usage"] = {"input_tokens": 1, "output_tokens": 1}
    write(work / "s", [line("u", None, timestamp=asked), answer])
    assert sh("thread-import --from claude ./s | jq 'select(.op).duration_ms'") == (0, f"{took}\n", "")


def test_a_list_is_newest_first(sh, home, work):
    older, newer = lay(home, "claude", work), lay(home, "claude", work, OTHER["claude"])
    os.utime(older, (1, 1))
    os.utime(newer, (2, 2))
    line = "thread-import --from claude --list | jq -r '[.session, .at, .turns, .tokens, .first] | @tsv'"
    assert sh(line).out == (
        f"{OTHER['claude']}\t1970-01-01T00:00:02.000Z\t1\t92\tWhat is 2+2?\n"
        f"{IDS['claude']}\t1970-01-01T00:00:01.000Z\t1\t92\tWhat is 2+2?\n")  # fmt: skip


def test_what_the_program_put_in_is_left_out(sh, work):
    write(work / "s", [
        line("u", None, content=[{"type": "text", "text": "<system-reminder>\nx"}, {"type": "text", "text": "hi"}]),
        line("m", "u", content="meta", isMeta=True), line("c", "m", content="<command-name>/clear</command-name>"),
        line("x", "c", content="aside", isSidechain=True),
        line("e", "c", "assistant", [{"type": "text", "text": "API Error"}], isApiErrorMessage=True),
        line("a", "e", "assistant", [{"type": "text", "text": "yes"}]), {"type": "ai-title", "aiTitle": "t"},
        {"type": "brand-new", "uuid": "n", "parentUuid": "a", "what": 1},
    ])  # fmt: skip
    ran = sh("thread-import --from claude ./s > t; cat t")
    assert [(one["type"], one.get("content", one.get("raw", {}).get("what"))) for one in ran.records] == [
        ("message", "hi"), ("message", "yes"), ("opaque", 1)]  # fmt: skip


@pytest.mark.parametrize(("lines", "status", "err", "contents"), [
    ([line("u", None), b'{"type":"us'], 0, "the last line is not whole yet; it is left out\n", ["hi"]),
    ([line("u", None), b'{"type":"us\n', line("v", "u", content="on")], 65,
     "line 2: no JSON object, or one nested too deeply; passed on as an error record\n", ["hi", "on"]),
    ([line("u", None), b'{"a":' * 300 + b"1" + b"}" * 300 + b"\n"], 65,
     "line 2: no JSON object, or one nested too deeply; passed on as an error record\n", ["hi"]),
    ([line("u", None), line("v", "gone", content="on")], 0,
     "of 1 line what it hangs from is not there; each follows the one before it\n", ["hi", "on"]),
    ([line("u", None), line("u", None, content="again")], 0, "", ["hi"]),
    ([line("u", None, version="9.1.0")], 0,
     "written by Claude Code 9.1.0, newer than 2.1.197, which is known here\n", ["hi"]),
    ([line("u", None), line("v", None, content="anew")], 0, "left out: 1 message of an earlier beginning\n", ["anew"]),
])  # fmt: skip
def test_a_damaged_session_gives_what_can_be_read(sh, work, lines, status, err, contents):
    (work / "s").write_bytes(b"".join(one if isinstance(one, bytes) else orjson.dumps(one) + b"\n" for one in lines))
    ran = sh("thread-import --from claude ./s > t; s=$?; jq -c 'select(.role).content' t; exit $s")
    assert (ran.status, ran.err) == (status, f"thread-import: ./s: {err}" if err else "")
    assert [orjson.loads(one) for one in ran.out.splitlines()] == contents


BODIES = {
    "anthropic": {
        "model": "claude-sonnet-4-5", "max_tokens": 100, "system": "Be brief.",
        "tools": [{"name": "ls", "description": "lists", "input_schema": {"type": "object", "properties": {}}}],
        "messages": [
            {"role": "user", "content": "What is here?"},
            {"role": "assistant", "content": [{"type": "text", "text": "I look."},
                                              {"type": "tool_use", "id": "c1", "name": "ls", "input": {"d": "."}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "a b"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "Two files."}]}, {"role": "user", "content": "Thanks."}],
    },
    "openai": {
        "model": "gpt-5.5", "instructions": "Be brief.",
        "tools": [{"type": "function", "name": "ls", "description": "lists", "parameters": {"type": "object", "properties": {}}}],
        "input": [
            {"role": "user", "content": "What is here?"},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
            {"type": "function_call", "call_id": "c1", "name": "ls", "arguments": '{"d":"."}'},
            {"type": "function_call_output", "call_id": "c1", "output": "a b"},
            {"role": "assistant", "content": "Two files."}, {"role": "user", "content": "Thanks."}],
    },
    "google": {
        "model": "gemini-3-pro", "systemInstruction": {"parts": [{"text": "Be brief."}]},
        "tools": [{"functionDeclarations": [{"name": "ls", "description": "lists",
                                             "parametersJsonSchema": {"type": "object", "properties": {}}}]}],
        "contents": [
            {"role": "user", "parts": [{"text": "What is here?"}]},
            {"role": "model", "parts": [{"text": "I look."}, {"functionCall": {"id": "c1", "name": "ls", "args": {"d": "."}}}]},
            {"role": "user", "parts": [{"functionResponse": {"id": "c1", "name": "ls", "response": {"output": "a b"}}}]},
            {"role": "model", "parts": [{"text": "Two files."}]}, {"role": "user", "parts": [{"text": "Thanks."}]}],
    },
}  # fmt: skip
CHAT = [
    {"role": "developer", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "What is here?"}]},
    {"role": "assistant", "content": "I look.", "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "ls", "arguments": '{"d":"."}'}}]},
    {"role": "tool", "tool_call_id": "c1", "content": "a b"}, {"role": "assistant", "content": "Two files."},
    {"role": "user", "content": "Thanks."}]  # fmt: skip
SNAKE = [
    {"role": "user", "parts": [{"text": "What is here?"}]},
    {"role": "model", "parts": [{"text": "I look."}, {"function_call": {"name": "ls", "args": {"d": "."}}}]},
    {"role": "user", "parts": [{"function_response": {"name": "ls", "response": {"output": "a b"}}}]}]  # fmt: skip
TOLD = [("system", "Be brief."), ("user", "What is here?"), ("assistant", "I look."), ("tool", "a b"),
        ("assistant", "Two files."), ("user", "Thanks.")]  # fmt: skip


def said(ran):
    """(role, first words) of each message."""
    found = []
    for one in ran.records:
        if one["type"] == "message":
            content = one["content"]
            first = content if isinstance(content, str) else content[0].get("text", content[0].get("content"))
            found.append((one["role"], first))
    return found


@pytest.mark.parametrize("api", sessions.APIS)
def test_a_request_is_read_and_written_again_as_dispatch_sends_it(sh, work, api):
    (work / "body.json").write_bytes(orjson.dumps(BODIES[api], option=orjson.OPT_INDENT_2))
    ran = sh(f"thread-import --from {api} - < body.json > t; cat t")
    assert (ran.status, ran.err) == (0, "")
    assert said(ran) == TOLD
    assert ran.records[0]["tools"][0]["name"] == "ls"
    assert sh("mllm validate < t").status == 0
    model = BODIES[api]["model"]
    body = sh(f"thread-export --to {api} -m {model} < t > b; cat b")
    assert (body.status, body.err) == (0, "")
    sent = sh(f"dispatch --to {api}/{model} --dry-run < t | jq -c .body", ANTHROPIC_API_KEY="x", OPENAI_API_KEY="x",
              GEMINI_API_KEY="x")  # fmt: skip
    assert orjson.loads(body.out) == orjson.loads(sent.out)
    again = sh(f"jq '. + {{model: \"{model}\"}}' b | thread-import --from {api} - > u; cat u")
    assert (again.status, again.err, again.out) == (0, "", ran.out)


@pytest.mark.parametrize(("api", "array", "expected"), [
    ("openai", CHAT, TOLD), ("openai", BODIES["openai"]["input"], TOLD[1:]),
    ("anthropic", BODIES["anthropic"]["messages"], TOLD[1:]), ("google", SNAKE, TOLD[1:4]),
])  # fmt: skip
def test_an_array_of_messages_is_read_from_a_file_or_stdin(sh, work, api, array, expected):
    (work / "a.json").write_bytes(orjson.dumps(array))
    (work / "lines").write_bytes(b"".join(orjson.dumps(one) + b"\n" for one in array))
    ran = sh(f"thread-import --from {api} a.json > t; cat t")
    assert (ran.status, ran.err, said(ran)) == (0, "", expected)
    call = next(one for one in ran.records if one.get("finish") == "tool")["content"][-1]
    assert (call["name"], call["arguments"]) == ("ls", {"d": "."})
    assert next(one for one in ran.records if one.get("role") == "tool")["content"][0]["call_id"] == call["id"]
    assert sh(f"thread-import --from {api} - < lines > u; cat u").out == ran.out


def test_a_longer_array_adds_what_is_new_and_another_one_is_a_branch(sh, work):
    for name, array in (("one", CHAT[:2]), ("two", CHAT), ("other", [*CHAT[:2], {"role": "assistant", "content": "No."}])):
        (work / name).write_bytes(orjson.dumps(array))
    for name in ("one", "two", "two", "other"):
        assert sh(f"thread-import --from openai {name} | thread-append t > /dev/null").status == 0
    assert len(sh("cat t").records) == 7
    assert sh("thread-export --to text < t").out.endswith("== user\nWhat is here?\n\n== assistant (openai)\nNo.\n")


@pytest.mark.parametrize(("line", "status", "err"), [
    ("thread-import --from openai", 2, "say the FILE of a request to openai, or - for stdin"),
    ("thread-import --from openai nope", 66, "nope: no such file"),
    ("echo hi | thread-import --from openai -", 65, "-: line 1: no JSON object, or one nested too deeply; passed on as an error record"),
    ("echo '{}' | thread-import --from openai -", 66, "-: no conversation of the Responses API or Chat Completions"),
    ("printf '%s\\n' '{\"input\":\"a\"}' '{\"input\":\"b\"}' | thread-import --from openai -", 65,
     "2 requests; take one apart, as: jq -c 'select(...)' | thread-import ... -"),
    ("thread-append --new hi | thread-export --to openai", 2, "say which model the request is for: --to openai -m MODEL"),
    ("thread-append --new hi | thread-export --to codex -m x", 2,
     "-m is for a request's body and for llm; codex goes on with its own model"),
])  # fmt: skip
def test_what_is_no_request_is_said(sh, line, status, err):
    ran = sh(f"{line} > /dev/null")
    assert ran.status == status and ran.err.rstrip("\n").endswith(err) and ran.err.count("\n") == 1


def test_a_hostile_session_is_data_only(sh, home, work):
    """Names that climb, links, terminal codes and mentions neither choose a path nor reach the terminal."""
    place = lay(home, "claude", work)
    (home / "secret").write_text("SECRET")
    (place.parent / "11111111-1111-4111-8111-111111111111.jsonl").symlink_to(home / "secret")
    write(place, [line("../../u", None, content="@/etc/hostname \x1b[31m", sessionId="../../../evil")])
    rows = sh("thread-import --from claude --list --all").records
    assert [row["path"] for row in rows] == [str(place)]
    ran = sh("thread-import --from claude --last | thread-export --to claude --format json")
    assert ran.status == 0
    (made,) = ran.records
    assert made["path"].startswith(str(place.parent)) and "\x1b" not in ran.err and "SECRET" not in ran.out
    assert not list(home.parent.rglob("*evil*"))


ANY = st.recursive(st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=4),
                   lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
                       ["type", "text", "id", "name", "input", "content", "tool_use_id", "call_id", "role", "source",
                        "is_error", "output", "arguments", "summary"]), inner, max_size=4), max_leaves=8)  # fmt: skip
KINDS = st.sampled_from(["text", "tool_use", "tool_result", "thinking", "image", "message", "function_call", "reasoning",
                         "function_call_output", "custom_tool_call", "input_text", "new"])  # fmt: skip
BLOCK = st.builds(lambda kind, value: value | {"type": kind}, KINDS, st.dictionaries(st.sampled_from(
    ["text", "thinking", "id", "name", "input", "content", "tool_use_id", "call_id", "output", "arguments", "role",
     "source", "summary", "is_error"]), ANY, max_size=5))  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(BLOCK, max_size=4), ANY, st.sampled_from(["user", "assistant"]))
def test_no_shape_of_a_line_makes_a_record_that_is_none(blocks, usage, role):
    foreign = line("u", None, role, blocks)
    foreign["message"]["usage"] = usage
    rollout = [{"timestamp": usage, "type": "response_item", "payload": block} for block in blocks]
    told = {"id": "g", "type": "gemini" if role == "assistant" else "user", "content": blocks, "toolCalls": blocks,
            "thoughts": blocks, "tokens": usage}  # fmt: skip
    for program, entries in (("gemini", [told]), ("claude", [foreign]), ("codex", rollout), ("codex", [{"type": "compacted", "payload": usage}])):
        made = sessions.load(program).records(entries, "s")
        assert all(holds(one) for one in made["records"]), (program, made)


def test_a_session_that_is_read_from_a_copy_gives_the_same_records(sh, work):
    shutil.copy(FILES["claude"], work / "copy.jsonl")
    first = sh(f"thread-import --from claude {FILES['claude']} > t; cat t").out
    assert sh("thread-import --from claude ./copy.jsonl > t; cat t").out == first
