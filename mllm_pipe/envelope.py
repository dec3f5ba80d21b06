"""The envelope: ids, times, and the door at which records are checked. The schema is its only definition.

The door is made of schemas/envelope.schema.json by mllm_pipe.closures: no validator is loaded before one is refused.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import orjson

from mllm_pipe.errors import BadRecord

if TYPE_CHECKING:
    from datetime import datetime

Record = dict[str, Any]
SCHEMA_PATH = os.path.join(os.path.dirname(__file__), "schemas", "envelope.schema.json")
CONTROL = ("begin", "handoff", "end")
MAX_DEPTH = 128  # orjson reads 1024 levels and writes 254; what we accept we can write, with room for our own nesting
DEEPEST = MAX_DEPTH - 8  # of a value that a record, a line of the journal or a request has some levels deeper


# -- ids and times


def new_id() -> str:
    """A UUIDv7 (RFC 9562 §5.7): 48 bits of milliseconds, then random; sorts by time."""
    try:
        noise = _noise.pop()
    except IndexError:
        drawn = os.urandom(2560).hex()  # a system call each time would be most of what an id takes
        _noise.extend([f"-7{text[:3]}-{_VARIANT[text[3]]}{text[4:7]}-{text[7:19]}" for text in
                       [drawn[start : start + 20] for start in range(0, len(drawn), 20)]])  # fmt: skip
        noise = _noise.pop()
    stamp = f"{time.time_ns() // 1_000_000:012x}"
    return f"{stamp[:8]}-{stamp[8:]}{noise}"


_noise: list[str] = []
_VARIANT = dict(zip("0123456789abcdef", "89ab" * 4, strict=True))  # two bits of it are given
os.register_at_fork(after_in_child=_noise.clear)  # or two processes would give the same ids


def timestamp(seconds: float | None = None) -> str:
    """RFC 3339 in UTC with milliseconds, of `seconds` since the epoch, or of now."""
    global _second
    whole, milliseconds = divmod(round((time.time() if seconds is None else seconds) * 1000), 1000)
    known = _second
    if known[0] != whole:
        known = _second = whole, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))
    return f"{known[1]}.{milliseconds:03d}Z"


_second = 0, "1970-01-01T00:00:00"  # the last one that was written out


def seconds_of(stamp: str) -> float | None:
    """Seconds since the epoch of one of the envelope's times; None for a text that only looks like one."""
    leap = stamp[17:19] == "60"  # RFC 3339, 5.7
    try:
        if stamp[10] != "T" or stamp[-1] != "Z":
            return None
        return _moment(f"{stamp[:17]}59{stamp[19:]}" if leap else stamp).timestamp() + leap
    except (IndexError, ValueError, OverflowError):
        return None


def milliseconds(began: str, ended: str) -> int:
    """How long it is from one of the envelope's times to another; 0 if one of them only looks like one."""
    try:
        took = _moment(ended) - _moment(began)
        return round((took.days * 86400 + took.seconds) * 1000 + took.microseconds / 1000)
    except ValueError:  # a leap second, too
        first, last = seconds_of(began), seconds_of(ended)
        return 0 if first is None or last is None else round((last - first) * 1000)


def _moment(stamp: str) -> datetime:
    """The time that is written so; ValueError if none is. Its module is loaded with the first one, for it is slow."""
    global _read
    if _read is None:
        from datetime import datetime

        _read = datetime.fromisoformat
    return _read(stamp)


_read: Callable[[str], datetime] | None = None


def line_of(record: Record) -> bytes:
    """The record as one line of a stream, newline included."""
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)


# -- the door


def has_envelope(record: Any) -> bool:
    """True if the value has what every record must have: v, type, thread, id. All that is asked of what is copied."""
    try:
        kind = record["type"]
        return (
            record["v"] == 1
            and record["v"] is not True
            and type(kind) is str
            and 0 < len(kind) <= 64
            and (
                kind == "begin"
                or kind == "end"
                or type(record["thread"]) is str
                and 0 < len(record["thread"]) <= 200
                and (kind == "handoff" or type(record["id"]) is str and 0 < len(record["id"]) <= 200)
            )
        )
    except (KeyError, TypeError, IndexError):
        return False


def envelope_fault(record: Any) -> str:
    """What keeps a value that has no envelope from being a record, in words."""
    if type(record) is not dict:
        return f"a record is a JSON object, this is {_named(record)}"
    if "v" not in record and "role" in record and "content" in record:
        sample = {"v": 1, "type": "message", "thread": "t", "id": "i"} | record
        if not holds(sample):
            return f"a bare message that is none: {explain(sample)}"
        return "a bare message, not a record; complete it with: | thread-append -"
    if record.get("v") != 1 or record["v"] is True:
        return "v is not 1"
    limits = {"type": 64, "thread": 200, "id": 200}
    for name, most in limits.items():
        value = record.get(name)
        if type(value) is not str or not 0 < len(value) <= most:
            break
    return f"{name} is not a text of 1..{most} characters"


def admit(record: Record, raw: bytes) -> None:
    """The full door, for a record that a command uses. `raw` is its line.

    BadRecord if it does not hold to the schema, holds an integer beyond 64 bits, or is nested too deeply.
    """
    if len(raw.translate(None, _NO_BRACKETS)) > MAX_DEPTH and depth(record) > MAX_DEPTH:
        raise BadRecord(f"it is nested deeper than {MAX_DEPTH} levels")
    if not holds(record):
        raise BadRecord(explain(record))
    if _has_long_number(raw) and _has_big_integer(raw):
        raise BadRecord("an integer is beyond 64 bits, and would be changed in silence; write it as a string")


def holds(record: Any) -> bool:
    """True exactly if jsonschema (draft 2020-12) accepts the value by the envelope's schema."""
    global _door
    if _door is None:
        from mllm_pipe.closures import check_of

        _door = check_of(orjson.loads(_schema_bytes()))
    return _door(record)


def explain(record: Any) -> str:
    """Why a value does not hold to the schema: where, what was found, what was expected (jsonschema's best match)."""
    import jsonschema

    validator = jsonschema.Draft202012Validator(orjson.loads(_schema_bytes()))
    error = jsonschema.exceptions.best_match(validator.iter_errors(record))
    if error is None:
        return "it holds to the envelope"
    where = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.absolute_path).lstrip(".")
    if error.validator == "required":
        missing = [name for name in error.validator_value if name not in error.instance]
        return f"{where or 'the record'} lacks {', '.join(missing)}"
    expected = {
        "type": lambda value: f"of type {value if isinstance(value, str) else ' or '.join(value)}",
        "enum": lambda value: f"one of {', '.join(map(_named, value))}",
        "const": lambda value: _named(value),
    }.get(str(error.validator), lambda value: f"{error.validator} {value}")(error.validator_value)
    return f"{where or 'the record'} is {_named(error.instance)}, expected {expected}"


def depth(value: Any) -> int:
    """How many levels of lists and objects a JSON value has; no recursion, so that no input can exhaust the stack."""
    levels, level = 0, [value]
    while level := [v for v in level if type(v) in (dict, list)]:
        levels += 1
        level = [inner for v in level for inner in (v.values() if type(v) is dict else v)]
    return levels


def equal(one: Any, other: Any) -> bool:
    """JSON equality: 1 equals 1.0, true is not 1. No recursion, so that no nesting can exhaust the stack."""
    waiting = [(one, other)]
    while waiting:
        left, right = waiting.pop()
        if isinstance(left, dict) and isinstance(right, dict):
            if left.keys() != right.keys():
                return False
            waiting += [(value, right[name]) for name, value in left.items()]
        elif isinstance(left, list) and isinstance(right, list):
            if len(left) != len(right):
                return False
            waiting += zip(left, right, strict=True)
        elif isinstance(left, bool) or isinstance(right, bool):
            if left is not right:
                return False
        elif type(left) in (dict, list) or type(right) in (dict, list) or left != right:
            return False
    return True


def same_value(line: bytes, other: bytes) -> bool:
    """True if two lines of JSON are the same bytes, or the same value: as after jq, which writes 0.0 as 0.

    An integer beyond 64 bits, which was read as another number, is the same only as the same bytes.
    """
    if line == other:
        return True
    value = orjson.loads(line)
    if not equal(value, orjson.loads(other)):
        return False
    if not _has_long_number(line) and not _has_long_number(other):
        return True
    return depth(value) <= MAX_DEPTH and not _has_big_integer(line) and not _has_big_integer(other)


_door: Callable[[Any], bool] | None = None
# To look at every byte is what takes time: a translation does it several times as fast as a regex, or as count().
_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[{")
_LONG_NUMBER = b"0" * 19  # of what was translated
_DIGITS = bytes(48 if 48 <= byte <= 57 else 32 for byte in range(256))


def _schema_bytes() -> bytes:
    with open(SCHEMA_PATH, "rb") as file:
        return file.read()


def _has_long_number(raw: bytes) -> bool:
    return _LONG_NUMBER in raw.translate(_DIGITS)


def _has_big_integer(raw: bytes) -> bool:
    import json

    beyond = []

    def integer(text: str) -> int:
        # Python refuses to convert more than 4300 digits, and a longer one is beyond 64 bits anyway
        value = int(text) if len(text) < 25 else 1 << 64
        if not -(1 << 63) <= value < 1 << 64:
            beyond.append(value)
        return value

    json.loads(raw, parse_int=integer)
    return bool(beyond)


def _named(value: Any) -> str:
    text = orjson.dumps(value, default=repr).decode()
    return text if len(text) <= 60 else text[:57] + "..."
