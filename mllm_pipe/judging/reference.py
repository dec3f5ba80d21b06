"""What an answer is held against: --reference FILE, one text for all threads, or one for each."""

from __future__ import annotations

from collections.abc import Callable

import orjson

from mllm_pipe.errors import Missing, Usage


def read(path: str) -> Callable[[str], str | None]:
    """A function from a thread's id to its reference: the text of FILE, or of its line in FILE.jsonl, None without one.

    A line of FILE.jsonl is {"thread", "reference"}. Missing if the file cannot be read, Usage if it is none.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
        if not path.endswith(".jsonl"):
            text = data.decode()
            return lambda thread: text
    except OSError as error:
        raise Missing(f"--reference {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Usage(f"--reference {path}: no UTF-8 text") from None
    found: dict[str, str] = {}
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            entry = orjson.loads(line)
            found[entry["thread"]] = entry["reference"]
            sound = type(entry["thread"]) is str and type(entry["reference"]) is str
        except (orjson.JSONDecodeError, KeyError, TypeError):
            sound = False
        if not sound:
            raise Usage(f'--reference {path}: line {number}: no {{"thread": TEXT, "reference": TEXT}}')
    return found.get
