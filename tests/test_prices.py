"""What a call cost: exact, each token once, and unknown where anything is. Against others' calculators: oracle/."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopback import serve

from mllm_pipe import models
from mllm_pipe.prices import buckets, cost_of, cost_of_call, off_peak, rates
from mllm_pipe.runtimes import anthropic, load

ROWS = [(provider, model) for provider, known in models.table()["models"].items() for model in known]
SIMPLE = [(provider, model) for provider, model in ROWS if "off_peak" not in models.find(provider, model)]
RECORDED = Path(__file__).parent / "data" / "recorded" / "anthropic"
MILLION = Decimal(1_000_000)
SHARES = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "cache_write_1h_tokens",
          "reasoning_tokens")  # fmt: skip


@st.composite
def usages(draw):
    tokens = st.integers(0, 600_000)
    plain, read, five, hour = (draw(tokens) for _ in range(4))
    output, reasoning = draw(tokens), draw(tokens)
    return {
        "input_tokens": plain + read + five + hour, "cache_read_tokens": read, "cache_write_tokens": five + hour,
        "cache_write_1h_tokens": hour, "output_tokens": output + reasoning, "reasoning_tokens": reasoning,
    }  # fmt: skip


# -- laws -------------------------------------------------------------------------------------------------------------


@given(usages())
def test_every_token_is_in_one_bucket(usage):
    assert sum(buckets(usage).values()) == usage["input_tokens"] + usage["output_tokens"]


@given(st.sampled_from(SIMPLE), usages())
def test_a_cost_is_never_negative_and_has_no_rounding(row, usage):
    cost = cost_of(usage, *row)
    assert cost >= 0 and cost * 10**18 == int(cost * 10**18)


@given(st.sampled_from(SIMPLE), usages(), st.sampled_from(["input_tokens", "output_tokens"]))
def test_more_tokens_never_cost_less(row, usage, name):
    assert cost_of(usage | {name: usage[name] + 1}, *row) >= cost_of(usage, *row)


@given(st.sampled_from(SIMPLE), usages())
def test_a_cached_prompt_costs_no_more_than_the_same_prompt_read_anew(row, usage):
    anew = usage | {"cache_read_tokens": 0, "cache_write_tokens": 0, "cache_write_1h_tokens": 0}
    cached = anew | {"cache_read_tokens": usage["cache_read_tokens"]}
    assert cost_of(cached, *row) <= cost_of(anew, *row)


@given(st.sampled_from(SIMPLE), usages())
def test_shares_that_nobody_told_of_are_none(row, usage):
    told = {name: count for name, count in usage.items() if count}
    whole = told | {name: usage[name] for name in ("input_tokens", "output_tokens")}
    assert cost_of(whole, *row) == cost_of(usage, *row)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(SHARES, st.integers(0, 10))))
def test_a_usage_that_contradicts_itself_or_lacks_a_side_has_no_cost(usage):
    prompt, output, read, write, hour, reasoning = (usage.get(name, 0) for name in SHARES)
    sides = "input_tokens" in usage and "output_tokens" in usage
    sound = sides and read + write <= prompt and hour <= write and reasoning <= output
    assert (cost_of(usage, "anthropic", "claude-opus-5-5") is not None) == sound


# -- each mistake that somebody made once (facts: litellm's issues), on a model of which the prices are known ------------

OPUS = ("anthropic", "claude-opus-5-5")  # 4 in, 20 out, 0.20 read, 5 write, 8 write of an hour, US dollars a million


def usd(usage, provider, model, **more):
    """US dollars for a million times the usage."""
    cost = cost_of(usage, provider, model, **more)
    return None if cost is None else cost * MILLION


def said(prompt=0, output=0, **shares):
    return {"input_tokens": prompt, "output_tokens": output} | shares


def test_cache_writes_are_charged_once():  # litellm #9812, #6575, #31282, #40016: as writes and as input
    assert usd(said(100, cache_write_tokens=100), *OPUS) == 500


def test_cached_tokens_are_charged_at_the_rate_of_cached_tokens():  # #11364, #5443: at the full rate
    assert usd(said(100, cache_read_tokens=100), *OPUS) == 20


def test_input_that_says_the_whole_prompt_is_not_added_to_its_cached_share():  # #19680, #14874
    assert usd(said(100, cache_read_tokens=60, cache_write_tokens=10), *OPUS) == 30 * 4 + 60 * Decimal("0.2") + 10 * 5


def test_writes_that_last_an_hour_are_dearer_than_those_of_five_minutes():
    assert usd(said(100, cache_write_tokens=100, cache_write_1h_tokens=40), *OPUS) == 60 * 5 + 40 * 8


def test_the_rate_of_long_prompts_is_chosen_by_the_whole_prompt():  # and not by its uncached part
    haiku = ("anthropic", "claude-haiku-5-5")  # above 100,000: 0.50 in, 2.50 out, 0.05 read
    assert usd(said(100_000, 1, cache_read_tokens=99_990), *haiku) == Decimal("1000.9") + Decimal("0.5")
    assert usd(said(100_001, 1, cache_read_tokens=99_991), *haiku) == 5 + Decimal("4999.55") + Decimal("2.5")


def test_a_prompt_of_exactly_the_threshold_is_long_for_xai_only():
    google, xai = ("google", "gemini-3.1-pro-preview"), ("xai", "grok-4.7")
    assert usd(said(200_000), *google) < usd(said(200_001), *google) / 2 + 2
    assert usd(said(199_999), *xai) < usd(said(200_000), *xai) * Decimal("0.6")


def test_the_served_tier_counts_and_one_without_prices_is_unknown():
    sol = ("openai", "gpt-6-sol")
    assert usd(said(1, 1), *sol, tier="priority") == 2 * usd(said(1, 1), *sol) == 2 * usd(said(1, 1), *sol, tier="default")
    assert cost_of(said(1, 1), *sol, tier="scale") is None
    assert cost_of(said(1, 1), *OPUS, tier="priority") is None
    assert cost_of(said(1, 1), "openai", "gpt-5-nano", tier="priority") is None, "the table has half of its prices"


def test_the_tier_that_was_asked_for_is_not_taken_for_the_one_that_served():
    target, request = {"model": "gpt-6-sol"}, {"options": {"service_tier": "priority"}}
    result = {"provider": "openai", "model": "gpt-6-sol", "usage": said(1, 1)}
    assert cost_of_call(target, request, result) is None
    plain = cost_of_call(target, {}, result)
    assert cost_of_call(target, request, result | {"service_tier": "default"}) == plain
    assert cost_of_call(target, request, result | {"service_tier": "priority"}) == 2 * plain


@pytest.mark.parametrize("provider, model", [
    ("anthropic", "claude-9"), ("openai", "gpt-6-sol-mini"), ("ollama", "qwen3"), (None, None), ("anthropic", None),
])  # fmt: skip
def test_an_unknown_model_has_no_cost_rather_than_none_to_pay(provider, model):
    assert cost_of(said(100, 100), provider, model) is None


def test_a_dated_name_costs_what_the_name_without_the_date_does():
    assert cost_of(said(1, 1), "anthropic", "claude-opus-5-5-20261001") == cost_of(said(1, 1), *OPUS)
    assert cost_of(said(1, 1), "openai", "gpt-6-sol-2026-09-30") == cost_of(said(1, 1), "openai", "gpt-6-sol")
    assert usd(said(1, 1), "openai", "gpt-4o-2024-05-13") == 5 + 15, "a snapshot with prices of its own keeps them"


def test_a_stream_that_broke_off_has_no_cost():
    assert cost_of({"input_tokens": 5}, *OPUS) is None
    assert cost_of({"output_tokens": 5}, *OPUS) is None
    assert cost_of({}, *OPUS) is None and cost_of(None, *OPUS) is None


def test_compaction_and_advisors_are_charged_too():
    lines = (RECORDED / "anthropic-advisor-20250301.1.chunks.txt").read_text().splitlines()
    result = anthropic.reply(map(orjson.loads, lines), {"model": "claude-sonnet-4-6"}, {"turns": []})
    assert (result["usage"]["input_tokens"], result["usage"]["output_tokens"]) == (4727, 3391)
    answer = said(4727, 3391)
    advice = said(2728, 3880)
    assert cost_of_call({}, {}, result | {"provider": "anthropic"}) == (
        cost_of(answer, "anthropic", "claude-sonnet-4-6") + cost_of(advice, "anthropic", "claude-opus-4-7")
    )


# -- the other rules --------------------------------------------------------------------------------------------------


def test_zero_is_a_price():
    assert cost_of(said(5, 5), "google", "gemini-exp-1114") == 0
    free = {"provider": "x", "model": "m", "prices": {"input_cost_per_token": "3", "output_cost_per_token": "5",
                                                      "cache_read_input_token_cost": "0.0"}}  # fmt: skip
    assert rates(free, 1)["cache_read_input_token_cost"] == 0


def test_a_missing_rate_is_the_one_it_is_a_case_of():
    row = {"provider": "x", "model": "m", "prices": {"input_cost_per_token": "3", "output_cost_per_token": "5"}}
    assert {str(rate) for rate in rates(row, 1).values()} == {"3", "5"}
    row["prices"]["cache_creation_input_token_cost"] = "4"
    assert rates(row, 1)["cache_creation_input_token_cost_above_1hr"] == 4
    row["prices"]["output_cost_per_reasoning_token"] = "7"
    assert rates(row, 1)["output_cost_per_reasoning_token"] == 7


def test_reasoning_is_charged_at_the_tiers_output_rate():
    flash, thought = ("google", "gemini-3.8-flash"), said(0, 100, reasoning_tokens=100)
    for tier in (None, "flex", "priority"):
        assert cost_of(thought, *flash, tier=tier) == cost_of(said(0, 100), *flash, tier=tier)


def test_where_and_how_fast_it_was_served_multiplies_all_of_it():
    plain = cost_of(said(9, 9), *OPUS)
    assert cost_of(said(9, 9), *OPUS, factors=["us", "fast"]) == plain * Decimal("2.2")
    assert cost_of(said(9, 9), *OPUS, factors=["global", "standard"]) == plain
    assert cost_of(said(9, 9), *OPUS, factors=["mars"]) is None


def test_a_model_that_is_cheaper_at_night_costs_by_the_hour():
    model = ("deepseek", "deepseek-v4-pro")
    night, day = datetime(2026, 11, 23, 0, 59, tzinfo=UTC), datetime(2026, 11, 23, 1, 0, tzinfo=UTC)  # a Monday
    assert cost_of(said(9, 9), *model, at=night) * 2 == cost_of(said(9, 9), *model, at=day)
    assert cost_of(said(9, 9), *model, at=day.replace(day=22)) == cost_of(said(9, 9), *model, at=night)
    assert cost_of(said(9, 9), *model) is None


def test_a_window_may_go_past_midnight_and_its_end_is_outside():
    windows = [{"hours_utc": ["22:00-02:00"]}]
    hours = [hour for hour in range(24) if off_peak(windows, datetime(2026, 11, 23, hour))]
    assert hours == [0, 1, 22, 23]


# -- in a span --------------------------------------------------------------------------------------------------------


def spans(ran):
    return [record for record in ran.records if record["type"] == "span"]


def test_a_span_has_the_cost_by_the_table_where_nobody_else_says_one(sh):
    with serve("anthropic") as server:
        line = f"dispatch --to anthropic/claude-opus-5-5 --base-url {server.url('ok')} --new hi | cat"
        (span,) = spans(sh(line, ANTHROPIC_API_KEY="sk-ant-canary"))
        (unknown,) = spans(sh(line.replace("claude-opus-5-5", "nobody"), ANTHROPIC_API_KEY="sk-ant-canary"))
    assert span["usage"] == {"input_tokens": 23, "cache_read_tokens": 7, "cache_write_tokens": 5, "output_tokens": 23}
    assert (span["cost_usd"], span["cost_source"]) == (0.0005304, "table")
    assert span["saved_usd"] == round((23 * 4 + 23 * 20) / 1e6 - 0.0005304, 10)  # as if nothing had been cached
    assert (unknown["cost_usd"], unknown["cost_source"]) == (None, None)


def test_an_answer_that_was_cut_has_no_cost(sh):
    with serve("anthropic") as server:
        line = f"dispatch --to anthropic/claude-opus-5-5 --base-url {server.url('cut')} --new hi | cat"
        (span,) = spans(sh(line, ANTHROPIC_API_KEY="sk-ant-canary"))
    assert (span["status"], span["cost_usd"]) == ("unknown", None)


# -- in a budget ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["echo", "replay:t"])
def test_what_costs_nothing_needs_no_budget(sh, work, spec):
    (work / "t").write_text('{"role":"assistant","content":"hi"}\n')
    ran = sh(f"dispatch --to {spec} --max-cost 0 --max-tokens-total 0 --new hi --text")
    assert (ran.status, ran.out, ran.err) == (0, "hi\n", "")


@pytest.mark.parametrize("kind", ["claude", "codex", "gemini", "opencode"])
@pytest.mark.parametrize("allow", [None, "read", "write", "all"])
def test_the_worst_case_of_a_program_has_what_it_adds_by_itself(sh, kind, allow):
    held = "--max-tokens 100 " * hasattr(load(kind), "TAKES_MAX_TOKENS")  # codex takes no limit, so any answer may come
    flags = f"{held}--max-tokens-total 10" + f" --allow {allow}" * bool(allow)
    ran = sh(f"dispatch --to {kind}:m/m {flags} --new hi -q | cat; exit ${{PIPESTATUS[0]}}")
    api = sh(f"dispatch --to openai:m {flags} --new hi -q | cat; exit ${{PIPESTATUS[0]}}")
    assert (ran.status, api.status, ran.kinds()) == (4, 4, "begin user error failed end")
    most, bare = (int(re.search(r"could cost (\d+) tokens", one.err)[1]) for one in (ran, api))
    assert most - bare == load(kind).OWN_TOKENS[allow] and bare > 100
