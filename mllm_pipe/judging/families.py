"""Families of models: who made a model, so that a judge of the author's own make is seen."""

from __future__ import annotations

import re
from typing import Any

# What a name begins with, after the name of a router or a vendor; the maker is that of the weights, not of the server.
_BY_MODEL = (
    ("anthropic", r"claude"),
    ("openai", r"gpt|chatgpt|o[1345](?![a-z0-9])|codex|davinci|text-embedding"),
    ("google", r"gemini|gemma|palm|bison"),
    ("meta", r"(?:meta-)?llama|codellama"),
    ("mistral", r"(?:open-)?mi[sx]tral|ministral|magistral|codestral|devstral|pixtral"),
    ("qwen", r"qwen|qwq|qvq"),
    ("deepseek", r"deepseek"),
    ("xai", r"grok"),
    ("microsoft", r"phi(?![a-z])|wizardlm"),
    ("cohere", r"command|c4ai|aya"),
    ("moonshot", r"kimi|moonshot"),
    ("zhipu", r"glm|chatglm"),
    ("amazon", r"nova(?![a-z])|titan"),
    ("nvidia", r"nemotron"),
    ("tii", r"falcon"),
)
_BY_RUNTIME = {"claude": "anthropic", "anthropic": "anthropic", "codex": "openai", "openai": "openai",
               "gemini": "google", "google": "google"}  # fmt: skip
_TAPES = frozenset(["exec", "replay"])  # of no family by themselves: any program, any recording


def family_of(who: dict[str, Any]) -> str | None:
    """The maker of the model of a target or an author ({"runtime", "model", "provider"}); None if nobody can say.

    By the model's name, else the runtime's; a runtime that is known by neither is a family of its own.
    """
    runtime = who.get("runtime")
    for name in (who.get("model") or "").lower().rsplit("/", 1)[-1:]:
        for family, begins in _BY_MODEL:
            if re.match(rf"(?:[a-z]+[.:])*(?:{begins})", name):
                return family
    if runtime in _BY_RUNTIME:
        return _BY_RUNTIME[runtime]
    if who.get("model") and who["model"] != runtime:
        return str(who["model"])
    return None if runtime in _TAPES or not runtime else str(runtime)
