"""Laws of the Gemini dialect."""

from __future__ import annotations

import json
from copy import deepcopy

import pytest
from loopback import serve
from recorded import Io, answered, asked, bodies, every_cut, ids, steps, streams, torture, turn

from mllm_pipe.errors import CallFailed, Usage
from mllm_pipe.runtimes import _faults, _google_reply, _sse, google

TARGET = {"spec": "google", "runtime": "google", "kind": "google", "model": "gemini-3.8-flash"}
HI = asked(("user", "Hi"))
BODIES = [(name, body) for name, body in bodies("google") if "candidates" in body]
STREAMS = streams("google")


def reply(values, request=HI):
    return google.reply(values, TARGET, request)


def sent_back(result, request=HI, **target):
    body, losses = google.request(TARGET | target, answered(google, TARGET, request, result))
    return [c for c in body["contents"] if c["role"] == "model"], losses


def test_the_plain_case_is_one_content_a_turn():
    body, losses = google.request(TARGET, asked(("user", "Hi"), ("assistant", "Ho"), ("user", "And?"), system="S"))
    assert losses == []
    assert body == {
        "systemInstruction": {"parts": [{"text": "S"}]},
        "contents": [
            {"role": "user", "parts": [{"text": "Hi"}]},
            {"role": "model", "parts": [{"text": "Ho"}]},
            {"role": "user", "parts": [{"text": "And?"}]},
        ],
    }


@pytest.mark.parametrize("name, body", BODIES, ids=ids(BODIES))
def test_a_recorded_reply_goes_back_as_it_came(name, body):
    result = reply([deepcopy(body)])
    content = body["candidates"][0]["content"]
    assert sent_back(result)[0] == [{"role": "model", "parts": [p for p in content["parts"] if p != {"text": ""}]}]
    assert result["finish"] == ("tool" if "tool" in name else "stop")


@pytest.mark.parametrize("name, stream", STREAMS, ids=ids(STREAMS))
def test_a_recorded_stream_goes_back_with_every_signature_on_its_part(name, stream):
    heard, events = [], list(_sse.values([stream]))
    result = google.reply(iter(events), TARGET, HI, heard.append)
    assert result["finish"] == ("tool" if "tool" in name else "stop")
    assert "".join(heard) == "".join(p["text"] for p in result["parts"] if p["type"] == "text")
    sent = sent_back(result)[0][0]["parts"]
    came = [p for e in events for c in e.get("candidates", []) for p in c.get("content", {}).get("parts", [])]
    if "arguments" not in name and "no-args" not in name:
        for thought in (None, True):
            assert "".join(p.get("text", "") for p in came if p.get("thought") is thought) == "".join(
                p.get("text", "") for p in sent if p.get("thought") is thought
            )
        assert [p for p in came if "functionCall" in p] == [p for p in sent if "functionCall" in p]
    assert [p["thoughtSignature"] for p in came if "thoughtSignature" in p] == [
        p["thoughtSignature"] for p in sent if "thoughtSignature" in p
    ]


def test_arguments_streamed_by_path_are_put_together():
    found = {
        name: [p["arguments"] for p in reply(_sse.values([stream]))["parts"] if p["type"] == "tool_call"]
        for name, stream in STREAMS
    }
    assert found["google-stream-tool-call-arguments.chunks.txt"] == [
        {"location": "Boston"}, {"location": "San Francisco"}
    ]  # fmt: skip
    assert found["google-stream-no-args-tool-call.chunks.txt"] == [{}, {"id": "A"}, {"id": "B"}, {"id": "C"}]
    recipe = found["google-vertex-stream-tool-call-arguments-nested.1.chunks.txt"][0]["recipe"]
    assert recipe["ingredients"][0] == {"amount": "16 oz", "name": "Lasagna noodles"}


@pytest.mark.parametrize("name", ["google-text", "google-tool-call", "google-stream-tool-call-arguments"])
def test_a_stream_cut_anywhere_is_never_whole(name):
    stream = dict(STREAMS)[f"{name}.chunks.txt"]
    last = stream[: stream.rindex(b'"finishReason"')].count(b"\n\n")
    end = len(b"\n\n".join(stream.split(b"\n\n")[: last + 1]))
    every_cut(google, TARGET, stream, end)


def candidate(finish, *parts, **more):
    parts = parts or ({"text": "x"},)
    return reply(
        [{"responseId": "r", "candidates": [{"content": {"parts": list(parts)}, "finishReason": finish}]} | more]
    )


@pytest.mark.parametrize("raw, finish", _google_reply.FINISHES.items())
def test_a_finish_reason_is_named_in_our_words(raw, finish):
    assert candidate(raw)["finish"] == finish


def test_what_is_no_answer_is_no_success():
    for raw in ("MALFORMED_FUNCTION_CALL", "MISSING_THOUGHT_SIGNATURE", "OTHER", "NEW"):
        with pytest.raises(CallFailed) as failure:
            candidate(raw)
        assert failure.value.code == "malformed" and failure.value.result["origin"]["raw_finish"] == raw
    with pytest.raises(CallFailed) as failure:
        candidate("STOP", {"text": ""})
    assert failure.value.code == "empty"
    blocked = reply(
        [{"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": {"promptTokenCount": 3}}]
    )
    assert (blocked["finish"], blocked["parts"]) == ("filter", []) and blocked["usage"] == {"input_tokens": 3}


def test_usage_counts_thoughts_with_the_answer():
    usage = {"promptTokenCount": 9, "cachedContentTokenCount": 4, "candidatesTokenCount": 5, "thoughtsTokenCount": 3}
    assert candidate("STOP", usageMetadata=usage)["usage"] == {
        "input_tokens": 9, "cache_read_tokens": 4, "output_tokens": 8, "reasoning_tokens": 3,
    }  # fmt: skip


def test_an_error_within_a_stream_is_a_failure_and_says_how_long_to_wait():
    error = dict(bodies("google"))["google-429-retry-info.json"]
    for value in (error, [error]):
        failure = _faults.of_reply(429, {}, json.dumps(value).encode())
        assert (failure.code, failure.retry_after_s) == ("rate_limit", 34.4)
    with pytest.raises(CallFailed) as caught:
        reply([error])
    assert (caught.value.code, caught.value.billed, caught.value.retry_after_s) == ("rate_limit", "no", 34.4)


# -- threads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["gemini-3.8-flash", "gemini-2.5-pro"])
@pytest.mark.parametrize("name", torture())
def test_a_torture_thread_is_rendered_append_only_and_changes_nothing_of_ours(name, model):
    request = torture()[name]
    before = deepcopy(request)
    rendered = [google.request(TARGET | {"model": model}, step)[0] for step in steps(request)]
    assert request == before
    for earlier, later in zip(rendered, rendered[1:], strict=False):
        sent = [json.dumps(c) for c in later["contents"]]
        assert sent[: len(earlier["contents"])] == [json.dumps(c) for c in earlier["contents"]]
    contents = rendered[-1]["contents"]
    assert contents[0]["role"] == contents[-1]["role"] == "user"
    for content, after in zip(contents, contents[1:], strict=False):
        calls = [p["functionCall"]["name"] for p in content["parts"] if "functionCall" in p]
        if calls:
            assert [p["functionResponse"]["name"] for p in after["parts"]] == calls


def contents(name, **more):
    body, losses = google.request(TARGET | more, torture()[name] | {"tools": []})
    return body["contents"], losses


def test_the_first_call_of_others_carries_the_mark_that_stands_for_a_signature():
    calls = contents("tools-parallel")[0][1]["parts"][1:]
    assert [p.get("thoughtSignature") for p in calls] == [google.NO_SIGNATURE, None]
    calls = contents("tools-parallel", model="gemini-2.5-pro")[0][1]["parts"][1:]
    assert [p.get("thoughtSignature") for p in calls] == [None, None]


def test_results_hold_files_where_the_model_reads_them_and_errors_have_their_key():
    response = contents("tools-parallel")[0][2]["parts"][0]["functionResponse"]
    assert response["response"] == {"output": "sun"} and "inlineData" in response["parts"][0]
    sent, losses = contents("tools-parallel", model="gemini-2.5-pro")
    assert "inlineData" in sent[3]["parts"][1] and [loss["action"] for loss in losses] == ["moved"]
    failed = contents("tool-ids")[0][2]["parts"][3]["functionResponse"]
    assert failed["response"] == {"error": "boom"} and failed["name"] == "tool-with-dash" and "id" not in failed


def test_a_signature_goes_with_the_thread_that_it_was_made_in_only():
    for name in ("google-tool-call-gemini3.json", "google-reasoning-gemini3.json"):
        result = reply([dict(BODIES)[name]])
        request = answered(google, TARGET, HI, result)
        kept = [p["thoughtSignature"] for c in google.request(TARGET, request)[0]["contents"] for p in c["parts"]
                if "thoughtSignature" in p]  # fmt: skip
        assert kept
        changed = google.request(TARGET, request | {"system": "New."})[0]["contents"]
        left = [p["thoughtSignature"] for c in changed for p in c["parts"] if "thoughtSignature" in p]
        assert left == [google.NO_SIGNATURE] * ("tool" in name)


def test_files_find_their_place():
    parts = contents("files")[0][0]["parts"]
    assert [next(iter(part)) for part in parts] == ["text", "inlineData", "inlineData", "fileData", "inlineData"]
    with pytest.raises(CallFailed, match="takes no application/zip"):
        google.request(TARGET, asked(("user", [{"type": "file", "media_type": "application/zip", "data": "eA=="}])))


def test_schema_tools_and_options_find_their_place():
    request = asked(("user", "x"), schema={"type": "object"}, tool_choice={"name": "a b"},
                    options={"seed": 1},
                    tools=[{"name": "a b", "description": "d", "schema": {"type": "object"}}])  # fmt: skip
    body, losses = google.request(TARGET | {"max_tokens": 5}, request)
    assert body["generationConfig"] == {
        "maxOutputTokens": 5,
        "responseMimeType": "application/json",
        "responseJsonSchema": {"type": "object"},
        "seed": 1,
    }
    name = body["tools"][0]["functionDeclarations"][0]["name"]
    assert body["toolConfig"]["functionCallingConfig"] == {"mode": "ANY", "allowedFunctionNames": [name]}
    call = {"functionCall": {"name": name, "args": {}}}
    result = reply([{"candidates": [{"content": {"parts": [call]}, "finishReason": "STOP"}]}], request)
    assert (result["finish"], result["parts"][0]["name"]) == ("tool", "a b")
    assert sent_back(result, request)[0][0]["parts"] == [call]


# -- calls ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(monkeypatch):
    monkeypatch.delenv("GOOGLE_API_KEY", raising=False)
    monkeypatch.setenv("GEMINI_API_KEY", "AIza-test-123456")
    with serve("google") as running:
        yield running


def call(server, scenario, request=HI, **more):
    return google.call(TARGET | {"base_url": server.url(scenario)} | more, request, Io())


def test_a_call_gives_a_result_and_its_origin(server):
    io = Io()
    result = google.call(TARGET | {"base_url": server.url("think")}, HI, io)
    assert [part["type"] for part in result["parts"]] == ["reasoning", "text"]
    assert "".join(io.heard) == result["parts"][1]["text"] == "LOOPBACK-OK turns=1 chars=2"
    assert (result["finish"], result["provider"], result["model"]) == ("stop", "google", "gemini-3.8-flash")
    assert result["usage"] == {"input_tokens": 31, "cache_read_tokens": 7, "output_tokens": 16, "reasoning_tokens": 3}
    sent = server.calls()[0]
    assert sent["path"] == "/v1beta/models/gemini-3.8-flash:streamGenerateContent"
    assert sent["query"] == [("alt", "sse")] and sent["headers"]["x-goog-api-key"] == "***"


def test_a_tool_is_asked_for_and_its_result_answered(server):
    request = HI | {"tools": [{"name": "list_directory", "description": "", "schema": {"type": "object"}}]}
    first = call(server, "tool", request)
    assert first["finish"] == "tool"
    result = {"type": "tool_result", "call_id": first["parts"][0]["id"], "content": "a.txt"}
    turns = [*HI["turns"], turn(1, "assistant", first["parts"], first["origin"]), turn(2, "user", [result])]
    assert call(server, "tool", request | {"turns": turns})["finish"] == "stop"
    assert server.calls()[1]["body"]["contents"][1]["parts"][0]["thoughtSignature"] == "c2lnbmF0dXJl"


@pytest.mark.parametrize("scenario, code, billed", [
    ("400", "bad_request", "no"), ("401", "auth", "no"), ("403", "permission", "no"), ("404", "bad_model", "no"),
    ("429", "rate_limit", "no"), ("500", "server", "no"), ("503", "overloaded", "no"), ("504", "timeout", "unknown"),
    ("cut", "cut", "unknown"), ("reset", "cut", "unknown"), ("empty", "empty", "yes"), ("html", "malformed", "unknown"),
])  # fmt: skip
def test_what_goes_wrong_has_a_code(server, scenario, code, billed):
    with pytest.raises(CallFailed) as failure:
        call(server, scenario)
    assert (failure.value.code, failure.value.billed) == (code, billed)


def test_length_and_filter_are_results(server):
    assert call(server, "length")["finish"] == "length" and call(server, "refusal")["finish"] == "filter"


def test_the_url_and_the_key_find_their_place(server, monkeypatch):
    for base, url in [
        (None, "https://generativelanguage.googleapis.com/v1beta/models/"),
        ("https://x.example/v1", "https://x.example/v1/models/"),
        ("https://x.example/", "https://x.example/v1beta/models/"),
    ]:
        shown = google.preview(TARGET | {"base_url": base, "model": "models/a/b"}, HI)
        assert shown["url"] == url + "a%2Fb:streamGenerateContent?alt=sse"
        assert shown["headers"]["x-goog-api-key"] == "***"
    monkeypatch.delenv("GEMINI_API_KEY")
    assert "GEMINI_API_KEY or GOOGLE_API_KEY is not set" in google.usable(TARGET)
    monkeypatch.setenv("GOOGLE_API_KEY", "AIza-other-123456")
    assert google.usable(TARGET) == ""
    with pytest.raises(Usage, match="google: no model: say google/MODEL or -m MODEL"):
        google.call(TARGET | {"model": None}, HI, Io())


def test_events_of_strange_shapes_are_malformed_and_no_defect():
    strange = [None, 1, "x", [], {}, [1], {"a": None}, [{"content": 1}], [{"content": {"parts": [1]}}],
               [{"content": {"parts": [{"functionCall": {"partialArgs": [{}]}}]}}]]  # fmt: skip
    for value in strange:
        for name in ("candidates", "usageMetadata", "promptFeedback", "modelVersion"):
            try:
                reply(
                    [{name: value}, {"candidates": [{"content": {"parts": [{"text": "x"}]}, "finishReason": "STOP"}]}]
                )
            except CallFailed:
                pass
