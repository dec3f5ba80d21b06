"""Documents that `opencode import` reads: of a thread's branch, and of a throw-away session. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import orjson

from mllm_pipe.envelope import seconds_of
from mllm_pipe.runtimes import _files, _turns
from mllm_pipe.runtimes._program import uuid_of
from mllm_pipe.sessions import UNKNOWN_MODEL, nothing, settled

Json = dict[str, Any]

VERSION = "1.18.33"
TIME = 1767225600000  # the time of what has none, and of everything in a throw-away session
IDENT = re.compile(r"msg_[0-9a-f]{12}[0-9A-Za-z]{14}", re.ASCII)
SESSION = re.compile(r"ses_[0-9A-Za-z]{26}", re.ASCII)


def session_id(thread: str, *more: Any) -> str:
    """The id of a thread's session: its own, or one made of it and of what else it depends on."""
    if SESSION.fullmatch(thread) and not more:
        return thread
    return f"ses_{uuid_of(thread, *more).replace('-', '')[:26]}"


def rules(endpoint: str) -> Json:
    """What turns have to be like that opencode reads, of an answer's endpoint."""
    return _turns.rules("opencode", endpoint, ids="[a-zA-Z0-9_-]{1,64}", names="[a-zA-Z0-9_-]{1,64}", objects=True,
                        blank_text=False, result_files=False, system="text")  # fmt: skip


def session(messages: list[Json], spans: dict[str, Json], ident: str, cwd: str, agent: str) -> tuple[bytes, list[Json]]:
    """A branch as a document, and what of it is lost. spans: by the id of the answer."""
    rule = rules("")
    pieces, losses = settled(messages, agent, rule)
    by_id = {one["id"]: one for one in messages}
    results = [part for piece in pieces for part in piece["parts"] if part["type"] == "tool_result"]
    fresh = ident == messages[0]["thread"]  # else another session may have its ids, and opencode takes none twice
    model = _model(messages)
    out: list[Json] = []
    before, at = 0, TIME
    for piece in pieces:
        ours = bool(piece["origin"]) and _turns.own(piece, rule)
        source = by_id.get(piece["id"], {})
        parts = [part for part in piece["parts"] if part["type"] != "tool_result"]
        said = [part for part in parts if part["type"] not in ("reasoning", "opaque") or (ours and "raw" in part)]
        if len(said) < len(parts):
            _turns.loss(losses, {"ids": [piece["id"]]}, "reasoning", "dropped", "another vendor's model made it")
        if not said:
            continue
        kept = fresh and IDENT.fullmatch(piece["id"]) and int(piece["id"][4:16], 16) > before
        before = int(piece["id"][4:16], 16) if kept else before + 1
        own = piece["id"] if kept else f"msg_{before:012x}{uuid_of(ident, piece['id']).replace('-', '')[:14]}"
        at = round((seconds_of(source["at"]) or 0) * 1000) if "at" in source else at
        info: Json = {"id": own, "role": piece["role"], "at": at}
        if piece["role"] == "assistant":
            author = source.get("author", {})
            named = {"providerID": author.get("provider"), "modelID": author.get("model")}
            info |= {"model": named if all(named.values()) else model}
            info |= {"finish": (piece["origin"] or {}).get("raw_finish")} if ours else {}
            info |= {"span": spans[piece["id"]]} if ours and piece["id"] in spans else {}
        else:
            info |= {"model": model}
        out.append({**info, "parts": [_exact(part, ours) for part in said]})
    if not out:
        raise nothing("opencode")
    whole = with_results([*out, {"role": "results", "parts": results}])
    texts = [given["text"] for one in whole for given in one["parts"] if given["type"] == "text"]
    title = " ".join(texts[0].split())[:60] if texts else "imported"
    return orjson.dumps(document(whole, ident, cwd, title=title)), losses


def _model(messages: Sequence[Json]) -> Json:
    """The model to go on with: that of the last answer that names one."""
    for one in reversed(messages):
        author = one.get("author", {})
        if one["role"] == "assistant" and author.get("provider") and author.get("model"):
            return {"providerID": author["provider"], "modelID": author["model"]}
    return {"providerID": "mllm", "modelID": UNKNOWN_MODEL}


def _exact(made: Json, ours: bool) -> Json:
    """As `part`, and what opencode made as it made it."""
    raw = made.get("raw")
    same = isinstance(raw, dict) and raw.get("type") == made["type"] and raw.get("text") == made.get("text")
    return dict(raw) if ours and same and isinstance(raw, dict) else part(made)


def part(made: Json) -> Json:
    """A part as opencode keeps it; a file that it has no place for is a CallFailed."""
    if made["type"] == "tool_call":
        return {"type": "tool", "tool": made["name"], "callID": made["id"], "state": {"input": made["arguments"]}}
    if made["type"] == "file":
        if (text := _files.as_text(made)) is not None:
            return {"type": "text", "text": text}
        if "data" not in made or not (made["media_type"] in _files.IMAGES or made["media_type"] == "application/pdf"):
            raise _files.not_taken(made, "opencode")
        kind = made["media_type"]
        named = {"filename": made["name"]} if made.get("name") else {}
        return {"type": "file", "mime": kind, **named, "url": f"data:{kind};base64,{made['data']}"}
    return {"type": "text", "text": made["text"]}


def with_results(messages: Sequence[Json]) -> list[Json]:
    """The messages with each result of a tool in its call, where opencode keeps it."""
    results = {one["call_id"]: one for given in messages if given["role"] == "results" for one in given["parts"]}

    def whole(made: Json) -> Json:
        if made["type"] != "tool":
            return made
        result = results[made["callID"]]
        raw = result.get("raw", {})
        told = {name: raw[name] for name in ("title", "metadata") if name in raw}
        ended = {"metadata": {}, "time": {"start": TIME, "end": TIME}}
        if result.get("is_error"):
            return {**made, "state": {**made["state"], "status": "error", "error": result["content"], **ended}}
        said = {"status": "completed", "output": result["content"], "title": "", **ended, **told}
        return {**made, "state": {**made["state"], **said}}

    return [
        {**given, "parts": [whole(made) for made in given["parts"]]} for given in messages if given["role"] != "results"
    ]


def document(messages: Sequence[Json], ident: str, cwd: str, agent: str = "build", title: str = "imported",
             **more: Any) -> Json:  # fmt: skip
    """What `opencode import` reads. messages: {"id", "role", "at", "model", "parts"}, and of an answer what is known of
    "finish" and "span". The ids are in order, and come before those that opencode makes.
    """
    made: list[Json] = []
    asked = ""
    for one in messages:
        own = one["id"]
        info: Json = {"id": own, "sessionID": ident, "role": one["role"], "agent": agent}
        if one["role"] == "user":
            asked = own
            info |= {"time": {"created": one["at"]}, "model": one["model"]}
        else:
            calls = any(part["type"] == "tool" for part in one["parts"])
            spent = one.get("span", {})
            info |= {"parentID": asked, "mode": agent, "path": {"cwd": cwd, "root": "/"}, **one["model"],
                     "cost": spent.get("cost_usd") or 0, "tokens": _tokens(spent.get("usage") or {}),
                     "time": {"created": one["at"], "completed": one["at"]},
                     "finish": one.get("finish") or ("tool-calls" if calls else "stop")}  # fmt: skip
        parts = [
            {"id": f"prt_{own[4:16]}{index:03x}{own[19:]}", "sessionID": ident, "messageID": own, **given}
            for index, given in enumerate(one["parts"])
        ]
        made.append({"info": info, "parts": parts})
    times = [one["at"] for one in messages] or [TIME]
    info = {"id": ident, "slug": ident[4:16].lower(), "projectID": "global", "directory": cwd, "title": title,
            "version": VERSION, "time": {"created": times[0], "updated": times[-1]}, **more}  # fmt: skip
    return {"info": info, "messages": made}


def _tokens(usage: Json) -> Json:
    read, write = usage.get("cache_read_tokens", 0), usage.get("cache_write_tokens", 0)
    thought = usage.get("reasoning_tokens", 0)
    return {"input": usage.get("input_tokens", 0) - read - write, "output": usage.get("output_tokens", 0) - thought,
            "reasoning": thought, "cache": {"read": read, "write": write}}  # fmt: skip
