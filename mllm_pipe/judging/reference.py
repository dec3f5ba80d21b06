"""What an answer is held against: the text of --reference, of all threads or of each; the answers of --against."""

from __future__ import annotations

from collections.abc import Callable

import orjson

from mllm_pipe.envelope import CONTROL, Record
from mllm_pipe.errors import Usage
from mllm_pipe.files import lines, whole
from mllm_pipe.lines import blank, parse
from mllm_pipe.stream import Thread
from mllm_pipe.thread import admitted, parents, tip_of


def read(path: str) -> Callable[[str], str | None]:
    """A function from a thread's id to its reference: the text of FILE, or of its line in FILE.jsonl, None without one.

    A line of FILE.jsonl is {"thread", "reference"}. Missing if the file cannot be read, Usage if it is none.
    """
    if not path.endswith(".jsonl"):
        try:
            text = whole(path, f"--reference {path}").decode().rstrip("\r\n")  # of the file, not of the answer: $(...)
        except UnicodeDecodeError:
            raise Usage(f"--reference {path}: no UTF-8 text") from None
        return lambda thread: text
    found: dict[str, str] = {}
    for number, line in enumerate(lines(path, f"--reference {path}"), 1):
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


def older(path: str) -> Callable[[str], Record | None]:
    """A function from a thread's id to the answer that it ends with in FILE, None if there is none; marked `against`.

    Missing if the file cannot be read, Usage if it holds no records, BadRecord if a thread of it is unsound.
    """
    found: dict[str, Record] = {}
    for thread in threads_of(path, "--against"):
        records = admitted(thread)
        tip = tip_of(records, parents(records))
        answer = next((record for record in records if record["id"] == tip), None)
        if answer and answer["role"] == "assistant":
            found[thread.id] = answer | {"against": True}
    return found.get


def threads_of(path: str, flag: str) -> list[Thread]:
    """The threads of a file of records; control records in it are passed over. Missing, or Usage with flag and line."""
    threads: dict[str, Thread] = {}
    for number, line in enumerate(lines(path, f"{flag} {path}"), 1):
        if not blank(line):
            record, fault = parse(line)
            if fault:
                raise Usage(f"{flag} {path}: line {number}: {fault}")
            if record["type"] not in CONTROL:
                threads.setdefault(record["thread"], Thread(record["thread"])).add(record, line)
    return list(threads.values())
