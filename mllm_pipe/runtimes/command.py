"""Kind "command", `--to 'exec:./bot --flag'`: any program. The prompt is its stdin, the answer its stdout; or with
`protocol = "ndjson"`, both are records (_records.py).

The program is the user's own and gets the user's environment, but a key only if it is named in `pass_env` or `key_env`.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Callable
from typing import Any

from mllm_pipe.errors import CallFailed
from mllm_pipe.runtimes import _child, _key, _listening, _turns
from mllm_pipe.thread import framed, text_of, transcript_text

STREAMS = True


def request(request: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    """(what goes on stdin, losses): the text of a single question as it is, else the whole view in one framed text."""
    turns, losses = request["turns"], list[dict[str, Any]]()
    for turn in map(_turns.sourced, turns):
        for part in turn["parts"]:
            if part["type"] not in ("text", "refusal", "data"):
                label, action, why = _BENT.get(part["type"], ("", "dropped", "a program is sent text"))
                name = part.get(label) or part.get("media_type") or ""
                _turns.loss(losses, turn, f"{part['type']} {name}".strip(), action, why, part)
    if not request["system"] and len(turns) == 1 and all(part["type"] == "text" for part in turns[0]["parts"]):
        return transcript_text(turns[0]["parts"]), losses
    return framed(request["system"], turns), losses


_BENT = {
    "file": ("name", "downgraded", "only its name is told: a program is sent text"),
    "tool_call": ("id", "downgraded", "told as text"),
    "tool_result": ("call_id", "downgraded", "told as text"),
}


def reply(output: bytes, bent: list[dict[str, Any]]) -> dict[str, Any]:
    """The result for what the program wrote; trailing newlines go, as with $(...). bent: the losses of the request."""
    text = output.decode("utf-8", "replace").rstrip("\n")
    losses = list(bent)
    if "\ufffd" in text and not _is_utf8(output):
        losses.append({"what": "bytes of the answer", "action": "downgraded", "why": "they are no UTF-8; now U+FFFD"})
    return {
        "parts": [{"type": "text", "text": text}] if text else [],
        "finish": "stop",
        "model": None,
        "provider": None,
        "usage": None,
        "cost_usd": None,
        "cost_source": None,
        "origin": None,
        "losses": losses,
    }


def usable(target: dict[str, Any]) -> str:
    """ "" when the program is there, else why it cannot be called."""
    return "" if _child.find(target["argv"][0]) else f"{target['argv'][0]}: no such program"


def preview(target: dict[str, Any], view: dict[str, Any]) -> dict[str, Any]:
    """What `call` would do: argv, the keys that it would pass on, and stdin."""
    passed = {name: "***" for name in _passed(target) if name in os.environ}
    if target.get("protocol") == "ndjson":
        from mllm_pipe.runtimes import _records

        return {"argv": target["argv"], "env": passed, "stdin": _records.told(view).decode()}
    stdin, losses = request(view)
    return {"argv": target["argv"], "env": passed, "stdin": stdin, "losses": losses}


def _passed(target: dict[str, Any]) -> list[str]:
    """The keys that the program gets. CallFailed("auth") if key_env names one that is not set."""
    named = target.get("key_env")
    if named and not os.environ.get(named):
        raise _key.lacking(target, ())
    return [*(target.get("pass_env") or []), *filter(None, [named])]


def call(target: dict[str, Any], view: dict[str, Any], io: Any) -> dict[str, Any]:
    """Runs the program (see mllm_pipe.runtimes). CallFailed "exit" if its status is not 0, "empty" if no answer."""
    result = _by_records(target, view, io) if target.get("protocol") == "ndjson" else _by_text(target, view, io)
    said = [part for part in result["parts"] if part["type"] != "reasoning"]
    if not any(part["type"] != "text" or part["text"].strip("\n") for part in said):
        raise CallFailed("empty", f"{target['argv'][0]}: exit status 0, but no answer on its stdout")
    return result


def _by_text(target: dict[str, Any], view: dict[str, Any], io: Any) -> dict[str, Any]:
    text, losses = request(view)
    io.lost(losses)
    output = bytearray()
    decoder, held = codecs.getincrementaldecoder("utf-8")("replace"), ""

    def on_bytes(data: bytes) -> None:
        nonlocal held
        output.extend(data)
        text = held + decoder.decode(data, final=not data)
        said = text.rstrip("\n")
        held = text[len(said) :]  # newlines are only shown when something follows
        if said:
            io.text(said)

    _run(target, text.encode(), io, on_bytes, lambda: reply(bytes(output), losses))
    return reply(bytes(output), losses)


def _by_records(target: dict[str, Any], view: dict[str, Any], io: Any) -> dict[str, Any]:
    from mllm_pipe.runtimes import _records

    records: list[dict[str, Any]] = []
    secrets = [os.environ[name] for name in _passed(target) if name in os.environ]

    def on_line(line: bytes) -> None:
        if record := _records.record_of(line, secrets):
            records.append(record)
            if "content" in record:
                io.text(text_of(record["content"]))

    _run(target, _records.told(view), io, _listening.by_line(on_line), lambda: _records.reply(records))
    return _records.reply(records)


def _run(target: dict[str, Any], stdin: bytes, io: Any, on_bytes: Callable[[bytes], None],
         came: Callable[[], dict[str, Any]]) -> None:  # fmt: skip
    """Runs the program to its end. came: the result so far, which a failure carries if it says anything."""
    passed, name = _passed(target), target["argv"][0]
    env = _key.environment(passed) | {"MLLM_PARENT_RUN_ID": io.run}
    left = _listening.patient(target, io.left, lambda: came()["parts"])
    try:
        ended = _child.run(target["argv"], stdin=stdin, env=env, cwd=None, left=left, on_bytes=on_bytes)
    except CallFailed as failed:
        failed.result = failed.result or _partial(came())
        raise
    if ended.status:
        said = _child.last_line(ended.tail, [env[name] for name in passed if name in env])
        why = f"{name}: exit status {ended.status}{': ' + said if said else ''}"
        raise CallFailed("exit", why, result=_partial(came()))


def _partial(result: dict[str, Any]) -> dict[str, Any] | None:
    """What had arrived of an answer that failed."""
    return result | {"finish": "error"} if result["parts"] else None


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def run_check(argv: list[str], answer: bytes, left: Any) -> tuple[int, str]:
    """Runs a program as a judge's check: `answer` on its stdin; its status and the last line that it said.

    CallFailed if it cannot be run, or does not end within left().
    """
    status, out, said = run_tool(argv, answer, left)
    return status, said or _child.last_line(out)


def run_tool(argv: list[str], data: bytes, left: Any) -> tuple[int, str, str]:
    """Runs a program that is no runtime: `data` on its stdin; its status, its stdout, the last line of its stderr."""
    output = bytearray()
    ended = _child.run(argv, stdin=data, env=_key.environment(), cwd=None, left=left, on_bytes=output.extend)
    return ended.status, output.decode("utf-8", "replace"), _child.last_line(ended.tail)
