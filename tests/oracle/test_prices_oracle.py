"""Costs against two calculators that others wrote: litellm's, whose table ours is made of, and genai-prices.

`make prices` installs both, as the extra `prices` pins them, and runs this; skipped without. litellm calculates in
floats, so agreement is to a part in 1e9. LITELLM_LOCAL_MODEL_COST_MAP keeps it from fetching another table than the one it came with.
"""

from __future__ import annotations

import os
import random

import pytest

from mllm_pipe import models
from mllm_pipe.prices import cost_of

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

VENDORS = {"anthropic": "anthropic", "openai": "openai", "google": "gemini"}
# Rows whose prices of a tier are shown to be wrong: (provider, model, tier): why.
MISLABELLED = {
    ("openai", name, "priority"): "an input price alone: no output is billed at the plain rate in a dearer tier"
    for name in ("gpt-5-nano", "gpt-5-nano-2025-08-07")
}


def a_usage(random_: random.Random, writes: bool, hours: bool) -> dict[str, int]:
    """A usage of ours: sizes on both sides of every threshold, and on them."""
    near = random_.choice([100_000, 128_000, 200_000, 272_000])
    read = random_.choice([0, 0, 1024, 90_000])
    write = random_.choice([0, 2048, 5000]) if writes else 0
    reasoning = random_.choice([0, 900])
    prompt = max(random_.choice([3, 5000, 150_000, 400_000, near - 1, near, near + 1]), read + write)
    return {
        "input_tokens": prompt,
        "cache_read_tokens": read,
        "cache_write_tokens": write,
        "cache_write_1h_tokens": random_.choice([0, write, write // 2]) if hours else 0,
        "output_tokens": reasoning + random_.choice([0, 1, 700]),
        "reasoning_tokens": reasoning,
    }


def tiers(row: models.Row) -> list[str | None]:
    """The service tiers that a row has prices of."""
    found = {name.rsplit("_", 1)[1] for name in row["prices"] if name.startswith("input_cost_per_token_")}
    return [None, *sorted(tier for tier in found if tier in ("flex", "priority", "ultrafast", "balanced"))]


def cases() -> list[tuple[str, str, str | None]]:
    return [
        (provider, model, tier)
        for provider in VENDORS
        for model, row in models.table()["models"][provider].items()
        for tier in tiers(row)
    ]


@pytest.fixture
def by_litellm():
    pytest.importorskip("litellm")
    from litellm.litellm_core_utils.llm_cost_calc.utils import generic_cost_per_token
    from litellm.types.utils import (
        CacheCreationTokenDetails,
        CompletionTokensDetailsWrapper,
        PromptTokensDetailsWrapper,
        Usage,
    )

    def cost(provider: str, model: str, tier: str | None, usage: dict[str, int]) -> float:
        hour = usage["cache_write_1h_tokens"]
        writes = CacheCreationTokenDetails(
            ephemeral_5m_input_tokens=usage["cache_write_tokens"] - hour, ephemeral_1h_input_tokens=hour
        )
        theirs = Usage(
            prompt_tokens=usage["input_tokens"],
            completion_tokens=usage["output_tokens"],
            total_tokens=usage["input_tokens"] + usage["output_tokens"],
            prompt_tokens_details=PromptTokensDetailsWrapper(
                cached_tokens=usage["cache_read_tokens"],
                cache_creation_tokens=usage["cache_write_tokens"],
                cache_creation_token_details=writes,
            ),
            completion_tokens_details=CompletionTokensDetailsWrapper(
                reasoning_tokens=usage["reasoning_tokens"],
                text_tokens=usage["output_tokens"] - usage["reasoning_tokens"],
            ),
        )
        return sum(generic_cost_per_token(model, theirs, VENDORS[provider], service_tier=tier))

    return cost


@pytest.mark.filterwarnings("default")
def test_every_row_and_tier_of_the_three_vendors_costs_what_litellm_says(by_litellm):
    every = [case for case in cases() if case not in MISLABELLED]
    rounds = -(-1000 // len(every))
    random_, wrong = random.Random(4), []
    for provider, model, tier in every * max(rounds, 4):
        usage = a_usage(random_, provider != "google", provider == "anthropic")
        ours, theirs = cost_of(usage, provider, model, tier=tier), by_litellm(provider, model, tier, usage)
        if ours is None or abs(float(ours) - theirs) > 1e-9 * max(theirs, 1e-6):
            wrong.append((provider, model, tier, usage, ours, theirs))
    print(f"{len(every)} rows and tiers, {len(every) * max(rounds, 4)} usages, {len(wrong)} disagree")
    assert not wrong


@pytest.mark.filterwarnings("default")
def test_a_tier_with_half_its_prices_is_unknown_here_and_mixed_there(by_litellm):
    usage = {"input_tokens": 1000, "cache_read_tokens": 0, "cache_write_tokens": 0, "cache_write_1h_tokens": 0,
             "output_tokens": 1000, "reasoning_tokens": 0}  # fmt: skip
    for provider, model, tier in MISLABELLED:
        prices = models.table()["models"][provider][model]["prices"]
        mixed = 1000 * (float(prices[f"input_cost_per_token_{tier}"]) + float(prices["output_cost_per_token"]))
        assert cost_of(usage, provider, model, tier=tier) is None
        assert by_litellm(provider, model, tier, usage) == pytest.approx(mixed)


# Where the two tables differ, so that one of them must be wrong: (model, why).
TABLES_DIFFER = {
    **dict.fromkeys(
        ("ft:gpt-4o-2024-08-06", "ft:gpt-4o-mini-2024-07-18", "gpt-4o-search-preview",
         "gpt-4o-search-preview-2025-03-11", "gemini-2.5-pro-preview-tts"),
        "genai-prices has no rate of cached tokens and takes the input rate",
    ),
    "ft:gpt-4o-2024-11-20": "litellm has the rate of cached tokens, half the input rate, as that of cache writes",
    "claude-sonnet-4-5": "litellm has no rates of prompts beyond 200,000, which is all of the window it gives",
    "claude-sonnet-4-5-20250929": "the same",
    "gpt-5.6-cyber": "genai-prices has no rates of long prompts",
}  # fmt: skip


def test_a_hundred_usages_cost_what_genai_prices_says_to_the_last_digit():
    genai_prices = pytest.importorskip("genai_prices")
    random_, compared, wrong = random.Random(4), 0, []
    for provider, model, tier in cases():
        if tier or model in TABLES_DIFFER:
            continue
        usage = a_usage(random_, provider != "google", provider == "anthropic")
        try:
            theirs = genai_prices.calc_price(
                genai_prices.Usage(
                    input_tokens=usage["input_tokens"],
                    cache_read_tokens=usage["cache_read_tokens"],
                    cache_write_tokens=usage["cache_write_tokens"],
                    cache_write_1h_tokens=usage["cache_write_1h_tokens"],
                    output_tokens=usage["output_tokens"],
                ),
                model,
                provider_id=provider,
            )
        except LookupError:
            continue  # it does not know the model
        compared += 1
        ours = cost_of(usage, provider, model)
        if ours != theirs.total_price:
            wrong.append((provider, model, usage, ours, theirs.total_price, str(theirs.model_price)))
    print(f"{compared} compared, {len(wrong)} disagree")
    assert compared >= 100
    assert not wrong, "\n".join(map(str, wrong))
