"""What `mllm models` shows of the table of models, and how it takes a new one in."""

from __future__ import annotations

import re
from contextlib import closing
from datetime import date
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import urlsplit

import orjson

from mllm_pipe import keys, modelfile, models
from mllm_pipe.configuration import nearest
from mllm_pipe.errors import CallFailed, Missing, Usage
from mllm_pipe.terminal import one_line

Json = dict[str, Any]

FETCH_S = 60.0
_WORDS = {  # flags that the table on a terminal has, and what they are called there
    "function_calling": "tools",
    "forced_tool_use": "forced-tools",
    "response_schema": "schema",
    "vision": "vision",
    "pdf_input": "pdf",
    "reasoning": "reasoning",
    "sampling_params": "sampling",
    "assistant_prefill": "prefill",
}


def chosen(pattern: str | None, provider: str | None) -> list[Json]:
    """The models that a pattern (a part of the name, or with * and ?) and a provider leave, as models.described.

    Usage for a provider that is not in the table; Missing if no model is left.
    """
    known = models.table()["models"]
    if provider and models.provider_of(provider) not in known:
        raise Usage(f"--provider {provider}: unknown{nearest(provider, list(known))}; known: {', '.join(known)}")
    names = [models.provider_of(provider)] if provider else list(known)
    wanted = (pattern or "").lower()
    if not re.search(r"[*?[]", wanted):
        wanted = f"*{wanted}*"
    found = [
        models.described({"provider": name, "model": model, **known[name][model]})
        for name in names
        for model in sorted(known[name])
        if fnmatchcase(model.lower(), wanted)
    ]
    if not found:
        every = [model for name in names for model in known[name]]
        raise Missing(f"no model is called {pattern}{nearest(pattern or '', every)}")
    return found


def ndjson(rows: list[Json]) -> str:
    """A model a line."""
    return "".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE).decode() for row in rows)


def table(rows: list[Json]) -> str:
    """The models for a person."""
    lines: list[tuple[str, ...]] = [("provider", "model", "window", "answer", "in $/M", "out $/M", "cached $/M", "can")]
    for row in rows:
        flags = row["supports"]
        words = [word if flags[flag] else f"no-{word}" for flag, word in _WORDS.items() if flag in flags]
        numbers = (row["window"], row["output_limit"], row["input_per_mtok_usd"], row["output_per_mtok_usd"],
                   row["cache_read_per_mtok_usd"])  # fmt: skip
        shown = ["unknown" if number is None else f"{number:.12g}" for number in numbers]
        name = [one_line(row["provider"]), one_line(row["model"])]
        lines.append((*name, *shown, " ".join(words) or "unknown"))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "".join(
        "  ".join(
            cell.rjust(width) if 1 < column < 7 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        + "\n"
        for line in lines
    )


def origin() -> str:
    """One line: of when the table in force is, of whom, and where it lies."""
    found = models.table()
    place = "shipped" if found == models.shipped() else models.user_file()
    return one_line(f"{found['date']}  {found['version']}  {place}") + "\n"


def refresh(source: str) -> str:
    """Replace the user's table by the one in a file or at a URL, and say so in one line.

    Usage if it is none, Missing if there is no such file, CallFailed if the URL does not give it.
    """
    data = _fetched(source) if re.match("https?://", source) else _read(source)
    if len(data) > modelfile.MAX_BYTES:
        raise Usage(f"{source} is larger than {modelfile.MAX_BYTES >> 20} MiB")
    try:
        found = modelfile.read(data, f"litellm, from {source}", date.today().isoformat())
    except Usage as fault:
        raise Usage(f"{source} {fault}") from None
    modelfile.install(found, models.user_file())
    count = sum(map(len, found["models"].values()))
    return one_line(f"{count} models of {found['date']}, now in {models.user_file()}") + "\n"


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(modelfile.MAX_BYTES + 1)
    except OSError as error:
        raise Missing(f"{path}: {error.strerror}") from None


def _fetched(url: str) -> bytes:
    from mllm_pipe.calling.span import Io
    from mllm_pipe.runtimes import _endpoint, _http

    parts = urlsplit(url)
    if parts.scheme == "http" and not _endpoint.loopback(parts.hostname or ""):
        raise Usage(f"{url}: prices that came over plain http are nobody's; say https")
    data = bytearray()
    try:
        with closing(_http.post(url, {"accept": "*/*"}, None, Io(FETCH_S))) as pieces:
            for piece in pieces:
                data += piece
                if len(data) > modelfile.MAX_BYTES:
                    break
    except CallFailed as failure:
        failure.args = (f"{keys.without_secrets(url)}: {failure}",)
        raise
    return bytes(data)
