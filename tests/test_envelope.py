"""The door accepts exactly what the schema accepts, and says why it refuses."""

from __future__ import annotations

import os
import re
from random import Random

import jsonschema
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mllm_pipe import envelope
from mllm_pipe.errors import BadRecord

with open(envelope.SCHEMA_PATH, "rb") as file:
    SCHEMA = orjson.loads(file.read())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)

TYPES = [branch["if"]["properties"]["type"]["const"] for branch in SCHEMA["allOf"]]
PARTS = ["text", "refusal", "reasoning", "file", "tool_call", "tool_result", "data", "opaque", "new"]
HEX = "0123456789abcdef" * 4

# Values that stand near a border of the schema; a generator of any JSON would hardly ever reach one.
SCALARS = [
    None, True, False, 0, 1, 1.0, 2, -1, 0.5, 1.5, -0.0, 1e300, "", "x", "x" * 200, "x" * 201, "user", "assistant", "tool",
    "stop", "ok", "no", "failed", "error", "unknown", "dispatch", "judge", "rule:x", "rule:x\n", "none", "none\n", "text",
    HEX, HEX + "\n", "2026-01-02T03:04:05Z", "2026-01-02T03:04:05.123Z", "2026-01-02T03:04:05.123Z\n", "٢026-01-02T03:04:05Z",
    "00-" + "a" * 32 + "-" + "b" * 16 + "-01", "\U0001f600" * 200, "\U0001f600" * 201, "dropped", "yes",
]  # fmt: skip
PART = {"type": PARTS, "text": ["x"], "media_type": ["a/b"], "id": ["c"], "name": ["n"], "arguments": [{}], "call_id": ["c"],
        "content": ["x", [{"type": "text", "text": "y"}]], "value": SCALARS, "path": ["p"], "sha256": [HEX], "url": ["u"],
        "is_error": [True], "raw": SCALARS, "data": ["eA=="]}  # fmt: skip
GOOD = {
    "message": {"role": ["user", "assistant"], "content": ["", "x", [], PARTS], "finish": ["stop"], "origin": [{"api": "x"}]},
    "span": {"op": ["judge"], "status": ["ok"], "started_at": ["2026-01-02T03:04:05Z"], "duration_ms": [1.5],
             "usage": [{"input_tokens": 1}, {"input_tokens": -1}, {"output_tokens": 1.0}, None],
             "attempts": [[{"runtime": "x", "status": "ok"}], [{"runtime": "x"}], []], "losses": [[{"what": "x", "action": "moved"}]]},
    "route": {"router": ["r"], "target": ["a", None], "by": ["rule:x", "model"], "confidence": [0, 0.5, 1]},
    "verdict": {"about": [["m"], ["m", ""]], "pass": [True, False, None], "criteria": [[{"name": "x", "score": 1}], [{}]]},
    "summary": {"content": ["x"], "covers": [["m"], []]},
    "tools": {"tools": [[{"name": "x", "parameters": {}}], [{"name": ""}], [{}], []]},
    "error": {"code": ["c"], "message": ["x"], "line": [1, 0, 1.0], "billed": ["no"]},
    "handoff": {"status": ["ok"], "parent_run_id": ["r"]},
    "begin": {},
    "end": {"threads": [0, 1, -1]},
    "new-type": {},
}  # fmt: skip


def names_of(schema: dict) -> list[str]:
    """Every property that the schema speaks of anywhere inside."""
    found = list(schema.get("properties", {}))
    for key, inner in schema.items():
        for member in inner if isinstance(inner, list) else [inner]:
            if isinstance(member, dict) and key != "properties":
                found += names_of(member)
    return found


def any_value(random: Random, depth: int = 0):
    """A value near a border, or a small list or object of such."""
    shape = random.random()
    if depth > 2 or shape < 0.7:
        return random.choice(SCALARS)
    if shape < 0.85:
        return [any_value(random, depth + 1) for _ in range(random.randrange(3))]
    return {name: any_value(random, depth + 1) for name in random.sample(["type", "text", "x"], random.randrange(3))}


def object_of(random: Random, fields: dict[str, list], names: list[str], fault: float) -> dict:
    """An object with the fields, of which a few are dropped or set to some other value, with this probability."""
    made = {name: random.choice(options) for name, options in fields.items() if random.random() > fault / 4}
    if made.get("content") is PARTS:
        made["content"] = [object_of(random, PART, list(PART), fault) for _ in range(random.randrange(3))]
    if random.random() < fault:
        made |= {random.choice(names): any_value(random) for _ in range(random.randrange(3))}
    return made


def a_record(random: Random):
    """A record of some type that is good but for a few fields, or is not; now and then no record at all."""
    if random.random() < 0.05:
        return any_value(random)
    kind = random.choice([*GOOD, "message", "span"])
    base = {"v": [1, 1.0], "type": [kind], "thread": ["t", "x" * 200], "id": ["m"], "at": ["2026-01-02T03:04:05.123456789Z"]}
    names = [*base, *names_of(SCHEMA["$defs"].get(kind, {}))]
    return object_of(random, base | GOOD[kind], names, random.choice([0, 0, 0.3, 0.6]))


EXAMPLES, RECORDS = 400, 50  # 20,000 records; what hypothesis draws is the seed, for drawing fields takes it 7 ms a record


def test_the_door_accepts_exactly_what_the_schema_accepts():
    counts = {True: 0, False: 0}

    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.randoms(use_true_random=True))
    def compare(random):
        for _ in range(RECORDS):
            record = a_record(random)
            by_schema = VALIDATOR.is_valid(record)
            counts[by_schema] += 1
            assert envelope.holds(record) == by_schema, record
            if by_schema:
                assert envelope.has_envelope(record), record
            elif not envelope.has_envelope(record):
                assert envelope.envelope_fault(record)

    compare()
    assert sum(counts.values()) >= EXAMPLES * RECORDS
    assert min(counts.values()) > 4000, "both good and bad records were compared"


def test_the_schema_is_itself_sound_and_describes_every_field():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)

    def bare(schema, where):
        for name, member in schema.get("properties", {}).items():
            if where and member.keys() - {"type"} - {"const", "enum"} and "description" not in member and "$ref" not in member:
                yield f"{where}.{name}"

    for kind in TYPES:
        definition = SCHEMA["$defs"][kind]
        assert "description" in definition, kind
        assert not list(bare(definition, kind))
        assert all("description" in member for member in definition.get("properties", {}).values()), kind


def test_patterns_are_ascii_and_end_before_no_newline():
    patterns = re.findall(r'"pattern":\s*"([^"]*)"', orjson.dumps(SCHEMA).decode())
    assert patterns and all(p.isascii() and p.endswith(r"(?!\\n)$") and r"\d" not in p for p in patterns)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"role": "boss"}, 'role is "boss", expected one of "system", "user", "assistant", "tool"'),
        ({"content": 5}, "content is 5, expected of type string or array"),
        ({"content": [{"type": "text"}]}, "content[0] lacks text"),
        ({"at": "now"}, 'at is "now", expected pattern ^[0-9]{4}-'),
        ({"id": "x" * 201}, "expected maxLength 200"),
    ],
)
def test_a_refusal_says_where_what_was_found_and_what_was_expected(change, why):
    record = {"v": 1, "type": "message", "thread": "t", "id": "m", "role": "user", "content": "x"} | change
    with pytest.raises(BadRecord) as refused:
        envelope.admit(record, orjson.dumps(record))
    assert why in str(refused.value)


def test_a_refusal_that_the_schema_does_not_know_is_explained_too():
    good = b'{"v":1,"type":"message","thread":"t","id":"m","role":"user","content":"x","n":%s}'
    for value, why in ((b"9" * 30, "beyond 64 bits"), (b"-9223372036854775809", "beyond"), (b"[" * 200 + b"]" * 200, "deeper")):
        with pytest.raises(BadRecord, match=why):
            envelope.admit(orjson.loads(good % value), good % value)
    for value in (b"18446744073709551615", b"-9223372036854775808", b'"%s"' % (b"9" * 30), b"1e300"):
        envelope.admit(orjson.loads(good % value), good % value)


def test_ids_are_uuid7_and_sort_by_time():
    made = [envelope.new_id() for _ in range(1000)]
    assert len(set(made)) == 1000
    assert all(re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", one) for one in made)
    assert [one[:13] for one in made] == sorted(one[:13] for one in made)


def test_a_forked_process_gives_ids_of_its_own():
    envelope.new_id()  # draws noise for many
    reading, writing = os.pipe()
    if not (child := os.fork()):
        os.write(writing, "".join(envelope.new_id()[19:] for _ in range(200)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    there = os.read(reading, 1 << 16).decode()
    os.close(reading)
    os.close(writing)
    noise = [there[start : start + 17] for start in range(0, len(there), 17)]
    assert len(noise) == 200 and not {envelope.new_id()[19:] for _ in range(200)} & set(noise)


@given(st.integers(min_value=0, max_value=4_000_000_000_000))
def test_times_round_trip_to_the_millisecond(milliseconds):
    stamp = envelope.timestamp(milliseconds / 1000)
    assert VALIDATOR.is_valid({"v": 1, "type": "begin", "at": stamp})
    assert round(envelope.seconds_of(stamp) * 1000) == milliseconds


@pytest.mark.parametrize("stamp, seconds", [
    ("1970-01-01T00:00:00Z", 0.0), ("1970-01-01T00:01:00.5Z", 60.5), ("2016-12-31T23:59:60Z", 1483228800.0),
    ("1970-01-01T00:00:00.123456789Z", 0.123456), ("1970-02-30T00:00:00Z", None), ("1970-01-01T24:00:00Z", None),
    ("1970-01-01", None), ("1970-01-01T00:00:00", None), ("Z", None), ("", None),
])  # fmt: skip
def test_a_time_is_seconds_or_none(stamp, seconds):
    assert envelope.seconds_of(stamp) == seconds
