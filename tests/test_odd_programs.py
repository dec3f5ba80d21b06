"""What an agent program says that is of another shape than it was: that thread fails, and what had come is kept.

The programs are stood in for by a shell script of their name, which says the events of the number that it is asked.
"""

from __future__ import annotations

import json

import pytest
from odd import odd
from programs import KEYS, MODELS

SCRIPT = '#!/bin/sh\nn=$( (cat; for f; do cat -- "${f#*=}" 2>/dev/null; done) | grep -ao "ask-[0-9]*" | tail -n 1)\ncat "%s/events/$n"\n'
USED = {"total_tokens": 9, "input_tokens": 3, "output_tokens": 2, "cached": 1, "models": {"g": {"total_tokens": 9}}}
EVENTS = {
    "claude": [
        {"type": "stream_event", "event": {"type": "message_start", "message": {"id": "m1", "model": "c"}}, "parent_tool_use_id": None},
        {"type": "stream_event", "event": {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "Pa"}}},
        {"type": "assistant", "message": {"id": "m1", "model": "c", "content": [{"type": "thinking", "thinking": "h"}, {"type": "text", "text": "Paid."}]}},
        {"type": "stream_event", "event": {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}}},
        {"type": "result", "is_error": False, "result": "Paid.", "stop_reason": "end_turn", "total_cost_usd": 0.1,
         "usage": {"input_tokens": 1, "cache_read_input_tokens": 3, "output_tokens": 2}},
    ],
    "codex": [
        {"type": "item.completed", "item": {"type": "reasoning", "text": "h"}},
        {"type": "item.completed", "item": {"type": "agent_message", "text": "Paid."}},
        {"type": "turn.completed", "usage": {"input_tokens": 1, "cached_input_tokens": 0, "output_tokens": 2}},
    ],
    "gemini": [
        {"type": "message", "role": "assistant", "content": "Pa", "delta": True},
        {"type": "message", "role": "assistant", "content": "id.", "delta": True},
        {"type": "result", "status": "success", "stats": USED},
    ],
    "opencode": [
        {"type": "mllm.delta", "part": "1", "text": "Pa"}, {"type": "text", "part": {"id": "1", "text": "Paid."}},
        {"type": "step_finish", "part": {"reason": "stop", "cost": 0.1, "tokens": {"input": 1, "output": 2, "cache": {"read": 1}}}},
    ],
}  # fmt: skip


@pytest.mark.parametrize("program", EVENTS)
def test_one_odd_value_of_a_program_fails_its_thread_at_most(sh, home, work, program):
    said = [*odd(EVENTS[program], every=9)]
    said = [events for one in said for events in (one, EVENTS[program])]  # one that errs for ever is left alone
    (work / "events").mkdir()
    for number, events in enumerate(said):
        (work / "events" / f"ask-{number}").write_text("".join(json.dumps(event) + "\n" for event in events))
    (work / "bin").mkdir()
    (work / "bin" / program).write_text(SCRIPT % work)
    (work / "bin" / program).chmod(0o755)
    lines = [{"v": 1, "type": "message", "thread": f"t{number}", "id": "q", "role": "user", "content": f"ask-{number}"}
             for number in range(len(said))]  # fmt: skip
    (work / "asked").write_text("".join(json.dumps(line) + "\n" for line in lines))
    to = f"{KEYS[program]}=k PATH='{work}/bin':$PATH dispatch -q --max-retries 0 --to {program}:{MODELS[program]}"
    ran = sh(f"{to} --base-url http://127.0.0.1:9 < asked > out; echo $?; mllm validate < out")
    assert ran.out.startswith("3\n") and ran.out.endswith(" records hold to the envelope, 0 lines do not\n"), ran.err
    records = [json.loads(line) for line in (work / "out").read_text().splitlines()]
    errors = {record["thread"]: record for record in records if record["type"] == "error"}
    answered = {record["thread"] for record in records if record.get("role") == "assistant"}
    assert answered == {line["thread"] for line in lines} - errors.keys()
    assert {f"t{number}" for number in range(1, len(said), 2)} <= answered and answered != errors.keys()
    assert {error["code"] for error in errors.values()} <= {"malformed", "cut", "empty", "exit", "network"}
    assert "malformed" in {error["code"] for error in errors.values()}
    told = sorted(line.split(": ", 2)[1] for line in ran.err.splitlines())
    assert told == sorted(f"thread {thread}" for thread in errors)
