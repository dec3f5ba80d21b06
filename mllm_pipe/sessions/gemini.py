"""Sessions of Gemini CLI, as 0.61.0 writes and resumes them.

$GEMINI_CLI_HOME/.gemini/tmp/<project>/chats/session-<time>-<id>.jsonl; projects.json, and a file in the project's
folder, say which directory is which project. A record stands there several times, each more complete than the one
before; calls stand with their results in the answer that made them, and the results once more as the user's: they are
read once, and written once, with their calls. (Resuming its own sessions, the program sends such results twice.)
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

import orjson

from mllm_pipe import places
from mllm_pipe.runtimes import _files, _turns
from mllm_pipe.runtimes._program import FIXED_TIME, uuid_of
from mllm_pipe.sessions import UNKNOWN_MODEL, UUID, message, nothing, opaque, record, session_id, settled, span, word
from mllm_pipe.sessions.store import Held, Reader, Whole, alone, create, files_in, held_in, lay, ndjson, says_first

Json = dict[str, Any]

PROGRAM, KNOWN = "Gemini CLI", "0.61.0"
BESIDE = frozenset(("info", "warning", "error", "about", "quit", "compression"))
OF_THE_PROGRAM = "<session_context>"
ROOT = ".project_root"  # in a project's folder: the directory that it is of
FIRST_ID = hashlib.sha256(b"environment-context").hexdigest()[:32]  # of its turn about date and directory
HIDDEN = {"text": "", "thought": False}  # hides the beginning of a turn that would be left out; is itself not sent
IGNORED = re.compile(r"\s*([/?]|$)")  # such user turns are

__all__ = ["PROGRAM", "KNOWN", "held", "reader", "records", "session", "session_id", "keeps", "put", "go_on"]


# -- where they are ---------------------------------------------------------------------------------------------------


def held(cwd: str | None) -> list[Held]:
    """The sessions of a directory, or of all."""
    below = [path for ending in (".jsonl", ".json") for path in files_in(_projects(), 2, ending)]
    paths = [path for path in below if os.path.basename(os.path.dirname(path)) == "chats"]
    mine = _folder(cwd) if cwd is not None else None
    paths = [path for path in paths if cwd is None or os.path.dirname(os.path.dirname(path)) == mine]
    return [one._replace(ident=says_first(one.path, "sessionId") or one.ident) for one in held_in(paths, str)]


def reader(path: str, ident: str) -> Reader:
    """What reads a session; older versions wrote one document."""
    return Whole(path, ident) if path.endswith(".json") else Reader(path, ident)


def keeps(_answer: Json, own: bool) -> Sequence[str]:
    """What of an answer has a place beside what it says (see mllm_pipe.sessions)."""
    return ("model", "usage") if own else ()


def put(data: bytes, ident: str, cwd: str, at: str) -> str | None:
    """Make the session's file (see mllm_pipe.sessions), and the mark of its project where there is none. It has to lie
    in the folder of its project, and the program knows it by the beginning of its id."""
    short = f"-{ident[:8]}.json"
    with alone(_projects()):
        folder = _folder(cwd) or _free(cwd)
        path = os.path.join(folder, "chats", f"session-{at[:16].replace(':', '-')}{short}l")
        there = files_in(_projects(), 2, (f"{short}l", short))
        if there not in ([], [path]):
            return None
        create(os.path.join(folder, ROOT), os.fsencode(cwd))
        return lay(path, data, there)


def go_on(ident: str, _path: str) -> list[str]:
    """The command that resumes a session, in its directory."""
    return ["gemini", "--resume", ident]


def _projects() -> str:
    return os.path.join(places.of_program("GEMINI_CLI_HOME", ""), ".gemini", "tmp")


def _folder(cwd: str) -> str | None:
    """The folder of the project that a directory is, as the program itself finds it; None if it has none."""
    try:
        with open(os.path.join(os.path.dirname(_projects()), "projects.json"), "rb") as file:
            named = orjson.loads(file.read())["projects"][cwd]
    except (OSError, ValueError, KeyError, TypeError):
        named = ""
    sound = isinstance(named, str) and named not in ("", ".", "..") and os.sep not in named
    if sound and _owner(os.path.join(_projects(), named)) in (None, cwd):
        return os.path.join(_projects(), named)
    marked = (os.path.dirname(path) for path in files_in(_projects(), 1, ROOT))
    return next((folder for folder in sorted(marked) if _owner(folder) == cwd), None)


def _owner(folder: str) -> str | None:
    try:
        with open(os.path.join(folder, ROOT), "rb") as file:
            return os.fsdecode(file.read(1 << 16)).strip()
    except OSError:
        return None


def _free(cwd: str) -> str:
    """A folder for a project that has none; the program takes a folder of which the mark says that it is its."""
    named = re.sub(r"[^a-z0-9]+", "-", os.path.basename(cwd).lower()).strip("-") or "project"
    folder, number = os.path.join(_projects(), named), 0
    while os.path.lexists(folder):
        number += 1
        folder = os.path.join(_projects(), f"{named}-{number}")
    return folder


# -- from a session ---------------------------------------------------------------------------------------------------


class _Told:
    """The lines of a session as they stand at its end: the newest of each id, in the order of the first."""

    def __init__(self) -> None:
        self.newest: dict[str, Json] = {}
        self.unknown: list[Json] = []
        self.after: dict[str, str | None] = {}  # of a message that was said instead of others: the one before those
        self.back: str | None = None
        self.rewound = self.replaced = 0
        self.session = ""

    def take(self, line: Json) -> None:
        """Take one line."""
        ident, change = line.get("id"), line.get("$set")
        if isinstance(line.get("sessionId"), str) and "id" not in line:
            self.session = self.session or line["sessionId"][:190]
        if isinstance(ident, str) and 0 < len(ident) <= 180:
            if self.rewound and ident not in self.newest:
                self.after[ident], self.rewound = self.back, 0
            self.newest[ident] = line
        elif "$rewindTo" in line:
            there = list(self.newest)
            if line["$rewindTo"] in self.newest:
                self.rewound = there.index(line["$rewindTo"])
                self.back = there[self.rewound - 1] if self.rewound else None
                if not self.rewound:
                    self._drop()
            else:
                self._drop()
        elif isinstance(change, dict) and isinstance(change.get("messages"), list):
            self._drop()
            self._all(change["messages"])
        elif isinstance(line.get("messages"), list):
            self._all(line["messages"])
        elif change is None and "sessionId" not in line:
            self.unknown.append(line)

    def _drop(self) -> None:
        self.unknown += [one for one in self.newest.values() if one.get("type") not in (*BESIDE, "user", "gemini")]
        self.replaced += len(self.newest)
        self.newest.clear()

    def _all(self, lines: list[Any]) -> None:
        for one in lines:
            if isinstance(one, dict) and "messages" not in one:
                self.take(one)


def records(entries: Iterable[Json], name: str) -> Json:
    """The session as records (see mllm_pipe.sessions). What was taken back stays as a branch."""
    told_of = _Told()
    for line in entries:
        told_of.take(line)
    name, unknown = told_of.session or name, told_of.unknown
    out: list[Json] = []
    told: set[str] = set()  # calls whose result has been read
    last_of: dict[str | None, str] = {}  # the last record that a line gave
    asked = None
    for ident, line in told_of.newest.items():
        kind, at = word(line.get("type")), line.get("timestamp")
        if kind in BESIDE or ident == FIRST_ID:
            continue
        if kind not in ("user", "gemini"):
            unknown.append(line)
            continue
        parts = [part for part in _parts(line.get("content")) if not _again(part, told)]
        anew = {"reply_to": last_of[told_of.after[ident]]} if told_of.after.get(ident) in last_of else {}
        if kind == "user":
            parts = [part for part in parts if part["type"] != "text" or not part["text"].startswith(OF_THE_PROGRAM)]
            if parts:
                only = all(part["type"] == "tool_result" for part in parts)
                out.append(message(name, ident, at, "tool" if only else "user", parts, **anew))
                asked = out[-1].get("at")
                last_of[ident] = ident
            continue
        calls, results = _calls(line.get("toolCalls"))
        told |= {result["call_id"] for result in results}
        parts = [*_thoughts(line.get("thoughts")), *parts, *calls]
        if not parts:
            continue
        model = line["model"] if isinstance(line.get("model"), str) and line["model"] != UNKNOWN_MODEL else None
        answer = message(name, ident, at, "assistant", parts, finish="tool" if calls else "stop",
                         author={"runtime": "gemini", "model": model, "provider": "google"},
                         origin={"api": "gemini", "model": model}, **anew)  # fmt: skip
        out.append(answer)
        last_of[ident] = ident
        if isinstance(line.get("tokens"), dict):
            answer["run_id"] = f"span-{ident}"
            out.append(span(answer, asked, _usage(line["tokens"])))
        if results:
            out.append(message(name, f"{ident}.results", at, "tool", results))
            asked = out[-1].get("at")
            last_of[ident] = f"{ident}.results"
    out += [record("opaque", name, f"line-{uuid_of(one)}", one.get("timestamp"), program="gemini", raw=one)
            for one in unknown]  # fmt: skip
    gone = told_of.replaced
    notes = [f"{gone} messages that the program replaced, or took back, are left out"] if gone > 1 else []
    return {"thread": name, "version": "", "records": out, "notes": notes}


def _again(part: Json, told: set[str]) -> bool:
    """True for a result that stood with its call."""
    return part["type"] == "tool_result" and part["call_id"] in told


def _parts(content: Any) -> list[Json]:
    """Content as parts; blank texts are none."""
    given = content if isinstance(content, list) else [content]
    parts = [part_of({"text": one} if isinstance(one, str) else one) for one in given if one is not None]
    return [part for part in parts if part["type"] != "text" or part["text"]]


def part_of(given: Any) -> Json:
    """A part of the Gemini API as one of ours; one of another shape than is known is opaque."""
    if not isinstance(given, dict):
        return opaque(given)
    if isinstance(given.get("text"), str):
        return {"type": "reasoning" if given.get("thought") is True else "text", "text": given["text"]}
    for field in ("functionCall", "functionResponse"):
        inner = given.get(field)
        if isinstance(inner, dict) and isinstance(inner.get("id"), str) and inner["id"]:
            made = _called(inner) if field == "functionCall" else _result(inner)
            if made:
                return made
    data = given.get("inlineData")
    if isinstance(data, dict) and isinstance(data.get("mimeType"), str) and isinstance(data.get("data"), str):
        return {"type": "file", "media_type": data["mimeType"] or "application/octet-stream", "data": data["data"]}
    return opaque(given)


def _called(inner: Json) -> Json | None:
    name, arguments = inner.get("name"), inner.get("args", {})
    if isinstance(name, str) and name and isinstance(arguments, dict):
        return {"type": "tool_call", "id": inner["id"], "name": name, "arguments": arguments}
    return None


def _result(inner: Json) -> Json | None:
    response = inner.get("response")
    if not isinstance(response, dict):
        return None
    failed = "error" in response
    said = response["error"] if failed else response.get("output", response)
    text = said if isinstance(said, str) else orjson.dumps(said).decode()
    shown = [part_of(one) for one in inner["parts"]] if isinstance(inner.get("parts"), list) else []
    content: Any = [*([{"type": "text", "text": text}] if text else []), *shown] if shown else text
    return {"type": "tool_result", "call_id": inner["id"], "content": content, **({"is_error": True} if failed else {})}


def _calls(given: Any) -> tuple[list[Json], list[Json]]:
    """(calls, their results) of an answer."""
    calls: list[Json] = []
    results: list[Json] = []
    for one in given if isinstance(given, list) else []:
        made = _called(one) if isinstance(one, dict) and isinstance(one.get("id"), str) and one["id"] else None
        calls.append(made or opaque(one))
        if made:
            given_back = [part_of(part) for part in one["result"]] if isinstance(one.get("result"), list) else []
            results += [part for part in given_back if part.get("call_id") == one["id"]][:1]
    return calls, results


def _thoughts(given: Any) -> list[Json]:
    """What it said of its reasoning: a subject and a description each."""
    said = [one for one in given if isinstance(one, dict)] if isinstance(given, list) else []
    texts = [": ".join(str(one[name]) for name in ("subject", "description") if one.get(name)) for one in said]
    return [{"type": "reasoning", "text": text, "raw": one} for text, one in zip(texts, said, strict=True) if text]


def _usage(tokens: Json) -> Json:
    count = {name: value for name, value in tokens.items() if type(value) is int and value >= 0}
    thoughts = count.get("thoughts", 0)
    return {"input_tokens": count.get("input", 0) + count.get("tool", 0), "cache_read_tokens": count.get("cached", 0),
            "output_tokens": count.get("output", 0) + thoughts, "reasoning_tokens": thoughts}  # fmt: skip


# -- to a session -----------------------------------------------------------------------------------------------------


def rules(endpoint: str, user_first: bool) -> Json:
    """What turns have to be like that gemini reads, of an answer's endpoint. user_first: for a file whose first turn
    stands in the place of the one about date and directory, which is the user's."""
    return _turns.rules("gemini", endpoint, ids=r"[!-~]{1,128}", names=r"[A-Za-z_][A-Za-z0-9_.:-]{0,127}",
                        longest_name=128, objects=True, result_files=False, system="text",
                        user_first=user_first)  # fmt: skip


def session(messages: list[Json], spans: dict[str, Json], ident: str, cwd: str, agent: str) -> tuple[bytes, list[Json]]:
    """A branch as a session file, and what of it is lost. spans: by the id of the answer."""
    rule = rules("", user_first=False)  # the program puts its own first turn before it
    pieces, losses = settled(messages, agent, rule)
    times = {one["id"]: one.get("at") for one in messages}
    time: str = next((one["at"] for one in messages if "at" in one), FIXED_TIME)
    results = {part["call_id"]: part for piece in pieces for part in piece["parts"] if part["type"] == "tool_result"}
    head = {"sessionId": ident, "projectHash": hashlib.sha256(os.fsencode(cwd)).hexdigest(), "startTime": time}
    out: list[Json] = []
    for piece in pieces:
        ours = bool(piece["origin"]) and _turns.own(piece, rule)
        time = times.get(piece["id"]) or time
        own = piece["id"] if UUID.fullmatch(piece["id"]) else uuid_of(ident, piece["id"])
        line: Json = {"id": own, "timestamp": time}
        if piece["role"] == "user":
            said = [part(one) for one in piece["parts"] if one["type"] != "tool_result"]
            if said:
                begins = said[0].get("text", "x")
                out.append({**line, "type": "user", "content": [*([HIDDEN] if IGNORED.match(begins) else []), *said]})
            continue
        thoughts = [one["raw"] for one in piece["parts"] if one["type"] == "reasoning" and ours and _thought(one)]
        if len(thoughts) < sum(one["type"] == "reasoning" for one in piece["parts"]):
            _turns.loss(losses, {"ids": [piece["id"]]}, "reasoning", "dropped", "another vendor's model made it")
        said = [part(one) for one in piece["parts"] if one["type"] not in ("reasoning", "tool_call", "opaque")]
        calls = [_answered(one, results[one["id"]], time) for one in piece["parts"] if one["type"] == "tool_call"]
        if not said and not calls:
            continue
        text = said[0]["text"] if len(said) == 1 and "text" in said[0] else said or ""
        model = (piece["origin"] or {}).get("model") if ours else None
        used = {"tokens": _tokens(spans[piece["id"]]["usage"])} if ours and piece["id"] in spans else {}
        asked = {"toolCalls": calls} if calls else {}
        out.append({**line, "type": "gemini", "content": text, "thoughts": thoughts, **used,
                    "model": model or UNKNOWN_MODEL, **asked})  # fmt: skip
    if not out:
        raise nothing("gemini")
    whole = [{**head, "lastUpdated": time, "kind": "main"}, *out]
    return ndjson(whole), losses


def _thought(one: Json) -> bool:
    """True for reasoning in the form that the program keeps it in."""
    raw = one.get("raw")
    return isinstance(raw, dict) and [{**one, "raw": raw}] == _thoughts([raw])


def _answered(call: Json, result: Json, time: str) -> Json:
    """A call with its result, as the program keeps both."""
    failed = bool(result.get("is_error"))
    told = part({**result, "name": call["name"]})
    return {"id": call["id"], "name": call["name"], "args": call["arguments"], "result": [told],
            "status": "error" if failed else "success",
            "timestamp": time, "displayName": call["name"], "description": ""}  # fmt: skip


def _tokens(usage: Json) -> Json:
    given, thought = usage.get("input_tokens", 0), usage.get("reasoning_tokens", 0)
    said = usage.get("output_tokens", 0)
    return {"input": given, "output": said - thought, "cached": usage.get("cache_read_tokens", 0), "thoughts": thought,
            "tool": 0, "total": given + said}  # fmt: skip


def part(one: Json) -> Json:
    """A part as the API has it; a file that it has no place for is a CallFailed."""
    kind = one["type"]
    if kind == "tool_call":
        return {"functionCall": {"id": one["id"], "name": one["name"], "args": one["arguments"]}}
    if kind == "tool_result":
        response = {"error" if one.get("is_error") else "output": one["content"]}
        return {"functionResponse": {"id": one["call_id"], "name": one["name"], "response": response}}
    if kind == "file":
        if (text := _files.as_text(one)) is not None:
            return {"text": text}
        if "data" not in one or not re.match(r"(image|audio|video)/|application/pdf", one["media_type"]):
            raise _files.not_taken(one, "gemini")
        return {"inlineData": {"mimeType": one["media_type"], "data": one["data"]}}
    return {"text": one["text"]}


def lines(given: Sequence[Json]) -> bytes:
    """A throw-away session: records with ids that are digests of all that stands before them."""
    head = {"sessionId": uuid_of(given[0]), "projectHash": "0", "startTime": FIXED_TIME, "lastUpdated": FIXED_TIME,
            "kind": "main"}  # fmt: skip
    made, ident = [head], ""
    for one in given:
        ident = uuid_of(ident, one) if ident else FIRST_ID
        made.append({"id": ident, "timestamp": FIXED_TIME, **one})
    return ndjson(made)
