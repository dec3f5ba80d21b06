"""Prompts kept in mllm.toml: [prompts.NAME] with a text, perhaps a system text, and {placeholders} in both.

A placeholder is a name in braces, {language}; {{language}} is that text itself. All other braces are what they are, so
that JSON and code need no care. What is put in is not looked at again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from mllm_pipe.configuration import nearest, where
from mllm_pipe.configuration import read as read_configuration
from mllm_pipe.errors import Usage

_PLACEHOLDER = re.compile(r"\{\{([A-Za-z_][A-Za-z0-9_-]*)\}\}|\{([A-Za-z_][A-Za-z0-9_-]*)\}")


def filled(name: str, values: Iterable[tuple[str, str]], prompt: str | None) -> tuple[str | None, str | None]:
    """(text, system) of the prompt of a name, None where it has none, with the values in their places.

    prompt: what the user said beside it; it is the value of {prompt}, or the text where the prompt of that name has a
    system text alone. Usage for a name, a placeholder or a value that there is none of.
    """
    configuration = read_configuration()
    known = configuration["prompts"]
    if name not in known:
        there_are = f"; there are {', '.join(known)}" if known else f"; say [prompts.{name}] in mllm.toml"
        raise Usage(f"-t {name}: no prompt of that name{nearest(name, list(known)) or there_are}")
    entry, at = known[name], f"{where(configuration, 'prompts', name)}: prompts.{name}"
    if not entry.keys() & {"text", "system"}:
        raise Usage(f"{at} has neither text nor system")
    wanted = {found[2] for text in (entry.get("text", ""), entry.get("system", ""))
              for found in _PLACEHOLDER.finditer(text) if found[2]}  # fmt: skip
    given: dict[str, str] = {}
    for key, value in values:
        if key in given:
            raise Usage(f"-p {key} is given twice")
        given[key] = value
    if prompt is not None and "prompt" in given:
        raise Usage("PROMPT is the value of {prompt}; say it once")
    if prompt is not None and ("prompt" in wanted or "text" in entry):
        given["prompt"] = prompt
    for key in given:
        if key not in wanted:
            has = f"it has {', '.join(f'{{{one}}}' for one in sorted(wanted))}" if wanted else "it has none"
            raise Usage(f"{at} has no {{{key}}}{nearest(key, sorted(wanted))}; {has}")
    if missing := sorted(wanted - given.keys()):
        said = ", ".join("a PROMPT" if key == "prompt" else f"-p {key} VALUE" for key in missing)
        raise Usage(f"{at} wants {', '.join(f'{{{key}}}' for key in missing)}; say {said}")

    def fill(text: str | None) -> str | None:
        return text and _PLACEHOLDER.sub(lambda found: given[found[2]] if found[2] else f"{{{found[1]}}}", text)

    return fill(entry.get("text")) or prompt, fill(entry.get("system"))
