"""Runtimes: one file a kind, found by its name. This is the whole contract.

A runtime module defines

    def call(target, request, io) -> result

and two pure translators that `call` stands on and tests look at: `request`/`reply`, or for a program its session
file and its events. Further names that a module may define:

    STREAMS = True              it reports text as it comes, by io.text
    TAKES_OPTIONS = True        it sends request["options"]; of others they are listed as lost
    TAKES_TOOLS = True          it sends request["tools"] and request["tool_choice"]; of others they are listed as lost
    TAKES_SCHEMA = True         it asks for request["schema"] in a field of its own; to others it is told in words
    TAKES_MAX_TOKENS = True     it holds the answer to target["max_tokens"]; of others that is listed as lost
    API = "anthropic"           with TAKES_OPTIONS: the API by which mllm_pipe.models.fit knows its options
    FREE = True                 a call costs nothing: no budget is set aside for it
    OWN_TOKENS = {None: 400, "read": 2700, "write": 4100, "all": 9000}
                                tokens that a program adds to each request by itself, its tools above all, by what
                                target["allow"] says; for the worst case of a budget, so rather too many than too few
    def usable(target) -> str   "" when the runtime could be called here, else why not; sends nothing
    def preview(target, request) -> dict
                                what `call` would send, keys masked: {"url", "headers", "body"} of an API,
                                {"argv", "env", "stdin"} of a program; and the "losses", if it can have any

`target` (who is asked; made by mllm_pipe.agents):
    {"spec": "claude:opus", "runtime": "claude", "kind": "claude", "model": "opus" | None, "argv": [...],
     "path": "...", "base_url": "..." | None, "key_env": "..." | None, "headers": {...}, "cwd": "..." | None,
     "key_command": [...] | None, "key_name": "..." | None, "key_withheld": "..." | None   (see _key.py)
     "protocol": "ndjson", where a program is given and gives records, else not there,
     "pass_env": [...], "max_tokens": int | None,
     "allow": None | "read" | "write" | "all"}              keys that a kind has no use for are ignored by it

`request` (what is asked; made by mllm_pipe.thread.view; never changed by a runtime):
    {"system": str | None, "turns": [turn, ...], "schema": JSON Schema | None,
     "tools": [{"name", "description", "parameters"}], "options": {name: value}, where there are any,
     "tool_choice": "auto" | "none" | "required" | {"name"}, where the user says so,
     "form": what tells of the schema in words, where nothing else in the request does; see `worded`}
    turn = {"role": "user" | "assistant" | "system", "parts": [part, ...], "ids": [message ids],
            "origin": the message's origin | None, "sources": [of each part the message's id], where that is known}
    parts are the envelope's content parts; tool results stand in user turns, before the text of that turn.
    The last turn is a user turn; system turns may stand after it.

`io` (mllm_pipe.calling.span.Io):
    io.text(str)        a piece of the answer has come: streams it to who looks on and takes the time of the first
    io.run              the run's id; a program that is started gets it as MLLM_PARENT_RUN_ID
    io.lost(losses)     to be called with the losses of the rendering, right before it is sent (--strict refuses there)
    io.left()           seconds left of the call's deadline, as float; raises CallFailed("timeout") when there are none

`result`:
    {"parts": [part, ...], "finish": "stop"|"tool"|"length"|"filter"|"refusal"|"pause",
     "model": str | None, "provider": str | None, "usage": usage | None, "cost_usd": float | None,
     "cost_source": str | None, "origin": dict | None, "losses": [loss, ...]}
    usage = {"input_tokens": all of the prompt, "cache_read_tokens", "cache_write_tokens": shares of it,
             "cache_write_1h_tokens": the share of cache_write_tokens that is kept for an hour,
             "output_tokens": all of the answer, "reasoning_tokens": a share of it}, unknown ones left out
    and, where the other side says them, what mllm_pipe.prices needs: "service_tier": the one that served it,
    "factors": [where and how fast it was served], "iterations": [{"model", "usage"}], of all that is charged, where
    `usage` is only that of the answer
    loss  = {"what": str, "action": "dropped"|"moved"|"downgraded"|"synthesised"|"renamed", "why": str}

Everything that goes wrong with the other side is a CallFailed with the code of mllm_pipe.errors.STATUS_OF_CODE; what
had arrived by then is its `result` (finish "error"). A result is only returned when a finish reason was seen.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from functools import cache
from types import ModuleType
from typing import Any

from mllm_pipe.errors import Usage


@cache
def load(kind: str) -> ModuleType:
    """The module of a runtime kind (`openai-chat` -> openai_chat.py). The folder is the registry. Usage if unknown."""
    name = kind.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise Usage(f"{kind!r}: no such runtime kind")
    try:
        return importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}":
            raise
        raise Usage(f"{kind}: no such runtime kind") from None


def worded(target: Mapping[str, Any], request: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(request, losses): the request as the target is asked it, and what it has no form for at all.

    A schema goes into the system text, in words, where there is no field for it: so turns stay what they were. An
    option, a tool or a limit that the runtime takes no notice of is a loss.
    """
    runtime, losses = load(target["kind"]), list[dict[str, Any]]()
    tools = getattr(runtime, "TAKES_TOOLS", False)
    told = tools or target.get("protocol") == "ndjson"
    taken = getattr(runtime, "TAKES_OPTIONS", False)
    lost = [] if taken else [f"option {name}" for name in request.get("options", {})]
    lost += [] if told else [f"tool {tool['name']}" for tool in request.get("tools", [])]
    lost += ["tool_choice"] * bool(request.get("tool_choice") and not tools)
    lost += ["max_tokens"] * bool(target.get("max_tokens") and not getattr(runtime, "TAKES_MAX_TOKENS", False))
    losses += [{"what": what, "action": "dropped", "why": f"{target['runtime']} takes none"} for what in lost]
    promised = getattr(runtime, "TAKES_SCHEMA", False) and (target.get("profile") or {}).get("schema", True)
    if request.get("form") and not promised:
        request = request | {"system": "\n\n".join(filter(None, [request["system"], request["form"]]))}
        losses.append({"what": "schema", "action": "moved", "why": "told in the system text: there is no field for it"})
    return request, losses


def check_options(target: Mapping[str, Any], options: dict[str, Any]) -> None:
    """Usage for options that no model of the target's API takes: unknown names, values that are none."""
    runtime = load(target["kind"])
    if getattr(runtime, "TAKES_OPTIONS", False):
        from mllm_pipe import models

        models.fit(options, runtime.API, None)
