"""A thread as it grows, record by record: what an agent was sent stands at the beginning of what it is sent later."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_dispatch import thread, write
from test_turns import APIS, PROGRAMS, calls, origins, reasoning, results, said, texts

from mllm_pipe import window
from mllm_pipe.thread import answered, view

messages = st.one_of(
    st.fixed_dictionaries({"role": st.just("user"), "content": st.one_of(texts, st.lists(said, max_size=3))}),
    st.fixed_dictionaries({"role": st.just("system"), "content": texts}),
    st.fixed_dictionaries({"role": st.just("tool"), "content": st.lists(results, min_size=1, max_size=3)}),
    st.fixed_dictionaries(
        {"role": st.just("assistant"), "content": st.one_of(texts, st.lists(st.one_of(said, reasoning, calls), max_size=4))},
        optional={"author": st.sampled_from([{"agent": "writer"}, {"agent": "reviewer"}]), "origin": origins},
    ),
)  # fmt: skip


@st.composite
def threads(draw):
    """Messages of a branch, some of them pinned, and a summary that was made of the first of them, or None."""
    drawn = draw(st.lists(messages, max_size=9))
    thread = [{"type": "message", "id": f"m{number}", **message} for number, message in enumerate(drawn)]
    for message in thread:
        if draw(st.booleans()) and draw(st.booleans()):
            message["meta"] = {"pinned": True}
    cut = draw(st.integers(0, len(thread)))
    covers = [message["id"] for message in thread[:cut] if message["id"] not in window.staying(thread[:cut])]
    summary = {"type": "summary", "id": "s", "content": "in short", "covers": covers}
    return thread, (summary, cut) if covers and draw(st.booleans()) else (None, 0)


def sent(thread, summary, agent):
    """The requests that the agent was sent as the thread grew, and the one that it would be sent now."""
    record, begin = summary
    for end in range(begin + 1, len(thread) + 1):
        records = [*thread[:begin], record, *thread[begin:end]] if record else thread[:end]
        request = view(window.condensed(thread[:end], records), agent) | {"schema": None}
        follows = thread[end] if end < len(thread) else None
        spoke = follows is None or (
            follows["role"] == "assistant" and follows.get("author", {}).get("agent", agent) == agent
        )
        if spoke and not answered(request) and any(turn["parts"] for turn in request["turns"]):
            yield request


@pytest.mark.parametrize("agent", ["assistant", "writer"])
@pytest.mark.parametrize("name", [*APIS, *PROGRAMS])
@settings(max_examples=150, deadline=None)
@given(drawn=threads())
def test_what_was_answered_once_is_sent_the_same_for_ever(name, agent, drawn):
    if name in APIS:
        module, field, model = APIS[name]
        target = {"runtime": name, "kind": name, "model": model, "profile": {"alternate": name == "alternating"}}
        told = [module.request(target, request)[0][field] for request in sent(*drawn, agent)]
    else:
        module, history = PROGRAMS[name]
        target = {"runtime": name, "kind": name, "model": "p/m"}
        told = [history(module.session(target, request)) for request in sent(*drawn, agent)]
    for earlier, later in zip(told, told[1:], strict=False):
        assert json.dumps(later[: len(earlier)], default=str) == json.dumps(earlier, default=str)


def test_system_text_asks_nothing(sh, work):
    thread(work, ("user", "q"), ("assistant", "a"), ("system", "Be brief."))
    ran = sh("dispatch --to echo < t | tail -n 2; exit ${PIPESTATUS[0]}")
    assert (ran.status, ran.kinds()) == (2, "failed end")
    assert "nothing to answer: it ends with this agent's own answer; give a PROMPT" in ran.err


@pytest.mark.parametrize("to, place, sent", [
    ("openai/m", ".body.input[] | [.role, (.content | strings // .[0].text)]", [["user", "q"], ["system", "Be brief."]]),
    ("claude", '.stdin | fromjson | .message.content[] | ["user", .text]',
     [["user", "q"], ["user", "<system>\nBe brief.\n</system>"], ["user", ""]]),
    ("codex", '["user", .stdin], (.files.rollout | split("\n")[] | fromjson? | .payload | select(.role) '
              "| [.role, .content[0].text])", [["user", "q"], ["developer", "Be brief."]]),
    ("gemini", '.files.session | split("\n")[] | fromjson? | select(.content) | ["user", .content[1].text]',
     [["user", "q"], ["user", "<system>\nBe brief.\n</system>"]]),
    ("opencode:p/m", '["user", .files.import.messages[].parts[].text], ["user", .stdin]',
     [["user", "q"], ["user", "<system>\nBe brief.\n</system>"]]),
])  # fmt: skip
def test_system_text_after_the_question_goes_along_and_is_not_taken_for_it(sh, work, to, place, sent):
    thread(work, ("user", "q"), ("system", "Be brief."))
    (work / "place").write_text(place)
    ran = sh(f"dispatch --dry-run --to {to} < t | jq -c -f place", OPENAI_API_KEY="k")
    assert (ran.records, ran.err) == (sent, "")
    assert sh("dispatch -q --to echo --text < t").out == "q\n"


@pytest.mark.parametrize("to, media_type", [
    ("claude", "audio/wav"), ("codex", "application/pdf"), ("gemini", "application/zip"), ("opencode:p/m", "audio/wav"),
    ("anthropic/m", "audio/wav"), ("openai/m", "audio/wav"), ("openai-chat/m", "audio/wav"), ("google/m", "application/zip"),
])  # fmt: skip
def test_a_file_of_an_old_turn_does_not_stop_a_swap_and_one_of_the_newest_does(sh, work, to, media_type):
    file = {"type": "file", "media_type": media_type, "data": "eA==", "name": "a.bin"}
    keys = dict.fromkeys(["ANTHROPIC_API_KEY", "OPENAI_API_KEY", "GEMINI_API_KEY"], "k")
    records(work, {"role": "user", "content": [{"type": "text", "text": "Look."}, file]})
    ran = sh(f"dispatch -q --to {to} < t > /dev/null", **keys)
    who = to.partition("/")[0].partition(":")[0]
    assert (ran.status, ran.err) == (3, f"dispatch: thread t: {who}: {who} takes no {media_type} (a.bin)\n")
    records(work, {"role": "user", "content": [{"type": "text", "text": "Look."}, file]}, {"role": "assistant", "content": "ok"})
    ran = sh(f"dispatch --dry-run --to {to} 'And now?' < t | grep -c 'a.bin: a file that cannot be shown here'", **keys)
    assert (ran.status, ran.out, ran.err) == (0, "1\n", "")
    ran = sh(f"dispatch --strict --to {to} 'And now?' < t > /dev/null", **keys)
    assert ran.err == f"dispatch: thread t: {who}: --strict: file a.bin of message m0 would be dropped: there is no place for it\n"


CALL = {"role": "assistant", "author": {"agent": "writer"}, "finish": "tool", "content": [
    {"type": "tool_call", "id": "c1", "name": "weather", "arguments": {"city": "Oslo"}}]}  # fmt: skip
RAIN = {"role": "tool", "content": [{"type": "tool_result", "call_id": "c1", "name": "weather", "content": "rain"}]}


def records(work, *messages):
    lines = [{"v": 1, "type": "message", "thread": "t", "id": f"m{n}", **message} for n, message in enumerate(messages)]
    write(work, "t", *map(json.dumps, lines))


def test_another_agent_reads_what_the_tools_of_the_first_one_said(sh, work):
    said = {"role": "assistant", "author": {"agent": "writer"}, "content": "It rains."}
    records(work, {"role": "user", "content": "Oslo?"}, CALL, RAIN, said)
    asked = sh("dispatch --dry-run --to openai/m --as reviewer 'Is it so?' < t | jq -r '.body.input[].content[].text'",
               OPENAI_API_KEY="k")  # fmt: skip
    assert asked.out == (
        'Oslo?\n<<<0ef5368271eb092857089500 from "writer"\n[called weather with {"city":"Oslo"}]\n0ef5368271eb092857089500>>>\n'
        '<<<a5083c4e2b70530cbb924d79 to "writer"\n[result of c1: rain]\na5083c4e2b70530cbb924d79>>>\n'
        '<<<b6e92747daca6c9a981b0aa3 from "writer"\nIt rains.\nb6e92747daca6c9a981b0aa3>>>\nIs it so?\n')  # fmt: skip
    mine = sh("dispatch --dry-run --to openai/m --as writer 'Sure?' < t | jq -c '[.body.input[].type]'", OPENAI_API_KEY="k")
    assert mine.out == '["message","function_call","function_call_output","message","message"]\n'


def test_a_result_that_is_pinned_keeps_its_call_beside_a_summary(sh, work):
    records(work, {"role": "user", "content": "Oslo?"}, CALL, RAIN | {"meta": {"pinned": True}}, {"role": "user", "content": "x"})
    summary = {"v": 1, "type": "summary", "thread": "t", "id": "s", "content": "In short.", "covers": ["m0", "m1"]}
    write(work, "s", json.dumps(summary))
    ran = sh("cat t s | dispatch --strict --dry-run --to openai/m --as writer | jq -c '.body.input[] | .output // .name // .type'",
             OPENAI_API_KEY="k")  # fmt: skip
    assert ran.out == '"message"\n"weather"\n"rain"\n"message"\n'


def test_a_summary_is_not_sent_to_a_branch_that_left_before_its_end(sh, work):
    records(work, *({"role": role, "content": f"{role} {n}"} for n in range(2) for role in ("user", "assistant")))
    covers = ["m0", "m1", "m2", "m3"]
    summary = {"v": 1, "type": "summary", "thread": "t", "id": "s", "content": "In short.", "covers": covers}
    write(work, "s", json.dumps(summary))
    sh("cat t s > all; thread-append all --at m1 'another way' >/dev/null")
    ran = sh("dispatch -q --to exec:cat --text < all")
    assert ("In short." in ran.out, "user 0" in ran.out, "another way" in ran.out) == (False, True, True)
    assert "In short." in sh("cat t s | dispatch -q --to exec:cat --text 'go on'").out
