"""OTLP in the binary form of protocol buffers, from its JSON form: for collectors that take no JSON (Phoenix). Pure.

Field numbers are those of opentelemetry-proto 1.x (trace/v1/trace.proto, common/v1/common.proto), the wire format that
of https://protobuf.dev/programming-guides/encoding. Only the fields that mllm_pipe.tracing.otlp makes are known.
"""

from __future__ import annotations

import struct
from typing import Any

Json = dict[str, Any]
_VARINT, _FIXED64, _BYTES = 0, 1, 2

# message: {name in JSON: (number, type)}; a type that is itself a key is a message, and a list is repeated
FIELDS: dict[str, dict[str, tuple[int, str]]] = {
    "ExportTraceServiceRequest": {"resourceSpans": (1, "ResourceSpans")},
    "ResourceSpans": {"resource": (1, "Resource"), "scopeSpans": (2, "ScopeSpans")},
    "Resource": {"attributes": (1, "KeyValue")},
    "ScopeSpans": {"scope": (1, "Scope"), "spans": (2, "Span")},
    "Scope": {"name": (1, "string"), "version": (2, "string"), "attributes": (3, "KeyValue")},
    "Span": {
        "traceId": (1, "hex"), "spanId": (2, "hex"), "parentSpanId": (4, "hex"), "name": (5, "string"),
        "kind": (6, "int"), "startTimeUnixNano": (7, "fixed64"), "endTimeUnixNano": (8, "fixed64"),
        "attributes": (9, "KeyValue"), "events": (11, "Event"), "links": (13, "Link"), "status": (15, "Status"),
    },
    "Event": {"timeUnixNano": (1, "fixed64"), "name": (2, "string"), "attributes": (3, "KeyValue")},
    "Link": {"traceId": (1, "hex"), "spanId": (2, "hex"), "attributes": (4, "KeyValue")},
    "Status": {"message": (2, "string"), "code": (3, "int")},
    "KeyValue": {"key": (1, "string"), "value": (2, "AnyValue")},
    "AnyValue": {"stringValue": (1, "string"), "boolValue": (2, "int"), "intValue": (3, "int"),
                 "doubleValue": (4, "double"), "arrayValue": (5, "ArrayValue")},
    "ArrayValue": {"values": (1, "AnyValue")},
}  # fmt: skip


def encoded(value: Json, message: str = "ExportTraceServiceRequest") -> bytes:
    """A message in its binary form."""
    out = bytearray()
    for name, (number, kind) in FIELDS[message].items():
        if name in value:
            found = value[name]
            for one in found if isinstance(found, list) else [found]:
                out += _field(number, kind, one)
    return bytes(out)


def refused(answer: bytes) -> tuple[int, str]:
    """(spans refused, why) of an ExportTraceServiceResponse; (0, "") if it says nothing of the kind."""
    partial = dict(_fields(answer)).get(1, b"")
    told = dict(_fields(partial)) if isinstance(partial, bytes) else {}
    count, why = told.get(1, 0), told.get(2, b"")
    return (count if isinstance(count, int) else 0), why.decode("utf-8", "replace") if isinstance(why, bytes) else ""


def _field(number: int, kind: str, value: Any) -> bytes:
    if kind == "int":
        return _varint(number << 3 | _VARINT) + _varint(int(value) & 0xFFFFFFFFFFFFFFFF)  # a negative one has 64 bits
    if kind in ("fixed64", "double"):
        return _varint(number << 3 | _FIXED64) + (struct.pack("<Q", int(value)) if kind == "fixed64"
                                                  else struct.pack("<d", value))  # fmt: skip
    data = bytes.fromhex(value) if kind == "hex" else value.encode("utf-8", "replace") if kind == "string" \
        else encoded(value, kind)  # fmt: skip
    return _varint(number << 3 | _BYTES) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _fields(data: bytes) -> list[tuple[int, int | bytes]]:
    """(number, value) of the fields of a message, as far as it is one: what a stranger answers may be anything."""
    found: list[tuple[int, int | bytes]] = []
    at = 0
    while at < len(data):
        tag, at = _read(data, at)
        value, after = _read(data, at)
        kind = tag & 7
        if kind == _VARINT:
            found.append((tag >> 3, value))
            at = after
        elif kind == _BYTES:
            found.append((tag >> 3, data[after : after + value]))
            at = after + value
        else:
            at += {1: 8, 5: 4}.get(kind, len(data))
    return found


def _read(data: bytes, at: int) -> tuple[int, int]:
    """(number, offset after it) of a varint."""
    value = shift = 0
    while at < len(data) and shift < 70:
        value |= (data[at] & 0x7F) << shift
        shift += 7
        at += 1
        if data[at - 1] < 0x80:
            break
    return value, at
