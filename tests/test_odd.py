"""What a server says that is of another shape than its API's: that thread fails, what had come is kept, others go on."""

from __future__ import annotations

import json

import pytest
import test_recorded
from odd import odd
from recorded import bodies, streams

from mllm_pipe.runtimes import _sse

server = test_recorded.server

DIALECTS = {  # folder, a whole answer with calls, a stream with calls
    "anthropic": ("anthropic", "anthropic-memory-20250818.1.json", "anthropic-tool-no-args.chunks.txt"),
    "openai": ("openai-responses", "lmstudio-tool-call.1.json", "openai-custom-tool.1.chunks.txt"),
    "openai-chat": ("openai-chat", "deepseek-tool-call.json", "groq-tool-call.chunks.txt"),
    "google": ("google", "google-tool-call-gemini3.json", "google-tool-call-gemini3.chunks.txt"),
}
WHOLE = {"id": "r", "model": "m", "choices": [{"index": 0, "message": {"content": "Paid.", "tool_calls": [
    {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 2, "completion_tokens": 3}}  # fmt: skip
KEPT = "; what had come is in the error record and the journal\n"


def asks(work, server, answers):
    """Writes a thread for each of the answers, which are JSON or bytes, to `asked`; the server gives them."""
    server.recordings = {name: said if isinstance(said, bytes) else json.dumps(said).encode()
                         for name, said in answers.items()}  # fmt: skip
    lines = [{"v": 1, "type": "message", "thread": name, "id": "q", "role": "user", "content": name} for name in answers]
    (work / "asked").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return f"dispatch -q --max-retries 0 --base-url {server.url}"


@pytest.mark.parametrize("name", DIALECTS)
def test_one_odd_value_in_an_answer_fails_its_thread_at_most(sh, work, server, name):
    folder, whole, stream = DIALECTS[name]
    body, events = dict(bodies(folder))[whole], list(_sse.values([dict(streams(folder))[stream]]))
    answers = {}
    for number, said in enumerate([*odd(body, every=2), *odd(events, every=3)]):
        whole = said if isinstance(said, dict) else b"".join(b"data: %s\n\n" % json.dumps(e).encode() for e in said)
        answers |= {f"{number}.json": whole, f"{number}, sound.json": body}  # a server that errs for ever is left alone
    ran = sh(f"{asks(work, server, answers)} --to {name}:m < asked > out; echo $?; mllm validate < out")
    assert ran.out.startswith("3\n") and ran.out.endswith(" records hold to the envelope, 0 lines do not\n")
    records = [json.loads(line) for line in (work / "out").read_text().splitlines()]
    errors = {record["thread"]: record for record in records if record["type"] == "error"}
    answered = {record["thread"] for record in records if record.get("role") == "assistant"}
    assert answered == answers.keys() - errors.keys() and not any("sound" in thread for thread in errors)
    assert 0.02 < len(errors) / len(answers) < 0.4
    assert {error["code"] for error in errors.values()} <= {"malformed", "cut", "empty", "server"}
    empty = [error["message"] for error in errors.values() if error["code"] == "malformed" and not error.get("content")]
    assert set(empty) == {"the answer is no JSON object"}  # of an event that is null or []
    told = sorted(line.split(": ", 2)[1] for line in ran.err.splitlines())
    assert told == sorted(f"thread {thread}" for thread in errors)


@pytest.mark.parametrize(("change", "why"), [
    (lambda body: body | {"model": 5}, "model"),
    (lambda body: body | {"model": True}, "model"),
    (lambda body: body | {"choices": [body["choices"][0] | {"finish_reason": {"a": 1}}]}, "raw_finish"),
])  # fmt: skip
def test_a_field_of_an_answer_that_is_no_text_is_named_and_the_answer_kept(sh, work, server, change, why):
    to = asks(work, server, {"odd.json": change(WHOLE), "fine.json": WHOLE})
    ran = sh(f"{to} --to openai-chat:m < asked")
    assert (ran.status, ran.err) == (3, f"dispatch: thread odd.json: openai-chat: the answer has an unknown shape: {why}{KEPT}")
    content = [{"type": "text", "text": "Paid."}, {"type": "tool_call", "id": "c", "name": "f", "arguments": {}}]
    error = next(record for record in ran.records if record["type"] == "error")
    assert (error["code"], error["billed"], error["content"]) == ("malformed", "yes", content)
    answer = next(record for record in ran.records if record.get("role") == "assistant")
    assert (answer["thread"], answer["content"]) == ("fine.json", content)
    assert sh("grep -c Paid. ~/.local/state/mllm-pipe/journal.jsonl").out == "2\n"


def test_a_call_whose_name_is_no_text_is_kept_as_it_came(sh, work, server):
    call = {"id": "c", "type": "function", "function": {"name": ["f"], "arguments": "{}"}}
    body = WHOLE | {"choices": [{"message": {"content": "Paid.", "tool_calls": [call]}, "finish_reason": "tool_calls"}]}
    ran = sh(f"{asks(work, server, {'odd.json': body})} --to openai-chat:m < asked")
    assert (ran.status, ran.err) == (3, f"dispatch: thread odd.json: openai-chat: the answer has an unknown shape: content{KEPT}")
    kept = next(record for record in ran.records if record["type"] == "error")["content"]
    assert kept[0] == {"type": "text", "text": "Paid."} and kept[1]["raw"]["name"] == ["f"]


def test_an_answer_nested_too_deeply_for_a_record_is_kept_as_text(sh, work, server):
    body = json.dumps(WHOLE | {"choices": "DEEP"}).encode().replace(b'"DEEP"', b"[" * 900 + b"5" + b"]" * 900)
    ran = sh(f"{asks(work, server, {'odd.json': body})} --to openai-chat:m < asked")
    assert (ran.status, ran.err) == (3, f"dispatch: thread odd.json: openai-chat: the answer has an unknown shape{KEPT}")
    error = next(record for record in ran.records if record["type"] == "error")
    assert json.loads(error["content"]) == json.loads(body)


@pytest.mark.parametrize(("body", "why"), [
    (json.dumps(WHOLE | {"logprobs": float("nan")}).encode(), "unexpected character"),
    (json.dumps(WHOLE).encode()[:120], "unexpected end of data"),
])  # fmt: skip
def test_an_answer_that_is_no_json_is_kept_as_it_came(sh, work, server, body, why):
    ran = sh(f"{asks(work, server, {'odd.json': body})} --to openai-chat:m < asked")
    assert ran.status == 3
    assert ran.err.startswith(f"dispatch: thread odd.json: openai-chat: the answer is no JSON: {why}") and ran.err.endswith(KEPT)
    error = next(record for record in ran.records if record["type"] == "error")
    assert (error["code"], error["billed"], error["content"]) == ("malformed", "unknown", body.decode())
    outcome = json.loads(sh("tail -n 1 ~/.local/state/mllm-pipe/journal.jsonl").out)
    assert outcome["records"][1]["content"] == body.decode()
    assert sh(f"MLLM_JOURNAL=off {asks(work, server, {'odd.json': body})} --to openai-chat:m < asked").err.endswith("in the error record\n")


@pytest.mark.parametrize("body", [b"", b"{}", b"null", b'{"choices":[]}', b"data: [DONE]\n\n"])
def test_where_nothing_came_nothing_is_said_to_be_kept(sh, work, server, body):
    ran = sh(f"{asks(work, server, {'odd.json': body})} --to openai-chat:m < asked")
    assert (ran.status, ran.err) == (3, "dispatch: thread odd.json: openai-chat: the answer ended without a finish reason\n")
    error = next(record for record in ran.records if record["type"] == "error")
    assert (error["code"], error.get("content")) == ("cut", None)
