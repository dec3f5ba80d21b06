"""Laws of the Chat Completions dialect, and of the servers that speak it in their own ways."""

from __future__ import annotations

import json
import re
from copy import deepcopy

import orjson
import pytest
from loopback import serve
from recorded import DATA, Io, answered, asked, bodies, every_cut, ids, steps, streams, torture, turn

from mllm_pipe.errors import CallFailed, Usage
from mllm_pipe.runtimes import _chat_reply, _sse, openai_chat

TARGET = {"spec": "vllm", "runtime": "vllm", "kind": "openai-chat", "model": "m", "base_url": "http://127.0.0.1:1/v1"}
HI = asked(("user", "Hi"))
PRESETS = orjson.loads((DATA.parents[1] / "mllm_pipe" / "data" / "presets.json").read_bytes())
BODIES = [(name, body) for name, body in bodies("openai-chat") if "choices" in body]
STREAMS = streams("openai-chat")


def reply(values, request=HI, **target):
    return openai_chat.reply(values, TARGET | target, request)


def preset(name):
    return TARGET | PRESETS[name]


def test_the_plain_case_is_one_message_a_turn():
    body, losses = openai_chat.request(TARGET, asked(("user", "Hi"), ("assistant", "Ho"), ("user", "And?"), system="S"))
    assert losses == []
    assert body == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "S"},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Ho"},
            {"role": "user", "content": "And?"},
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def wire(message, keep):
    """What of a reply's message goes back: the fields that the API takes, calls without their index."""
    calls = [{k: v for k, v in call.items() if k != "index"} for call in message.get("tool_calls") or []]
    calls = [{"type": "function"} | call for call in calls]
    found = {"role": "assistant", "content": message["content"] or None} | ({"tool_calls": calls} if calls else {})
    return found | {name: message[name] for name in keep if name in message}


@pytest.mark.parametrize("name, body", BODIES, ids=ids(BODIES))
def test_a_recorded_reply_goes_back_as_it_came(name, body):
    message = body["choices"][0]["message"]
    field = "content" if "mistral" in name else "reasoning" if "groq" in name else "reasoning_content"
    for more in ({}, {"profile": {"reasoning_key": field}}):
        target = TARGET | more
        result = openai_chat.reply([deepcopy(body)], target, HI)
        sent = openai_chat.request(target, answered(openai_chat, target, HI, result))[0]["messages"][1]
        expected = wire(message, ["reasoning_content", "reasoning"] if more else [])
        if isinstance(message["content"], list) and not more:
            expected["content"] = [chunk for chunk in message["content"] if chunk["type"] != "thinking"]
        assert sent == expected


@pytest.mark.parametrize("name, stream", STREAMS, ids=ids(STREAMS))
def test_a_recorded_stream_is_whole_and_goes_back(name, stream):
    result = reply(_sse.values([stream]), profile={"reasoning_key": "reasoning_content"})
    assert result["finish"] == (
        "tool" if "tool" in name else "length" if name == "deepseek-text.chunks.txt" else "stop"
    )
    if "fallback" not in name:
        assert result["usage"]["output_tokens"] >= result["usage"].get("reasoning_tokens", 0)
    body, losses = openai_chat.request(TARGET, answered(openai_chat, TARGET, HI, result))
    assert body["messages"][1]["role"] == "assistant"
    for call in body["messages"][1].get("tool_calls", []):
        json.loads(call["function"]["arguments"])


@pytest.mark.parametrize(
    "name", ["mistral-tool-call.chunks.txt", "groq-tool-call.chunks.txt", "mistral-text.chunks.txt"]
)
def test_a_stream_cut_anywhere_is_never_whole(name):
    stream = dict(STREAMS)[name]
    finish = re.search(rb'"finish_reason":"(stop|tool_calls)"', stream)
    every_cut(openai_chat, TARGET, stream, stream.index(b"\n", finish.start()))


def test_a_stream_without_done_but_with_a_finish_reason_is_whole():
    chunk = {"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": "stop"}]}
    assert reply([chunk])["finish"] == "stop"
    broken = iter([chunk])

    def then_reset():
        yield from broken
        raise CallFailed("cut", "reset")

    assert reply(then_reset())["parts"] == [{"type": "text", "text": "x"}]


def completion(finish, message, **more):
    return reply([{"id": "r", "choices": [{"index": 0, "message": message, "finish_reason": finish}]} | more])


@pytest.mark.parametrize("raw, finish", _chat_reply.FINISHES.items())
def test_a_finish_reason_is_named_in_our_words(raw, finish):
    assert completion(raw, {"content": "x"})["finish"] == finish


def test_what_a_server_calls_stop_may_be_more():
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}
    assert completion("stop", {"content": None, "tool_calls": [call]})["finish"] == "tool"
    refused = completion("stop", {"content": None, "refusal": "No."})
    assert (refused["finish"], refused["parts"]) == ("refusal", [{"type": "refusal", "text": "No."}])
    for raw, code in (("error", "malformed"), ("x", "malformed"), ("insufficient_system_resource", "overloaded")):
        with pytest.raises(CallFailed) as failure:
            completion(raw, {"content": "x"})
        assert failure.value.code == code and not failure.value.retryable
    with pytest.raises(CallFailed) as failure:
        completion("stop", {"content": ""})
    assert failure.value.code == "empty"


def chunks(*deltas, finish="tool_calls"):
    listed = [{"id": "r", "choices": [{"index": 0, "delta": d, "finish_reason": None}]} for d in deltas]
    return [*listed, {"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]}]


@pytest.mark.parametrize("deltas", [
    [[{"index": 0, "id": "a", "function": {"name": "f", "arguments": ""}}],
     [{"index": 0, "function": {"arguments": '{"x"'}}], [{"index": 0, "function": {"arguments": ":1}"}}]],
    [[{"index": 0, "id": "a", "function": {"name": "f", "arguments": '{"x"'}}],
     [{"index": 0, "id": "a", "function": {"name": "f", "arguments": ":1}"}}]],  # llama-cpp-python
    [[{"id": "a", "function": {"name": "f", "arguments": '{"x":1}'}}]],  # Mistral
    [[{"id": "a", "function": {"name": "f"}}], [{"function": {"arguments": '{"x":1}'}}]],
    [[{"index": 0, "id": "a", "function": {"name": "f", "arguments": {"x": 1}}}]],
])  # fmt: skip
def test_a_call_is_put_together_in_every_dialect(deltas):
    result = reply(chunks(*({"tool_calls": delta} for delta in deltas)))
    assert [{k: v for k, v in p.items() if k != "raw"} for p in result["parts"]] == [
        {"type": "tool_call", "id": "a", "name": "f", "arguments": {"x": 1}}
    ]


def test_several_calls_stay_apart():
    for calls in (
        [{"index": 0, "id": "a", "function": {"name": "f"}}, {"index": 1, "id": "b", "function": {"name": "f"}}],
        [{"id": "a", "function": {"name": "f"}}, {"id": "b", "function": {"name": "f"}}],
        [{"index": 0, "id": "a", "function": {"name": "f"}}, {"index": 0, "id": "b", "function": {"name": "f"}}],
    ):
        assert [p["id"] for p in reply(chunks({"tool_calls": calls}))["parts"]] == ["a", "b"]
    unnamed = reply(chunks({"tool_calls": [{"index": 0, "function": {"name": "f"}}]}))["parts"][0]
    assert unnamed["arguments"] == {} and unnamed["id"].startswith("c_") and unnamed == reply(
        chunks({"tool_calls": [{"index": 0, "function": {"name": "f"}}]})
    )["parts"][0]  # fmt: skip


def test_reasoning_is_heard_of_by_nobody_and_kept_under_the_name_it_had():
    heard = []
    for delta in ({"reasoning_content": "hm"}, {"reasoning": "hm"}, {"reasoning_details": [{"text": "hm"}]}):
        values = chunks(delta, {"content": "x"}, finish="stop")
        parts = openai_chat.reply(values, TARGET, HI, heard.append)["parts"]
        assert parts[0]["text"] == "hm" and list(parts[0]["raw"]) == list(delta)
    assert heard == ["x"] * 3


def test_openrouter_details_streamed_in_pieces_go_back_whole():
    pieces = [
        {"reasoning": "a", "reasoning_details": [{"type": "reasoning.text", "text": "a", "index": 0}]},
        {"reasoning": "b", "reasoning_details": [{"type": "reasoning.text", "text": "b", "index": 0}]},
        {"reasoning_details": [{"type": "reasoning.text", "signature": "s", "index": 0}]},
        {"reasoning_details": [{"type": "reasoning.encrypted", "data": "e", "index": 1}]},
        {"content": "x"},
    ]
    target = preset("openrouter")
    result = openai_chat.reply(chunks(*pieces, finish="stop"), target, HI)
    message = openai_chat.request(target, answered(openai_chat, target, HI, result))[0]["messages"][1]
    assert message["reasoning_details"] == [
        {"type": "reasoning.text", "text": "ab", "index": 0, "signature": "s"},
        {"type": "reasoning.encrypted", "data": "e", "index": 1},
    ]


def usage(more):
    return completion("stop", {"content": "x"}, usage=more)["usage"]


def test_usage_counts_all_of_the_answer():
    assert usage({"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14, "prompt_tokens_details":
                  {"cached_tokens": 4}, "completion_tokens_details": {"reasoning_tokens": 3}}) == {
        "input_tokens": 9, "cache_read_tokens": 4, "output_tokens": 5, "reasoning_tokens": 3}  # fmt: skip
    xai = dict(STREAMS)["xai-text.chunks.txt"]
    counted = reply(_sse.values([xai]))["usage"]
    assert (counted["output_tokens"], counted["reasoning_tokens"]) in [(291, 290), (342, 340)]
    assert usage({"prompt_cache_hit_tokens": 3, "prompt_tokens": 4}) == {"input_tokens": 4, "cache_read_tokens": 3}
    assert usage({"prompt_tokens": -1, "completion_tokens": "x"}) is usage(None) is None


def test_a_price_is_believed_where_the_preset_says_that_it_is_one():
    body = {"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}], "usage": {"cost": 0.25}}
    priced = openai_chat.reply([body], preset("openrouter"), HI)
    assert (priced["cost_usd"], priced["cost_source"]) == (0.25, "provider")
    assert reply([body])["cost_usd"] is None


def test_an_error_within_a_stream_is_a_failure():
    for error in ({"error": {"message": "no", "code": 502}}, {"error": "no"}, {"object": "error", "message": "no"}):
        with pytest.raises(CallFailed, match="no") as failure:
            reply([*chunks({"content": "half"})[:1], error])
        assert failure.value.billed == "unknown" and failure.value.result["parts"][0]["text"] == "half"


# -- threads ----------------------------------------------------------------------------------------------------------

PROFILES = {"plain": {}, "strict": {"alternate": True}} | {name: entry["profile"] for name, entry in PRESETS.items()}


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
@pytest.mark.parametrize("name", torture())
def test_a_torture_thread_is_rendered_append_only_and_changes_nothing_of_ours(name, profile):
    request = torture()[name]
    target = TARGET | {"profile": profile}
    before = deepcopy(request)
    rendered = [openai_chat.request(target, step)[0] for step in steps(request)]
    assert request == before
    for earlier, later in zip(rendered, rendered[1:], strict=False):
        sent = [json.dumps(m) for m in later["messages"]]
        assert sent[: len(earlier["messages"])] == [json.dumps(m) for m in earlier["messages"]]
        assert {**earlier, "messages": 0} == {**later, "messages": 0}
    called = []
    for message in rendered[-1]["messages"]:
        if message["role"] == "tool":
            assert message["tool_call_id"] == called.pop(0)
        else:
            assert called == []
            called = [call["id"] for call in message.get("tool_calls", [])]
    if profile.get("alternate"):
        roles = [m["role"] for m in rendered[-1]["messages"] if m["role"] in ("user", "assistant")]
        assert roles[0] == "user"


def messages(name, **more):
    body, losses = openai_chat.request(TARGET | more, torture()[name] | {"tools": []})
    return body["messages"], losses


def test_results_are_texts_and_their_images_follow():
    sent, losses = messages("tools-parallel")
    assert [m["role"] for m in sent] == ["user", "assistant", "tool", "tool", "user", "assistant", "user"]
    assert [m["content"] for m in sent[2:4]] == ["sun", "rain"]
    assert sent[4]["content"][0]["text"].startswith("File dot.png of tool result toolu_01AbC (data")
    assert sent[4]["content"][1]["image_url"]["url"].startswith("data:image/png;base64,")
    assert [loss["action"] for loss in losses] == ["moved"]


def test_an_error_of_a_tool_is_told_as_json():
    sent, losses = messages("tool-ids")
    assert [m["content"] for m in sent if m["role"] == "tool"] == ["one", "two", "three", '{"error":"boom"}']
    assert {loss["action"] for loss in losses} == {"renamed", "downgraded"}


def test_mistral_takes_ids_of_nine_letters_only():
    sent, _ = messages("tools-parallel", profile=PRESETS["mistral"]["profile"])
    found = [call["id"] for call in sent[1]["tool_calls"]]
    assert all(len(ident) == 9 and ident.isalnum() for ident in found) and len(set(found)) == 2
    assert [m["tool_call_id"] for m in sent[2:4]] == found


def test_arguments_go_as_the_text_that_they_were():
    sent, losses = messages("bad-args")
    assert [call["function"]["arguments"] for call in sent[1]["tool_calls"]] == ['{"cmd": "ls', "{}"]


def test_deepseek_gets_its_reasoning_field_with_every_call():
    sent, _ = messages("tools-parallel", **PRESETS["deepseek"])
    assert sent[1]["reasoning_content"] == "" and "reasoning_content" not in sent[5]
    target = preset("deepseek")
    body = next(body for name, body in BODIES if name == "deepseek-tool-call.json")
    result = openai_chat.reply([body], target, HI)
    again = openai_chat.request(target, answered(openai_chat, target, HI, result))[0]["messages"][1]
    assert again["reasoning_content"] == body["choices"][0]["message"]["reasoning_content"]


def test_reasoning_that_a_server_does_not_take_back_is_listed():
    result = reply(chunks({"reasoning": "hm"}, {"content": "x"}, finish="stop"))
    body, losses = openai_chat.request(TARGET, answered(openai_chat, TARGET, HI, result))
    assert body["messages"][1] == {"role": "assistant", "content": "x"}
    assert [(loss["what"], loss["action"]) for loss in losses] == [("reasoning of message m98", "dropped")]


def test_files_that_the_api_has_no_place_for_stop_the_call():
    for part in (
        {"type": "file", "media_type": "application/pdf", "url": "https://example.com/a.pdf"},
        {"type": "file", "media_type": "video/mp4", "data": "eA=="},
    ):
        with pytest.raises(CallFailed, match="takes no"):
            openai_chat.request(TARGET, asked(("user", [part])))


def test_an_image_for_a_model_that_reads_none_is_named_if_old_and_stops_the_call_if_new():
    image = {"type": "file", "media_type": "image/png", "data": "eA==", "name": "x.png"}
    old = asked(("user", [image, {"type": "text", "text": "What is it?"}]), ("assistant", "A cat."), ("user", "Sure?"))
    blind = preset("deepseek") | {"model": "deepseek-v4-pro"}
    body, losses = openai_chat.request(blind, old)
    assert body["messages"][0]["content"] == "[x.png: a file that cannot be shown here]\n\nWhat is it?"
    assert losses == [{"what": "file x.png of message m0", "action": "dropped", "why": "the model cannot read it"}]
    with pytest.raises(CallFailed, match="deepseek-v4-pro reads no image/png .x.png.; ask a model that does") as failure:
        openai_chat.request(blind, old | {"turns": old["turns"][:1]})
    assert (failure.value.code, failure.value.billed) == ("bad_request", "no")
    body, losses = openai_chat.request(blind | {"model": "deepseek-of-tomorrow"}, old)
    assert body["messages"][0]["content"][0]["type"] == "image_url" and losses == []


def test_profile_schema_tools_and_options_find_their_place():
    request = asked(("user", "x"), schema={"type": "object"}, tool_choice={"name": "f"}, options={"seed": 7},
                    tools=[{"name": "f", "description": "", "schema": {"type": "object"}}])  # fmt: skip
    body, _ = openai_chat.request(TARGET | {"max_tokens": 5}, request)
    assert (body["max_completion_tokens"], body["seed"]) == (5, 7)
    assert body["response_format"]["json_schema"] == {"name": "answer", "schema": {"type": "object"}, "strict": False}
    assert body["tools"] == [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    assert body["tool_choice"] == {"type": "function", "function": {"name": "f"}}
    body, _ = openai_chat.request(preset("deepseek") | {"max_tokens": 5}, request)
    assert (body["max_tokens"], body["response_format"]) == (5, {"type": "json_object"})


# -- calls ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def server():
    with serve("chat") as running:
        yield running


def call(server, scenario, request=HI, **more):
    return openai_chat.call(TARGET | {"base_url": server.url(scenario, "/v1")} | more, request, Io())


def test_a_call_gives_a_result_and_its_origin(server):
    io = Io()
    result = openai_chat.call(preset("vllm") | {"base_url": server.url("think", "/v1")}, HI, io)
    assert [part["type"] for part in result["parts"]] == ["reasoning", "text"]
    assert "".join(io.heard) == result["parts"][1]["text"] == "LOOPBACK-OK turns=1 chars=2"
    assert (result["finish"], result["provider"], result["model"]) == ("stop", "vllm", "m")
    assert result["usage"] == {"input_tokens": 31, "cache_read_tokens": 7, "output_tokens": 13, "reasoning_tokens": 3}
    assert result["origin"]["api"] == "openai-chat" and result["origin"]["raw_finish"] == "stop"
    assert server.calls()[0]["path"] == "/v1/chat/completions"


def test_a_tool_is_asked_for_and_its_result_answered(server):
    request = HI | {"tools": [{"name": "bash", "description": "", "schema": {"type": "object"}}]}
    first = call(server, "tool", request)
    assert first["finish"] == "tool" and first["parts"][0]["arguments"]["command"] == "echo hi-from-tool"
    result = {"type": "tool_result", "call_id": first["parts"][0]["id"], "content": "hi"}
    turns = [*HI["turns"], turn(1, "assistant", first["parts"], first["origin"]), turn(2, "user", [result])]
    assert call(server, "tool", request | {"turns": turns})["finish"] == "stop"


@pytest.mark.parametrize("scenario, code, billed", [
    ("401", "auth", "no"), ("404", "bad_model", "no"), ("429", "rate_limit", "no"), ("500", "server", "no"),
    ("503", "overloaded", "no"), ("cut", "cut", "unknown"), ("reset", "cut", "unknown"), ("empty", "empty", "yes"),
    ("html", "malformed", "unknown"),
])  # fmt: skip
def test_what_goes_wrong_has_a_code(server, scenario, code, billed):
    with pytest.raises(CallFailed) as failure:
        call(server, scenario)
    assert (failure.value.code, failure.value.billed) == (code, billed)
    assert failure.value.retry_after_s == (1.0 if scenario == "429" else None)


def test_length_and_filter_are_results_and_a_plain_answer_is_understood(server):
    assert call(server, "length")["finish"] == "length" and call(server, "refusal")["finish"] == "filter"
    assert call(server, "ok", options={"stream": False})["finish"] == "stop"
    assert call(server, "ok", profile=PRESETS["mistral"]["profile"])["usage"] is None


def test_no_key_goes_where_it_was_not_meant_to_go(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai-123456")
    call(server, "ok")
    assert "authorization" not in server.calls()[0]["headers"]
    monkeypatch.setenv("MINE", "sk-mine-123456")
    call(server, "ok", key_env="MINE")
    assert server.calls()[1]["headers"]["authorization"] == "***"
    shown = openai_chat.preview(TARGET | {"base_url": None}, HI)
    assert shown["url"] == "https://api.openai.com/v1/chat/completions"
    assert shown["headers"]["authorization"] == "Bearer ***"
    monkeypatch.delenv("OPENAI_API_KEY")
    assert openai_chat.usable(TARGET) == "" and "OPENAI_API_KEY" in openai_chat.usable(TARGET | {"base_url": None})
    with pytest.raises(CallFailed, match="OPENAI_API_KEY is not set"):
        openai_chat.call(TARGET | {"base_url": None}, HI, Io())


def test_without_a_model_it_says_how_to_name_one():
    with pytest.raises(Usage, match="vllm: no model: say vllm/MODEL or -m MODEL"):
        openai_chat.request(TARGET | {"model": None}, HI)


def test_chunks_of_strange_shapes_are_malformed_and_no_defect():
    base = chunks({"role": "assistant", "content": "x", "tool_calls": [{"function": {"name": "f"}}]})
    for strange in (
        None,
        1,
        "x",
        [],
        {},
        [1],
        {"a": None},
        True,
        [{}],
        [{"delta": 1}],
        [{"delta": {"tool_calls": [1]}}],
    ):
        for name in ("choices", "usage", "id", "model", "x_groq"):
            for values in ([base[0] | {name: strange}, base[1]], [base[0], base[1] | {name: strange}]):
                try:
                    reply(values)
                except CallFailed:
                    pass
