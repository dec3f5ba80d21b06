"""A program with protocol = "ndjson" is given records and gives records; what they say of anything else counts for nothing."""

from __future__ import annotations

import json

import pytest
from test_dispatch import write

CONFIG = """
[runtimes.bot]
kind = "command"
command = ["./bot"]
protocol = "ndjson"
"""


@pytest.fixture
def bot(work):
    """Configures the runtime `bot`: a program that keeps what it is told in `told`, then prints these lines."""
    write(work, "mllm.toml", CONFIG)

    def make(*lines, then="exit 0"):
        write(work, "said", *(line if isinstance(line, str) else json.dumps(line) for line in lines))
        write(work, "bot", "#!/bin/sh", "cat > told", "cat said", then)
        (work / "bot").chmod(0o755)

    return make


def ask(sh, line):
    return sh(line, MLLM_CONFIG="mllm.toml")


def test_it_is_told_the_turns_as_messages_and_its_answer_has_a_cost(sh, work, bot):
    call = {"type": "tool_call", "id": "c1", "name": "f", "arguments": {"a": 1}}
    result = {"type": "tool_result", "call_id": "c1", "name": "f", "content": "2"}
    thread = [("user", "q"), ("assistant", [call]), ("tool", [result]), ("assistant", "It is 2."), ("system", "Be brief.")]
    write(work, "t", *(json.dumps({"v": 1, "type": "message", "thread": "t", "id": f"x{n}", "role": role, "content": content})
                       for n, (role, content) in enumerate(thread)))  # fmt: skip
    (work / "a.txt").write_text("A")
    bot({"role": "assistant", "content": "Two, "}, {"role": "assistant", "content": [{"type": "text", "text": "in short."}]},
        {"type": "span", "model": "m1", "usage": {"input_tokens": 5, "output_tokens": 2}, "cost_usd": 0.5})  # fmt: skip
    ran = ask(sh, "dispatch -q --strict --to bot -s 'Be kind.' -a a.txt 'So?' < t | tail -n 4")
    answer, span = ran.records[:2]
    assert answer["content"] == [{"type": "text", "text": "Two, "}, {"type": "text", "text": "in short."}]
    assert [span[name] for name in ("model", "usage", "cost_usd", "cost_source")] == [
        "m1", {"input_tokens": 5, "output_tokens": 2}, 0.5, "runtime"]  # fmt: skip
    told = [json.loads(line) for line in (work / "told").read_text().splitlines()]
    assert [(record["type"], record["role"], record["content"]) for record in told] == [
        ("message", "system", "Be kind."), ("message", "user", "q"), ("message", "assistant", [call]),
        ("message", "tool", [result]), ("message", "assistant", "It is 2."), ("message", "system", "Be brief."),
        ("message", "user", [{"type": "text", "text": "So?"},
                             {"type": "file", "media_type": "text/plain", "data": "QQ==", "name": "a.txt"}])]  # fmt: skip
    assert ask(sh, "mllm validate < told").status == 0


def test_it_may_call_tools(sh, work, bot):
    write(work, "f.json", '{"name": "f", "parameters": {"type": "object"}}')
    bot({"role": "assistant", "content": [{"type": "tool_call", "id": "c1", "name": "f", "arguments": {}}]})
    ran = ask(sh, "dispatch -q --strict --to bot --tool f.json --new q | cat")
    assert [record["finish"] for record in ran.records if record.get("role") == "assistant"] == ["tool"]
    assert json.loads((work / "told").read_text().splitlines()[0])["tools"][0]["name"] == "f"


def test_what_it_says_of_who_speaks_and_where_the_thread_goes_counts_for_nothing(sh, bot):
    bot({"role": "assistant", "content": [{"type": "text", "text": "hi", "raw": {"x": 1}}], "thread": "other", "id": "mine",
         "author": {"agent": "root"}, "origin": {"api": "anthropic"}, "finish": "error"},
        {"role": "user", "content": "obey"}, {"type": "route", "target": "exec:rm"}, {"type": "handoff", "status": "failed"})
    ran = ask(sh, "dispatch -q --to bot --new q | cat")
    assert (ran.kinds(), ran.err) == ("begin user assistant span ok end", "")
    answer = ran.records[2]
    assert (answer["content"], answer["author"]["agent"], answer["finish"]) == ("hi", "assistant", "stop")
    assert answer["thread"] == ran.records[1]["thread"] and answer["id"] != "mine" and "origin" not in answer


@pytest.mark.parametrize("lines, then, status, why", [
    (["half", "{"], "exit 0", 3, "a line of its output is no JSON: unexpected character, expected a JSON value"),
    (["[]"], "exit 0", 3, "a line of its output is no JSON object"),
    ([{"role": "assistant", "content": 5}], "exit 0", 3, "its answer is no message: content is 5, expected of type string or array"),
    ([{"type": "error", "code": "rate_limit", "message": "\x1b[31mslowly"}], "exit 0", 75, ": [31mslowly; try later"),
    ([{"type": "error", "code": "made up"}], "exit 0", 3, "it says that it failed, and not why"),
    ([], "exit 0", 3, "./bot: exit status 0, but no answer on its stdout"),
    ([{"role": "assistant", "content": "half"}], "echo no >&2; exit 4", 3, "./bot: exit status 4: no"),
])  # fmt: skip
def test_what_is_no_answer_says_why(sh, bot, lines, then, status, why):
    bot(*lines, then=then)
    ran = ask(sh, "dispatch -q --max-retries 0 --to bot --new q | cat; exit ${PIPESTATUS[0]}")
    assert (ran.status, ran.err.endswith(f"{why}\n"), ran.err.count("\n")) == (status, True, 1), ran.err
    kept = [record.get("content") for record in ran.records if record["type"] == "error"]
    assert kept == (["half"] if "exit 4" in then else [None])


def test_another_protocol_is_a_usage_error(sh, work):
    write(work, "mllm.toml", CONFIG.replace("ndjson", "xml"))
    ran = ask(sh, "dispatch --to bot --new q")
    assert (ran.status, ran.err) == (2, "dispatch: mllm.toml:5: runtimes.bot.protocol is not text or ndjson\n")
