"""The runtimes that need no configuration, and what kinds there are: a file of mllm_pipe.runtimes each.

Looked up once, and not to be changed.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import orjson

_HERE = os.path.dirname(__file__)


@cache
def kinds() -> list[str]:
    """What [runtimes.NAME] may say as its kind: the folder is the registry."""
    files = os.listdir(os.path.join(_HERE, "runtimes"))
    return sorted(name[:-3].replace("_", "-") for name in files if name.endswith(".py") and not name.startswith("_"))


@cache
def builtin() -> list[str]:
    """The runtimes that need no configuration, by name; what is of the kind command is said as exec:COMMAND."""
    return sorted({*kinds(), "exec"} - {"command"})


@cache
def presets() -> dict[str, Any]:
    """Servers of the openai-chat kind known by name: {name: {"base_url", "key_env", ...}}."""
    try:
        with open(os.path.join(_HERE, "data", "presets.json"), "rb") as file:
            known: dict[str, Any] = orjson.loads(file.read())
            return known
    except FileNotFoundError:
        return {}
