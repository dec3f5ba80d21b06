"""Which session: by name, the newest, or the one that a person picks from a list."""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

from mllm_pipe import sessions
from mllm_pipe.envelope import Record, timestamp
from mllm_pipe.errors import Missing, Usage
from mllm_pipe.sessions.database import is_database
from mllm_pipe.sessions.store import Held, Reader, says_first
from mllm_pipe.terminal import safe
from mllm_pipe.thread import text_of

Json = dict[str, Any]
SHOWN = 20  # of a picker; `--list` has them all


def read(module: ModuleType, one: Held) -> tuple[Json, Reader]:
    """The records of a session, and what was read."""
    reader: Reader = module.reader(one.path, one.ident)
    made: Json = module.records(reader.entries(), one.ident[:190] or "session")
    return made, reader


def in_file(path: str) -> Held:
    """A session of which the user names the file: its id stands in the file's name, or in its first lines."""
    stem, _ = os.path.splitext(os.path.basename(path))
    if path == "-" or is_database(path):
        return Held(path, "", 0.0, 0)
    named = stem[-36:] if sessions.UUID.fullmatch(stem[-36:]) else says_first(path, "sessionId")
    return Held(path, named or says_first(path, "id", "payload") or stem, 0.0, 0)


def newest(found: list[Held], program: str, everywhere: bool) -> Held:
    """The one that was written last. Missing if there is none."""
    if not found:
        where = "" if everywhere else " of this directory; --all looks everywhere"
        raise Missing(f"{program} has no session{where}")
    return max(found, key=lambda one: (one.at, one.ident))


def named(found: list[Held], name: str) -> Held:
    """The one whose id is this, or begins so. Missing if there is none, or are several."""
    some = [one for one in found if name and one.ident.removeprefix("session-").startswith(name)]
    exact = [one for one in some if one.ident == name]
    if len(exact or some) == 1:
        return (exact or some)[0]
    if exact:
        files = ", ".join(sorted(one.path for one in exact))
        raise Missing(f"{name}: {len(exact)} sessions have this id; say the FILE: {files}")
    why = f"{len(some)} sessions begin so; say more of it" if some else "no such session; --list --all shows them"
    raise Missing(f"{name}: {why}")


def row(module: ModuleType, one: Held) -> Json:
    """What a list says of a session."""
    records = list(read(module, one)[0]["records"])
    said = [record for record in records if record["type"] == "message"]
    return {"session": one.ident, "at": timestamp(one.at), "turns": sum(record["role"] == "user" for record in said),
            "tokens": _tokens(records), "bytes": one.size, "first": _first(said), "path": one.path}  # fmt: skip


def line(shown: Json) -> str:
    """A row for people."""
    numbers = f"{shown['turns']:4} turns  {shown['tokens']:8} tokens"
    return safe(f"{shown['session']}  {shown['at'][:16]}  {numbers}  {shown['first']}").replace("\n", " ")


def pick(module: ModuleType, found: list[Held]) -> Held:
    """The one that the person at the terminal chooses by its number. Usage if none is chosen."""
    shown = sorted(found, key=lambda one: -one.at)[:SHOWN]
    lines = [f"{number:3}  {line(row(module, one))}\n" for number, one in enumerate(shown, 1)]
    os.write(2, "".join([*lines, f"Which? [1-{len(shown)}, Enter: 1] "]).encode("utf-8", "replace"))
    answer = os.read(0, 64).decode("utf-8", "replace")
    if answer == "\n" or answer.strip().isdecimal() and 1 <= int(answer) <= len(shown):
        return shown[int(answer) - 1 if answer.strip() else 0]
    raise Usage("no session was chosen")


def _tokens(records: list[Record]) -> int:
    """Of all calls, prompts and answers."""
    spans = [one["usage"] for one in records if one["type"] == "span"]
    return sum(used.get("input_tokens", 0) + used.get("output_tokens", 0) for used in spans)


def _first(messages: list[Record]) -> str:
    """The first words that the user said."""
    said = next((text_of(one["content"]) for one in messages if one["role"] == "user"), "")
    return " ".join(said.split())[:60]
