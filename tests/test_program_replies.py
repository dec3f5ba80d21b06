"""What gemini and opencode say, and what is made of it: cases that no loopback server brings about."""

from __future__ import annotations

from pathlib import Path

import pytest
import test_programs
from programs import answered, called, turn, user

from mllm_pipe.errors import CallFailed
from mllm_pipe.runtimes import _gemini_reply, _opencode_reply, gemini
from mllm_pipe.runtimes._program import distinct

house = test_programs.house

MADE = {"model": "m", "provider": "p", "endpoint": "e", "prefix": "x", "losses": []}


def test_a_thread_that_gemini_makes_no_request_for_is_too_large() -> None:
    final = {"type": "result", "status": "success", "stats": {"total_tokens": 0, "models": {}}}
    with pytest.raises(CallFailed) as caught:
        _gemini_reply.reply([final])
    assert (caught.value.code, caught.value.billed) == ("too_large", "no")


def test_an_answer_that_was_filtered_whole_is_a_refusal() -> None:
    stats = {"total_tokens": 5, "input_tokens": 5, "output_tokens": 0, "models": {"m": {"total_tokens": 5}}}
    events = [{"type": "error", "message": "blocked"}, {"type": "result", "status": "error", "stats": stats}]
    log = b'{\n  "attributes": {\n "event.name": "gemini_cli.api_response", "finish_reasons": ["content_filter"]}\n}\n'
    result = _gemini_reply.reply(events, log=log)
    assert (result["finish"], result["parts"]) == ("filter", [{"type": "refusal", "text": "blocked"}])
    step = {"type": "step_finish", "part": {"reason": "content-filter"}}
    result = _opencode_reply.reply([step], MADE)
    assert (result["finish"], result["parts"]) == ("filter", [{"type": "refusal", "text": "filtered"}])


def test_a_cost_that_opencode_knows_is_told() -> None:
    text = {"type": "text", "part": {"id": "1", "text": "a"}}
    steps = [{"type": "step_finish", "part": {"reason": reason, "cost": 0.25}} for reason in ("tool-calls", "stop")]
    result = _opencode_reply.reply([steps[0], text, steps[1]], MADE)
    assert (result["cost_usd"], result["cost_source"], result["usage"]) == (0.5, "runtime", None)


def test_a_run_that_says_nothing_has_failed() -> None:
    with pytest.raises(CallFailed) as caught:
        _opencode_reply.reply([], MADE, _gemini_reply.ENDED)
    assert caught.value.code == "exit"


def test_a_login_is_linked_and_what_replaces_the_link_is_kept(house: Path) -> None:
    login = house / "home/.gemini/oauth_creds.json"
    login.parent.mkdir()
    login.write_text("old")
    assert gemini.usable({}) == "" or "no such program" in gemini.usable({})
    with gemini._login_in(str(house / "tmp"), shared=True):
        assert (house / "tmp/oauth_creds.json").read_text() == "old"
        (house / "tmp/oauth_creds.json").write_text("renewed")
        assert login.read_text() == "renewed"
        (house / "tmp/oauth_creds.json").unlink()  # what gemini does not do today
        (house / "tmp/oauth_creds.json").write_text("replaced")
    assert login.read_text() == "replaced"


def test_an_id_that_repeats_gets_a_number_that_no_other_id_has() -> None:
    turns = [turn("assistant", called("a"), called("a-2")), user(answered("a", "1"), answered("a-2", "2")),
             turn("assistant", called("a"), called("a-2")), user(answered("a", "3"), answered("a-2", "4")),
             turn("assistant", called("a")), user(answered("a", "5"))]  # fmt: skip
    made, losses = distinct(turns)
    calls = [part["id"] for one in made for part in one["parts"] if part["type"] == "tool_call"]
    results = [part["call_id"] for one in made for part in one["parts"] if part["type"] == "tool_result"]
    assert calls == results == ["a", "a-2", "a-3", "a-2-2", "a-4"]
    assert len(losses) == 3
