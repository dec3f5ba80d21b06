"""Sessions of Gemini CLI, as 0.61.0 writes them; read only.

$GEMINI_CLI_HOME/.gemini/tmp/<project>/chats/session-<time>-<id>.jsonl; projects.json says which directory is which
project. A record stands there several times, each more complete than the one before; calls stand with their results in
the answer that made them, and the results once more as the user's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import orjson

from mllm_pipe import places
from mllm_pipe.runtimes._program import uuid_of
from mllm_pipe.sessions import message, opaque, record, span
from mllm_pipe.sessions.store import files_in

Json = dict[str, Any]

PROGRAM, KNOWN = "Gemini CLI", "0.61.0"
BESIDE = frozenset(("info", "warning", "error", "about", "quit", "compression"))
OF_THE_PROGRAM = "<session_context>"


def found(cwd: str | None) -> list[str]:
    """The session files of a directory, or of all."""
    home = os.path.join(places.of_program("GEMINI_CLI_HOME", ""), ".gemini")
    below = files_in(os.path.join(home, "tmp"), 2, ".jsonl")
    paths = [path for path in below if os.path.basename(os.path.dirname(path)) == "chats"]
    if cwd is None:
        return paths
    try:
        with open(os.path.join(home, "projects.json"), "rb") as file:
            projects = orjson.loads(file.read())["projects"]
        mine = os.path.join(home, "tmp", projects[cwd], "chats")
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [path for path in paths if os.path.dirname(path) == mine]


def records(entries: Iterable[Json], name: str) -> Json:
    """The session as records (see mllm_pipe.sessions)."""
    newest: dict[str, Json] = {}
    unknown: list[Json] = []
    for line in entries:
        ident = line.get("id")
        if isinstance(ident, str) and 0 < len(ident) <= 180:
            newest[ident] = line
        elif "$set" not in line and "sessionId" not in line:
            unknown.append(line)
    out: list[Json] = []
    told: set[str] = set()  # calls whose result has been read
    asked = None
    for ident, line in newest.items():
        kind, at = line.get("type"), line.get("timestamp")
        if kind in BESIDE:
            continue
        if kind not in ("user", "gemini"):
            unknown.append(line)
            continue
        parts = [part for part in _parts(line.get("content")) if not _again(part, told)]
        if kind == "user":
            parts = [part for part in parts if part["type"] != "text" or not part["text"].startswith(OF_THE_PROGRAM)]
            if parts:
                only = all(part["type"] == "tool_result" for part in parts)
                out.append(message(name, ident, at, "tool" if only else "user", parts))
                asked = out[-1].get("at")
            continue
        calls, results = _calls(line.get("toolCalls"))
        told |= {result["call_id"] for result in results}
        parts = [*_thoughts(line.get("thoughts")), *parts, *calls]
        if not parts:
            continue
        model = line["model"] if isinstance(line.get("model"), str) else None
        answer = message(name, ident, at, "assistant", parts, finish="tool" if calls else "stop",
                         author={"runtime": "gemini", "model": model, "provider": "google"},
                         origin={"api": "gemini", "model": model})  # fmt: skip
        out.append(answer)
        if isinstance(line.get("tokens"), dict):
            answer["run_id"] = f"span-{ident}"
            out.append(span(answer, asked, _usage(line["tokens"])))
        if results:
            out.append(message(name, f"{ident}.results", at, "tool", results))
            asked = out[-1].get("at")
    out += [record("opaque", name, f"line-{uuid_of(one)}", one.get("timestamp"), program="gemini", raw=one)
            for one in unknown]  # fmt: skip
    return {"thread": name, "version": "", "records": out, "notes": []}


def _again(part: Json, told: set[str]) -> bool:
    """True for a result that stood with its call."""
    return part["type"] == "tool_result" and part["call_id"] in told


def _parts(content: Any) -> list[Json]:
    """Content as parts; blank texts are none."""
    given = content if isinstance(content, list) else [content]
    parts = [_part({"text": one} if isinstance(one, str) else one) for one in given if one is not None]
    return [part for part in parts if part["type"] != "text" or part["text"]]


def _part(given: Any) -> Json:
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
    return {"type": "tool_result", "call_id": inner["id"], "content": text, **({"is_error": True} if failed else {})}


def _calls(given: Any) -> tuple[list[Json], list[Json]]:
    """(calls, their results) of an answer."""
    calls: list[Json] = []
    results: list[Json] = []
    for one in given if isinstance(given, list) else []:
        made = _called(one) if isinstance(one, dict) and isinstance(one.get("id"), str) and one["id"] else None
        calls.append(made or opaque(one))
        if made:
            given_back = [_part(part) for part in one["result"]] if isinstance(one.get("result"), list) else []
            results += [part for part in given_back if part.get("call_id") == one["id"]][:1]
    return calls, results


def _thoughts(given: Any) -> list[Json]:
    """What it said of its reasoning: a subject and a description each."""
    said = [one for one in given if isinstance(one, dict)] if isinstance(given, list) else []
    texts = [": ".join(str(one[name]) for name in ("subject", "description") if one.get(name)) for one in said]
    return [{"type": "reasoning", "text": text} for text in texts if text]


def _usage(tokens: Json) -> Json:
    count = {name: value for name, value in tokens.items() if type(value) is int and value >= 0}
    thoughts = count.get("thoughts", 0)
    return {"input_tokens": count.get("input", 0) + count.get("tool", 0), "cache_read_tokens": count.get("cached", 0),
            "output_tokens": count.get("output", 0) + thoughts, "reasoning_tokens": thoughts}  # fmt: skip
