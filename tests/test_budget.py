"""Budgets: nothing is sent that could go beyond them, by one command, or by all that run in a day."""

from __future__ import annotations

import orjson
import pytest
from conftest import at_noon
from loopback import serve
from loopback.play import Play

KEY = {"OPENAI_API_KEY": "sk-x"}
CHAT = "dispatch --to openai-chat:m --max-tokens 100"  # each call: at most 114 tokens by our estimate, 4 in truth


def told(number: int, text: str) -> tuple[int, dict[str, str], str]:
    return 200, {}, "yes"


def test_what_could_cost_more_than_is_left_is_not_sent(sh, batch):
    """The rest of the threads is copied, each with an error record that says so."""
    batch(5)
    with Play(told) as server:
        ran = sh(f"{CHAT} --base-url {server.url} --max-tokens-total 125 < in | cat; exit ${{PIPESTATUS[0]}}")
        assert (ran.status, server.count) == (4, 3)
    why = ("the budget of 125 tokens has 113 tokens left, and this call could cost 114 tokens; --max-tokens lowers that")
    assert ran.err == "".join(f"dispatch: thread t{n}: {why}\n" for n in (3, 4))
    assert ran.kinds() == "begin" + " user assistant span ok" * 3 + " user error failed" * 2 + " end"
    errors = [record for record in ran.records if record["type"] == "error"]
    assert {(error["code"], error["message"], error["billed"], error["retryable"]) for error in errors} == {
        ("budget", why, "no", False)}  # fmt: skip


def test_calls_in_flight_wait_for_what_others_leave(sh, batch):
    """The worst case of one call is all that fits at a time; settled, there is room for every one of them."""
    batch(20)
    with Play(told) as server:
        ran = sh(f"{CHAT} -j 8 --base-url {server.url} --max-tokens-total 200 < in > out")
        assert (ran.status, ran.err, server.count, server.most) == (0, "", 20, 1)


def test_a_limit_in_money_is_held_in_exact_decimals(sh, batch):
    """gpt-5-nano: $0.4 for a million tokens of answer at most, next to nothing in truth."""
    batch(3)
    line = "dispatch --to openai/gpt-5-nano --max-tokens 1000000 < in > out"
    with serve("responses") as server:
        there = KEY | {"OPENAI_BASE_URL": server.url("ok") + "/v1"}
        ran = sh(line.replace("<", "--max-cost 0.4 <"), **there)
        assert ran.status == 4 and len(server.calls()) == 0
        assert "the budget of $0.4 has $0.4 left, and this call could cost $0.4000; --max-tokens lowers that" in ran.err
        ran = sh(line.replace("<", "--max-cost 0.41 -j 3 <"), **there)
        assert (ran.status, ran.err, len(server.calls())) == (0, "", 3)


def test_a_price_that_nobody_knows_can_be_no_part_of_a_limit(sh):
    ran = sh("dispatch --to openai-chat:m --base-url http://127.0.0.1:1/v1 --max-cost 1 --new q --text")
    assert ran.status == 2 and ran.err.endswith(
        ": openai-chat: no budget in money can be held, the price of m is unknown; mllm models --refresh may know it; "
        "or limit tokens: --max-tokens-total N\n")  # fmt: skip
    ran = sh("dispatch --to openai-chat --base-url http://127.0.0.1:1/v1 --max-cost 1 --new q --text")
    assert ran.status == 2 and "its model is not named; say -m MODEL; or limit tokens" in ran.err


def test_a_vendor_by_its_own_address_costs_what_it_costs_by_its_name(sh):
    line = "dispatch --to openai-chat:gpt-5-nano --max-cost 0.000001 --new q --text"
    by_name = sh(line, **KEY)
    assert by_name.status == 4 and "the budget of $0.000001 has $0.000001 left, and this call could cost $" in by_name.err
    for variable in ("https://api.openai.com/v1", "https://API.openai.com/v1/"):
        by_address = sh(line, OPENAI_BASE_URL=variable, **KEY)
        assert (by_address.status, by_address.err.split(": ")[2:]) == (4, by_name.err.split(": ")[2:])


@pytest.mark.parametrize(("budget", "status", "why"), [
    ("day_tokens=100", 4, "the budget of 100 tokens a day has 100 tokens left, and this call could cost "),
    ("run_tokens=100, day_tokens=1000", 4, "the budget of 100 tokens a run has 100 tokens left, and this call could"),
    ("day_usd=much", 2, "MLLM_BUDGET: budget: day_usd is 'much', which is no amount"),
    ("day_usd=-1", 2, "MLLM_BUDGET: budget: day_usd is '-1', which is no amount"),
    ("week_usd=1", 2, "MLLM_BUDGET: budget: 'week_usd' is no limit; there are day_usd, day_tokens, run_usd, run_tokens"),
])  # fmt: skip
def test_budgets_of_the_environment(sh, budget, status, why):
    ran = sh(f"{CHAT} --base-url http://127.0.0.1:1/v1 --new q", MLLM_BUDGET=budget)
    assert ran.status == status and why in ran.err


def test_a_budget_of_the_configuration_holds_for_judge_as_well(sh, home):
    (home / ".config/mllm-pipe").mkdir(parents=True)
    (home / ".config/mllm-pipe/mllm.toml").write_text("[budget]\nday_tokens = 100\n")
    ran = sh("MLLM_BUDGET=day_tokens=99999 dispatch --to echo --new q > t; judge --by openai-chat:m --base-url http://127.0.0.1:1/v1 --rubric correctness < t",
             TZ=at_noon())  # fmt: skip
    assert ran.status == 4 and "the budget of 100 tokens a day has 98 tokens left" in ran.err


def test_a_shared_budget_needs_the_journal(sh):
    ran = sh("dispatch --to echo --new q", MLLM_BUDGET="day_usd=1", MLLM_JOURNAL="off")
    assert ran == (2, "", "dispatch: MLLM_JOURNAL=off, and the journal is the ledger of a budget for a day or a run\n")


def test_a_day_has_one_budget_whoever_spends_it(sh, home):
    """Forty processes, eight at a time: not one call more than the tokens of the day allow."""
    day = {"MLLM_BUDGET": "day_tokens=200", "TZ": at_noon()}
    with Play(told) as server:
        line = f"seq 40 | xargs -P 8 -I N {CHAT} --base-url {server.url} --new 'question N' -q > /dev/null"
        ran = sh(line, **day)
        assert ran.status == 123, "xargs: one of them failed"
        assert server.count == 22, "each costs 4; before the last one 84 were spent, and its worst case is 114 or 115"
        assert ran.err.count("the budget of 200 tokens a day has 112 tokens left") == 18
        ran = sh(f"{CHAT} --base-url {server.url} --new 'question 0'", **day)
        assert ran.status == 4 and server.count == 22, "the journal remembers"


def test_a_call_that_is_tried_again_or_elsewhere_does_not_wait_for_itself(sh, batch):
    """200 tokens: room for one call at a time, though four tries of it were begun."""
    batch(2)
    with Play(lambda number, text: (503, {}, "") if number % 4 else (200, {}, "yes")) as server:
        line = f"{CHAT} --base-url {server.url} --max-retries 1 --fallback openai-chat:n < in > out"
        ran = sh(line.replace("<", "--timeout 120 <"), MLLM_BUDGET="day_tokens=200", TZ=at_noon(), OPENAI_BASE_URL=server.url,
                 OPENAI_API_KEY="sk-x")  # fmt: skip
    assert (ran.status, ran.err, server.count) == (0, "", 8)


def test_a_run_has_one_budget_through_all_its_stages(sh):
    with Play(told) as server:
        stage = f"{CHAT} --base-url {server.url}"
        ran = sh(f"{stage} --new q | {stage} --as b again | {stage} --as c more | cat", MLLM_BUDGET="run_tokens=150")
        assert server.count == 2, ran.err
        assert ran.err.count("the budget of 150 tokens a run has 142 tokens left") == 1
        assert sh(f"{stage} --new q > out", MLLM_BUDGET="run_tokens=150").status == 0, "another run has its own"


def test_who_was_killed_has_spent_its_worst_case(sh, home):
    """Nobody knows what came of the call: as soon as its process is gone it counts as paid for, and nobody waits."""
    day = {"MLLM_BUDGET": "day_tokens=200", "TZ": at_noon()}
    with serve("chat") as server:
        line = f"{CHAT} --timeout 600 --base-url {server.url('hang')}/v1 --new q"
        sh(f"{line} & pid=$!; until grep -qs intent ~/.local/state/mllm-pipe/journal.jsonl; do :; done; "
           "kill -9 $pid; wait $pid", **day)  # fmt: skip
        ran = sh(f"timeout 300 {CHAT} --base-url {server.url('ok')}/v1 --new q", **day)
    assert ran.status == 4 and "the budget of 200 tokens a day has " in ran.err and "waiting" not in ran.err


@pytest.mark.parametrize(("scenario", "spent"), [("401", False), ("cut", True), ("503", False)])
def test_what_was_surely_not_billed_is_not_spent(sh, scenario, spent):
    day = {"MLLM_BUDGET": "day_tokens=180", "TZ": at_noon()}
    with serve("chat") as server:
        line = f"{CHAT} --max-retries 0 --new q --text"
        assert sh(f"{line} --base-url {server.url(scenario)}/v1", **day).status != 4
        assert sh(f"{line} --base-url {server.url('ok')}/v1", **day).status == (4 if spent else 0)


def test_what_is_taken_from_the_journal_spends_nothing(sh):
    with Play(told) as server:
        line = f"{CHAT} --cache --base-url {server.url} --max-tokens-total 130 --new q > out"
        assert [sh(line).status for _ in range(3)] == [0, 0, 0] and server.count == 1


def test_the_journal_says_what_a_call_could_have_cost(sh, home):
    with Play(told) as server:
        sh(f"{CHAT} --base-url {server.url} --max-tokens-total 1000 --new q > out")
    intent = orjson.loads((home / ".local/state/mllm-pipe/journal.jsonl").read_bytes().splitlines()[0])
    assert intent["worst"] | {"until": 0} == {"usd": None, "tokens": 112, "until": 0}


@pytest.mark.parametrize("flag", ["--max-cost", "--retry-after-cap", "--first-token", "--timeout"])
def test_a_limit_that_is_no_number_is_told(sh, flag):
    ran = sh(f"dispatch {flag} nan --to echo --new q")
    assert (ran.status, ran.out) == (2, "") and "nan is no number" in ran.err


def test_what_costs_nothing_is_not_stopped_by_a_budget_that_is_spent(sh):
    assert sh("dispatch --to echo --new q --text", MLLM_BUDGET="day_tokens=0,run_usd=0") == (0, "q\n", "")
    assert sh("dispatch --to echo --new q --text --max-tokens-total 0 --max-cost 0") == (0, "q\n", "")


def test_each_call_of_a_thread_with_tools_is_checked(sh, home, work):
    """The second one, with the result of the tool, would go beyond: the thread fails, and nothing more is sent."""
    (work / "bash.json").write_text('{"name":"bash","description":"runs","input_schema":{"type":"object"}}')
    with serve("chat") as server:
        line = f"{CHAT} --base-url {server.url('tool')}/v1 --tool bash.json --run-tools exec:cat --new q"
        ran = sh(f"{line} --max-tokens-total 200 | cat; exit ${{PIPESTATUS[0]}}", **KEY)
        assert (ran.status, len(server.calls())) == (4, 1), ran.err
        assert ran.kinds() == "begin tools user assistant span span tool error failed end"
        assert sh(f"{line} --max-tokens-total 2000 > out", **KEY).status == 0 and len(server.calls()) == 3


def test_a_summary_is_paid_for_out_of_the_same_budget(sh, home, work):
    turns = "".join(f'{{"v":1,"type":"message","thread":"t","id":"m{n}","role":"{("user", "assistant")[n % 2]}",'
                    f'"content":"{n} {"word " * 300}"}}\n' for n in range(9))  # fmt: skip
    (work / "in").write_text(turns)
    with Play(told) as server:
        (home / ".config/mllm-pipe").mkdir(parents=True)
        (home / ".config/mllm-pipe/mllm.toml").write_text(
            f'[runtimes.r]\nkind = "openai-chat"\nmodel = "m"\nbase_url = "{server.url}"\nmax_tokens = 100\n'
            '[agents.a]\nruntime = "r"\nmodels = { summarizer = "r" }\n')  # fmt: skip
        ran = sh("dispatch --to a --window 3000 --max-tokens-total 100 < in > out")
        assert (ran.status, server.count) == (4, 0), ran.err
        ran = sh("dispatch --to a --window 3000 --max-tokens-total 99999 < in > out")
        assert (ran.status, server.count) == (0, 2), ran.err
