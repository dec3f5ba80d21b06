"""Laws of the OpenAI Responses dialect."""

from __future__ import annotations

import json
from copy import deepcopy

import pytest
from loopback import serve
from recorded import Io, answered, asked, bodies, every_cut, ids, steps, streams, torture, turn

from mllm_pipe.errors import CallFailed, Usage
from mllm_pipe.runtimes import _sse, openai

TARGET = {"spec": "openai", "runtime": "openai", "kind": "openai", "model": "gpt-6-sol"}
HI = asked(("user", "Hi"))
BODIES = [(name, body) for name, body in bodies("openai-responses") if not body.get("error")]
STREAMS = [(name, data) for name, data in streams("openai-responses") if "error" not in name and "wrapper" not in name]


def reply(values, request=HI):
    return openai.reply(values, TARGET, request)


def sent_back(result, request=HI):
    body, losses = openai.request(TARGET, answered(openai, TARGET, request, result))
    return body["input"][1:-1], losses


def test_the_plain_case_is_one_item_a_turn():
    body, losses = openai.request(TARGET, asked(("user", "Hi"), ("assistant", "Ho"), ("user", "And?"), system="S"))
    assert losses == []
    assert body == {
        "model": "gpt-6-sol",
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "instructions": "S",
        "input": [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
            {"type": "message", "role": "assistant", "content": "Ho"},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "And?"}]},
        ],
    }


@pytest.mark.parametrize("name, body", BODIES, ids=ids(BODIES))
def test_a_recorded_reply_goes_back_as_it_came(name, body):
    result = reply([deepcopy(body)])
    assert result["finish"] == ("tool" if any(i["type"] == "function_call" for i in body["output"]) else "stop")
    items, losses = sent_back(result)
    calls = {i["call_id"] for i in body["output"] if i["type"] == "function_call"}
    assert [i for i in items if i["type"] != "function_call_output" or i["call_id"] not in calls] == body["output"]
    assert [loss["action"] for loss in losses] == ["synthesised"] * len(calls)


@pytest.mark.parametrize("name, stream", STREAMS, ids=ids(STREAMS))
def test_a_recorded_stream_ends_with_the_items_of_its_last_event(name, stream):
    events = list(_sse.values([stream]))
    heard = []
    result = openai.reply(iter(events), TARGET, HI, heard.append)
    items, _ = sent_back(result)
    output = events[-1]["response"]["output"]
    assert [i for i in items if i["type"] != "function_call_output"] == [
        i for i in output if i["type"] != "function_call_output"
    ]
    if name not in ("openai-phase.1.chunks.txt", "openai-shell-container.1.chunks.txt"):  # their deltas are abridged
        assert "".join(heard) == "".join(p["text"] for p in result["parts"] if p["type"] == "text")
    assert result["usage"]["input_tokens"] >= 0


@pytest.mark.parametrize("name", ["openai-custom-tool.1", "lmstudio-tool-call.1", "openai-pdf-input-file.1"])
def test_a_stream_cut_anywhere_is_never_whole(name):
    stream = dict(STREAMS)[f"{name}.chunks.txt"]
    every_cut(openai, TARGET, stream, stream.rstrip().rfind(b"}") + 1)


def test_a_recording_with_a_broken_event_is_malformed():
    with pytest.raises(CallFailed) as failure:
        reply(_sse.values([dict(streams("openai-responses"))["parallel-tool-call-wrapper.1.chunks.txt"]]))
    assert failure.value.code == "malformed"


def test_a_cut_answer_keeps_what_had_come():
    stream = dict(STREAMS)["openai-phase.1.chunks.txt"]
    for mark in (b"event: response.output_text.done", b"event: response.completed"):
        with pytest.raises(CallFailed) as failure:
            reply(_sse.values([stream[: stream.rindex(mark)]]))
        assert failure.value.result["parts"][-1]["text"]


def test_an_error_within_a_stream_is_a_failure():
    with pytest.raises(CallFailed) as failure:
        reply(_sse.values([dict(streams("openai-responses"))["openai-error.1.chunks.txt"]]))
    assert (failure.value.code, failure.value.billed, failure.value.retryable) == ("billing", "no", False)
    failed = {"type": "response.failed", "response": {"status": "failed", "error": {"code": "server_error"}}}
    with pytest.raises(CallFailed) as failure:
        reply([failed])
    assert (failure.value.code, failure.value.billed) == ("server", "no")
    delta = {"type": "response.output_text.delta", "output_index": 0, "delta": "half"}
    with pytest.raises(CallFailed) as failure:
        reply([delta, failed])
    assert (failure.value.billed, failure.value.result["parts"]) == ("unknown", [{"type": "text", "text": "half"}])


def response(status="completed", *content, **more):
    content = content or ({"type": "output_text", "text": "x", "annotations": []},)
    item = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": list(content)}
    return reply([{"object": "response", "id": "r", "status": status, "output": [item]} | more])


def test_a_status_is_named_in_our_words():
    assert response()["finish"] == "stop"
    for reason, finish in [("max_output_tokens", "length"), ("content_filter", "filter"), ("steered", "pause")]:
        assert response("incomplete", incomplete_details={"reason": reason})["finish"] == finish
    for status, more in [("incomplete", {}), ("queued", {}), ("incomplete", {"incomplete_details": {"reason": "new"}})]:
        with pytest.raises(CallFailed) as failure:
            response(status, **more)
        assert failure.value.code == "malformed"
    with pytest.raises(CallFailed) as failure:
        response("completed", {"type": "output_text", "text": ""})
    assert failure.value.code == "empty"


def test_a_refusal_is_an_answer_and_goes_back_where_it_came_from():
    result = response("completed", {"type": "refusal", "refusal": "No."})
    assert (result["finish"], result["parts"][0]["text"]) == ("refusal", "No.")
    items, losses = sent_back(result)
    assert items[0]["content"] == [{"type": "refusal", "refusal": "No."}] and losses == []


def test_a_message_of_several_contents_goes_back_as_one():
    result = response("completed", {"type": "output_text", "text": "a"}, {"type": "output_text", "text": "b"})
    assert [part["text"] for part in result["parts"]] == ["a", "b"]
    items, _ = sent_back(result)
    assert len(items) == 1 and len(items[0]["content"]) == 2


def test_usage_is_named_in_our_words():
    usage = {"input_tokens": 9, "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 2},
             "output_tokens": 5, "output_tokens_details": {"reasoning_tokens": 3}}  # fmt: skip
    assert response(usage=usage)["usage"] == {
        "input_tokens": 9, "cache_read_tokens": 4, "cache_write_tokens": 2, "output_tokens": 5, "reasoning_tokens": 3,
    }  # fmt: skip


# -- threads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", torture())
def test_a_torture_thread_is_rendered_append_only_and_changes_nothing_of_ours(name):
    request = torture()[name]
    before = deepcopy(request)
    rendered = [openai.request(TARGET, step)[0] for step in steps(request)]
    assert request == before
    for earlier, later in zip(rendered, rendered[1:], strict=False):
        sent = [json.dumps(i) for i in later["input"]]
        assert sent[: len(earlier["input"])] == [json.dumps(i) for i in earlier["input"]]
    items = rendered[-1]["input"]
    calls = [i["call_id"] for i in items if i["type"] == "function_call"]
    assert calls == [i["call_id"] for i in items if i["type"] == "function_call_output"]


def test_results_may_hold_images_and_errors_are_json():
    items = openai.request(TARGET, torture()["tools-parallel"])[0]["input"]
    output = next(i for i in items if i["type"] == "function_call_output")
    assert [p["type"] for p in output["output"]] == ["input_text", "input_image"]
    items, losses = [openai.request(TARGET, torture()["tool-ids"])[n] for n in (0, 1)]
    assert [i["output"] for i in items["input"] if i["type"] == "function_call_output"][3] == '{"error":"boom"}'
    assert "downgraded" in {loss["action"] for loss in losses}


def test_reasoning_goes_back_while_all_before_it_is_unchanged():
    body = next(body for name, body in BODIES if "encrypted" in name)
    request = answered(openai, TARGET, HI, reply([body]))
    assert openai.request(TARGET, request)[0]["input"][1] == body["output"][0]
    items, losses = openai.request(TARGET, request | {"system": "New."})
    assert items["input"][1]["type"] == "message" and [loss["action"] for loss in losses] == ["dropped"]


def test_files_find_their_place():
    items = openai.request(TARGET, torture()["files"])[0]["input"]
    kinds = [p["type"] for p in items[0]["content"]]
    assert kinds == ["input_text", "input_image", "input_file", "input_image", "input_text"]
    with pytest.raises(CallFailed, match="takes no audio/wav"):
        openai.request(TARGET, asked(("user", [{"type": "file", "media_type": "audio/wav", "data": "eA=="}])))


def test_schema_tools_and_options_find_their_place():
    request = asked(("user", "x"), schema={"type": "object"}, tool_choice={"name": "f"},
                    options={"effort": "low"},
                    tools=[{"name": "f", "description": "d", "schema": {"type": "object"}}])  # fmt: skip
    body, _ = openai.request(TARGET | {"max_tokens": 5}, request)
    assert (body["max_output_tokens"], body["reasoning"]) == (16, {"effort": "low"})
    assert body["text"]["format"]["schema"] == {"type": "object"} and body["text"]["format"]["strict"] is False
    assert body["tools"] == [
        {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}, "strict": False}
    ]
    assert body["tool_choice"] == {"type": "function", "name": "f"}


# -- calls ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai-123456")
    with serve("responses") as running:
        yield running


def call(server, scenario, request=HI, **more):
    return openai.call(TARGET | {"base_url": server.url(scenario, "/v1")} | more, request, Io())


def test_a_call_gives_a_result_and_its_origin(server):
    io = Io()
    result = openai.call(TARGET | {"base_url": server.url("think", "/v1")}, HI, io)
    assert [part["type"] for part in result["parts"]] == ["reasoning", "text"]
    assert "".join(io.heard) == result["parts"][1]["text"]
    assert (result["finish"], result["provider"], result["origin"]["api"]) == ("stop", "openai", "openai")
    assert server.calls()[0]["body"]["store"] is False and server.calls()[0]["path"] == "/v1/responses"
    again = HI | {
        "turns": [*HI["turns"], turn(1, "assistant", result["parts"], result["origin"]), turn(2, "user", "?")]
    }
    assert call(server, "think", again)["losses"] == []
    assert [i["type"] for i in server.calls()[1]["body"]["input"]] == ["message", "reasoning", "message", "message"]


@pytest.mark.parametrize("scenario, code, billed", [
    ("401", "auth", "no"), ("404", "bad_model", "no"), ("429", "rate_limit", "no"), ("500", "server", "no"),
    ("cut", "cut", "unknown"), ("reset", "cut", "unknown"), ("empty", "empty", "yes"), ("html", "malformed", "unknown"),
])  # fmt: skip
def test_what_goes_wrong_has_a_code(server, scenario, code, billed):
    with pytest.raises(CallFailed) as failure:
        call(server, scenario)
    assert (failure.value.code, failure.value.billed) == (code, billed)


def test_length_and_filter_are_results_and_a_plain_answer_is_understood(server):
    assert call(server, "length")["finish"] == "length"
    assert call(server, "refusal")["finish"] in ("filter", "refusal")
    assert call(server, "ok", options={"stream": False})["finish"] == "stop"


def test_the_key_is_named_when_it_lacks_and_never_shown(server, monkeypatch):
    shown = openai.preview(TARGET, HI)
    assert shown["url"] == "https://api.openai.com/v1/responses"
    assert shown["headers"]["authorization"] == "Bearer ***" and openai.usable(TARGET) == ""
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(CallFailed, match="OPENAI_API_KEY is not set"):
        openai.call(TARGET, HI, Io())
    with pytest.raises(Usage, match="openai: no model: say openai/MODEL or -m MODEL"):
        openai.request(TARGET | {"model": None}, HI)


def test_events_of_strange_shapes_are_malformed_and_no_defect():
    whole = list(_sse.values([dict(STREAMS)["openai-pdf-input-file.1.chunks.txt"]]))
    for index, event in enumerate(whole):
        for name in event:
            for strange in (None, 1, "x", [], {}, [1], {"a": None}, {"output": 1}, {"output": [{"content": [1]}]}):
                try:
                    reply([*whole[:index], event | {name: strange}, *whole[index + 1 :]])
                except CallFailed:
                    pass
