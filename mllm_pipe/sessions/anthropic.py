"""Requests of the Messages API, whole or their `messages` alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mllm_pipe.sessions import body, claude
from mllm_pipe.sessions.body import KNOWN, held
from mllm_pipe.sessions.store import Whole as reader

Json = dict[str, Any]
PROGRAM = "the Messages API"
__all__ = ["PROGRAM", "KNOWN", "held", "reader", "records"]


def records(entries: Iterable[Json], _name: str) -> Json:
    """The request as records (see mllm_pipe.sessions)."""
    asked = body.of(entries, "messages")
    chain = body.Chain("anthropic", "anthropic")
    if "system" in asked:
        chain.add("system", claude.parts_of(asked["system"]))
    for one in chain.given(asked.get("messages"), "role"):
        parts, role = claude.parts_of(one.get("content")), one.get("role")
        only = bool(parts) and all(part["type"] == "tool_result" for part in parts)
        chain.add(role if role in ("assistant", "system") else "tool" if only else "user", parts)
    return chain.result(body.tools(asked.get("tools")))
