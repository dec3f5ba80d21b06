"""replay: recorded answers, for tests and CI. `replay:FILE`, where FILE is any thread file or saved stream.

An answer of the file is given when the turns before it there are the turns asked now (roles and parts; no ids, no
times). Answers of the file that stand alone in their thread are given in order, one a call of this process.
"""

from __future__ import annotations

import itertools
import threading
from typing import Any

import orjson

from mllm_pipe.errors import CallFailed, Failure, Usage
from mllm_pipe.files import lines
from mllm_pipe.lines import blank, parse
from mllm_pipe.stream import Thread
from mllm_pipe.thread import admitted, branch, parts_of, view

FREE = TAKES_SCHEMA = True

_lock = threading.Lock()
_files: dict[str, tuple[dict[bytes, Any], list[Any]]] = {}
_next: dict[str, Any] = {}


def call(target: dict[str, Any], request: dict[str, Any], io: Any) -> dict[str, Any]:
    """The recorded answer. CallFailed("unrecorded") if the file has none for these turns."""
    path = target["path"]
    with _lock:
        if path not in _files:
            _files[path] = _read(path)
            _next[path] = itertools.count()
        matched, alone = _files[path]
        answer = matched.get(_asked(request["turns"]))
        if answer is None:
            position = next(_next[path])
            if position >= len(alone):
                raise CallFailed("unrecorded", f"{path} has no answer for these turns; record one", billed="no")
            answer = alone[position]
    parts = parts_of(answer["content"])
    if not parts:
        raise CallFailed("empty", f"{path}: the recorded answer {answer.get('id', '')} is empty", billed="no")
    for part in parts:
        if part["type"] == "text":
            io.text(part["text"])
    author = answer.get("author", {})
    return {
        "parts": parts,
        "finish": answer.get("finish", "stop"),
        "model": author.get("model"),
        "provider": author.get("provider"),
        "usage": None,
        "cost_usd": 0.0,
        "cost_source": "runtime",
        "origin": answer.get("origin"),
        "losses": [],
    }


def usable(target: dict[str, Any]) -> str:
    """Whether the file can be read."""
    try:
        _read(target.get("path") or "")
    except Failure as failure:
        return str(failure)
    return ""


def preview(target: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    """Nothing is sent."""
    return {"path": target["path"]}


def _asked(turns: list[dict[str, Any]]) -> bytes:
    return orjson.dumps([[turn["role"], turn["parts"]] for turn in turns], option=orjson.OPT_SORT_KEYS)


def _read(path: str) -> tuple[dict[bytes, Any], list[Any]]:
    """({turns: answer}, [answers that stand alone]) of a file of records; bare {role, content} objects will do."""
    threads: dict[str, Thread] = {}
    alone = []
    for number, line in enumerate(lines(path), 1):
        if blank(line):
            continue
        record, fault = parse(line)
        if not fault and record["type"] not in ("begin", "handoff", "end"):
            threads.setdefault(record["thread"], Thread(record["thread"])).add(record, line)
        elif record.get("role") == "assistant" and "content" in record:
            alone.append(record)
        elif fault:
            raise Usage(f"{path}: line {number}: {fault}")
    matched = {}
    for thread in threads.values():
        records = admitted(thread)
        for answer in (r for r in records if r["type"] == "message" and r["role"] == "assistant"):
            before = branch(records, answer["id"])[:-1]
            if before:
                matched[_asked(view(before, answer.get("author", {}).get("agent", "assistant"))["turns"])] = answer
            else:
                alone.append(answer)
    return matched, alone
