"""Laws of the Anthropic dialect."""

from __future__ import annotations

import hashlib
import json
import re
from copy import deepcopy

import pytest
from loopback import serve
from recorded import Io, answered, asked, bodies, every_cut, ids, sse, steps, streams, torture, turn

from mllm_pipe.errors import CallFailed, Usage
from mllm_pipe.runtimes import _sse, anthropic, openai_chat

TARGET = {"spec": "anthropic", "runtime": "anthropic", "kind": "anthropic", "model": "claude-opus-5-5"}
HI = asked(("user", "Hi"))
BODIES, STREAMS = bodies("anthropic"), streams("anthropic")


def reply(values, request=HI):
    return anthropic.reply(values, TARGET, request)


def test_the_plain_case_is_one_text_block():
    body, losses = anthropic.request(TARGET, asked(("user", "Hi"), ("assistant", "Ho"), ("user", "And?"), system="S"))
    assert losses == []
    assert body == {
        "model": "claude-opus-5-5",
        "max_tokens": 128000,
        "stream": True,
        "cache_control": {"type": "ephemeral"},
        "system": "S",
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "Ho"}]},
            {"role": "user", "content": [{"type": "text", "text": "And?"}]},
        ],
    }


@pytest.mark.parametrize("name, message", BODIES, ids=ids(BODIES))
def test_a_recorded_reply_goes_back_as_it_came(name, message):
    result = reply([deepcopy(message)])
    assert result["origin"] == {"response_id": message["id"], "raw_finish": message["stop_reason"]}
    body, losses = anthropic.request(TARGET, answered(anthropic, TARGET, HI, result))
    sent = [m["content"] for m in body["messages"] if m["role"] == "assistant"]
    content = [b for b in message["content"] if b["type"] != "text" or b["text"].strip()]
    assert sent == [content] * bool(content)


@pytest.mark.parametrize("name, stream", STREAMS, ids=ids(STREAMS))
def test_a_recorded_stream_is_read_as_the_message_that_it_streams(name, stream):
    result = reply(_sse.values([stream]))
    blocks = [part.get("raw") or anthropic._block(part) for part in result["parts"] if part["type"] != "refusal"]
    again = reply([{"type": "message", "content": blocks, "stop_reason": result["origin"]["raw_finish"]}])
    assert again["parts"] == [part for part in result["parts"] if part["type"] != "refusal"]
    assert result["finish"] in ("stop", "tool", "refusal")
    assert result["usage"]["input_tokens"] >= 0


@pytest.mark.parametrize("name", ["anthropic-text", "anthropic-tool-no-args", "spliced-message-start"])
def test_a_stream_cut_anywhere_is_never_whole(name):
    stream = dict(STREAMS)[f"{name}.chunks.txt"]
    every_cut(anthropic, TARGET, stream, stream.index(b"\n\nevent: message_stop"))


def test_text_is_heard_as_it_comes_and_only_text():
    heard = []
    for _, stream in STREAMS:
        heard.clear()
        result = anthropic.reply(_sse.values([stream]), TARGET, HI, heard.append)
        if "spliced" not in _:
            assert "".join(heard) == "".join(p["text"] for p in result["parts"] if p["type"] == "text")


def test_a_second_message_start_begins_the_message_anew():
    result = reply(_sse.values([dict(STREAMS)["spliced-message-start.chunks.txt"]]))
    assert [part["type"] for part in result["parts"]] == ["reasoning", "tool_call"]
    assert result["parts"][1]["id"] == "toolu_second" and result["parts"][1]["arguments"] == {"value": "Sparkle Day"}


def test_usage_counts_the_whole_prompt():
    usage = {"input_tokens": 11, "cache_creation_input_tokens": 5, "cache_read_input_tokens": 7, "output_tokens": 3,
             "output_tokens_details": {"thinking_tokens": 2}}  # fmt: skip
    result = reply([{"type": "message", "content": [{"type": "text", "text": "x"}], "stop_reason": "end_turn",
                     "usage": usage}])  # fmt: skip
    assert result["usage"] == {
        "input_tokens": 23, "cache_read_tokens": 7, "cache_write_tokens": 5, "output_tokens": 3, "reasoning_tokens": 2,
    }  # fmt: skip
    later = reply(_sse.values([dict(STREAMS)["anthropic-message-delta-input-tokens.chunks.txt"]]))
    assert later["usage"] == {"input_tokens": 61, "output_tokens": 2}
    for nonsense in ({"input_tokens": -1, "output_tokens": None}, None, "x", {"input_tokens": 1.5}):
        assert message("end_turn", usage=nonsense)["usage"] is None


def message(stop, *blocks, **more):
    blocks = blocks or ({"type": "text", "text": "x"},)
    return reply([{"type": "message", "content": list(blocks), "stop_reason": stop} | more])


@pytest.mark.parametrize("stop, finish", anthropic.FINISHES.items())
def test_a_finish_reason_is_named_in_our_words(stop, finish):
    assert message(stop)["finish"] == finish


def test_an_unknown_finish_reason_is_no_success():
    with pytest.raises(CallFailed) as failure:
        message("new_thing")
    assert failure.value.code == "malformed" and failure.value.result["origin"]["raw_finish"] == "new_thing"
    assert failure.value.result["finish"] == "error" and failure.value.result["parts"]


def test_an_answer_without_content_is_empty_but_a_refusal_is_an_answer():
    for blocks in ([], [{"type": "text", "text": " \n"}], [{"type": "thinking", "thinking": "hm", "signature": "s"}]):
        with pytest.raises(CallFailed) as failure:
            reply([{"type": "message", "content": blocks, "stop_reason": "end_turn"}])
        assert (failure.value.code, failure.value.billed) == ("empty", "yes")
    refused = reply(_sse.values([dict(STREAMS)["anthropic-refusal.chunks.txt"]]))
    assert refused["finish"] == "refusal" and refused["parts"][0]["text"].startswith("This request triggered")


def test_an_error_within_a_stream_is_a_failure_with_what_had_come():
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    with pytest.raises(CallFailed) as failure:
        reply([error])
    assert (failure.value.code, failure.value.billed, failure.value.retryable) == ("overloaded", "no", True)
    begun = [{"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "half"}}]
    with pytest.raises(CallFailed) as failure:
        reply([*begun, error])
    assert (failure.value.code, failure.value.billed, str(failure.value)) == ("overloaded", "unknown", "Overloaded")
    assert failure.value.result["parts"] == [{"type": "text", "text": "half"}]


def test_arguments_that_are_no_json_are_kept_and_sent_as_raw():
    events = [
        {"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use", "id": "t", "name": "run"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": '{"a": '}},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}},
    ]
    result = reply(events)
    assert result["parts"] == [
        {"type": "tool_call", "id": "t", "name": "run", "arguments": {}, "arguments_raw": '{"a": '}
    ]
    body, losses = anthropic.request(TARGET, answered(anthropic, TARGET, HI, result))
    assert body["messages"][1]["content"][0]["input"] == {"_raw": '{"a": '}
    assert [loss["action"] for loss in losses] == ["downgraded", "synthesised"]


# -- threads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", torture())
def test_a_torture_thread_is_rendered_append_only_and_changes_nothing_of_ours(name):
    request = torture()[name]
    before = deepcopy(request)
    rendered = [anthropic.request(TARGET, step)[0] for step in steps(request)]
    assert request == before
    for earlier, later in zip(rendered, rendered[1:], strict=False):
        sent = [json.dumps(m) for m in later["messages"]]
        assert sent[: len(earlier["messages"])] == [json.dumps(m) for m in earlier["messages"]]
        assert {**earlier, "messages": 0} == {**later, "messages": 0}
    assert rendered[-1]["messages"][0]["role"] == rendered[-1]["messages"][-1]["role"] == "user"


def blocks(name, target=TARGET):
    body, losses = anthropic.request(target, torture()[name] | {"tools": []})
    return [(m["role"], block) for m in body["messages"] for block in m["content"]], losses


def test_results_come_first_in_the_order_of_the_calls_and_may_hold_images():
    sent, losses = blocks("tools-parallel")
    results = [b for _, b in sent if b["type"] == "tool_result"]
    assert [b["tool_use_id"] for b in results] == ["toolu_01AbC", "toolu_02AbC"]
    assert [b["type"] for b in results[0]["content"]] == ["text", "image"] and losses == []


def test_ids_and_names_that_are_refused_are_renamed_and_never_collide():
    sent, losses = blocks("tool-ids")
    calls = [b for _, b in sent if b["type"] == "tool_use"]
    results = [b for _, b in sent if b["type"] == "tool_result"]
    assert [b["id"] for b in calls] == [b["tool_use_id"] for b in results]
    assert len({b["id"] for b in calls}) == len({b["name"] for b in calls}) == 4
    assert calls[1] == {"type": "tool_use", "id": "call_with_odd_chars_1", "name": "a_dotted_name", "input": {}}
    assert results[3]["is_error"] is True
    assert sum(loss["action"] == "renamed" for loss in losses) == 3  # two ids, and a name


def test_ids_that_repeat_or_are_refused_are_unique_and_legal_there_and_unchanged_for_who_made_them():
    """Local servers say call.1 in each turn. The Messages API wants ^[a-zA-Z0-9_-]+$, and no id twice in a request."""
    local = {"api": "openai-chat", "endpoint": "127.0.0.1:8080", "model": "m"}
    call = {"type": "tool_call", "id": "call.1", "name": "f", "arguments": {}}
    turns = []
    for number in range(3):
        turns += [turn(number, "user", f"{number}?"), turn(number, "assistant", [call, call | {"id": "call_2"}], local),
                  turn(number, "user", [{"type": "tool_result", "call_id": ident, "content": f"{ident} {number}"}
                                        for ident in ("call_2", "call.1")])]  # fmt: skip
    request = HI | {"turns": turns}
    body, losses = anthropic.request(TARGET, request)
    blocks = [block for message in body["messages"] for block in message["content"]]
    idents = [block["id"] for block in blocks if block["type"] == "tool_use"]
    results = {block["tool_use_id"]: block["content"] for block in blocks if block["type"] == "tool_result"}
    assert len(set(idents)) == 6 and all(re.fullmatch("[a-zA-Z0-9_-]+", ident) for ident in idents)
    expected = [f"{ident} {number}" for number in range(3) for ident in ("call.1", "call_2")]
    assert [results[ident] for ident in idents] == expected
    assert sum(loss["what"].startswith("id of") for loss in losses) == 5  # all but the first call_2
    target = {"runtime": "llamacpp", "kind": "openai-chat", "model": "m", "base_url": "http://127.0.0.1:8080/v1"}
    home, losses = openai_chat.request(target, request)
    calls = [call["id"] for message in home["messages"] for call in message.get("tool_calls", [])]
    assert (calls, losses) == (["call.1", "call_2"] * 3, [])
    own = {"type": "message", "content": [{"type": "tool_use", "id": idents[1], "name": "f", "input": {}}]}
    said = reply([own | {"stop_reason": "tool_use", "id": "msg_1", "model": "claude-opus-5-5"}], request)
    body, _ = anthropic.request(TARGET, answered(anthropic, TARGET, request, said))
    assert body["messages"][-2]["content"] == own["content"]  # what it says itself goes back as it came


def test_a_reply_names_tools_as_the_user_knows_them():
    request = torture()["tool-ids"]
    tools = anthropic.request(TARGET, request)[0]["tools"]
    block = {"type": "tool_use", "id": "t1", "name": tools[1]["name"], "input": {}}
    result = reply([{"type": "message", "content": [block], "stop_reason": "tool_use"}], request)
    assert tools[1]["name"] != "a.dotted.name" and result["parts"][0]["name"] == "a.dotted.name"
    body, _ = anthropic.request(TARGET, answered(anthropic, TARGET, request, result))
    assert body["messages"][-2]["content"] == [block]


def test_a_call_without_a_result_gets_one_and_a_result_without_a_call_goes():
    sent, losses = blocks("orphans")
    results = [b for _, b in sent if b["type"] == "tool_result"]
    assert [(b["tool_use_id"], b["content"]) for b in results] == [("c1", "found"), ("c2", "not executed")]
    assert results[1]["is_error"] is True
    assert sorted(loss["action"] for loss in losses if "tool_" in loss["what"]) == ["dropped", "synthesised"]


def test_an_empty_turn_is_a_dot_or_goes_and_the_user_begins():
    sent, losses = blocks("roles", TARGET | {"model": "claude-sonnet-5"})
    texts = [(role, block["text"]) for role, block in sent]
    assert texts == [
        ("user", "."), ("assistant", "I speak first."), ("user", "one"), ("user", "two"),
        ("user", "<system>\nNew rule in mid-thread: answer in French.\n</system>"),
        ("assistant", "un"), ("assistant", "deux  "), ("user", "."), ("user", "trois?"),
    ]  # fmt: skip
    assert anthropic.request(TARGET, torture()["roles"])[0]["messages"][3] == {
        "role": "system", "content": "New rule in mid-thread: answer in French.",
    }  # fmt: skip


def test_files_go_in_their_own_blocks_and_a_text_file_as_text():
    sent, losses = blocks("files")
    kinds = [(b["type"], b.get("source", {}).get("type")) for _, b in sent]
    assert kinds == [
        ("text", None), ("image", "base64"), ("document", "base64"), ("image", "url"), ("text", None),
        ("text", None), ("image", "base64"),
    ]  # fmt: skip
    assert sent[4][1]["text"] == "File n.txt:\n\ngrüße\n" and losses == []


def test_a_file_by_path_is_sent_only_if_it_is_the_one_that_the_thread_means(tmp_path):
    path = tmp_path / "dot.png"
    path.write_bytes(b"png")
    part = {"type": "file", "media_type": "image/png", "path": str(path), "sha256": hashlib.sha256(b"png").hexdigest()}
    body, _ = anthropic.request(TARGET, asked(("user", [part])))
    assert body["messages"][0]["content"][0]["source"]["data"] == "cG5n"
    path.write_bytes(b"other")
    for broken in (part, part | {"path": str(tmp_path)}, part | {"path": str(tmp_path / "gone")}):
        with pytest.raises(CallFailed) as failure:
            anthropic.request(TARGET, asked(("user", [broken])))
        assert (failure.value.code, failure.value.billed) == ("bad_request", "no")


def test_a_file_that_it_has_no_place_for_stops_the_call():
    with pytest.raises(CallFailed, match="takes no audio/mpeg") as failure:
        anthropic.request(TARGET, asked(("user", [{"type": "file", "media_type": "audio/mpeg", "data": "eA=="}])))
    assert (failure.value.code, failure.value.billed) == ("bad_request", "no")


THINKING = {"type": "thinking", "thinking": "17*23 = 391", "signature": "c2ln"}


def thought():
    result = reply([{"type": "message", "content": [THINKING, {"type": "text", "text": "391"}],
                     "stop_reason": "end_turn"}])  # fmt: skip
    return answered(anthropic, TARGET, HI, result)


def contents(request, target=TARGET):
    body, losses = anthropic.request(target, request)
    return [m["content"] for m in body["messages"] if m["role"] == "assistant"], losses


def test_own_reasoning_goes_back_while_all_before_it_is_unchanged():
    assert contents(thought()) == ([[THINKING, {"type": "text", "text": "391"}]], [])


@pytest.mark.parametrize("change", [
    lambda r: (r | {"system": "Be brief."}, TARGET),
    lambda r: (r | {"tools": [{"name": "t", "description": "", "schema": {}}]}, TARGET),
    lambda r: (r | {"turns": [turn(0, "user", "Ho"), *r["turns"][1:]]}, TARGET),
    lambda r: (r | {"turns": [turn(0, "user", "Hi"), turn(1, "assistant", "x"), *r["turns"]]}, TARGET),
    lambda r: (r, TARGET | {"model": "claude-sonnet-5-5"}),
    lambda r: (r, TARGET | {"base_url": "https://elsewhere.example"}),
])  # fmt: skip
def test_own_reasoning_is_dropped_and_listed_when_anything_before_it_changed(change):
    request, target = change(thought())
    sent, losses = contents(request, target)
    assert sent[-1] == [{"type": "text", "text": "391"}]
    assert [(loss["what"].split()[0], loss["action"]) for loss in losses] == [("reasoning", "dropped")]


def test_reasoning_after_dropped_reasoning_is_kept_only_if_it_was_made_so():
    request = thought()
    second = reply(
        [{"type": "message", "content": [THINKING, {"type": "text", "text": "2"}], "stop_reason": "end_turn"}]
    )
    longer = answered(anthropic, TARGET, request, second)
    assert [len(c) for c in contents(longer)[0]] == [2, 2]
    edited = longer | {"system": "New."}
    assert [len(c) for c in contents(edited)[0]] == [1, 1]
    third = answered(anthropic, TARGET, edited, second)
    assert [len(c) for c in contents(third)[0]] == [1, 1, 2]


def test_what_another_vendor_made_is_told_in_plain_parts():
    sent, losses = blocks("reasoning")
    assert {block["type"] for _, block in sent} == {"text"}
    assert sum(loss["what"].startswith("reasoning") for loss in losses) == 3
    sent, losses = blocks("refusal-and-data")
    assert [b["text"] for role, b in sent if role == "assistant"] == [
        "I cannot help with that.",
        '{"a":1}',
        "Searched.",
    ]
    assert [loss["action"] for loss in losses if "tool" not in loss["what"]] == ["downgraded", "dropped", "dropped"]


def test_schema_tools_and_options_find_their_place():
    tool = {"name": "a.b", "description": "d", "schema": {"oneOf": [{"type": "object"}]}}
    request = asked(
        ("user", "x"),
        schema={"type": "object"},
        tools=[tool],
        tool_choice={"name": "a.b"},
        options={"stop": "x"},
    )
    more = {"model": "claude-opus-4-8", "max_tokens": 9, "options": {"output_config": {"effort": "low"}}}
    body, losses = anthropic.request(TARGET | more, request)
    assert body["max_tokens"] == 9 and body["stop_sequences"] == ["x"]
    assert body["output_config"] == {"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object"}}}
    assert body["tools"] == [
        {"name": body["tool_choice"]["name"], "description": "d", "input_schema": {"type": "object"}}
    ]
    assert [loss["action"] for loss in losses] == ["renamed", "downgraded"]


def test_what_a_model_can_do_is_looked_up_and_unknown_is_not_false():
    system = [turn(1, "user", "one"), turn(2, "system", "Be brief."), turn(3, "assistant", "yes"), turn(4, "user", "two")]
    tools = {"tools": [{"name": "f", "parameters": {"type": "object"}}], "tool_choice": "required"}
    found = {}
    for model in ("claude-opus-5-5", "claude-sonnet-5", "claude-haiku-4-5", "claude-of-tomorrow"):
        body, losses = anthropic.request(TARGET | {"model": model}, HI | {"turns": system} | tools)
        found[model] = body["messages"][1]["role"], body["tool_choice"]["type"], [loss["action"] for loss in losses]
    assert found == {
        "claude-opus-5-5": ("system", "auto", ["downgraded"]),
        "claude-sonnet-5": ("user", "any", ["downgraded"]),  # it takes no notice of system turns
        "claude-haiku-4-5": ("user", "any", ["downgraded"]),
        "claude-of-tomorrow": ("user", "any", ["downgraded"]),
    }
    able = TARGET | {"model": "claude-of-tomorrow", "profile": {"system_turns": True}}
    assert anthropic.request(able, HI | {"turns": system})[0]["messages"][1]["role"] == "system"


# -- calls ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-test-123456")
    with serve("anthropic") as running:
        yield running


def call(server, scenario, request=HI, **more):
    return anthropic.call(TARGET | {"base_url": server.url(scenario)} | more, request, Io())


def test_a_call_gives_a_result_and_its_origin(server):
    io = Io()
    result = anthropic.call(TARGET | {"base_url": server.url("think")}, HI, io)
    assert [part["type"] for part in result["parts"]] == ["reasoning", "text"]
    assert "".join(io.heard) == result["parts"][1]["text"] == "LOOPBACK-OK turns=1 chars=2"
    assert (result["finish"], result["provider"], result["usage"]["input_tokens"]) == ("stop", "anthropic", 23)
    assert result["origin"]["endpoint"] == server.url("x").split("/")[2] and len(result["origin"]["prefix"]) == 64
    sent = server.calls()[0]
    assert sent["path"] == "/v1/messages" and sent["headers"]["anthropic-version"] == "2023-06-01"
    assert sent["headers"]["x-api-key"] == "***" and "authorization" not in sent["headers"]


def test_the_answer_of_a_call_goes_back_with_its_reasoning(server):
    result = call(server, "think")
    again = HI | {
        "turns": [*HI["turns"], turn(1, "assistant", result["parts"], result["origin"]), turn(2, "user", "?")]
    }
    assert call(server, "think", again)["losses"] == []
    assert [b["type"] for b in server.calls()[1]["body"]["messages"][1]["content"]] == ["thinking", "text"]


@pytest.mark.parametrize("scenario, code, billed", [
    ("401", "auth", "no"), ("402", "billing", "no"), ("404", "bad_model", "no"), ("429", "rate_limit", "no"),
    ("500", "server", "no"), ("529", "overloaded", "no"), ("cut", "cut", "unknown"), ("reset", "cut", "unknown"),
    ("empty", "empty", "yes"), ("html", "malformed", "unknown"),
])  # fmt: skip
def test_what_goes_wrong_has_a_code(server, scenario, code, billed):
    with pytest.raises(CallFailed) as failure:
        call(server, scenario)
    assert (failure.value.code, failure.value.billed) == (code, billed)
    if code == "cut":
        assert failure.value.result["parts"] == [{"type": "text", "text": "half an ans"}]
        assert failure.value.result["origin"]["api"] == "anthropic"


def test_silence_and_a_stall_end_at_their_limits(server):
    for scenario in ("hang", "stall"):
        with pytest.raises(CallFailed) as failure:
            call(server, scenario, first_byte_s=0.3, idle_s=0.3)
        assert (failure.value.code, failure.value.billed) == ("timeout", "unknown")


def test_what_is_lost_is_told_before_anything_is_sent(server):
    io = Io()
    io.strict = True
    with pytest.raises(CallFailed) as failure:
        anthropic.call(TARGET | {"base_url": server.url("ok")}, torture()["orphans"], io)
    assert failure.value.code == "losses" and io.losses and server.calls() == []


def test_length_and_refusal_are_results(server):
    assert call(server, "length")["finish"] == "length" and call(server, "refusal")["finish"] == "refusal"


def test_a_server_that_answers_without_a_stream_is_understood(server):
    result = call(server, "ok", options={"stream": False})
    assert result["parts"][0]["text"] == "LOOPBACK-OK turns=1 chars=2" and server.calls()[0]["body"]["stream"] is False


def test_the_key_is_named_when_it_lacks_and_never_shown(server, monkeypatch):
    shown = anthropic.preview(TARGET | {"headers": {"X-Extra": "mine-1234567"}}, HI)
    assert shown["url"] == "https://api.anthropic.com/v1/messages" and shown["headers"]["x-api-key"] == "***"
    assert "sk-ant" not in str(shown) and "mine-" not in str(shown) and anthropic.usable(TARGET) == ""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-test-123456\n")
    with pytest.raises(CallFailed, match="ANTHROPIC_API_KEY") as failure:
        call(server, "ok")
    assert (failure.value.code, failure.value.billed) == ("auth", "no") and "sk-ant" not in str(failure.value)
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    with pytest.raises(CallFailed, match="ANTHROPIC_API_KEY or ANTHROPIC_AUTH_TOKEN is not set"):
        anthropic.call(TARGET, HI, Io())
    assert "ANTHROPIC_API_KEY" in anthropic.usable(TARGET)
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", "token-123456")
    assert anthropic.preview(TARGET, HI)["headers"]["authorization"] == "Bearer ***"
    with pytest.raises(CallFailed, match="MY_KEY is not set"):
        anthropic.call(TARGET | {"key_env": "MY_KEY"}, HI, Io())
    assert server.calls() == []


def test_without_a_model_it_says_how_to_name_one():
    with pytest.raises(Usage, match="anthropic: no model: say anthropic/MODEL or -m MODEL"):
        anthropic.request(TARGET | {"model": None}, HI)


def test_events_of_strange_shapes_are_malformed_and_no_defect():
    whole = list(_sse.values([dict(STREAMS)["anthropic-tool-no-args.chunks.txt"]]))
    for index, event in enumerate(whole):
        for name in event:
            for strange in (None, 1, "x", [], {}, [1], {"a": None}, True):
                events = [*whole[:index], event | {name: strange}, *whole[index + 1 :]]
                try:
                    reply(_sse.values([sse(events)]))
                except CallFailed:
                    pass
