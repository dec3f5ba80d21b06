"""Files of a thread on their way to an API: read if they lie on disk and are the ones that are meant, or refused."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from typing import Any

from mllm_pipe.errors import CallFailed, Failure, Missing
from mllm_pipe.files import whole
from mllm_pipe.lines import digest

Json = dict[str, Any]

IMAGES = ("image/jpeg", "image/png", "image/gif", "image/webp")


def is_image(part: Json) -> bool:
    """True for a picture that APIs take; of one that is named by its address, the type may be open."""
    return part["media_type"] in IMAGES or (part["media_type"] == "image/*" and "url" in part)


def embedded(turns: Iterable[Json]) -> list[Json]:
    """The turns with files that are named by path replaced by their bytes, in results too.

    CallFailed("bad_request", billed="no") if a file is not there, or is not the one whose sha256 the part has.
    """

    def parts_of(parts: list[Json]) -> list[Json]:
        return [part_of(part) for part in parts]

    def part_of(part: Json) -> Json:
        if part["type"] == "file" and "path" in part and "data" not in part:
            named = {"name": os.path.basename(part["path"])} | part
            return {key: value for key, value in named.items() if key != "path"} | {"data": _read(part)}
        if part["type"] == "tool_result" and isinstance(part["content"], list):
            return part | {"content": parts_of(part["content"])}
        return part

    return [turn | {"parts": parts_of(turn["parts"])} for turn in turns]


def _read(part: Json) -> str:
    path = part["path"]
    try:
        if not os.path.isfile(path):
            raise Missing(f"{path}: no such file")
        data = whole(path)
    except Failure as unread:
        raise CallFailed("bad_request", f"{unread}; the thread has it by path", billed="no") from None
    if digest(data) != part["sha256"]:
        said = f"{path}: it is not the file that the thread means, its sha256 differs"
        raise CallFailed("bad_request", said, billed="no")
    import base64

    return base64.b64encode(data).decode()


def seen(turns: list[Json], provider: str, model: str) -> tuple[list[Json], list[Json]]:
    """(turns, losses): images and PDFs that the model cannot read, by the table of models, named instead of sent.

    The newest turn asks about its own: CallFailed("bad_request", billed="no") if it has any. What the table does not
    say is sent.
    """
    if not any(_filed(part) for turn in turns for part in turn["parts"]):
        return turns, []
    from mllm_pipe import models

    row = models.find(provider, model)
    blind = tuple(kind for kind, flag in _READ_BY.items() if models.capability(row, flag) is False)

    def refusal(part: Json, _of_result: bool) -> CallFailed | None:
        if not blind or not part["media_type"].startswith(blind):
            return None
        said = f"{model} reads no {part['media_type']} ({_name(part)}); ask a model that does: mllm models says which"
        return CallFailed("bad_request", said, billed="no")

    return _named_instead(turns, refusal, "the model cannot read it")


def placed(turns: list[Json], form: Callable[[Json, bool], Any]) -> tuple[list[Json], list[Json]]:
    """(turns, losses): files of which `form(part, whether a tool's result has it)` raises CallFailed, as the target has
    no place for them, named instead of sent. The newest turn asks about its own: its CallFailed is raised."""

    def refusal(part: Json, of_result: bool) -> CallFailed | None:
        try:
            form(part, of_result)
        except CallFailed as refused:
            return refused
        return None

    return _named_instead(turns, refusal, "there is no place for it")


def _named_instead(
    turns: list[Json], refusal: Callable[[Json, bool], CallFailed | None], why: str
) -> tuple[list[Json], list[Json]]:
    from mllm_pipe.runtimes._turns import loss, sourced

    losses: list[Json] = []
    newest = next((turn for turn in reversed(turns) if turn["role"] != "system"), None)

    def shown(turn: Json, part: Json, source: Json, of_result: bool = False) -> Json:
        if part["type"] == "tool_result" and isinstance(part["content"], list):
            return part | {"content": [shown(turn, inner, source, True) for inner in part["content"]]}
        refused = refusal(part, of_result) if part["type"] == "file" else None
        if refused is None:
            return part
        if turn is newest:
            raise refused
        loss(losses, turn, f"file {_name(part)}", "dropped", why, source)
        return {"type": "text", "text": f"[{_name(part)}: a file that cannot be shown here]"}

    def told(turn: Json) -> Json:
        pairs = zip(turn["parts"], sourced(turn)["parts"], strict=True)
        return turn | {"parts": [shown(turn, part, source) for part, source in pairs]}

    return [told(turn) if any(map(_filed, turn["parts"])) else turn for turn in turns], losses


def _name(part: Json) -> str:
    return str(part.get("name") or part.get("url") or part["media_type"])


_READ_BY = {"image/": "vision", "application/pdf": "pdf_input"}  # the table's flags


def _filed(part: Json) -> bool:
    """True for a file, and for a tool's result that may have one."""
    return part["type"] == "file" or (part["type"] == "tool_result" and isinstance(part["content"], list))


def as_text(part: Json) -> str | None:
    """A text file (text/*, JSON, XML, YAML in UTF-8) as text with its name; None if it is no such file."""
    kind = part["media_type"].split(";")[0].strip().lower()
    if "data" not in part or not (kind.startswith("text/") or re.search(r"[/+](json|xml|yaml|toml)$", kind)):
        return None
    import base64

    try:
        text = base64.b64decode(part["data"]).decode()
    except ValueError:
        return None
    return f"File {part.get('name') or kind}:\n\n{text}"


def not_taken(part: Json, api: str) -> CallFailed:
    """The failure for a file that an API has no place for; nothing is sent."""
    name = part.get("name") or part.get("url") or "a file"
    return CallFailed("bad_request", f"{api} takes no {part['media_type']} ({name})", billed="no")
