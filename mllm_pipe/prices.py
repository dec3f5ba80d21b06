"""What a call cost, exactly, from the table of models: disjoint buckets of tokens times a rate each, in decimals.

The rules, each of which somebody got wrong once (litellm #9812, #11364, #14874, #19680, #40016):
- A token is charged in one bucket: uncached input, cache read, cache write of 5 minutes or 1 hour, output, reasoning.
- The rate of a long prompt is chosen by the whole prompt, cached tokens too, and holds for all buckets.
- No rate for a cache is the input rate, none for 1 hour the write rate, none for reasoning the output rate; 0 is one.
- What is not known (the model, a count, the tier) makes the cost unknown: None, never 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal
from typing import Any

from mllm_pipe.models import Row, find

INPUT, OUTPUT = "input_cost_per_token", "output_cost_per_token"
READ, REASONING = "cache_read_input_token_cost", "output_cost_per_reasoning_token"
WRITE, WRITE_1H = "cache_creation_input_token_cost", "cache_creation_input_token_cost_above_1hr"

# Words of vendors for the tier that has no name in the table; "fast" is what OpenAI also calls priority.
_TIERS = {"standard": "", "default": "", "on_demand": "", "fast": "priority"}
_PLAIN = ("global", "not_available", "standard", "default")  # words for geography and speed that multiply nothing
_LONG = re.compile(r"(.+)_above_(\d+)(k?)_tokens(?:_([a-z]+))?")


def cost_of(
    usage: dict[str, Any] | None,
    provider: str | None,
    model: str | None,
    *,
    tier: str | None = None,
    factors: Iterable[str] = (),
    at: datetime | None = None,
) -> Decimal | None:
    """The cost of a call in US dollars; None if it cannot be known.

    usage: of mllm_pipe.runtimes, the share of `cache_write_tokens` that is kept for an hour as `cache_write_1h_tokens`.
    tier: the service tier that served it. factors: what multiplies every rate ("us", "eu", "fast": where and how fast
    it was served). at: when (UTC), which only matters for a model that is cheaper at some hours: without it, the cost
    of such a model is None.
    """
    row = find(provider, model)
    tokens = buckets(usage)
    if not usage or not row or not tokens:
        return None
    prices = rates(row, usage["input_tokens"], tier, at)
    if not prices:
        return None
    cost = sum((prices[name] * count for name, count in tokens.items()), Decimal(0))
    for factor in factors:
        if factor not in _PLAIN:
            if factor not in row.get("factors", {}):
                return None
            cost *= Decimal(row["factors"][factor])
    return cost


def cost_of_call(
    target: dict[str, Any], request: dict[str, Any], result: dict[str, Any], at: datetime | None = None
) -> Decimal | None:
    """The cost of a whole answer by what its result says; None if it cannot be known.

    The model is the one that answered. The tier is the one that served, result["service_tier"]; if nobody says which,
    and the user asked for another than the usual, it is unknown. result["factors"]: as of `cost_of`. An answer that was
    made in several steps (compaction, advisors) costs what its result["iterations"] cost.
    """
    asked = (target.get("options") or {}) | (request.get("options") or {})
    tier = None if result.get("service_tier") == "auto" else result.get("service_tier")
    if tier is None and asked.get("service_tier") not in (None, "auto", "standard_only", *_usual()):
        return None
    model, provider = result.get("model") or target.get("model"), result.get("provider")
    factors = result.get("factors", ())
    steps = result.get("iterations") or [{"usage": result.get("usage")}]
    costs = [
        cost_of(step["usage"], provider, step.get("model") or model, tier=tier, factors=factors, at=at)
        for step in steps
    ]
    known = [cost for cost in costs if cost is not None]
    return sum(known, Decimal(0)) if len(known) == len(costs) else None


def saved_by_cache(
    target: dict[str, Any], request: dict[str, Any], result: dict[str, Any], at: datetime | None = None
) -> Decimal | None:
    """What the prompt cache saved of a call, in US dollars by the table: its cost without one, less its cost.

    Negative where filling the cache cost more than it gave. None if no cache was used, or a cost cannot be known.
    """
    if not any(result["usage"].get(name) for name in _CACHE):
        return None
    plain = result | {"usage": _uncached(result["usage"])}
    if result.get("iterations"):
        plain["iterations"] = [step | {"usage": _uncached(step["usage"])} for step in result["iterations"]]
    costs = [cost_of_call(target, request, told, at) for told in (plain, result)]
    return None if costs[0] is None or costs[1] is None else costs[0] - costs[1]


_CACHE = ("cache_read_tokens", "cache_write_tokens", "cache_write_1h_tokens")


def _uncached(usage: dict[str, Any]) -> dict[str, Any]:
    return {name: count for name, count in usage.items() if name not in _CACHE}


def _usual() -> list[str]:
    return [word for word, tier in _TIERS.items() if not tier]


def buckets(usage: dict[str, Any] | None) -> dict[str, int] | None:
    """The tokens of a usage by the rate that they are charged at; None if input or output is missing (a stream that
    broke off says only one of them), or if a part is larger than its whole."""
    if not usage or "input_tokens" not in usage or "output_tokens" not in usage:
        return None
    read, write = usage.get("cache_read_tokens", 0), usage.get("cache_write_tokens", 0)
    hour, reasoning = usage.get("cache_write_1h_tokens", 0), usage.get("reasoning_tokens", 0)
    tokens = {
        INPUT: usage["input_tokens"] - read - write,
        READ: read,
        WRITE: write - hour,
        WRITE_1H: hour,
        OUTPUT: usage["output_tokens"] - reasoning,
        REASONING: reasoning,
    }
    return tokens if min(tokens.values()) >= 0 else None


def rates(row: Row, prompt: int, tier: str | None = None, at: datetime | None = None) -> dict[str, Decimal] | None:
    """US dollars a token for each bucket, with a prompt of this many tokens; None for a tier without prices."""
    suffix = _TIERS.get(tier or "standard", tier or "")
    prices: dict[str, str] = row["prices"]
    if suffix and not all(f"{name}_{suffix}" in prices for name in (INPUT, OUTPUT)):
        return None
    if "off_peak" in row:
        if at is None:
            return None
        if off_peak(row["off_peak"]["windows"], at):
            prices = prices | row["off_peak"]["prices"]
    if row["provider"] == "xai":
        prompt += 1  # there a prompt of exactly the threshold is a long one

    def rate(name: str, otherwise: Decimal) -> Decimal:
        found = _rate(prices, name, suffix, prompt)
        return otherwise if found is None else Decimal(found)

    made = {INPUT: rate(INPUT, Decimal(0)), OUTPUT: rate(OUTPUT, Decimal(0))}
    made[READ], made[WRITE] = rate(READ, made[INPUT]), rate(WRITE, made[INPUT])
    made[WRITE_1H] = rate(WRITE_1H, made[WRITE])
    # A reasoning rate that is the plain output rate says nothing of its own: tiers and long prompts raise both.
    own = prices.get(REASONING, prices[OUTPUT]) != prices[OUTPUT]
    made[REASONING] = rate(REASONING, made[OUTPUT]) if own else made[OUTPUT]
    return made


def _rate(prices: dict[str, str], base: str, suffix: str, prompt: int) -> str | None:
    """The rate of the highest threshold that the prompt passes, of the tier if there is one; else the plain one."""
    passed = []
    for name, price in prices.items():
        found = _LONG.fullmatch(name) if name.startswith(base) else None
        if found and found[1] == base and found[4] in (None, suffix or None):
            threshold = int(found[2]) * (1000 if found[3] else 1)
            if prompt > threshold:
                passed.append((threshold, found[4] is not None, price))
    if passed:
        return max(passed)[2]
    return prices.get(f"{base}_{suffix}" if suffix else base, prices.get(base))


def off_peak(windows: list[dict[str, Any]], at: datetime) -> bool:
    """True if the moment (UTC) is within one of the windows; one that ends where it starts is the whole day."""
    now = f"{at:%H:%M}"
    for rule in windows:
        if at.isoweekday() not in rule.get("weekdays", range(1, 8)):
            continue
        for hours in rule["hours_utc"]:
            start, end = hours.split("-")
            if start <= now < end or (end <= start and (now >= start or now < end)):
                return True
    return False


