"""What the four agent programs themselves send, on loopback, as a thread grows: all that was sent is sent again as it was."""

from __future__ import annotations

import json
from typing import Any

import test_programs
import test_programs_more
from programs import PNG, Program, answered, called, turn, user

house = test_programs.house
program = test_programs_more.program  # gemini or opencode
sibling = test_programs.program  # claude or codex

PICTURE = {"type": "file", "media_type": "image/png", "data": PNG, "name": "dot.png"}
ODD = [
    user("one", PICTURE),
    turn("assistant", "Let me see.", called("c1", city="Oslo")),
    turn("assistant", "And more."),
    user(answered("c1", "rain"), "two"),
    turn("assistant", "Rain."),
    turn("system", "Be brief."),
    user("three"),
    turn("assistant", called("c1", city="Lima"), called("c2")),
    user(answered("c2", "late"), answered("c1", "sun")),
    turn("assistant", "Sun."),
    user("four"),
    turn("system", "Be briefer."),
    turn("assistant", {"type": "reasoning", "text": "hm"}, "No."),
    turn("assistant", "Yes."),
    user("five"),
]
WHERE = {"claude": "messages", "codex": "input", "gemini": "contents", "opencode": "messages"}


def bare(value: Any) -> Any:
    """Without the marks that say how far the cache shall go, which move on, and the ids that codex gives to messages:
    of the newest it is a random one, and nothing that the model reads."""
    if isinstance(value, dict):
        hidden = ("cache_control", "id") if value.get("type") == "message" else ("cache_control",)
        return {name: bare(inner) for name, inner in value.items() if name not in hidden}
    return [bare(inner) for inner in value] if isinstance(value, list) else value


def grows(program: Program) -> None:
    sent: list[Any] = []
    asked = [n for n in range(1, len(ODD) + 1) if ODD[n - 1]["role"] != "assistant"]
    for end in (n for n in asked if n == len(ODD) or ODD[n]["role"] == "assistant"):
        program.ask(*ODD[:end])
        now = bare(program.calls()[-1]["body"][WHERE[program.name]])
        assert json.dumps(now[: len(sent)]) == json.dumps(sent)
        sent = now
    assert len(sent) > 12


def test_all_that_was_sent_is_sent_again_as_it_was(program: Program) -> None:
    grows(program)


def test_all_that_the_siblings_sent_is_sent_again_too(sibling: Program) -> None:
    grows(sibling)
