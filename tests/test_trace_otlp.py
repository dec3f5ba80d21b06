"""trace --format otlp and --otlp: runs as OpenTelemetry traces, and how they are sent."""

from __future__ import annotations

import gzip
import re
from typing import Any

import orjson
import pytest
from collector import collector
from test_trace_journal import house
from test_trace_tree import sequential
from traces import Story

from mllm_pipe.tracing import protobuf

KINDS = {1: "internal", 3: "client"}
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def spans_of(request: dict[str, Any]) -> list[dict[str, Any]]:
    """The spans of an ExportTraceServiceRequest, with their attributes as a dict."""
    (resource,) = request["resourceSpans"]
    (scope,) = resource["scopeSpans"]
    return [{"links": [], "events": [], "status": {}, "parentSpanId": ""} | span | {"attributes": plain(span)} for span in scope["spans"]]


def plain(one: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for pair in one["attributes"]:
        ((kind, value),) = pair["value"].items()
        found[pair["key"]] = int(value) if kind == "intValue" else [each["stringValue"] for each in value["values"]] \
            if kind == "arrayValue" else value  # fmt: skip
    return found


def drawn(request: dict[str, Any]) -> str:
    """A trace as lines: each span below its parent, with its kind, time, tokens and cost, then its links and events."""
    spans = spans_of(request)
    names = {span["spanId"]: span["name"] for span in spans}
    lines = []

    def below(parent: str, indent: str) -> None:
        for span in spans:
            if span["parentSpanId"] != parent:
                continue
            about = span["attributes"]
            took = (int(span["endTimeUnixNano"]) - int(span["startTimeUnixNano"])) // 10**6
            used = [about.get(f"gen_ai.usage.{name}_tokens", "-") for name in ("input", "output")]
            cost = f" ${about['mllm.cost_usd']}" if "mllm.cost_usd" in about else ""
            failed = f" {span['status']['message']}" if span["status"] else ""
            lines.append(f"{indent}{span['name']} [{KINDS[span['kind']]} {about['openinference.span.kind']}] {took}ms "
                         f"{used[0]}/{used[1]}{cost}{failed}")  # fmt: skip
            lines.extend(f"{indent}  <- {names.get(link['spanId'], 'another run')}" for link in span["links"])
            lines.extend(f"{indent}  * {' '.join([event['name'], *map(str, plain(event).values())])}" for event in span["events"])
            below(span["spanId"], indent + "  ")

    below("", "")
    return "\n".join(lines) + "\n"


def test_a_run_is_one_trace_and_a_handoff_a_link(sh, work):
    (work / "t").write_bytes(sequential().stream())
    (request,) = sh("trace --format otlp < t").records
    assert drawn(request) == """\
invoke_workflow review [internal CHAIN] 2100ms -/-
  chat claude-opus-5-5 [client LLM] 1000ms 10/200 $0.0125
  chat gpt-5.4 [client LLM] 500ms 210/5 $0.002
    <- chat claude-opus-5-5
  judge correctness [internal EVALUATOR] 100ms -/-
    <- chat gpt-5.4
    * gen_ai.evaluation.result correctness 0.75 pass run-1-verdict-6
    chat gemini-3-pro [client LLM] 100ms 300/9
"""
    assert {span["traceId"] for span in spans_of(request)} == {spans_of(request)[0]["traceId"]}


def test_every_kind_of_thing_has_its_place(sh, work):
    story = Story()
    question = story.ask("I want a refund.")
    route = story.route(40, "billing", "model")
    story.call(question, 0, 40, op="route", slot="router", runtime="openai", model="gpt-5-nano", output_ids=[route], cost_usd=0.001)
    summary = story._add("summary", 50, content="before", covers=["m1"])
    story.call(question, 40, 10, op="summarize", slot="summarizer", runtime="ollama", model="qwen3", output_ids=[summary])
    story.call(question, 60, 400, None, runtime="openai", model="gpt-5.4", status="unknown", cost_usd=None,
               attempts=[{"runtime": "openai", "model": "gpt-5.4", "status": "error", "code": "rate_limit", "duration_ms": 100},
                         {"runtime": "openai", "model": "gpt-5.4", "status": "unknown", "code": "timeout", "wait_ms": 50, "duration_ms": 250}],
               losses=[{"what": "reasoning of message a", "action": "dropped", "why": "another vendor's"}])  # fmt: skip
    story.call(question, 500, 90, "Done.", agent="billing", runtime="claude", model="claude-haiku-5", usage={
        "input_tokens": 9, "cache_read_tokens": 4, "output_tokens": 3}, cost_usd=0.002)  # fmt: skip
    story._add("route", 600, router="support", target=None, by="none")
    (work / "t").write_bytes(story.stream())
    (request,) = sh("trace --format otlp < t").records
    assert drawn(request) == """\
invoke_workflow [internal CHAIN] 590ms -/- unknown
  * mllm.route support none run-1-route-9
  route support [internal DECISION] 40ms -/-
    * mllm.route support billing model run-1-route-2
    chat gpt-5-nano [client LLM] 40ms -/- $0.001
  chat qwen3 [client LLM] 10ms -/-
    * mllm.summary run-1-summary-4
  chat gpt-5.4 [client LLM] 400ms -/- timeout
    * mllm.attempt 1 openai gpt-5.4 error rate_limit 100
    * mllm.attempt 2 openai gpt-5.4 unknown timeout 250
    * mllm.loss reasoning of message a dropped another vendor's
  invoke_agent billing [client AGENT] 90ms 9/3 $0.002
"""
    assert [span["attributes"].get("error.type") for span in spans_of(request)] == ["unknown", None, None, None, "timeout", None]
    agent = spans_of(request)[-1]["attributes"]
    wanted = {"gen_ai.operation.name": "invoke_agent", "gen_ai.provider.name": "anthropic", "gen_ai.request.model": "claude-haiku-5",
              "gen_ai.usage.cache_read.input_tokens": 4, "gen_ai.response.finish_reasons": ["stop"], "gen_ai.conversation.id": "t",
              "gen_ai.response.time_to_first_chunk": 0.045, "llm.token_count.prompt": 9, "llm.token_count.total": 12,
              "llm.cost.total": 0.002, "session.id": "t"}  # fmt: skip
    assert {name: agent[name] for name in wanted} == wanted
    assert "mllm.cost_usd" not in spans_of(request)[0]["attributes"], "money stands once, where it was spent"


def test_the_ids_and_times_are_those_of_the_runs(sh, work):
    (work / "t").write_bytes(Story("01a204f0-d61c-7aa0-aebc-199b13281eb1").stream() + sequential().stream())
    sh("thread-append q hello | dispatch -q --to echo | thread-append q >/dev/null")
    once = sh("trace --format otlp < t; trace --format otlp < q; trace --format otlp --journal").out
    assert sh("trace --format otlp < t; trace --format otlp < q; trace --format otlp --journal").out == once
    first, own, journalled = map(orjson.loads, once.splitlines())
    assert first["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["startTimeUnixNano"] == "1795500000000000000"
    run = sh("trace --journal").records[0]["id"]
    assert {span["traceId"] for span in spans_of(own)} == {run.replace("-", "")}
    assert [span["spanId"] for span in spans_of(own)] == [span["spanId"] for span in spans_of(journalled)]


def test_a_run_without_a_call_is_a_trace_too(sh):
    (request,) = sh("dispatch -q --to echo --new hi > t; judge -q --check contains:zz < t | trace --format otlp").records
    (root,) = spans_of(request)
    (event, _) = root["events"]
    assert root["startTimeUnixNano"] == root["endTimeUnixNano"] == event["timeUnixNano"] > "1700000000000000000"
    assert plain(event)["gen_ai.evaluation.score.label"] == "fail"


def test_tee_copies_what_is_sent_on(sh):
    with collector() as there:
        ran = sh(f"dispatch -q --to echo --new hi | trace --tee --otlp {there.url} | thread-append t | cat")
    assert (ran.kinds(), ran.err, len(there.requests)) == ("begin user assistant span ok end", "trace: 2 spans of 1 run sent\n", 1)


def test_traceparent_is_the_parent(sh):
    line = "dispatch -q --to echo --new q | trace --format otlp"
    (request,) = sh(line, TRACEPARENT=TRACEPARENT).records
    root, call = spans_of(request)
    assert (root["traceId"], root["parentSpanId"]) == ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
    assert (call["traceId"], call["parentSpanId"]) == (root["traceId"], root["spanId"])
    (request,) = sh(f"dispatch -q --to echo --new q > t; TRACEPARENT={TRACEPARENT} trace --format otlp < t").records
    assert spans_of(request)[0]["parentSpanId"] == "b7ad6b7169203331"
    zeros = "00-00000000000000000000000000000000-0000000000000000-01"
    (request,) = sh(line, TRACEPARENT=zeros).records
    assert spans_of(request)[0]["parentSpanId"] == ""


def test_a_link_reaches_into_the_trace_of_an_earlier_run(sh):
    sh("thread-append t 'Write.' | dispatch -q --to echo --as writer | thread-append t >/dev/null")
    sh("dispatch -q --to echo --as reviewer 'Review it.' < t | thread-append t >/dev/null")
    for line in ("trace --format otlp < t", "trace --format otlp --journal"):
        first, second = map(spans_of, sh(line).records)
        ((link,),) = [span["links"] for span in second if span["links"]]
        assert (link["traceId"], link["spanId"]) == (first[1]["traceId"], first[1]["spanId"])
        assert first[0]["traceId"] != second[0]["traceId"]


SECRETS = ("QUESTION", "ANSWER", "SYSTEM", "REASON", "ERRORTEXT", "WHYROUTE", "SUMMARY", "ARGUMENT", "PICTURE")


def test_what_was_said_is_left_out_unless_asked_for(sh, work):
    story = Story()
    question = story.ask([{"type": "text", "text": "QUESTION"}, {"type": "file", "media_type": "image/png", "data": "PICTURE"}])
    answer = story.call(question, 0, 10, [{"type": "text", "text": "ANSWER"}, {"type": "tool_call", "id": "c", "name": "f",
                        "arguments": {"a": "ARGUMENT"}}], system="SYSTEM", runtime="openai")  # fmt: skip
    verdict = story.verdict(30, [answer], True, criteria=[{"name": "c", "reason": "REASON"}])
    story.call(answer, 20, 10, op="judge", output_ids=[verdict])
    failed = story.call(question, 40, 10, None, status="error")
    story._add("error", 50, code="bad_request", message="ERRORTEXT", run_id=failed)
    story._add("route", 60, router="r", target=None, by="none", reason="WHYROUTE")
    story._add("summary", 70, content="SUMMARY", covers=["m"])
    (work / "t").write_bytes(story.stream())
    assert [word for word in SECRETS if word in sh("trace --format otlp < t").out] == []
    (request,) = sh("trace --format otlp --content < t").records
    shown = orjson.dumps(request).decode()
    assert [word for word in SECRETS if word not in shown] == ["SUMMARY", "PICTURE"], "a summary is no message, a file no text"
    call = spans_of(request)[1]["attributes"]
    assert orjson.loads(call["gen_ai.input.messages"]) == [{"role": "user", "parts": [
        {"type": "text", "content": "QUESTION"}, {"type": "file", "mime_type": "image/png", "name": None}]}]  # fmt: skip
    assert orjson.loads(call["gen_ai.output.messages"]) == [{"role": "assistant", "finish_reason": "stop", "parts": [
        {"type": "text", "content": "ANSWER"}, {"type": "tool_call", "id": "c", "name": "f", "arguments": {"a": "ARGUMENT"}}]}]  # fmt: skip
    assert orjson.loads(call["gen_ai.system_instructions"]) == [{"type": "text", "content": "SYSTEM"}]


def test_the_resource_is_that_of_the_environment(sh, work):
    (work / "t").write_bytes(sequential().stream())
    (request,) = sh("trace --format otlp < t", OTEL_SERVICE_NAME="ci", OTEL_RESOURCE_ATTRIBUTES="team=a%20b,service.name=no").records
    assert plain(request["resourceSpans"][0]["resource"]) == {"service.version": "0.1.0", "team": "a b", "service.name": "ci"}


# -- sending


def test_it_is_sent_as_the_environment_says(sh, work):
    (work / "t").write_bytes(sequential().stream())
    with collector() as there:
        ran = sh(f"trace --otlp {there.url} < t")
        assert (ran.status, ran.out, ran.err) == (0, "", "trace: 5 spans of 1 run sent\n")
        sh("trace -q --otlp env < t", OTEL_EXPORTER_OTLP_ENDPOINT=f"{there.url}/base", OTEL_EXPORTER_OTLP_PROTOCOL="http/json",
           OTEL_EXPORTER_OTLP_COMPRESSION="gzip", OTEL_EXPORTER_OTLP_HEADERS="x-key=a%20b, x-team=c")  # fmt: skip
        sh("trace --otlp env < t", OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"{there.url}/as/is", OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9",
           OTEL_EXPORTER_OTLP_TRACES_HEADERS="x-key=mine", OTEL_EXPORTER_OTLP_HEADERS="x-key=theirs")  # fmt: skip
    plain_one, zipped, own = there.requests
    assert (plain_one["path"], plain_one["headers"]["content-type"]) == ("/v1/traces", "application/x-protobuf")
    (request,) = sh("trace --format otlp < t").records
    assert plain_one["body"] == protobuf.encoded(request)
    assert (zipped["path"], zipped["headers"]["content-encoding"]) == ("/base/v1/traces", "gzip")
    assert orjson.loads(gzip.decompress(zipped["body"])) == request
    assert [zipped["headers"][name] for name in ("content-type", "x-key", "x-team")] == ["application/json", "a b", "c"]
    assert (own["path"], own["headers"]["x-key"]) == ("/as/is", "mine")


def test_many_runs_are_few_requests(sh, home):
    house(home, 300)
    with collector() as there:
        assert sh(f"trace -n 0 --otlp {there.url}").err == "trace: 900 spans of 300 runs sent\n"
    assert len(there.requests) == 2


def test_what_may_pass_is_tried_again(sh, work):
    (work / "t").write_bytes(sequential().stream())
    busy, full = (503, {"retry-after": "0.05"}, b""), (429, {"retry-after": "0.05"}, b"")
    with collector(busy, full, (200, {}, b"")) as there:
        assert sh(f"trace --otlp {there.url} < t") == (0, "", "trace: 5 spans of 1 run sent\n")
    assert len({request["body"] for request in there.requests}) == 1 and len(there.requests) == 3


@pytest.mark.parametrize("answer, status, said", [
    ((401, {}, b'{"error":"no: Bearer canary-key-1234"}'), 77, "401 no: ***"),
    ((400, {}, b"what is that"), 3, "400 what is that"),
    ((404, {}, b"not here"), 3, "404 not here"),
    ((307, {"location": "http://127.0.0.1:9/"}, b""), 3, "307 redirected to 127.0.0.1; redirects are not followed, correct the base URL"),
    ((200, {}, b"\x0a\x0c\x08\x02\x12\x08too old!"), 3, "the collector refused 2 of 5 spans: too old!"),
])  # fmt: skip
def test_what_is_refused_is_said_once(sh, work, answer, status, said):
    (work / "t").write_bytes(sequential().stream())
    with collector(answer) as there:
        ran = sh(f"trace --otlp {there.url} < t", OTEL_EXPORTER_OTLP_HEADERS="authorization=Bearer%20canary-key-1234")
    assert (ran.status, ran.out, len(there.requests)) == (status, "", 1)
    assert ran.err == f"trace: {there.url}/v1/traces: {said}\n"


def test_json_is_heard_too(sh, work):
    (work / "t").write_bytes(sequential().stream())
    with collector((200, {}, b'{"partialSuccess":{"rejectedSpans":"1","errorMessage":"old"}}')) as there:
        ran = sh(f"trace --otlp {there.url} < t", OTEL_EXPORTER_OTLP_PROTOCOL="http/json")
    assert ran == (3, "", f"trace: {there.url}/v1/traces: the collector refused 1 of 5 spans: old\n")


@pytest.mark.parametrize("environment, why", [
    ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL is 'grpc'; trace speaks http/protobuf and http/json"),
    ({"OTEL_EXPORTER_OTLP_COMPRESSION": "zstd"}, "OTEL_EXPORTER_OTLP_COMPRESSION is 'zstd'; it takes gzip or none"),
    ({"OTEL_EXPORTER_OTLP_TIMEOUT": "10s"}, "OTEL_EXPORTER_OTLP_TIMEOUT is '10s'; it is a number of milliseconds"),
    ({"OTEL_EXPORTER_OTLP_HEADERS": "key"}, "OTEL_EXPORTER_OTLP_HEADERS is no list of name=value,name=value"),
    ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector"}, "'collector/v1/traces' is no URL of an API; a base URL looks like https://host/v1"),
])  # fmt: skip
def test_settings_that_are_none_are_refused(sh, work, environment, why):
    (work / "t").write_bytes(sequential().stream())
    assert sh("trace --otlp env < t", **environment) == (2, "", f"trace: {why}\n")


def test_a_collector_that_is_not_there_is_tried_and_told(sh, work):
    (work / "t").write_bytes(sequential().stream())
    ran = sh("trace --otlp http://127.0.0.1:9 < t")
    assert (ran.status, ran.out) == (69, "")
    assert re.fullmatch(r"trace: http://127\.0\.0\.1:9/v1/traces: .*gave up after 5 tries\n", ran.err)


def test_flags_that_are_for_something_else_are_refused(sh, work):
    (work / "t").write_bytes(sequential().stream())
    why = "trace: --redact is for --export, --content for --otlp and --format otlp\n"
    assert sh("trace --content < t") == sh("trace --redact < t") == (2, "", why)
    assert sh("trace --format otlp --by model < t").status == 2
