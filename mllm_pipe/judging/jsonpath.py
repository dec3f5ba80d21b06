"""A small part of JSONPath (RFC 9535): $ and the steps .name ['name'] [0] [-1] .* [*]; no filters, slices or `..`."""

from __future__ import annotations

import re
from typing import Any

import orjson

from mllm_pipe.errors import Usage

Step = str | int | None  # a name, an index, or None: all members

_STEP = re.compile(
    r"""\.(?P<name>[A-Za-z_\u0080-\U0010ffff][0-9A-Za-z_\u0080-\U0010ffff]*)
      | \[(?P<index>-?[0-9]+)\]
      | \[(?P<quoted>'[^'\\]*'|"[^"\\]*")\]
      | (?P<all>\.\*|\[\*\])""",
    re.VERBOSE,
)
NO_VALUE = object()


def parse(text: str) -> tuple[list[Step], Any]:
    """The steps of PATH, or of PATH=VALUE, and the value; NO_VALUE if there is none. Usage says where it is wrong."""
    if not text.startswith("$"):
        raise Usage("a path begins with $")
    steps: list[Step] = []
    at = 1
    while at < len(text) and text[at] != "=":
        found = _STEP.match(text, at)
        if not found:
            raise Usage(f"no step at {text[at:]!r}; there are .name ['name'] [0] [-1] .* [*], and = before a value")
        at = found.end()
        if found["index"]:
            steps.append(int(found["index"]))
        else:
            steps.append(found["name"] or (found["quoted"][1:-1] if found["quoted"] else None))
    if at == len(text):
        return steps, NO_VALUE
    try:
        return steps, orjson.loads(text[at + 1 :])
    except orjson.JSONDecodeError:
        raise Usage(f"{text[at + 1 :]!r} is no JSON; a text has quotes: =\"text\"") from None


def select(value: Any, steps: list[Step]) -> list[Any]:
    """The values that the steps lead to, in order; a step that leads nowhere selects nothing."""
    found = [value]
    for step in steps:
        if step is None:
            found = [inner for one in found if isinstance(one, (dict, list))
                     for inner in (one.values() if isinstance(one, dict) else one)]  # fmt: skip
        elif isinstance(step, int):
            found = [one[step] for one in found if isinstance(one, list) and -len(one) <= step < len(one)]
        else:
            found = [one[step] for one in found if isinstance(one, dict) and step in one]
    return found
