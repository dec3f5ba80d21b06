"""What is known of a model: windows, limits, capabilities, prices; and which options it takes.

The table is data/models.json (see mllm_pipe.modelfile), or the user's own in $XDG_DATA_HOME/mllm-pipe. It is read when
it is first asked. What it does not say is unknown: None, never false or 0.
"""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import orjson

from mllm_pipe.envelope import DEEPEST, depth
from mllm_pipe.errors import Failure, Usage
from mllm_pipe.terminal import note

Row = dict[str, Any]
Json = dict[str, Any]

SHIPPED = os.path.join(os.path.dirname(__file__), "data", "models.json")

# Other names under which a provider is known: as a program, or by its host.
_PROVIDERS = {
    "claude": "anthropic",
    "codex": "openai",
    "gemini": "google",
    "api.anthropic.com": "anthropic",
    "api.openai.com": "openai",
    "generativelanguage.googleapis.com": "google",
}
# Dated snapshots of these providers cost what the name without the date costs; those of others need not.
_SNAPSHOT = {"anthropic": r"-20\d{6}", "openai": r"-20\d\d-\d\d-\d\d", "google": r"-\d{3}"}


# -- the table ---------------------------------------------------------------------------------------------------------


def user_file() -> str:
    """Where `mllm models --refresh` keeps the user's table."""
    home = os.environ.get("XDG_DATA_HOME") or os.path.join(os.path.expanduser("~"), ".local", "share")
    return os.path.join(home, "mllm-pipe", "models.json")


@functools.cache
def table() -> Json:
    """The table in force: the user's if there is one, else the shipped one; its shape is said in mllm_pipe.modelfile.

    A user's table that is damaged is told of and not used: an answer that was paid for must not be lost over its price.
    """
    try:
        with open(user_file(), "rb") as file:
            found = orjson.loads(file.read())
        from mllm_pipe.modelfile import checked

        return checked(found)
    except FileNotFoundError:
        pass
    except (OSError, orjson.JSONDecodeError, Failure) as error:
        why = error.strerror if isinstance(error, OSError) else error
        note(f"{user_file()} {why}; the shipped table is used, mllm models --refresh makes a new one")
    return shipped()


def shipped() -> Json:
    """The table that mllm-pipe came with."""
    with open(SHIPPED, "rb") as file:
        found: Json = orjson.loads(file.read())
    return found


def provider_of(name: str | None) -> str:
    """The provider as the table calls it, for the name of a provider, a program or a host."""
    return _PROVIDERS.get(name or "", name or "")


def find(provider: str | None, model: str | None) -> Row | None:
    """The row of a model, with "provider" and "model" (the table's own name of it) added; None if it is unknown.

    The exact name goes first; then, for vendors whose names say it, the name without the date of a snapshot, the base
    of a fine-tuned model, Google's "models/" cut off. Nothing is guessed from likeness: gpt-9 is not gpt-9-mini.
    """
    provider = provider_of(provider)
    known: dict[str, Row] = table()["models"].get(provider, {})
    if not model:
        return None
    for name in _names(provider, model):
        if name in known:
            return {"provider": provider, "model": name, **known[name]}
    return None


def of(target: Json) -> Row | None:
    """The row of a target's model, None if it is unknown: of the vendor that the target is by the name of its runtime,
    by its kind where the user gave it another name, by its preset or its host, or, for opencode, by PROVIDER/MODEL."""
    vendors, model = [target["runtime"], target["kind"]], target.get("model")
    if target["kind"] == "opencode":
        vendor, _, model = (model or "").partition("/")
        vendors = [vendor]
    elif target["kind"] == "openai-chat":
        vendors.append((target.get("profile") or {}).get("provider") or _host(target) or "openai")
    rows = (find(vendor, model) for vendor in vendors)
    return next((row for row in rows if row), None)


def _host(target: Json) -> str:
    from mllm_pipe.runtimes._endpoint import endpoint

    return endpoint(target.get("base_url") or os.environ.get("OPENAI_BASE_URL") or "")


def _names(provider: str, model: str) -> Iterator[str]:
    if provider == "google":
        model = model.removeprefix("models/")
    yield model
    tuned = re.fullmatch(r"(ft:[^:]+):.+", model)
    if provider == "openai" and tuned:
        yield tuned[1]
    snapshot = re.fullmatch(rf"(.+){_SNAPSHOT[provider]}", model, re.ASCII) if provider in _SNAPSHOT else None
    if snapshot:
        yield snapshot[1]


def capability(row: Row | None, flag: str) -> bool | None:
    """What the table says of a flag (vision, reasoning, sampling_params, ...); None if it does not say."""
    found: bool | None = row["supports"].get(flag) if row else None
    return found


def window(row: Row | None) -> int | None:
    """Most tokens of a prompt, or None."""
    found: int | None = row.get("max_input_tokens") if row else None
    return found


def output_limit(row: Row | None) -> int | None:
    """Most tokens of an answer, or None."""
    found: int | None = row.get("max_output_tokens") if row else None
    return found


def described(row: Row) -> Json:
    """A row as `mllm models` shows it: prices in US dollars a million tokens, None for what is unknown."""
    prices = row["prices"]
    rates = {f"{name}_per_mtok_usd": per_million(prices.get(rate)) for name, rate in _SHOWN_RATES.items()}
    above = {int(found[1]) * (1000 if found[2] else 1) for name in prices if (found := _THRESHOLD.search(name))}
    tiers = {name.rsplit("_", 1)[1] for name in prices if name.startswith("input_cost_per_token_")} - {"tokens"}
    return {
        "provider": row["provider"],
        "model": row["model"],
        "window": window(row),
        "output_limit": output_limit(row),
        **rates,
        "dearer_above_tokens": sorted(above),
        "tiers": sorted(tiers),
        "supports": row["supports"],
        "efforts": row.get("efforts"),
        "deprecation_date": row.get("deprecation_date"),
    }


_SHOWN_RATES = {
    "input": "input_cost_per_token",
    "output": "output_cost_per_token",
    "cache_read": "cache_read_input_token_cost",
    "cache_write": "cache_creation_input_token_cost",
    "cache_write_1h": "cache_creation_input_token_cost_above_1hr",
}
_THRESHOLD = re.compile(r"_above_(\d+)(k?)_tokens")


def per_million(price: str | None) -> float | None:
    """US dollars a million tokens, of a price a token."""
    return None if price is None else float(Decimal(price) * 1_000_000)


# -- options -----------------------------------------------------------------------------------------------------------

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
SAMPLING = ("temperature", "top_p", "top_k")
PENALTIES = ("presence_penalty", "frequency_penalty")
LEAST_RESPONSES_TOKENS = 16  # the Responses API refuses fewer

_NUMBER, _WHOLE = "a number", "a whole number"
_KINDS = {
    "temperature": _NUMBER, "top_p": _NUMBER, "presence_penalty": _NUMBER, "frequency_penalty": _NUMBER,
    "top_k": _WHOLE, "seed": _WHOLE, "max_tokens": _WHOLE,
    "stop": "a text or a list of texts", "effort": f"one of {', '.join(EFFORTS)}",
    "verbosity": "low, medium or high", "service_tier": "a word",
}  # fmt: skip

OPTIONS = tuple(_KINDS)

# Where an API has an option; where it has none, the option is dropped.
_PLACES: dict[str, dict[str, tuple[str, ...]]] = {
    "anthropic": {
        "temperature": ("temperature",), "top_p": ("top_p",), "top_k": ("top_k",), "stop": ("stop_sequences",),
        "effort": ("output_config", "effort"), "max_tokens": ("max_tokens",), "service_tier": ("service_tier",),
    },
    "openai": {
        "temperature": ("temperature",), "top_p": ("top_p",), "effort": ("reasoning", "effort"),
        "max_tokens": ("max_output_tokens",), "verbosity": ("text", "verbosity"), "service_tier": ("service_tier",),
    },
    "openai-chat": {
        **{name: (name,) for name in _KINDS}, "effort": ("reasoning_effort",), "max_tokens": ("max_completion_tokens",),
    },
    "google": {
        "temperature": ("generationConfig", "temperature"), "top_p": ("generationConfig", "topP"),
        "top_k": ("generationConfig", "topK"), "seed": ("generationConfig", "seed"),
        "stop": ("generationConfig", "stopSequences"), "max_tokens": ("generationConfig", "maxOutputTokens"),
        "presence_penalty": ("generationConfig", "presencePenalty"),
        "frequency_penalty": ("generationConfig", "frequencyPenalty"),
        "effort": ("generationConfig", "thinkingConfig", "thinkingLevel"), "service_tier": ("serviceTier",),
    },
    # Of the agent programs, by what they call it themselves; gemini has what its API has within generationConfig.
    "claude": {"effort": ("effort",)},
    "codex": {"effort": ("model_reasoning_effort",), "verbosity": ("model_verbosity",)},
}  # fmt: skip
_PLACES["gemini"] = {name: place for name, place in _PLACES["google"].items() if place[0] == "generationConfig"}
_LEVELS = {"anthropic": EFFORTS[2:], "claude": EFFORTS[2:], "google": EFFORTS[1:6], "gemini": EFFORTS[1:6]}
_TIERS = {  # the words that an API has for a tier; those of the others are passed on
    "anthropic": {"auto": "auto", "standard_only": "standard_only", "standard": "standard_only",
                  "default": "standard_only"},
    "google": {"standard": "standard", "default": "standard", "flex": "flex", "priority": "priority"},
}  # fmt: skip
# Gemini 2 has budgets of tokens for levels; these are what Google itself takes for the words of its OpenAI endpoint.
_BUDGETS = {"none": 0, "minimal": 1024, "low": 1024, "medium": 8192, "high": 24576}


def value(text: str) -> Any:
    """The VALUE of an option as it was typed: a number, true, false, other JSON, or else the text itself."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def takes(api: str, name: str) -> bool:
    """True if an API, or an agent program, has an option."""
    return name in _PLACES.get(api, {})


def fit(options: Json, api: str, row: Row | None) -> tuple[Json, list[Json]]:
    """(fields of the request, losses): the user's options as an API and a model take them.

    options: {name: value} under the names of OPTIONS; a value of null leaves the option out. For openai-chat other
    names are passed on as they are. api: a key of _PLACES. row: of `find`; what a model
    refuses by it is dropped, or downgraded to the nearest that it takes, and listed {"what", "action", "why"}; what it
    does not say is sent. Usage for an option that is unknown, or a value that is none.
    """
    fields: Json = {}
    losses: list[Json] = []
    wanted = {name: _checked(name, given, api) for name, given in options.items() if given is not None}
    effort = _effort(wanted["effort"], api, row, losses) if "effort" in wanted else None
    for name, given in wanted.items():
        if name not in _KINDS:
            fields[name] = given
            continue
        place = _PLACES[api].get(name)
        why = f"{api} has no such option" if not place else _refusal(name, api, row, effort)
        if why:
            _lose(losses, name, "dropped", why)
        elif name == "effort":
            _put_effort(fields, api, row, effort)
        elif place and (taken := _taken(name, given, api, row, losses)) is not None:
            _put(fields, place, taken)
    return fields, losses


def _checked(name: str, given: Any, api: str) -> Any:
    """The value of an option, of its kind. Usage if it is not."""
    if name not in _KINDS:
        if api == "openai-chat" and depth(given) > DEEPEST:
            raise Usage(f"option {name}: it is nested deeper than {DEEPEST} levels")
        if api == "openai-chat":
            return given
        from mllm_pipe.configuration import nearest

        raise Usage(f"option {name}: {api} has no such option{nearest(name, list(_KINDS))}")
    kind = _KINDS[name]
    if name == "stop":
        stops = given if isinstance(given, list) else [given]
        if stops and all(type(stop) in (str, int, float) and stop != "" for stop in stops):
            return [str(stop) for stop in stops]
    if isinstance(given, str) and kind in (_NUMBER, _WHOLE):
        given = value(given)
    if name == "effort" and given is False:
        given = "none"
    number = type(given) in (int, float) and math.isfinite(given)
    whole = kind is _WHOLE and number and abs(given) < 1 << 63 and given == int(given)
    if whole and (given > 0 or name == "seed"):
        return int(given)
    if kind is _NUMBER and number or name == "service_tier" and isinstance(given, str) and given:
        return given
    if name == "effort" and given in EFFORTS or name == "verbosity" and given in ("low", "medium", "high"):
        return given
    raise Usage(f"option {name}: {given!r} is not {kind}")


def _refusal(name: str, api: str, row: Row | None, effort: str | None) -> str:
    """Why a model refuses an option, or ""."""
    if name in SAMPLING and capability(row, "sampling_params") is False:
        return "the model takes no sampling parameters"
    if name == "effort" and capability(row, "reasoning") is False:
        return "the model does not reason"
    if not row or row["provider"] != "openai":
        return ""
    if name == "top_k":
        return "OpenAI has no such option"
    thinks = capability(row, "reasoning") and (effort or row.get("default_effort")) != "none"
    return "a reasoning model takes it with effort none only" if thinks and name in SAMPLING + PENALTIES else ""


def _taken(name: str, given: Any, api: str, row: Row | None, losses: list[Json]) -> Any:
    """The value as the API and the model take it; None, and a loss, if they have none like it."""
    if name == "max_tokens":
        limit = output_limit(row)
        if limit and given > limit:
            _lose(losses, name, "downgraded", f"the model's limit is {limit}")
            return limit
        if api == "openai" and given < LEAST_RESPONSES_TOKENS:
            _lose(losses, name, "downgraded", f"fewer than {LEAST_RESPONSES_TOKENS} are refused")
            return LEAST_RESPONSES_TOKENS
    if name == "service_tier":
        tier = _TIERS.get(api, {}).get(given) if api in _TIERS else {"standard": "default"}.get(given, given)
        if tier is None:
            _lose(losses, name, "dropped", f"{api} has {', '.join(sorted(set(_TIERS[api].values())))}")
        return tier
    return given


def _effort(wanted: str, api: str, row: Row | None, losses: list[Json]) -> str:
    """The level that the model takes: the wanted one, the nearest below it, or else the nearest above."""
    if api == "anthropic" and wanted == "none" and capability(row, "thinking_always_on") is not True:
        return wanted
    levels: tuple[str, ...] = _LEVELS.get(api, EFFORTS)
    if _by_budget(row):
        levels = tuple(_BUDGETS)
        if wanted == "none" and row and "-pro" in row["model"]:
            levels = levels[1:]  # its thinking cannot be turned off
    at = EFFORTS.index(wanted)
    for level in (*EFFORTS[at::-1], *EFFORTS[at + 1 :]):
        if level in levels and not _lacks(row, level):
            if level != wanted:
                _lose(losses, "effort", "downgraded", f"the model has no {wanted}; {level} is the nearest")
            return level
    return wanted


def _lacks(row: Row | None, level: str) -> bool:
    if row and "efforts" in row:
        return level not in row["efforts"]
    return capability(row, f"{level}_reasoning_effort") is False


def _by_budget(row: Row | None) -> bool:
    return row is not None and row["provider"] == "google" and row["model"].startswith("gemini-2.")


def _put_effort(fields: Json, api: str, row: Row | None, level: str | None) -> None:
    place = _PLACES[api]["effort"]
    if api == "anthropic" and level == "none":
        _put(fields, ("thinking", "type"), "disabled")
    elif place[-1] == "thinkingLevel" and _by_budget(row):
        _put(fields, (*place[:-1], "thinkingBudget"), _BUDGETS[str(level)])
    else:
        _put(fields, place, str(level).upper() if place[-1] == "thinkingLevel" else level)


def _put(fields: Json, place: tuple[str, ...], given: Any) -> None:
    for name in place[:-1]:
        fields = fields.setdefault(name, {})
    fields[place[-1]] = given


def _lose(losses: list[Json], what: str, action: str, why: str) -> None:
    losses.append({"what": what, "action": action, "why": why})
