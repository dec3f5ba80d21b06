"""Rubrics: what a judge judges by. A shipped NAME, @FILE (TOML, or plain text), or a text with a blank in it."""

from __future__ import annotations

import os
from typing import Any

from mllm_pipe.errors import Missing, Usage

Rubric = dict[str, Any]


def names() -> list[str]:
    """The shipped rubrics: the folder is the registry."""
    return sorted(name[:-5] for name in os.listdir(os.path.dirname(__file__)) if name.endswith(".toml"))


def find(spec: str) -> Rubric:
    """{"name", "description", "pass_at": 0..1, "criteria": [{"name", "text", "weight"}]}.

    Usage if a NAME is unknown or a file is no rubric; Missing if @FILE is not there.
    """
    if spec.startswith("@"):
        return _from_file(spec[1:])
    if any(character.isspace() for character in spec.strip()):
        return _of_text("rubric", spec)
    if spec in names():
        return _from_file(os.path.join(os.path.dirname(__file__), f"{spec}.toml"))
    from mllm_pipe.configuration import nearest

    raise Usage(
        f"--rubric {spec!r}: no such rubric{nearest(spec, names())}; there are {', '.join(names())}, @FILE, "
        "or a text of several words"
    )


def _from_file(path: str) -> Rubric:
    name = os.path.splitext(os.path.basename(path))[0]
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except OSError as error:
        raise Missing(f"--rubric @{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Usage(f"--rubric @{path}: no UTF-8 text") from None
    if not path.endswith(".toml"):
        return _of_text(name, text)
    import tomllib

    try:
        rubric = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Usage(f"--rubric @{path}: {error}") from None
    criteria: list[Any] = rubric["criteria"] if isinstance(rubric.get("criteria"), list) else []
    sound = all(
        isinstance(one, dict) and isinstance(one.get("name"), str) and isinstance(one.get("text"), str)
        for one in criteria
    )  # fmt: skip
    if not criteria or not sound or len({one["name"] for one in criteria}) < len(criteria):
        raise Usage(f"--rubric @{path}: it needs [[criteria]], each with a name of its own and a text")
    return {
        "name": name,
        "description": str(rubric.get("description", "")),
        "pass_at": float(rubric.get("pass_at", 0.75)),
        "criteria": [{"weight": 1} | one for one in criteria],
    }


def _of_text(name: str, text: str) -> Rubric:
    if not text.strip():
        raise Usage("--rubric is empty")
    criterion = {"name": name, "text": text.strip(), "weight": 1}
    return {"name": name, "description": "", "pass_at": 0.75, "criteria": [criterion]}
