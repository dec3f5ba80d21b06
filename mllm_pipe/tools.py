"""Tools: what may be called, as the user declares it; and running a program that answers the calls."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import orjson

from mllm_pipe.envelope import DEEPEST, Record, depth, new_id, timestamp
from mllm_pipe.errors import Usage
from mllm_pipe.files import whole
from mllm_pipe.lineage import in_group
from mllm_pipe.stream import Thread

Tool = dict[str, Any]
Run = Callable[[bytes], tuple[int, str, str]]  # a call as JSON -> (exit status, stdout, last line of stderr)


def read(path: str) -> list[Tool]:
    """The tools that a file declares: [{"name", "description", "parameters"}].

    The file is JSON: one tool or a list of them, in the form of any vendor or of MCP (name, description, and
    parameters, input_schema or inputSchema), or a plain JSON Schema with a title, which is the name.
    """
    try:
        declared = orjson.loads(whole(path, f"--tool {path}"))
    except orjson.JSONDecodeError as error:
        raise Usage(f"--tool {path}: no JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    if isinstance(declared, dict) and isinstance(declared.get("tools"), list):
        declared = declared["tools"]
    return [_tool(one, path) for one in (declared if isinstance(declared, list) else [declared])]


def _tool(declared: Any, path: str) -> Tool:
    if isinstance(declared, dict) and isinstance(declared.get("function"), dict):
        declared = declared["function"]
    if not isinstance(declared, dict):
        raise Usage(f"--tool {path}: a tool is an object with a name and parameters")
    schema = next((declared[key] for key in ("parameters", "input_schema", "inputSchema") if key in declared), None)
    name = declared.get("name")
    if schema is None and "properties" in declared:
        schema = {key: value for key, value in declared.items() if key not in ("title", "description", "$schema")}
        name = name or declared.get("title")
    if not isinstance(name, str) or not re.fullmatch(r"\S{1,200}", name):
        raise Usage(f"--tool {path}: a tool wants a name without blanks (a plain JSON Schema: a title)")
    if schema is not None and not isinstance(schema, dict):
        raise Usage(f"--tool {path}: the parameters of {name} are no JSON Schema")
    if depth(schema) > DEEPEST:
        raise Usage(f"--tool {path}: the parameters of {name} are nested deeper than {DEEPEST} levels")
    return {"name": name, "description": str(declared.get("description") or ""),
            "parameters": schema or {"type": "object", "properties": {}}}  # fmt: skip


def distinct(tools: list[Tool]) -> list[Tool]:
    """The tools, each of a name of its own. Usage if two of one name differ: a call could mean either."""
    found: dict[str, Tool] = {}
    for tool in tools:
        if found.setdefault(tool["name"], tool) != tool:
            raise Usage(f"--tool: two tools are called {tool['name']}, and differ")
    return list(found.values())


def declared(records: list[Record]) -> list[Tool]:
    """The tools of a thread: those of its newest `tools` record."""
    return next((record["tools"] for record in reversed(records) if record["type"] == "tools"), [])


def choice(word: str, tools: list[Tool]) -> str | dict[str, str]:
    """--tool-choice as runtimes know it: "auto", "none", "required" or {"name"}. Usage if there is no such tool."""
    names = [tool["name"] for tool in tools]
    if not names:
        raise Usage(f"--tool-choice {word}: no tools are declared; say --tool FILE")
    if word in names:
        return {"name": word}
    if word in ("auto", "none", "required"):
        return word
    raise Usage(f"--tool-choice {word}: no such tool; say auto, none, required or one of {', '.join(names)}")


def record_of(thread: Thread, tools: list[Tool]) -> Record:
    """The record that declares tools in a thread, so that whoever answers next has them too."""
    return {"v": 1, "type": "tools", "thread": thread.id, "id": new_id(), "at": timestamp(), "tools": tools}


def answer_calls(answer: Record, run: Run, run_id: str) -> list[Record]:
    """A span for each call of the answer, and the tool message with all results.

    `run` gets the call as one line of JSON; its stdout is the result. A status that is not 0 makes it an error, which
    the model is told.
    """
    spans: list[Record] = []
    results = []
    for call in (part for part in answer["content"] if part["type"] == "tool_call"):
        started_at, start = timestamp(), time.monotonic()
        wanted = {key: value for key, value in call.items() if key != "raw"}
        status, out, said = run(orjson.dumps(wanted, option=orjson.OPT_APPEND_NEWLINE))
        content = out if not status else (out + said or f"exit status {status}")
        result = {"type": "tool_result", "call_id": call["id"], "name": call["name"], "content": content.rstrip("\n")}
        results.append(result | ({"is_error": True} if status else {}))
        spans.append({
            "v": 1, "type": "span", "thread": answer["thread"], "id": new_id(), "at": timestamp(), "op": "tool",
            "parent_run_id": run_id, "input_id": answer["id"], "runtime": call["name"], "started_at": started_at,
            "duration_ms": round((time.monotonic() - start) * 1000, 3), "status": "error" if status else "ok",
            "usage": None, "cost_usd": 0, "cost_source": "runtime",
        } | in_group())  # fmt: skip
    message: Record = {
        "v": 1, "type": "message", "thread": answer["thread"], "id": new_id(), "at": timestamp(), "role": "tool",
        "content": results, "reply_to": answer["id"], "parent_run_id": run_id,
    }  # fmt: skip
    for span in spans:
        span["output_ids"] = [message["id"]]
    return [*spans, message]
