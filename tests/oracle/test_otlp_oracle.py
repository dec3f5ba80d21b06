"""Our OTLP in its binary and its JSON form, held against the messages of opentelemetry-proto."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("opentelemetry.proto")

from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from mllm_pipe.tracing import otlp, protobuf

TEXT = st.text(st.characters(codec="utf-8"), max_size=40)
VALUES = TEXT | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.lists(TEXT, max_size=3)
ABOUT = st.dictionaries(TEXT.filter(bool), VALUES, max_size=5).map(otlp._attributes)
TIME = st.integers(0, 2**63).map(str)


def hex_of(size: int) -> Any:
    return st.binary(min_size=size, max_size=size).map(bytes.hex)


EVENTS = st.lists(st.fixed_dictionaries({"timeUnixNano": TIME, "name": TEXT, "attributes": ABOUT}), max_size=2)
LINKS = st.lists(st.fixed_dictionaries({"traceId": hex_of(16), "spanId": hex_of(8), "attributes": ABOUT}), max_size=2)
SPAN = st.fixed_dictionaries(
    {"traceId": hex_of(16), "spanId": hex_of(8), "name": TEXT, "kind": st.sampled_from([1, 3]), "startTimeUnixNano": TIME,
     "endTimeUnixNano": TIME, "attributes": ABOUT},
    optional={"parentSpanId": hex_of(8), "events": EVENTS, "links": LINKS,
              "status": st.fixed_dictionaries({"code": st.just(2)}, optional={"message": TEXT})},
)  # fmt: skip
REQUEST = st.lists(SPAN, max_size=3).map(lambda spans: {"resourceSpans": [{
    "resource": {"attributes": otlp._attributes({"service.name": "x"})},
    "scopeSpans": [{"scope": {"name": "mllm-pipe", "version": "1", "attributes": []}, "spans": spans}]}]})  # fmt: skip


def in_base64(value: Any) -> Any:
    """The same with ids as the JSON form of protocol buffers has them; OTLP has them in hex."""
    if isinstance(value, list):
        return [in_base64(one) for one in value]
    if isinstance(value, dict):
        return {name: base64.b64encode(bytes.fromhex(one)).decode() if name in ("traceId", "spanId", "parentSpanId") else in_base64(one)
                for name, one in value.items()}  # fmt: skip
    return value


@settings(max_examples=500, deadline=None)
@given(REQUEST)
def test_both_forms_are_the_same_message(request):
    binary = ExportTraceServiceRequest.FromString(protobuf.encoded(request))
    assert binary == json_format.ParseDict(in_base64(request), ExportTraceServiceRequest())


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**31), TEXT)
def test_what_a_collector_refuses_is_read(count, why):
    answer = ExportTraceServiceResponse()
    answer.partial_success.rejected_spans = count
    answer.partial_success.error_message = why
    assert protobuf.refused(answer.SerializeToString()) == (count, why)


@settings(max_examples=1000, deadline=None)
@given(st.binary(max_size=60))
def test_any_answer_is_read(answer):
    count, why = protobuf.refused(answer)
    assert isinstance(count, int) and isinstance(why, str)
