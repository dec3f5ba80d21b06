"""Sessions of the agent programs: one file a program, each a pair of pure translators, sessions to records and back.

A module defines

    PROGRAM, KNOWN                what it calls itself, and the newest version whose sessions were seen
    held(cwd) -> [Held]           its sessions, of one directory or (None) of all; only heads of files are read
    reader(path, ident) -> Reader what reads one
    records(entries, name)        entries: what the reader gives; name: the session's id, which the thread gets
        -> {"thread", "records", "version", "notes"}

and, if sessions of it can be written,

    session_id(thread, *more) -> ident    of a new session
    session(messages, spans, ident, cwd, agent) -> (bytes, losses); Missing if it would have no turn
    keeps(answer, own) -> names           what a session has a place for of BESIDE_TURNS; own: its program made it
    put(data, ident, cwd, at) -> path     lays it where it has to lie; None if there is another one of that id anywhere
    go_on(ident, path) -> [word, ...]     the command that resumes it

and the line writers that its runtime uses for throw-away sessions. Ids of records are those of the foreign lines, so
that a session which is read twice gives the same records; what is read is data, and never chooses a path.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

from mllm_pipe.envelope import milliseconds
from mllm_pipe.errors import Missing
from mllm_pipe.runtimes import _files, _turns
from mllm_pipe.runtimes._program import distinct, uuid_of
from mllm_pipe.thread import UNNAMED, content_of, heard, speaker

Json = dict[str, Any]

PROGRAMS = ("claude", "codex", "gemini", "opencode")
APIS = ("anthropic", "openai", "google")  # their requests
KEPT = (*PROGRAMS, "llm")  # where sessions lie that can be listed, and new ones
READ = (*KEPT, *APIS)
HALF = "the last answer is not whole yet; it is left out"  # it would not be the same when it is
UNKNOWN_MODEL = "assistant"  # what stands where a program wants the name of a model, and none is known
BESIDE_TURNS = ("model", "usage", "finish")  # what is told of an answer, beside what it says
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z", re.ASCII)
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)


def load(name: str) -> ModuleType:
    """The module of a program, or of an API whose requests are read."""
    return importlib.import_module(f"{__name__}.{name}")


def session_id(thread: str, *more: Any) -> str:
    """The id of a thread's session: its own if it is a UUID, or one made of it and of what else it depends on."""
    return thread if UUID.fullmatch(thread) and not more else uuid_of(thread, *more)


def newer(version: str, known: str) -> bool:
    """True if a dotted version is later than the known one; what is no such version is not."""
    numbers = [[int(number) for number in re.findall(r"\d{1,9}", text)[:3]] for text in (version, known)]
    return numbers[0] > numbers[1]


# -- records ----------------------------------------------------------------------------------------------------------


def record(kind: str, thread: str, ident: str, at: Any, **fields: Any) -> Json:
    """A record; a time that is none of the envelope's is left out."""
    made = {"v": 1, "type": kind, "thread": thread, "id": ident}
    if isinstance(at, str) and TIME.fullmatch(at):
        made["at"] = at
    return made | fields


def message(thread: str, ident: str, at: Any, role: str, said: str | list[Json], **fields: Any) -> Json:
    """A message record of a text or of parts; one plain text is its content as a string."""
    made = {"v": 1, "type": "message", "thread": thread, "id": ident}
    if isinstance(at, str) and TIME.fullmatch(at):
        made["at"] = at
    made["role"] = role
    made["content"] = said if isinstance(said, str) else content_of(said)
    if fields:
        made |= fields
    return made


def counted(number: int, noun: str) -> str:
    """So many of something, in words."""
    return f"{number} {noun}{'s' * (number != 1)}"


def word(value: Any) -> str:
    """What a foreign value says that it is, "" if that is no text."""
    return value if isinstance(value, str) else ""


def opaque(value: Any) -> Json:
    """The part for a foreign value that has no form here."""
    return {"type": "opaque", "raw": value}


def span(answer: Json, asked_at: str | None, usage: Json) -> Json:
    """The span of an answer that a session tells of: its time is that since the line before it."""
    at = answer.get("at")
    took = milliseconds(asked_at, at) if at and asked_at else 0
    author = answer["author"]
    return {
        "v": 1, "type": "span", "thread": answer["thread"], "id": answer["run_id"], "parent_run_id": answer["thread"],
        "op": "dispatch", "slot": "response", "runtime": author["runtime"], "model": author["model"],
        "started_at": asked_at or at or "1970-01-01T00:00:00.000Z", "duration_ms": max(took, 0),
        "status": "ok", "usage": usage, "cost_usd": None, "cost_source": None, "output_ids": [answer["id"]],
    }  # fmt: skip


# -- turns ------------------------------------------------------------------------------------------------------------


def settled(messages: list[Json], agent: str, rule: Json) -> tuple[list[Json], list[Json]]:
    """(pieces, losses): a branch as what a program takes, each piece with the id of the record that it comes from.

    piece = {"role", "parts", "id", "origin"}, at least one for each message that says anything; results follow their
    calls. Messages of `agent`, and of no named agent, are answers; another agent's are quoted, and so are the results
    of its calls.
    """
    turns: list[Json] = []
    results: dict[tuple[str, str], Json] = {}  # of (answer, call)
    answer = ""
    for one, role, parts in heard(messages, agent):
        origin = one.get("origin") if role == "assistant" else None
        if origin and origin.get("api") == rule["api"]:
            origin = origin | {"endpoint": rule["endpoint"]}
        if role == "assistant":
            answer = one["id"]
        tagged = [part | {"from": one["id"]} for part in parts] if role == "user" else list(parts)
        for part in tagged:
            if part["type"] == "tool_result":
                results[answer, part["call_id"]] = part
        if role == "user" and turns and turns[-1]["role"] == "user":
            turns[-1]["parts"] += tagged
        else:
            turns.append({"role": role, "parts": tagged, "ids": [one["id"]], "origin": origin})
    calls = {
        turn["ids"][0]: [part["id"] for part in turn["parts"] if part["type"] == "tool_call"]
        for turn in turns if turn["role"] == "assistant"
    }  # fmt: skip
    unique, renamed = distinct(_files.embedded(turns))
    made, bent = _turns.settle(unique, rule)
    return _distinct(_pieces(made, calls, results)), [*renamed, *bent]


def told(piece: Json, rule: Json, losses: list[Json]) -> tuple[bool, list[Json]]:
    """(did this program make it, the parts of a piece that it can be told): reasoning goes back to its maker only."""
    ours = bool(piece["origin"]) and _turns.own(piece, rule)
    parts = [part for part in piece["parts"] if part["type"] != "reasoning" or (ours and "raw" in part)]
    if len(parts) < len(piece["parts"]):
        _turns.loss(losses, {"ids": [piece["id"]]}, "reasoning", "dropped", "another vendor's model made it")
    return ours, parts


def unkept(messages: list[Json], spans: dict[str, Json], module: ModuleType, program: str, agent: str) -> list[Json]:
    """What is told beside the turns and has no place in the session: one loss for all answers. Quotations keep none."""
    lost: set[str] = set()
    answers = 0
    for one in messages:
        if one["role"] != "assistant":
            continue
        ended = one.get("finish") not in (None, "stop", "tool")
        there = {"model": one.get("author", {}).get("model"), "usage": one["id"] in spans, "finish": ended}
        made = (one.get("origin") or {}).get("api") == program
        kept = module.keeps(one, made) if speaker(one) in (agent, UNNAMED) else ()
        gone = {name for name in BESIDE_TURNS if there[name] and name not in kept}
        lost |= gone
        answers += bool(gone)
    if not lost:
        return []
    what = f"{', '.join(name for name in BESIDE_TURNS if name in lost)} of {counted(answers, 'answer')}"
    return [{"what": what, "action": "dropped", "why": f"a session of {program} has no place for that"}]


def nothing(program: str) -> Missing:
    """The failure of a thread of which a session would have no turn: it would be one to go on with from nothing."""
    return Missing(f"nothing of it has a place in a session of {program}, and none is made")


def _distinct(pieces: Iterable[Json]) -> list[Json]:
    """The pieces, each with an id of its own: a record's parts may come to stand apart."""
    seen: dict[str, int] = {}
    out = []
    for piece in pieces:
        ident = piece["id"]
        seen[ident] = seen.get(ident, 0) + 1
        out.append(piece if seen[ident] == 1 else piece | {"id": f"{ident} {seen[ident]}"})
    return out


def _pieces(turns: list[Json], calls: dict[str, list[str]], results: dict[tuple[str, str], Json]) -> Iterator[Json]:
    """Turns taken apart again by the records that their parts come from."""
    for turn in turns:
        ident = turn["ids"][0] if turn.get("ids") else "."
        if turn["role"] != "user":
            yield {"role": turn["role"], "parts": turn["parts"], "id": ident, "origin": turn.get("origin")}
            continue
        asked = iter(calls.get(ident, ()))
        here: list[Json] = []
        source = ""
        for part in turn["parts"]:
            if part["type"] == "tool_result":
                given = results.get((ident, next(asked, "")))
                came_from = given["from"] if given else f"{ident} {part['call_id']}"
                hidden = ("from",) if given and "is_error" in given else ("from", "is_error") if given else ()
                part = {name: value for name, value in part.items() if name not in hidden}
                part = part | {name: given[name] for name in ("raw",) if given and name in given}
            else:
                came_from = part.get("from", ident)
                part = {name: value for name, value in part.items() if name != "from"}
            if here and came_from != source:
                yield {"role": "user", "parts": here, "id": source, "origin": None}
                here = []
            source = came_from
            here.append(part)
        if here:
            yield {"role": "user", "parts": here, "id": source, "origin": None}
