"""What the tests of the APIs share: recorded replies, torture threads, and a view of them."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from mllm_pipe.errors import CallFailed
from mllm_pipe.runtimes import _sse

DATA = Path(__file__).parent / "data"


class Io:
    """What a runtime has of a call: a clock, and ears."""

    strict = False

    def __init__(self, seconds=120.0):
        self.ends, self.heard, self.losses = time.monotonic() + seconds, [], None

    def text(self, piece):
        self.heard.append(piece)

    def lost(self, losses):
        self.losses = losses
        if losses and self.strict:
            raise CallFailed("losses", "something would be lost", billed="no")

    def left(self):
        left = self.ends - time.monotonic()
        if left <= 0:
            raise CallFailed("timeout", "the deadline of the call")
        return left


def streams(folder):
    """[(name, bytes of the stream)] of a folder of recordings."""
    found = []
    for path in sorted((DATA / "recorded" / folder).rglob("*.chunks.txt")):
        lines = [line for line in path.read_bytes().split(b"\n") if line.strip()]
        names = [re.match(rb'\{"type":\s*"([a-z_.]+)"', line) for line in lines]
        events = [
            (b"event: " + name[1] + b"\n" if name else b"") + b"data: " + line + b"\n\n"
            for name, line in zip(names, lines, strict=True)
        ]
        whole = b"".join(events)
        several = re.split(
            rb"(?<=\"type\":\"message_stop\"}\n\n)(?=event)", whole
        )  # some files hold a whole loop of calls
        found += [(path.name + f" {n}" * (n > 1), answer) for n, answer in enumerate(several, 1)]
    for path in sorted((DATA / "recorded" / folder).rglob("*.sse")):
        found.append((path.name, path.read_bytes()))
    assert found
    return found


def sse(events):
    """The bytes of a stream of events."""
    lines = []
    for event in events:
        name = f"event: {event['type']}\n" if "type" in event else ""
        lines.append(f"{name}data: {json.dumps(event, ensure_ascii=False)}\n\n")
    return "".join(lines).encode()


def bodies(folder):
    """[(name, value)] of the whole replies of a folder."""
    found = [(path.name, json.loads(path.read_text())) for path in (DATA / "recorded" / folder).rglob("*.json")]
    assert found
    return sorted(found, key=lambda pair: pair[0])


def ids(pairs):
    """The names of recordings, for pytest."""
    return [name for name, _ in pairs]


def asked(*turns, **more):
    """A request of turns (role, parts or text)."""
    return {"system": None, "schema": None, "turns": [turn(number, *t) for number, t in enumerate(turns)]} | more


def turn(number, role, parts, origin=None):
    if isinstance(parts, str):
        parts = [{"type": "text", "text": parts}]
    return {"role": role, "parts": parts, "ids": [f"m{number}"], "origin": origin}


def torture():
    """{name of the thread: request}"""
    threads = {}
    for line in (DATA / "torture" / "threads.jsonl").read_text().split("\n")[:-1]:
        record = json.loads(line)
        threads.setdefault(record["thread"], []).append(record)
    tools = json.loads((DATA / "torture" / "tools.json").read_text())
    return {name: view(records) | {"tools": tools} for name, records in threads.items()}


def view(records):
    """A request of message records, as the view of the thread makes it; an empty user turn is kept."""
    system, turns = [], []
    for record in records:
        content = record["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        role = "user" if record["role"] == "tool" else record["role"]
        if role == "system" and not turns:
            system.append(content)
        elif role == "user" and turns and turns[-1]["role"] == "user":
            results = [p for p in parts if p["type"] == "tool_result"]
            rest = [p for p in parts if p["type"] != "tool_result"]
            held = [p for p in turns[-1]["parts"] if p["type"] == "tool_result"]
            said = [p for p in turns[-1]["parts"] if p["type"] != "tool_result"]
            turns[-1] = turns[-1] | {"parts": held + results + said + rest, "ids": [*turns[-1]["ids"], record["id"]]}
        else:
            turns.append({"role": role, "parts": parts, "ids": [record["id"]], "origin": record.get("origin")})
    return {"system": "\n\n".join(system) or None, "turns": turns, "schema": None}


def steps(request, answered_only=False):
    """The requests of the turns up to each user turn (that an answer follows): what was asked as the thread grew."""
    turns = request["turns"]
    ends = [i + 1 for i, turn in enumerate(turns) if turn["role"] == "user"]
    if answered_only:
        ends = [end for end in ends if end == len(turns) or turns[end]["role"] == "assistant"]
    return [request | {"turns": turns[:end]} for end in ends]


def answered(module, target, request, result):
    """The request that follows: the answer, as a turn with the origin that `call` would give it, and a new question."""
    body, _, prefix = module._rendered(target, request)
    endpoint = module._rule(target)["endpoint"]
    origin = {"api": module.API, "endpoint": endpoint, "model": target["model"], "prefix": prefix} | result["origin"]
    more = [turn(98, "assistant", result["parts"], origin), turn(99, "user", "And then?")]
    return request | {"turns": request["turns"] + more}


def every_cut(module, target, stream, whole_after):
    """Reads the stream cut at every byte; `whole_after`: from which byte on it has its finish reason.

    Cut before it, it is no success; the text that was heard is kept and marked, and grows with what came.
    """
    request, before = asked(("user", "Hi")), ""
    for cut in range(len(stream)):
        values, heard = _sse.values([stream[:cut]]), []
        if cut < whole_after:
            with pytest.raises(CallFailed) as failure:
                module.reply(values, target, request, heard.append)
            assert failure.value.code == "cut", cut
            assert failure.value.billed == "unknown"
            result = failure.value.result or {"parts": [], "finish": "error"}
            kept = "".join(part["text"] for part in result["parts"] if part["type"] == "text")
            assert result["finish"] == "error" and kept.startswith("".join(heard)) and kept.startswith(before), cut
            before = kept
        else:
            result = module.reply(values, target, request)
            assert result["finish"] != "error"
            whole = "".join(part["text"] for part in result["parts"] if part["type"] == "text")
            assert whole.startswith(before)
