"""Conversations of llm: what 0.36 wrote in its logs.db and printed of it, read; tests/oracle has the program itself."""

from __future__ import annotations

import sqlite3

import orjson
import pytest
from conftest import DATA
from test_import import state

LOGS = DATA / "sessions" / "llm-logs"
TURNS = [("system", "Be brief."), ("user", "What is 2+2?"), ("assistant", None), ("tool", None),
         ("assistant", "LOOPBACK-OK turns=4 chars=33"), ("user", "And 3+3?"), ("assistant", "LOOPBACK-OK turns=6 chars=69")]  # fmt: skip


@pytest.fixture
def logs(home):
    """The user's logs.db."""
    place = home / ".config" / "io.datasette.llm" / "logs.db"
    place.parent.mkdir(parents=True)
    database = sqlite3.connect(place)
    database.executescript(LOGS.with_suffix(".sql").read_text())
    database.close()
    return place


def told(ran):
    return [(one["role"], one["content"] if isinstance(one["content"], str) else one["content"][0].get("text"))
            for one in ran.records if one["type"] == "message"]  # fmt: skip


def test_the_last_conversation_arrives_whole(sh, home, logs):
    before = state(home)
    ran = sh("thread-import --from llm --last > t; cat t")
    assert (ran.status, ran.err, told(ran)) == (0, "", TURNS)
    messages = [one for one in ran.records if one["type"] == "message"]
    assert messages[1]["content"][1]["media_type"] == "image/png" and messages[1]["content"][1]["data"].startswith("iVBOR")
    (call,), (result,) = messages[2]["content"], messages[3]["content"]
    assert (call["name"], call["arguments"]["command"], result["content"]) == ("bash", "echo hi-from-tool", "hi-from-tool")
    assert call["id"] == result["call_id"]
    spans = [one for one in ran.records if one["type"] == "span"]
    assert [one["usage"] for one in spans] == [{"input_tokens": 31, "output_tokens": 13}] * 3
    assert [one["model"] for one in spans] == ["loop", "loop", "plain"] and spans[0]["duration_ms"] > 0
    assert sh("mllm validate < t").status == 0
    assert state(home) == before


def test_what_it_prints_gives_the_same_records(sh, home, work, logs):
    whole = sh("thread-import --from llm --last > t; cat t").records
    printed = sh(f"cat {LOGS}.json | thread-import --from llm - > u; cat u").records
    for one in (*whole, *printed):
        if isinstance(one.get("content"), list):
            one["content"] = [part for part in one["content"] if part["type"] not in ("file", "opaque")]  # it prints no bytes
    assert printed == whole


def test_a_conversation_is_named_by_its_id_or_the_beginning_of_it(sh, logs):
    rows = sh("thread-import --from llm --list").records
    assert sorted(row["first"] for row in rows) == ["Another one.", "What is 2+2?"]
    other = next(row for row in rows if row["first"] == "Another one.")
    for asked in (f"--cid {other['session']}", other["session"], f"{logs} --cid {other['session']}",
                  f"{LOGS}.json --cid {other['session']}"):  # fmt: skip
        assert told(sh(f"thread-import --from llm {asked} > t; cat t"))[0] == ("user", "Another one."), asked
    assert sh("thread-import --from llm --cid nope").status == 66
    assert sh(f"thread-import --from llm {logs} --cid nope") == (
        66, "", f"thread-import: {logs}: it has no conversation nope\n")  # fmt: skip
    assert sh("thread-import --from codex --cid x") == (2, "", "thread-import: --cid is for --from llm; say SESSION\n")


def test_import_export_import_is_byte_stable(sh, logs):
    first = sh("thread-import --from llm --last > t; cat t").out
    (made,) = sh("thread-export -q --to llm --format json < t").records
    assert made["command"] == f"llm chat --continue --database {made['path']}"
    again = sh(f"thread-import --from llm {made['path']} > u; cat u")
    assert (again.status, again.err, again.out) == (0, "", first)
    (same,) = sh("thread-export -q --to llm --format json < t").records
    assert same == made, "the very same one is there already"


def test_what_was_exported_of_another_thread_is_byte_stable_too(sh):
    export = "thread-export -q --to llm --format json"
    (made,) = sh(f"thread-append --new hi --thread t | dispatch -q --to echo | dispatch -q --to echo More | {export}").records
    ran = sh(f"thread-import --from llm {made['path']} > t; {export} < t; thread-import --from llm {made['path']} > u; cmp t u")
    (again,) = [one for one in ran.out.splitlines() if '"session"' in one]
    assert (ran.status, ran.err, orjson.loads(again)["path"]) == (0, "", made["path"])


def test_a_newer_schema_is_said_and_what_is_known_is_read(sh, logs):
    with sqlite3.connect(logs) as database:
        database.execute("INSERT INTO _llm_migrations VALUES ('m031_more', '')")
        database.execute("ALTER TABLE turns ADD COLUMN more TEXT")
    ran = sh("thread-import --from llm --last > t; cat t")
    assert told(ran) == TURNS
    assert ran.err == f"thread-import: {logs}: written by llm schema 31, newer than schema 27, which is known here\n"


def test_what_has_no_answer_yet_is_said_to_be_left_out(sh):
    ran = sh("thread-append --new hi --thread t | dispatch -q --to echo | thread-append - More. | thread-export --to llm")
    assert ran.status == 0 and "dropped, llm keeps what was answered; say it again when you go on" in ran.err


@pytest.mark.parametrize(("line", "why"), [
    ("| dispatch -q --to echo --as writer | dispatch -q --to 'exec:echo x' --as reviewer R",
     "assistant gave none; say whose are its own: --as reviewer"),
    ("", "it has none; dispatch it first"),
])  # fmt: skip
def test_a_thread_of_which_llm_would_keep_nothing_is_no_database(sh, home, line, why):
    ran = sh(f"thread-append --new --thread t Q {line} | thread-export -q --to llm")
    assert ran == (66, "", f"thread-export: thread t: llm keeps answers, and {why}\n") and not list(home.rglob("*.db"))


def test_the_model_to_go_on_with_is_said_with_m(sh, work):
    line = "thread-append --new hi --thread t | dispatch -q --to echo:small | thread-export -q --to llm -m gpt-x --format json"
    (made,) = sh(line).records
    rows = sqlite3.connect(made["path"]).execute("SELECT model, resolved_model, prompt FROM responses").fetchall()
    assert rows == [("gpt-x", "small", "hi")]
    assert orjson.loads(sh(f"thread-import --from llm {made['path']} | jq -c 'select(.op).model'").out) == "small"
