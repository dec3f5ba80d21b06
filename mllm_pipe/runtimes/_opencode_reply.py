"""What opencode says (`run --format json`), and what the plugin that goes with it adds. Pure but for PLUGIN."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from mllm_pipe.errors import CallFailed
from mllm_pipe.runtimes import _child, _faults, _shape

Json = dict[str, Any]

FINISH = {"stop": "stop", "length": "length", "content-filter": "filter", "tool-calls": "tool", "other": "stop"}

# Runs inside of opencode and tells on stdout what its events do not: pieces of text as they come, the HTTP errors that
# it hides behind retries, and the first of these retries, so that we can end it there. After a stream that ended
# without a finish reason opencode asks again at once, for ever: no second request is let through. It also takes out of
# the system text what opencode adds to it (model, directory, date), and the keys out of what a shell of its tools sees.
PLUGIN = rb"""import { readFileSync } from "node:fs"

const say = (value) => process.stdout.write(JSON.stringify(value) + "\n")
const system = readFileSync(new URL("system", import.meta.url), "utf8")
const ask = globalThis.fetch
globalThis.fetch = async (...request) => {
  const answer = await ask(...request)
  if (!answer.ok) {
    const body = (await answer.clone().text()).slice(0, 4096)
    say({ type: "mllm.http", status: answer.status, retry_after: answer.headers.get("retry-after"), body })
  }
  return answer
}
const never = new Promise(() => {})
const texts = new Set()
let over = false
export const mllm = async () => ({
  "experimental.chat.system.transform": async (_, output) => {
    output.system.splice(0, output.system.length, system)
  },
  "chat.params": async () => {
    if (over) await never
  },
  "shell.env": async (_, output) => {
    for (const name of Object.keys(process.env)) if (/_(KEY|TOKEN)$/.test(name)) output.env[name] = ""
  },
  event: async ({ event: { type, properties } }) => {
    if (type === "message.part.updated") {
      if (properties.part.type === "text") texts.add(properties.part.id)
      if (properties.part.reason === "unknown") over = true
    }
    if (type === "message.part.delta" && texts.has(properties.partID))
      say({ type: "mllm.delta", part: properties.partID, text: properties.delta })
    if (type === "session.status" && properties.status.type === "retry") {
      over = true
      say({ type: "mllm.retry", message: properties.status.message })
    }
  },
})
"""
TYPES = ("text", "reasoning", "step_finish", "error", "mllm.http", "mllm.delta", "mllm.retry")


def event(line: bytes) -> Json | None:
    """The event of a line, if it is one that says something here."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) and value.get("type") in TYPES else None


def hopeless(event: Json) -> bool:
    """True if what would follow the event is the same request again."""
    endless = event["type"] == "step_finish" and event["part"]["reason"] == "unknown"
    return bool(endless or event["type"] == "mllm.retry")


def piece(events: Sequence[Json], index: int) -> str:
    """What an event adds to the answer as it comes; each of its texts is a blank line apart from the one before."""
    text, part = _text_of(events[index])
    if not text:
        return ""
    for before in range(index - 1, -1, -1):
        said, other = _text_of(events[before])
        if said and other != part:
            return "\n\n" + text
        if said:
            return text if events[index]["type"] == "mllm.delta" else ""  # the whole of what came in pieces
    return text


def _text_of(event: Json) -> tuple[str, str]:
    if event["type"] == "mllm.delta":
        return str(event["text"]), str(event["part"])
    return (str(event["part"]["text"]), str(event["part"]["id"])) if event["type"] == "text" else ("", "")


def reply(
    events: Sequence[Json],
    made: Mapping[str, Any],
    ended: _child.Exit | None = None,
    secrets: Sequence[str] = (),
) -> Json:
    """The result that the events of a run say (see mllm_pipe.runtimes). Pure. ended: None if we ended it.

    Success is a last step with a reason to finish, and some text, whatever the exit status says. Else CallFailed, in
    which no secret is told.
    """
    return _shape.said(
        events, lambda some: _partial(some, made), lambda result: _answer(events, result, ended, secrets)
    )


def _answer(events: Sequence[Json], result: Json, ended: _child.Exit | None, secrets: Sequence[str]) -> Json:
    worth = result if result["parts"] or result["usage"] else None
    steps = [event["part"]["reason"] for event in events if event["type"] == "step_finish"]
    errors = [event["error"] for event in events if event["type"] == "error"]
    reason = steps[-1] if steps else ""
    if reason == "unknown":
        raise CallFailed("cut", "the answer ended without a finish reason", billed="unknown", result=worth)
    spoken = any(part["type"] == "text" and part["text"].strip() for part in result["parts"])
    if reason == "content-filter":
        said = str((errors[-1].get("data") or {}).get("message") or "") if errors else ""
        refusal = [] if spoken else [{"type": "refusal", "text": said or "filtered"}]
        return {**result, "parts": [*result["parts"], *refusal], "finish": "filter"}
    if errors or any(hopeless(event) for event in events):
        raise _failure(events, errors[-1] if errors else {}, worth, secrets)
    if reason in FINISH and spoken:
        return {**result, "finish": FINISH[reason]}
    if reason in FINISH:
        code = "length" if reason == "length" else "empty"
        raise CallFailed(code, "it ended without an answer", billed="yes", result=worth)
    said = _child.last_line(ended.tail, secrets) if ended else ""
    status = ended.status if ended else 0
    message = f"exit status {status} without a result{': ' + said if said else ''}"
    raise CallFailed("cut" if spoken else "exit", message, billed="unknown", result=worth)


def partial(events: Sequence[Json], made: Mapping[str, Any]) -> Json:
    """What had come by the last of the events, as a result with finish "error". made: what `session` gave."""
    return _shape.so_far(events, lambda some: _partial(some, made))


def _partial(events: Sequence[Json], made: Mapping[str, Any]) -> Json:
    steps = [event["part"] for event in events if event["type"] == "step_finish"]
    parts: list[Json] = [
        {"type": "reasoning", "text": event["part"]["text"]} for event in events if event["type"] == "reasoning"
    ]
    text = "".join(piece(events, index) for index in range(len(events)))
    if text:
        parts.append({"type": "text", "text": text})
    cost = sum(step.get("cost") or 0 for step in steps)
    return {
        "parts": parts,
        "finish": "error",
        "model": made["model"],
        "provider": made["provider"],
        "usage": _usage(steps),
        "cost_usd": cost or None,  # 0 is what it says of a model whose price it does not know
        "cost_source": "runtime" if cost else None,
        "origin": {"api": "opencode", "endpoint": made["endpoint"], "model": made["model"], "prefix": made["prefix"],
                   "raw_finish": steps[-1]["reason"]} if steps else None,
        "losses": list(made["losses"]),
    }  # fmt: skip


def _usage(steps: Sequence[Json]) -> dict[str, int] | None:
    """Tokens in our terms: their input leaves out what a cache held, their output the reasoning."""
    used = [step["tokens"] for step in steps if step.get("tokens")]
    given, said, thought = (sum(tokens.get(name) or 0 for tokens in used) for name in ("input", "output", "reasoning"))
    read, write = (sum(tokens.get("cache", {}).get(name) or 0 for tokens in used) for name in ("read", "write"))
    if not given + said + thought + read + write:
        return None
    return {"input_tokens": given + read + write, "cache_read_tokens": read, "cache_write_tokens": write,
            "output_tokens": said + thought, "reasoning_tokens": thought}  # fmt: skip


def _failure(events: Sequence[Json], error: Json, result: Json | None, secrets: Sequence[str]) -> CallFailed:
    """Why there was no answer: by the HTTP error that the plugin saw, or by opencode's own error."""
    data = error.get("data") or {}
    https = [event for event in events if event["type"] == "mllm.http"]
    retried = [str(event["message"]) for event in events if event["type"] == "mllm.retry"]
    said = str(data.get("message") or (retried[-1] if retried else "") or error.get("name") or "no reason given")
    if https:
        last = https[-1]
        headers = {"retry-after": last["retry_after"]} if last.get("retry_after") else {}
        fault = _faults.of_reply(last["status"], headers, str(last["body"]).encode(), secrets)
        hint = "; check the key, or log in with: opencode auth login" if fault.code == "auth" else ""
        billed = "unknown" if result else fault.billed
        return CallFailed(fault.code, f"{fault}{hint}", billed=billed, http_status=fault.http_status,
                          retry_after_s=fault.retry_after_s, result=result)  # fmt: skip
    if re.search(r"Cannot connect|Unable to connect|ECONNREFUSED", said):
        code, billed = "network", "unknown" if result else "no"
    elif re.search(r"[Mm]odel not found|ModelNotFound", f"{said} {error.get('name')}"):
        code, billed = "bad_model", "no"
    elif re.search(r"API key|[Uu]nauthorized|ProviderAuth", f"{said} {error.get('name')}"):
        code, billed = "auth", "no"
    else:
        code, billed = "exit", "unknown"
    return CallFailed(code, _faults.tidy(said, secrets), billed=billed, result=result)
