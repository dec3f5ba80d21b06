"""Retries and fallbacks: what is asked again, what never is, and what the span says of it."""

from __future__ import annotations

import pytest
from loopback import serve


@pytest.fixture
def chat():
    with serve("chat") as server:
        yield server


def ask(sh, server, scenario: str, *flags: str, prompt: str = "q"):
    line = f"dispatch --to openai-chat/m --base-url {server.url(scenario)}/v1 --new {prompt} {' '.join(flags)}"
    return sh(f"{line} | cat; exit ${{PIPESTATUS[0]}}", OPENAI_API_KEY="sk-canary")


def attempts(ran) -> list[tuple]:
    span = next(record for record in ran.records if record["type"] == "span")
    return [(attempt["runtime"], attempt["status"], attempt.get("code")) for attempt in span["attempts"]]


def test_a_busy_server_is_asked_again_after_the_wait_it_asks_for(sh, chat):
    ran = ask(sh, chat, "429x2~a")
    assert (ran.status, ran.err) == (0, "")
    assert attempts(ran) == [("openai-chat", "error", "rate_limit")] * 2 + [("openai-chat", "ok", None)]
    span = next(record for record in ran.records if record["type"] == "span")
    assert [attempt.get("wait_ms") for attempt in span["attempts"]] == [None, 1000, 1000], "retry-after: 1"
    assert span["duration_ms"] >= 2000 and len(chat.calls()) == 3


def test_it_gives_up_after_the_retries_and_says_so(sh, chat):
    ran = ask(sh, chat, "503", "--max-retries 1")
    assert ran.status == 75
    assert ", gave up after 2 tries" in ran.err
    assert len(chat.calls()) == 2


def test_a_wait_beyond_the_cap_or_the_deadline_is_not_waited_for(sh, chat):
    assert ask(sh, chat, "429", "--retry-after-cap 0.5").status == 75
    assert ask(sh, chat, "429", "--timeout 0.9").status == 75
    assert len(chat.calls()) == 2


@pytest.mark.parametrize("scenario", ["400", "401", "403", "404", "413", "cut", "reset", "empty", "html"])
def test_a_wrong_request_and_an_unsure_one_are_never_asked_again(sh, chat, scenario):
    ran = ask(sh, chat, scenario)
    assert ran.status not in (0, 75)
    assert len(chat.calls()) == 1


def test_silence_is_unknown_and_goes_to_the_fallback_alone(sh, chat):
    ran = ask(sh, chat, "hang", "--first-token 0.3", "--fallback exec:cat")
    assert (ran.status, ran.err) == (0, "")
    assert attempts(ran) == [("openai-chat", "unknown", "timeout"), ("exec", "ok", None)]
    assert ran.records[2]["author"]["runtime"] == "exec" and len(chat.calls()) == 1


def test_fallbacks_are_asked_in_order_and_the_one_that_answered_is_named(sh, chat):
    ran = ask(sh, chat, "401", "--fallback exec:false", "--fallback echo", "--fallback exec:cat", prompt="hello")
    assert ran.status == 0
    assert attempts(ran) == [("openai-chat", "error", "auth"), ("exec", "unknown", "exit"), ("echo", "ok", None)]
    span = next(record for record in ran.records if record["type"] == "span")
    assert (span["runtime"], span["model"], span["status"], span["cost_usd"]) == ("echo", "echo", "ok", 0)
    assert ran.records[2]["content"] == "hello"


def test_a_refusal_is_nobody_elses_to_get_around(sh, chat):
    ran = ask(sh, chat, "refusal", "--fallback echo")
    assert ran.status == 5
    assert len(attempts(ran)) == 1


def test_an_unknown_fallback_is_a_usage_error_before_anything_is_sent(sh, chat):
    ran = ask(sh, chat, "ok", "--fallback ecko")
    assert ran.status == 2 and chat.calls() == []


def test_a_judge_has_fallbacks_too(sh, chat):
    line = f"judge --by openai-chat/m --base-url {chat.url('401')}/v1 --fallback echo --rubric correctness -q"
    assert sh(f"dispatch --to echo --new q | {line} >/dev/null", OPENAI_API_KEY="k").status == 0
