"""Rubrics: what a judge judges by. A shipped NAME, @FILE (TOML, or plain text), or a text with a blank in it."""

from __future__ import annotations

import os
import re
from typing import Any

from mllm_pipe.errors import Usage
from mllm_pipe.files import whole

Rubric = dict[str, Any]
_KEYS = ["description", "pass_at", "scale", "criteria"]
_OF_CRITERION = ["name", "text", "weight", "least"]
PASS_AT = 0.75
SCALE = (1, 5)  # the whole numbers that are asked for; stored as 0..1


def names() -> list[str]:
    """The shipped rubrics: the folder is the registry."""
    return sorted(name[:-5] for name in os.listdir(os.path.dirname(__file__)) if name.endswith(".toml"))


def find(spec: str) -> Rubric:
    """{"name", "description", "pass_at": 0..1, "scale": (least, most), "criteria": [{"name", "text", "weight"}]}.

    A criterion may have "least": its own score that it takes to pass, whatever the others have.
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
        text = whole(path, f"--rubric @{path}").decode().replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise Usage(f"--rubric @{path}: no UTF-8 text") from None
    if not path.endswith(".toml"):
        return _of_text(name, text)
    import tomllib

    try:
        return _checked(name, tomllib.loads(text), f"--rubric @{path}")
    except tomllib.TOMLDecodeError as error:
        raise Usage(f"--rubric @{path}: {error}") from None


def _checked(name: str, rubric: dict[str, Any], where: str) -> Rubric:
    """A rubric as it is used, of what a file says. Usage if that is none."""
    _known(rubric, _KEYS, where)
    criteria: list[Any] = rubric["criteria"] if isinstance(rubric.get("criteria"), list) else []
    sound = all(
        isinstance(one, dict) and isinstance(one.get("name"), str) and isinstance(one.get("text"), str)
        for one in criteria
    )  # fmt: skip
    if not criteria or not sound or len({one["name"] for one in criteria}) < len(criteria):
        raise Usage(f"{where}: it needs [[criteria]], each with a name of its own and a text")
    for one in criteria:
        _known(one, _OF_CRITERION, f"{where}: criterion {one['name']}")
        weight = one.get("weight", 1)
        if type(weight) not in (int, float) or not 0 < weight < float("inf"):
            raise Usage(f"{where}: the weight of {one['name']} is no number above 0")
        if type(weight) is int and weight >= 2**63:  # what a record cannot hold; TOML 1.0 asks for no more either
            raise Usage(f"{where}: the weight of {one['name']} is beyond 64 bits")
        if not _is_share(one.get("least", 0)):
            raise Usage(f"{where}: the least of {one['name']} is no number from 0 to 1")
    pass_at = rubric.get("pass_at", PASS_AT)
    if not _is_share(pass_at):
        raise Usage(f"{where}: pass_at is no number from 0 to 1")
    return {
        "name": name,
        "description": str(rubric.get("description", "")),
        "pass_at": float(pass_at),
        "scale": scale(rubric["scale"], where) if "scale" in rubric else SCALE,
        "criteria": [{"weight": 1} | {key: one[key] for key in ("name", "text", "weight", "least") if key in one}
                     for one in criteria],
    }  # fmt: skip


def _known(table: dict[str, Any], keys: list[str], where: str) -> None:
    """Usage if a key means nothing: who writes it believes that it does."""
    for key in table:
        if key not in keys:
            from mllm_pipe.configuration import nearest

            raise Usage(f"{where}: {key} means nothing{nearest(key, keys)}; there are {', '.join(keys)}")


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def scale(text: Any, where: str) -> tuple[int, int]:
    """"1-5" as (1, 5): the whole numbers that are asked for. Usage if it is none."""
    found = re.fullmatch(r"([0-9]{1,4})-([0-9]{1,4})", str(text), re.ASCII)
    if not found or int(found[1]) >= int(found[2]):
        raise Usage(f"{where}: {text} is no scale; say 1-5, or 0-10")
    return int(found[1]), int(found[2])


def _of_text(name: str, text: str) -> Rubric:
    if not text.strip():
        raise Usage("--rubric is empty")
    criterion = {"name": name, "text": text.strip(), "weight": 1}
    return {"name": name, "description": "", "pass_at": PASS_AT, "scale": SCALE, "criteria": [criterion]}
