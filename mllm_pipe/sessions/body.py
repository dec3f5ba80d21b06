"""Request bodies and message arrays of an API as a thread, and a thread as the body that dispatch would send.

They name neither a conversation nor their messages: ids are digests of a message and all before it, so that a longer
array of the same conversation adds only what is new, and one that parts from it is a branch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from mllm_pipe import runtimes
from mllm_pipe.errors import BadRecord, Usage
from mllm_pipe.runtimes._program import uuid_of
from mllm_pipe.sessions import message, record
from mllm_pipe.sessions.store import Held
from mllm_pipe.thread import view
from mllm_pipe.tools import declared

Json = dict[str, Any]
KNOWN = ""  # no body says of what version it is


def held(_cwd: str | None) -> list[Held]:
    """None: an API keeps no sessions here."""
    return []


def of(entries: Iterable[Json], *fields: str) -> Json:
    """The one body of what was read; of an array, the body that has it in the first of the fields.

    BadRecord if there are several.
    """
    given = list(entries)
    bodies = [one for one in given if any(field in one for field in fields) and "role" not in one]
    if bodies and len(given) > 1:
        raise BadRecord(f"{len(given)} requests; take one apart, as: jq -c 'select(...)' | thread-import ... -")
    return bodies[0] if bodies else {fields[0]: given}


class Chain:
    """The records of a conversation, each with an id that depends on what stands before it."""

    def __init__(self, api: str, provider: str) -> None:
        self.api, self.records, self.tip = api, list[Json](), ""
        self.author = {"runtime": api, "model": None, "provider": provider}  # the body's is the one to be asked next
        self.skipped, self.notes = 0, list[str]()

    def given(self, members: Any, *marks: str) -> Iterator[Json]:
        """The members of an array that are messages, and have one of the marks; how many are not is said."""
        for one in members if isinstance(members, list) else []:
            if isinstance(one, dict) and any(mark in one for mark in marks):
                yield one
            else:
                self.skipped += 1

    def add(self, role: str, parts: list[Json]) -> None:
        """Add a message; one without parts says nothing."""
        if not parts:
            return
        parts = [_linked(part) for part in parts]
        ident = uuid_of(self.tip, role, parts)
        more: Json = {"reply_to": self.tip} if self.tip else {}
        if role == "assistant":
            calls = any(part["type"] == "tool_call" for part in parts)
            more |= {"author": self.author, "finish": "tool" if calls else "stop"}
        self.records.append(message(self.thread or ident, ident, None, role, parts, **more))
        self.tip = ident

    @property
    def thread(self) -> str:
        """The id of its first message; "" before there is one."""
        return str(self.records[0]["thread"]) if self.records else ""

    def result(self, tools: list[Json]) -> Json:
        """What `records` of a module gives."""
        made = self.records
        if tools and made:
            made = [record("tools", self.thread, uuid_of(self.thread, tools), None, tools=tools), *made]
        skipped = [f"{self.skipped} of the array are no messages, and left out"] * bool(self.skipped)
        notes = [*self.notes, *skipped]
        return {"thread": self.thread or "session", "version": "", "records": made, "notes": notes}


def _linked(part: Json) -> Json:
    """A file part of what an API has by its address; any other part as it is."""
    raw = part.get("raw")
    if part["type"] != "opaque" or not isinstance(raw, dict):
        return part
    source, data = raw.get("source"), raw.get("fileData")
    kind, url, name = "application/pdf", raw.get("file_url"), raw.get("filename", raw.get("title"))
    if isinstance(source, dict) and source.get("type") == "url":
        kind, url = "image/*" if raw.get("type") == "image" else kind, source.get("url")
    elif isinstance(data, dict) and isinstance(data.get("mimeType"), str) and data["mimeType"]:
        kind, url = data["mimeType"], data.get("fileUri")
    if not isinstance(url, str) or not url:
        return part
    named = {"name": name} if isinstance(name, str) and name else {}
    return {"type": "file", "media_type": kind, "url": url, **named}


def tools(given: Any) -> list[Json]:
    """The tools that a body offers, in whatever form: [{"name", "description", "parameters"}]."""
    found = []
    for one in given if isinstance(given, list) else []:
        inner = one.get("functionDeclarations", one.get("function_declarations")) if isinstance(one, dict) else None
        if isinstance(inner, list):
            found += tools(inner)
            continue
        if isinstance(one, dict) and one.get("type", "custom") not in ("custom", "function", None):
            continue  # the vendor's own
        one = one["function"] if isinstance(one, dict) and isinstance(one.get("function"), dict) else one
        if not isinstance(one, dict) or not isinstance(one.get("name"), str) or not 0 < len(one["name"]) <= 200:
            continue
        forms = ("input_schema", "parameters", "parametersJsonSchema", "parameters_json_schema")
        schema = next((one[form] for form in forms if isinstance(one.get(form), dict)), None)
        described = {"description": one["description"]} if isinstance(one.get("description"), str) else {}
        found.append({"name": one["name"], **described, **({"parameters": schema} if schema else {})})
    return found


def of_thread(
    messages: list[Json], records: list[Json], api: str, model: str | None, agent: str
) -> tuple[Json, list[Json]]:
    """(body, losses) that dispatch would send for the branch. Usage if no model is named, and no answer names one."""
    authors = [one.get("author", {}) for one in messages if one["role"] == "assistant"]
    models = [one["model"] for one in authors if one.get("runtime") == api and one.get("model")]
    named = model or (models[-1] if models else "")
    if not named:
        raise Usage(f"say which model the request is for: --to {api} -m MODEL")
    asked = view(messages, agent) | {"schema": None, "tools": declared(records)}
    made: tuple[Json, list[Json]] = runtimes.load(api).request({"kind": api, "model": named}, asked)
    return made
