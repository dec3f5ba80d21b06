"""thread-import and thread-export: what was said is neither lost nor said otherwise, and what is left out is told."""

from __future__ import annotations

import os
import re

import orjson
import pytest
from conftest import DATA
from test_import import line, said, write

SESSIONS = DATA / "sessions"
SIGNED = {"type": "thinking", "thinking": "hm", "signature": "c2ln"}
CALL = {"type": "tool_use", "id": "c1", "name": "ls", "input": {}}
CODEX = [orjson.loads(one) for one in (SESSIONS / "codex-rollout-file.jsonl").read_bytes().splitlines()]
OPENCODE = orjson.loads((SESSIONS / "opencode-export.jsonl").read_bytes())


def answer(uuid, parent, *blocks, stop=None):
    """A line of an answer of Claude Code, whose lines all have one message.id."""
    one = line(uuid, parent, "assistant", list(blocks), version="2.1.197")
    one["message"] |= {"id": "msg_1", "stop_reason": stop}
    return one


GROWS = [line("u", None), answer("a", "u", SIGNED), answer("b", "a", CALL, stop="tool_use"),
         line("r", "b", content=[{"type": "tool_result", "tool_use_id": "c1", "content": "f"}])]  # fmt: skip
EARLY = [line("u", None), answer("a", "u", CALL), line("r", "a", content=GROWS[3]["message"]["content"]),
         answer("b", "a", {"type": "text", "text": "on"}, stop="tool_use"), line("v", "r", content="more")]  # fmt: skip


@pytest.mark.parametrize(("program", "lines"), [("claude", GROWS), ("claude", EARLY), ("codex", CODEX)])
def test_of_a_session_that_grows_line_by_line_what_is_stored_is_what_it_has_at_the_end(sh, work, program, lines):
    """An answer that is being written is left out until it is whole: stored half, it would stay half."""
    for end in range(1, len(lines) + 1):
        write(work / "s.jsonl", lines[:end])
        ran = sh(f"thread-import --from {program} s.jsonl > n; [ -s n ] || exit 0; thread-append t < n > /dev/null")
        assert ran.status == 0
        assert set(ran.err.splitlines()) <= {
            f"thread-import: s.jsonl: {why}" for why in (
                "the last answer is not whole yet; it is left out",
                f"no conversation of {'Codex' if program == 'codex' else 'Claude Code'}")}  # fmt: skip
    ran = sh(f"thread-import --from {program} s.jsonl | grep -vE '\"type\":\"(begin|handoff|end)\"' | sort > n; sort t | cmp - n")
    assert ran == (0, "", "")


def test_a_turn_that_codex_took_back_stays_as_a_branch(sh, work):
    def spoken(name, role, text):
        content = [{"type": "input_text" if role == "user" else "output_text", "text": text}]
        return {"type": "response_item", "payload": {"type": "message", "id": name, "role": role, "content": content}}

    rolled = {"type": "event_msg", "payload": {"type": "thread_rolled_back", "num_turns": 1}}
    write(work / "s", [*CODEX, spoken("u1", "user", "two"), spoken("a1", "assistant", "2"), rolled,
                       spoken("u2", "user", "anew"), spoken("a2", "assistant", "A"), CODEX[-1]])  # fmt: skip
    ran = sh("thread-import --from codex ./s > t; jq -r 'select(.reply_to) | .id, .reply_to' t; thread-export --to text < t")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.startswith("u2\nmsg_878a26a4729b47038ea2\n")
    assert ran.out.endswith("\n\n== user\nanew\n\n== assistant (gpt-5.5)\nA\n") and "two" not in ran.out


def test_the_mark_that_an_editor_puts_before_a_file_costs_no_line(sh, work):
    (work / "s").write_bytes(b"\xef\xbb\xbf" + orjson.dumps(line("u", None)) + b"\n")
    assert sh("thread-import --from claude ./s | jq -r 'select(.role).content'") == (0, "hi\n", "")


def test_a_file_whose_bytes_are_no_base64_is_refused_by_llm_in_words(sh, work):
    write(work / "m", [{"role": "user", "content": [{"type": "file", "media_type": "image/png", "data": "a"}]},
                       {"role": "assistant", "content": "x"}])  # fmt: skip
    ran = sh("thread-append - --thread x < m | thread-export --to llm")
    assert ran == (66, "", "thread-export: thread x: llm takes no image/png (a file)\n")


def test_a_session_that_was_begun_anew_does_not_go_on_from_what_was_taken_back(sh, work):
    lines = [line("u", None, content="one"), line("a", "u", "assistant", [{"type": "text", "text": "A"}]),
             line("v", None, content="anew")]  # fmt: skip
    for end in (2, 3):
        write(work / "s", lines[:end])
        assert sh("thread-import -q --from claude ./s | thread-append t > /dev/null") == (0, "", "")
    assert sh("thread-export --to text < t") == (0, "s\n\n== user\none\n\n== assistant (m)\nA\ns.v\n\n== user\nanew\n", "")


def test_an_answer_of_opencode_that_has_not_ended_is_left_out(sh, work):
    given = orjson.loads(orjson.dumps(OPENCODE))
    last = given["messages"][-1]["info"]
    last["time"].pop("completed")
    last.pop("finish")
    (work / "s").write_bytes(orjson.dumps(given))
    ran = sh("thread-import --from opencode s > t; jq -r 'select(.role).role' t")
    assert ran.out.split() == ["user", "assistant", "tool"]
    assert ran.err == "thread-import: s: the last answer is not whole yet; it is left out\n"


def test_half_a_character_costs_one_character(sh, work):
    lines = b"".join(orjson.dumps(one) + b"\n" for one in [line("u", None, content="cut CUT"), line("v", "u", content="on")])
    (work / "s").write_bytes(lines.replace(b"CUT", rb"\ud83d"))
    (work / "b").write_bytes(rb'{"messages": [{"role": "user", "content": "cut \uD83D"}, {"role": "user", "content": "on"}]}')
    for program, name in (("claude", "s"), ("openai", "b")):
        ran = sh(f"thread-import --from {program} ./{name} > t; s=$?; jq -r 'select(.role).content' t; exit $s")
        told = f"thread-import: ./{name}: 1 line with half a character, for which U+FFFD stands\n"
        assert ran == (0, "cut \ufffd\non\n", told)


AGENT = [
    {"role": "user", "content": "What is here?"},
    {"role": "assistant", "author": {"agent": "writer"}, "content": [
        {"type": "tool_call", "id": "c", "name": "ls", "arguments": {}}]},
    {"role": "tool", "content": [{"type": "tool_result", "call_id": "c", "content": "a b"}]},
    {"role": "assistant", "author": {"agent": "writer"}, "content": "Two files."},
]  # fmt: skip


@pytest.mark.parametrize("program", ["claude", "codex", "gemini"])
def test_results_of_another_agents_calls_are_quoted_as_its_calls_are(sh, work, program):
    write(work / "m", AGENT)
    ran = sh("thread-append - --thread x < m > t; thread-export -q --to anthropic -m m < t | "
             "jq -r '.messages[].content[].text' > body; "
             f"thread-export --to {program} --format json < t | jq -r .path > p; thread-import --from {program} \"$(cat p)\" | "
             "jq -r 'select(.role) | .content | if type == \"string\" then . else .[].text end' | diff - body")  # fmt: skip
    assert (ran.status, ran.out) == (0, "") and re.fullmatch(r"thread-export: thread x: /.+\n", ran.err)
    assert "[result of c: a b]" in (work / "body").read_text()


def test_a_loss_is_told_of_the_message_that_it_happened_to(sh, work):
    messages = [{"id": f"m{number}", **one} for number, one in enumerate([
        {"role": "user", "content": "hi"}, {"role": "user", "content": [{"type": "opaque", "raw": 1}]},
        {"role": "tool", "content": [{"type": "tool_result", "call_id": "none", "content": "x"}]},
        {"role": "user", "content": "ho"}])]  # fmt: skip
    write(work / "m", messages)
    ran = sh("thread-append - --thread x < m | thread-export --to claude | wc -l")
    assert ran.err.splitlines()[:2] == [
        "thread-export: thread x: tool_result none of message m2: dropped, no call of the turn before it",
        "thread-export: thread x: opaque of message m1: dropped, it cannot stand in a user turn"]  # fmt: skip


ANSWERED = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hi"}]


def test_llm_tells_of_each_message_that_it_keeps_nothing_of(sh, work):
    write(work / "m", [{"id": f"m{number}", **one} for number, one in enumerate([*ANSWERED, *AGENT])])
    ran = sh("thread-append - --thread x < m | thread-export --to llm > /dev/null")
    assert re.findall(r"all of message (\S+): dropped, llm keeps what was answered", ran.err) == ["m2", "m3", "m4", "m5"]


LINKS = [{"type": "file", "media_type": "image/png", "url": "https://x.test/p"},
         {"type": "file", "media_type": "application/pdf", "url": "https://x.test/d"}, {"type": "text", "text": "What is it?"}]  # fmt: skip


@pytest.mark.parametrize(("api", "model"), [("anthropic", "claude-opus-4-8"), ("openai", "gpt-5.5"), ("google", "gemini-3-pro")])
def test_what_a_request_has_by_its_address_and_in_a_result_comes_back(sh, work, api, model):
    shown = [{"type": "text", "text": "see"}, {"type": "file", "media_type": "image/png", "data": "aGk="}]
    write(work / "m", [
        {"role": "user", "content": LINKS},
        {"role": "assistant", "content": [{"type": "tool_call", "id": "c", "name": "ls", "arguments": {}}]},
        {"role": "tool", "content": [{"type": "tool_result", "call_id": "c", "content": shown}]}])  # fmt: skip
    export = f"thread-export --to {api} -m {model}"
    ran = sh(f"thread-append - < m | {export} > a; thread-import --from {api} - < a | {export} | cmp - a")
    assert ran == (0, "", "")


def test_an_array_that_grew_and_is_sent_to_another_model_adds_what_is_new(sh, work):
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    for number, model in ((2, "m1"), (3, "m2")):
        (work / "b").write_bytes(orjson.dumps({"model": model, "messages": said[:number]}))
        assert sh("thread-import --from anthropic b | thread-append t > /dev/null") == (0, "", "")
    assert sh("jq -r .content t") == (0, "a\nb\nc\n", "")


@pytest.mark.parametrize(("api", "given", "status", "out", "err"), [
    ("anthropic", {"name": "x", "version": "1"}, 66, [], "no conversation of the Messages API"),
    ("anthropic", {"messages": [{"role": "user", "content": "a"}, 5, {"x": 1}]}, 0, [("user", "a")],
     "2 of the array are no messages, and left out"),
    ("openai", {"previous_response_id": "r", "input": "a"}, 0, [("user", "a")],
     "what stands before it is at the vendor (previous_response_id), and left out"),
])  # fmt: skip
def test_what_a_request_lacks_is_said(sh, work, api, given, status, out, err):
    (work / "b").write_bytes(orjson.dumps(given))
    ran = sh(f"thread-import --from {api} b")
    assert (ran.status, said(ran), ran.err) == (status, out, f"thread-import: b: {err}\n")


def test_a_call_from_before_there_were_tools_has_its_result(sh, work):
    (work / "b").write_bytes(orjson.dumps([
        {"role": "user", "content": "a"}, {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "r"}]))  # fmt: skip
    ran = sh("thread-import --from openai b | jq -c 'select(.role).content'")
    assert ran == (0, '"a"\n[{"type":"tool_call","id":"f","name":"f","arguments":{}}]\n'
                      '[{"type":"tool_result","call_id":"f","content":"r"}]\n', "")  # fmt: skip


@pytest.mark.parametrize("there", ["mkdir", "ln -s nowhere", "mkfifo"])
@pytest.mark.parametrize("program", ["claude", "codex", "gemini", "llm"])
def test_what_is_no_session_where_one_belongs_is_left_and_the_new_one_gets_another_id(sh, program, there):
    export = f"thread-export -q --to {program} --format json < t | jq -r .path"
    ran = sh(f"thread-append --new --thread x hi | dispatch -q --to echo > t; p=$({export}); rm \"$p\"; {there} \"$p\"; q=$({export}); "
             f'[ -f "$q" ] && [ "$p" != "$q" ] && [ "$({export})" = "$q" ] && [ ! -f "$p" ]')  # fmt: skip
    assert ran == (0, "", "")


def test_a_file_where_a_folder_belongs_is_said(sh):
    ran = sh("mkdir -p ~/.claude; touch ~/.claude/projects; thread-append --new --thread x hi | thread-export --to claude")
    assert (ran.status, ran.out) == (74, "") and ran.err.endswith(": Not a directory\n")


# root reads every file: without this right of its own it is as everybody else
AS_OTHERS = "" if os.geteuid() else "setpriv --bounding-set -dac_override,-dac_read_search "


@pytest.mark.parametrize("program", ["claude", "codex", "gemini"])
def test_what_cannot_be_read_is_said_and_the_others_are_listed(sh, program):
    ran = sh(f"for i in 1 2; do thread-append --new --thread x$i hi | thread-export -q --to {program} --format json; done | "
             "jq -r .path > p; chmod 0 \"$(head -n 1 p)\"; "
             f"{AS_OTHERS}thread-import --from {program} --list; s=$?; tr '\\n' '\\0' < p | xargs -0 chmod 600; exit $s")  # fmt: skip
    assert (ran.status, len(ran.records)) == (66, 1) and ran.err.endswith(".jsonl: Permission denied\n")
    folder = "~/.gemini/tmp" if program == "gemini" else "\"$(dirname \"$(head -n 1 p)\")\""
    ran = sh(f"f={folder}; chmod 0 \"$f\"; {AS_OTHERS}thread-import --from {program} --list --all; chmod 700 \"$f\"")
    assert ran.out == "" and ran.err.endswith(": Permission denied; what sessions it has is not seen\n")


@pytest.mark.parametrize(("args", "err"), [
    ("thread-export --to text -m x", "-m is for a request's body and for llm; a page has none"),
    ("thread-export --to html --cwd .", "--cwd and --format json are for a session; html goes to stdout"),
    ("thread-import --from openai --list", "openai keeps no sessions here; say the FILE of a request"),
])  # fmt: skip
def test_an_option_that_counts_for_nothing_is_refused(sh, args, err):
    assert sh(f"thread-append --new hi | {args}") == (2, "", f"{args.split()[0]}: {err}\n")
