"""What the agent programs (claude, codex, gemini, opencode) have in common: ids, keys, logins, whether it is them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import orjson

from mllm_pipe.errors import CallFailed
from mllm_pipe.lines import digest
from mllm_pipe.runtimes import _child, _key, _turns

Turn = dict[str, Any]
Loss = dict[str, Any]

# The time of every line of a session file: the program wants one, and ours would make the same thread other bytes.
FIXED_TIME = "2026-01-01T00:00:00.000Z"


def uuid_of(*values: Any) -> str:
    """An id in the form of a UUID that depends on the values (JSON) alone."""
    text = digest(orjson.dumps(values))
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-8{text[17:20]}-{text[20:32]}"


def distinct(turns: Sequence[Turn]) -> tuple[list[Turn], list[Loss]]:
    """The turns with no two tool calls of one id, which vendors refuse and local models make (call_1 in each turn).

    A repeated id gets a number; the results up to the next answer follow it. The turns given are not changed.
    """
    losses: list[Loss] = []
    out: list[Turn] = []
    seen: dict[str, int] = {}
    now: dict[str, str] = {}
    for turn in turns:
        if turn["role"] == "assistant":
            now = {}
        parts = []
        for part in turn["parts"]:
            if part["type"] == "tool_call":
                if part["id"] in seen:
                    ident, number = part["id"], seen[part["id"]] + 1
                    while f"{ident}-{number}" in seen:
                        number += 1
                    seen[ident], now[ident] = number, f"{ident}-{number}"
                    part = {**part, "id": now[ident]}
                    why = f"{now[ident]}: an earlier call has it"
                    _turns.loss(losses, turn, f"id of tool_call {ident}", "renamed", why)
                seen[part["id"]] = 1
            elif part["type"] == "tool_result" and part["call_id"] in now:
                part = {**part, "call_id": now[part["call_id"]]}
            parts.append(part)
        out.append({**turn, "parts": parts})
    return out, losses


def options_of(
    target: Mapping[str, Any], request: Mapping[str, Any], program: str
) -> tuple[dict[str, Any], list[Loss]]:
    """(settings, losses): the user's options by the program's own names, as mllm_pipe.models.fit has them for it.

    Those of the request win over those of the target.
    """
    given = {**(target.get("options") or {}), **(request.get("options") or {})}
    if not given:
        return {}, []
    from mllm_pipe import models

    return models.fit(given, program, models.find(program, target.get("model")))


def key_for(target: Mapping[str, Any], names: Sequence[str], io: Any = None) -> tuple[str, str] | None:
    """The name and value of the key to use (mllm_pipe.runtimes._key); one that comes from no variable is the first of
    `names`. None if there is none. CallFailed("auth") if key_env names a variable that is not set."""
    variable, value = _key.of(target, names, io)
    if value:
        return variable or names[0], value
    if target.get("key_env"):
        raise _key.lacking(target, names)
    return None


def wrong_program(name: str, says: str, asked: str = "--version") -> str:
    """ "" if the program `name` is on PATH and, `asked`, says `says`, else why not. Sends nothing."""
    heard = bytearray()
    try:
        with _child.scratch() as home:  # some make files at any start
            ours = {name: value for name, value in _child.allowed_env().items() if not name.startswith("XDG_")}
            ours |= {"HOME": home, "TMPDIR": home}
            ended = _child.run([name, asked], stdin=b"", env=ours, cwd=home, left=lambda: 10.0, on_bytes=heard.extend)
    except CallFailed as failed:
        return str(failed)
    if says in heard.decode("utf-8", "replace") + ended.tail:
        return ""
    return f"{_child.find(name)} is another program of that name: its {asked} does not say {says!r}"


@contextmanager
def login_at(link: str, login: str) -> Iterator[None]:
    """A file of the user's login at a path of the call's own. Who replaces the link by a file loses nothing."""
    login = os.path.realpath(login)
    os.symlink(login, link)
    try:
        yield
    finally:
        if not os.path.islink(link) and os.path.exists(link):
            with open(link, "rb") as file:
                data = file.read()
            beside = f"{login}.{os.getpid()}"
            with open(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
                file.write(data)
            os.replace(beside, login)


def write(path: str, data: bytes) -> None:
    """Writes a file, and makes the directories that it lies in."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)
