"""The table of models as a file: made from litellm's price table, checked, replaced.

    python -m mllm_pipe.modelfile FILE VERSION DATE > mllm_pipe/data/models.json

makes the shipped one from FILE, `model_prices_and_context_window_backup.json` of a litellm wheel (MIT, its notice is
data/LICENSE.litellm); VERSION and DATE say of which. `mllm models --refresh` makes the user's with the same function.

    {"date", "version", "source", "license", "sha256": of FILE,
     "models": {provider: {model: {
         "mode": "chat" | "responses",
         "max_input_tokens", "max_output_tokens", "prompt_cache_min_tokens": whole numbers,
         "prices": {litellm's name of the rate: US dollars a token, as the decimal text that the vendor's price has},
         "supports": {litellm's flag without supports_: true | false}, absent = unknown,
         "efforts": [the levels that it takes], "default_effort": a level,
         "factors": {"us" | "eu" | "fast": what multiplies every rate, as text},
         "off_peak": {"prices": {...}, "windows": [{"hours_utc": ["HH:MM-HH:MM", ...], "weekdays": [1..7]}]},
         "deprecation_date": "YYYY-MM-DD"}}}}

What is not known is left out. Rates of batches, images, audio, searches and tools are left out: nothing here uses them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from typing import Any

from mllm_pipe.errors import Usage, WriteFailed

Json = dict[str, Any]

SOURCE = "https://github.com/BerriAI/litellm/blob/main/model_prices_and_context_window.json"
MAX_BYTES = 32 << 20  # litellm's whole table has 3 MB
PROVIDERS = {  # litellm's name of a provider, ours
    "anthropic": "anthropic",
    "openai": "openai",
    "gemini": "google",
    "xai": "xai",
    "mistral": "mistral",
    "groq": "groq",
    "deepseek": "deepseek",
    "openrouter": "openrouter",
}
MODES = ("chat", "responses")
COUNTS = ("max_input_tokens", "max_output_tokens", "prompt_cache_min_tokens")
FLAGS = (
    "adaptive_thinking", "assistant_prefill", "audio_input", "forced_tool_use", "function_calling", "legacy_thinking",
    "low_reasoning_effort", "max_reasoning_effort", "mid_conversation_system", "minimal_reasoning_effort",
    "native_structured_output", "none_reasoning_effort", "output_config", "parallel_function_calling", "pdf_input",
    "prompt_caching", "reasoning", "response_schema", "sampling_params", "system_messages", "thinking_always_on",
    "tool_choice", "video_input", "vision", "xhigh_reasoning_effort",
)  # fmt: skip
PRICE = re.compile(
    r"(input_cost_per_token|output_cost_per_token|output_cost_per_reasoning_token|cache_read_input_token_cost"
    r"|cache_creation_input_token_cost(_above_1hr)?)(_above_\d+k?_tokens)?(_(?!batches$)[a-z]+)?"
)
UPLIFT = "regional_processing_uplift_multiplier_"
_AMOUNT = re.compile(r"\d{1,9}(\.\d{1,30})?([eE][-+]?\d{1,2})?", re.ASCII)
_COUNT = re.compile(r"([1-9]\d{0,9})(\.0)?", re.ASCII)
_DAY = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_WINDOW = re.compile(r"([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d", re.ASCII)


def read(data: bytes, version: str, date: str) -> Json:
    """The table of models that a file holds: litellm's price table, filtered, or one that this function made.

    version, date: of litellm's, which does not say it itself. Usage if it is neither.
    """
    try:
        found = json.loads(data, parse_float=str)  # the text of a number is exact, and orjson has no such hook
    except (ValueError, RecursionError):
        raise Usage("is no JSON") from None
    if isinstance(found, dict) and "models" in found and "source" in found:
        return checked(found)
    rows = found.values() if isinstance(found, dict) else []
    if not any(isinstance(row, dict) and "litellm_provider" in row for row in rows):
        raise Usage("is neither litellm's price table nor one of ours")
    models: dict[str, Json] = {}
    for name, row in found.items():
        provider = PROVIDERS.get(str(row.get("litellm_provider"))) if isinstance(row, dict) else None
        if not provider or row.get("mode") not in MODES or not _priced(row):
            continue
        prefix = f"{row['litellm_provider']}/"
        model = name.removeprefix(prefix)
        if model != name or model not in models.get(provider, {}):  # of two rows, the one that litellm itself goes by
            try:
                models.setdefault(provider, {})[model] = _row(row)
            except (AttributeError, KeyError, TypeError, ValueError):
                raise Usage(f"is no price table that we know: {name} has an unknown shape") from None
    header = {"date": date, "version": version, "source": SOURCE, "license": "MIT, see LICENSE.litellm"}
    return checked(header | {"sha256": hashlib.sha256(data).hexdigest(), "models": models})


def _priced(row: Json) -> bool:
    return "input_cost_per_token" in row and "output_cost_per_token" in row


def _row(row: Json) -> Json:
    """A row of ours from one of litellm's; what is null there is unknown, and left out."""
    made: Json = {"mode": row["mode"]}
    made |= {name: int(found[1]) for name in COUNTS if (found := _COUNT.fullmatch(str(row.get(name))))}
    made["prices"] = _amounts(row)
    made["supports"] = {
        flag: row[key]
        for flag in FLAGS
        for key in (f"supports_{flag}", flag)
        if isinstance(row.get(key), bool)
    }
    if row.get("reasoning_effort_levels"):
        made["efforts"] = row["reasoning_effort_levels"]
    if row.get("default_reasoning_effort"):
        made["default_effort"] = row["default_reasoning_effort"]
    factors = dict(row.get("provider_specific_entry") or {})
    factors |= {key.removeprefix(UPLIFT): value for key, value in row.items() if key.startswith(UPLIFT)}
    if factors:
        made["factors"] = {name: str(value) for name, value in factors.items()}
    if off_peak := row.get("off_peak_pricing"):
        windows = [rule | {"hours_utc": _listed(rule["hours_utc"])} for rule in off_peak.get("windows", ())]
        if "hours_utc" in off_peak:
            windows.append({"hours_utc": _listed(off_peak["hours_utc"])})
        made["off_peak"] = {"prices": _amounts(off_peak), "windows": windows}
    if row.get("deprecation_date"):
        made["deprecation_date"] = row["deprecation_date"]
    return made


def _amounts(row: Json) -> dict[str, str]:
    """The rates of a row; one that cannot be read stays, and is refused: without it another would stand for it."""
    return {key: str(value) for key, value in sorted(row.items()) if PRICE.fullmatch(key) and value is not None}


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def _amount(value: Any) -> bool:
    return isinstance(value, str) and _AMOUNT.fullmatch(value) is not None


# -- what holds --------------------------------------------------------------------------------------------------------


def checked(table: Json) -> Json:
    """The table, if it has the shape above, so that nobody has to look again. Usage with the first fault if not."""
    for name in ("date", "version", "source"):
        _must(isinstance(table.get(name), str), f"{name} is no text")
    _must(isinstance(table.get("models"), dict) and bool(table["models"]), "it has no models")
    for provider, models in table["models"].items():
        _must(isinstance(models, dict), f"{provider} is no object")
        for model, row in models.items():
            fault = _fault(row)
            _must(not fault, f"{provider}/{model}: {fault}")
    return table


def _must(holds: bool, fault: str) -> None:
    if not holds:
        raise Usage(f"is no table of models: {fault}")


def _fault(row: Any) -> str:
    if not isinstance(row, dict) or row.get("mode") not in MODES:
        return "no mode"
    if not _are(row.get("prices"), _amount) or not _priced(row["prices"]):
        return "prices"
    if not _are(row.get("supports"), lambda flag: isinstance(flag, bool)):
        return "supports"
    if not all(name not in row or (type(row[name]) is int and row[name] > 0) for name in COUNTS):
        return "a number of tokens"
    if not _are(row.get("factors", {}), _amount):
        return "factors"
    efforts = row.get("efforts", [])
    if not isinstance(efforts, list) or not all(isinstance(level, str) for level in efforts):
        return "efforts"
    if not isinstance(row.get("default_effort", ""), str):
        return "default_effort"
    day = row.get("deprecation_date", "2000-01-01")
    if not isinstance(day, str) or not _DAY.fullmatch(day):
        return "deprecation_date"
    return "off_peak" if "off_peak" in row and not _off_peak(row["off_peak"]) else ""


def _off_peak(block: Any) -> bool:
    if not isinstance(block, dict) or not isinstance(block.get("windows"), list):
        return False
    if not _are(block.get("prices"), _amount):
        return False
    return all(
        isinstance(rule, dict)
        and isinstance(rule.get("hours_utc"), list)
        and all(isinstance(hours, str) and _WINDOW.fullmatch(hours) for hours in rule["hours_utc"])
        and isinstance(rule.get("weekdays", []), list)
        for rule in block["windows"]
    )


def _are(members: Any, holds: Any) -> bool:
    return isinstance(members, dict) and all(holds(value) for value in members.values())


# -- writing -----------------------------------------------------------------------------------------------------------


def text_of(table: Json) -> str:
    """The file of a table: one line a model, so that a difference is read line by line."""

    def line(name: str, value: Any, indent: int) -> str:
        return f"{' ' * indent}{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}"

    head = [line(name, value, 1) for name, value in table.items() if name != "models"]
    providers = []
    for provider, models in table["models"].items():
        rows = ",\n".join(line(model, row, 3) for model, row in models.items())
        providers.append(f"  {json.dumps(provider)}: {{\n{rows}\n  }}")
    return "{\n" + ",\n".join(head) + ',\n "models": {\n' + ",\n".join(providers) + "\n }\n}\n"


def install(table: Json, path: str) -> None:
    """Write the table to a path, whole or not at all. WriteFailed if it cannot be written."""
    beside = f"{path}.{os.getpid()}"
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with open(beside, "x", encoding="utf-8") as file:
            file.write(text_of(table))
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        try:
            os.unlink(beside)
        except OSError:
            pass
        raise WriteFailed(f"{path}: {error.strerror}; the table is as it was") from None


def main() -> None:
    """Write the shipped table to stdout."""
    if len(sys.argv) != 4:
        raise SystemExit("usage: python -m mllm_pipe.modelfile FILE VERSION DATE > mllm_pipe/data/models.json")
    path, version, date = sys.argv[1:]
    with open(path, "rb") as file:
        sys.stdout.write(text_of(read(file.read(), version, date)))


if __name__ == "__main__":
    main()
