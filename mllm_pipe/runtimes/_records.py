"""What a program with `protocol = "ndjson"` is given and gives: records of the envelope, a line each. Pure.

It is given the view as messages, the system text first, and a `tools` record if tools are offered. It gives messages of
the role assistant, whose content is the answer; a `span` may say `model`, `usage` and `cost_usd`, an `error` why there
is no answer. What else it writes is passed over, for records do not say who spoke or where the thread goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from mllm_pipe.envelope import admit
from mllm_pipe.errors import STATUS_OF_CODE, BadRecord, CallFailed
from mllm_pipe.runtimes._faults import tidy
from mllm_pipe.thread import content_of, parts_of

Json = dict[str, Any]

THREAD = "request"  # a record belongs to some thread; that it is asked about is not the program's to know
FINISHES = ("stop", "tool", "length", "filter", "refusal", "pause")
USAGE = ("input_tokens", "cache_read_tokens", "cache_write_tokens", "cache_write_1h_tokens", "output_tokens",
         "reasoning_tokens")  # fmt: skip


def told(request: Json) -> bytes:
    """The lines that the program reads; they end with its stdin."""
    made: list[Json] = []
    if request["system"]:
        made.append({"role": "system", "content": request["system"]})
    for turn in request["turns"]:
        results = [part for part in turn["parts"] if part["type"] == "tool_result"]
        said = [{key: value for key, value in part.items() if key != "raw"} for part in turn["parts"]
                if part["type"] != "tool_result"]  # fmt: skip
        made += [{"role": "tool", "content": results}] * bool(results)
        made += [{"role": turn["role"], "content": content_of(said)}] * bool(said)
    lines: list[Json] = [
        {"v": 1, "type": "message", "thread": THREAD, "id": f"m{number}"} | message
        for number, message in enumerate(made, 1)
    ]
    if request.get("tools"):
        lines.insert(0, {"v": 1, "type": "tools", "thread": THREAD, "id": "tools", "tools": request["tools"]})
    return b"".join(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE) for line in lines)


def record_of(line: bytes, secrets: Sequence[str]) -> Json:
    """A line that the program wrote, as a record; {} for one that is passed over.

    CallFailed: "malformed" for what is no JSON object, or an answer whose content is none; what an `error` says, but
    for secrets.
    """
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise CallFailed("malformed", f"a line of its output is no JSON: {error.msg}") from None
    if not isinstance(record, dict):
        raise CallFailed("malformed", "a line of its output is no JSON object")
    kind = record.get("type", "message")
    if kind == "error":
        code, said = record.get("code"), tidy(str(record.get("message") or ""), secrets)
        known = isinstance(code, str) and code in STATUS_OF_CODE
        raise CallFailed(str(code) if known else "exit", said or "it says that it failed, and not why")
    if kind == "message" and record.get("role") == "assistant":
        whole = {"v": 1, "type": "message", "thread": THREAD, "id": "answer", "role": "assistant",
                 "content": record.get("content")}  # fmt: skip
        try:
            admit(whole, line)
        except BadRecord as fault:
            raise CallFailed("malformed", f"its answer is no message: {fault}") from None
        return record
    return record if kind == "span" else {}


def reply(records: list[Json]) -> Json:
    """The result that the records of a program say (see mllm_pipe.runtimes); without parts if they say none."""
    parts: list[Json] = []
    about: Json = {}
    finish = None
    for record in records:
        if record.get("type") == "span":
            about = record
            continue
        parts += [{key: value for key, value in part.items() if key != "raw"} for part in parts_of(record["content"])]
        finish = record.get("finish")
    called = any(part["type"] == "tool_call" for part in parts)
    said = about["usage"] if isinstance(about.get("usage"), dict) else {}
    usage = {name: said[name] for name in USAGE if type(said.get(name)) is int and said[name] >= 0}
    cost: Any = about.get("cost_usd")
    known = type(cost) in (int, float) and cost >= 0
    return {
        "parts": parts,
        "finish": finish if finish in FINISHES else "tool" if called else "stop",
        "model": about["model"] if isinstance(about.get("model"), str) else None,
        "provider": None,
        "usage": usage or None,
        "cost_usd": float(cost) if known else None,
        "cost_source": "runtime" if known else None,
        "origin": None,
        "losses": [],
    }
