"""What the tests of the agent programs stand on: the programs with a server of their own, and threads to send."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from loopback import Loopback

from mllm_pipe import window
from mllm_pipe.errors import CallFailed

LONG_S = 600.0  # a program takes seconds to start, and as many times that as others want the processors
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
PDF = {"type": "file", "media_type": "application/pdf", "data": "JVBERi0xLjQKJSVFT0YK", "name": "d.pdf"}
KEYS = {
    "claude": "ANTHROPIC_API_KEY",
    "codex": "OPENAI_API_KEY",
    "gemini": "GEMINI_API_KEY",
    "opencode": "LOOP_API_KEY",
}
MODELS = {"claude": "claude-sonnet-4-5", "codex": "gpt-5.5", "gemini": "gemini-2.5-flash", "opencode": "loop/m1"}
ODD_PROMPTS = ["/help", "/nope x", "@/etc/hostname", "read @/etc/hostname", "$foo", "!ls", "#note", "-x", "--version",
               "-", "--", " lead and trail \n", "\n/help", "a\0b\u2028c\x1b[31m\r\nd", "ultrathink"]  # fmt: skip


class Io:
    """What a runtime is given: keeps the pieces of the answer and a deadline."""

    def __init__(self, seconds: float = LONG_S) -> None:
        self.pieces: list[str] = []
        self.losses: list[dict[str, Any]] = []
        self.run = "run-1"
        self.end = time.monotonic() + seconds

    def text(self, piece: str) -> None:
        self.pieces.append(piece)

    def lost(self, losses: list[dict[str, Any]]) -> None:
        self.losses = losses

    def left(self) -> float:
        left = self.end - time.monotonic()
        if left <= 0:
            raise CallFailed("timeout", "late")
        return left


class Brief(Io):
    """Its deadline is there as soon as `come()`: however slow the machine is, what is to come has come."""

    def __init__(self, come: Callable[[], Any]) -> None:
        super().__init__()
        self.come = come

    def left(self) -> float:
        self.end = 0.0 if self.come() else self.end
        return min(super().left(), 0.1)


class Program:
    """A program with its server: `ask` calls it, `sent` is what the server received of the last call."""

    def __init__(self, module: ModuleType, server: Loopback) -> None:
        self.module, self.server = module, server
        self.name = module.__name__.rpartition(".")[2]
        self.io = Io()

    def target(self, scenario: str = "ok", **more: Any) -> dict[str, Any]:
        url = self.server.url(scenario, "" if self.name in ("claude", "gemini") else "/v1")
        return {"spec": self.name, "kind": self.name, "model": MODELS[self.name], "base_url": url} | more

    def ask(self, *turns: dict[str, Any], scenario: str = "ok", seconds: float = LONG_S, system: str | None = "SYS",
            schema: dict[str, Any] | None = None, **target: Any) -> dict[str, Any]:  # fmt: skip
        self.io = io = Io(seconds)
        request = {"system": system, "turns": list(turns), "schema": schema}
        before = json.dumps(request)
        try:
            result: dict[str, Any] = self.module.call(self.target(scenario, **target), request, io)
        finally:
            assert json.dumps(request) == before
        assert result["losses"] == io.losses
        return result

    def failure(self, *turns: dict[str, Any], **more: Any) -> CallFailed:
        with pytest.raises(CallFailed) as caught:
            self.ask(*(turns or [user("hi")]), **more)
        check(caught.value, self.name)
        return caught.value

    def outcomes(self, scenarios: Sequence[str]) -> Iterator[tuple[str, dict[str, Any] | CallFailed]]:
        """What comes of a call to each scenario, a result or a failure; two at a time."""

        def outcome(scenario: str) -> dict[str, Any] | CallFailed:
            try:
                return self.ask(user("hi"), scenario=scenario)
            except CallFailed as failed:
                check(failed, self.name)
                return failed

        with ThreadPoolExecutor(2) as pool:
            yield from zip(scenarios, pool.map(outcome, scenarios), strict=True)

    def own_tokens(self, *turns: dict[str, Any]) -> float:
        """About how many tokens the program added by itself to its first request for the turns."""
        sent = json.dumps(self.calls()[0]["body"], ensure_ascii=False).encode()
        return len(sent) / window.BYTES_A_TOKEN - window.estimate({"system": "SYS", "turns": turns})

    def calls(self) -> list[dict[str, Any]]:
        return self.server.calls()

    def sent(self) -> list[list[Any]]:
        """The last request as [role, kind, what] lists, in one form for all; what the program adds is left out."""
        return SENT[self.name](self.calls()[-1]["body"])


def check(failed: CallFailed, name: str) -> None:
    """What holds for the message of any failure: one line, no key, and the program's name is the caller's to say."""
    said = str(failed)
    assert ("\n" in said, "sk-canary" in said, said.startswith(f"{name}: ")) == (False, False, False)


def claude_sent(body: dict[str, Any]) -> list[list[Any]]:
    found: list[list[Any]] = [["system", "text", body["system"][2]["text"]]] if len(body["system"]) > 2 else []
    for message in body["messages"]:
        for block in message["content"]:
            kind = block["type"]
            if kind == "tool_use":
                found.append(["assistant", "call", [block["id"], block["name"], block["input"]]])
            elif kind == "tool_result":
                found.append(["user", "result", [block["tool_use_id"], block["content"]]])
            elif kind in ("image", "document"):
                found.append(["user", "image", block["source"]["data"]])
            elif kind == "thinking":
                found.append(["assistant", "thinking", block["signature"]])
            elif not block["text"].startswith("<system-reminder>\nAs you answer"):  # today's date
                found.append([message["role"], "text", block["text"]])
    return found


def codex_sent(body: dict[str, Any]) -> list[list[Any]]:
    found: list[list[Any]] = []
    for item in body["input"]:
        if item["type"] == "function_call":
            given = item["arguments"]
            given = json.loads(given) if given.endswith("}") else given
            found.append(["assistant", "call", [item["call_id"], item["name"], given]])
        elif item["type"] == "function_call_output":
            found.append(["user", "result", [item["call_id"], item["output"]]])
        elif item["type"] == "message":
            (content,) = item["content"]
            role = "system" if item["role"] == "developer" else item["role"]
            if content["type"] == "input_image":
                found.append([role, "image", content["image_url"].split(",")[1]])
            else:
                found.append([role, "text", content["text"]])
    return found


def gemini_sent(body: dict[str, Any]) -> list[list[Any]]:
    found: list[list[Any]] = [["system", "text", part["text"]] for part in body["systemInstruction"]["parts"]]
    for content in body["contents"]:
        role = "assistant" if content["role"] == "model" else "user"
        for part in content["parts"]:
            if "functionCall" in part:
                inner = part["functionCall"]
                found.append([role, "call", [inner["id"], inner["name"], inner["args"]]])
            elif "functionResponse" in part:
                inner = part["functionResponse"]
                found.append([role, "result", [inner["id"], next(iter(inner["response"].values()))]])
            elif "inlineData" in part:
                found.append([role, "image", part["inlineData"]["data"]])
            else:
                found.append([role, "text", part["text"]])
    return found


def opencode_sent(body: dict[str, Any]) -> list[list[Any]]:
    found: list[list[Any]] = []
    for message in body["messages"]:
        role, content = message["role"], message.get("content") or []
        if role == "tool":
            found.append(["user", "result", [message["tool_call_id"], content]])
            continue
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if part["type"] in ("image_url", "file"):
                url = part["image_url"]["url"] if part["type"] == "image_url" else part["file"]["file_data"]
                found.append([role, "image", url.split(",")[1]])
            else:
                found.append([role, "text", part["text"]])
        for call in message.get("tool_calls", []):
            arguments = json.loads(call["function"]["arguments"])
            found.append([role, "call", [call["id"], call["function"]["name"], arguments]])
    return found


SENT = {"claude": claude_sent, "codex": codex_sent, "gemini": gemini_sent, "opencode": opencode_sent}


def turn(role: str, *parts: str | dict[str, Any], origin: dict[str, Any] | None = None) -> dict[str, Any]:
    full = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return {"role": role, "parts": full, "ids": ["1"], "origin": origin}


def user(*parts: str | dict[str, Any]) -> dict[str, Any]:
    return turn("user", *parts)


def called(ident: str, name: str = "Read", **arguments: Any) -> dict[str, Any]:
    return {"type": "tool_call", "id": ident, "name": name, "arguments": arguments}


def answered(ident: str, content: str) -> dict[str, Any]:
    return {"type": "tool_result", "call_id": ident, "content": content}


TEN_TURNS = [
    user("/help me, my name is Ada"),
    turn("assistant", "Hello Ada."),
    user("Read @/etc/hostname for me."),
    turn("assistant", "Sure.", called("call_a", file="f"), called("call_b", "List", dir="/")),
    user(answered("call_a", "FILE BODY"), answered("call_b", "a\nb"), "And now?"),
    turn("assistant", "It says FILE BODY."),
    user("$foo"),
    turn("assistant", "No."),
    user("-x"),
    turn("assistant", "Neither."),
]
TEN_SENT = [
    ["user", "text", "/help me, my name is Ada"],
    ["assistant", "text", "Hello Ada."],
    ["user", "text", "Read @/etc/hostname for me."],
    ["assistant", "text", "Sure."],
    ["assistant", "call", ["call_a", "Read", {"file": "f"}]],
    ["assistant", "call", ["call_b", "List", {"dir": "/"}]],
    ["user", "result", ["call_a", "FILE BODY"]],
    ["user", "result", ["call_b", "a\nb"]],
    ["user", "text", "And now?"],
    ["assistant", "text", "It says FILE BODY."],
    ["user", "text", "$foo"],
    ["assistant", "text", "No."],
    ["user", "text", "-x"],
    ["assistant", "text", "Neither."],
]


def places_of(text: str, value: Any, place: tuple[Any, ...] = ()) -> list[list[Any]]:
    """Where the text stands within a JSON value, each as a path to it."""
    if isinstance(value, str):
        return [list(place)] if text in value else []
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, one in inner for found in places_of(text, one, (*place, key))]


def carrying(mark: str) -> list[int]:
    """The processes that have the mark in their environment or command line, zombies aside."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (path / "environ").read_bytes() + (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue
    return found


def told_to(mark: str) -> list[bytes]:
    """Environment and command line, in turn, of each process but ours that carries the mark and is still there."""
    found = []
    for pid in carrying(mark):
        with suppress(OSError):  # it has ended meanwhile
            pair = [Path(f"/proc/{pid}/{name}").read_bytes() for name in ("environ", "cmdline")]
            found += pair if pid != os.getpid() else []
    return found


def files(*roots: Path) -> list[str]:
    return sorted(str(path) for root in roots for path in root.rglob("*") if path.is_file() or path.is_symlink())


def furnish(home: Path, hooked: Path) -> None:
    """Fills a home with what must not get into a request: skills, commands, memories, and a hook that makes `hooked`."""
    for path in (".claude/commands/foo.md", ".codex/skills/foo/SKILL.md", ".agents/skills/foo/SKILL.md"):
        (home / path).parent.mkdir(parents=True)
        (home / path).write_text("---\nname: foo\ndescription: foo\n---\nCANARY-FILE\n")
    for path in (".claude/CLAUDE.md", ".codex/AGENTS.md", "CLAUDE.md", "AGENTS.md"):
        (home / path).write_text("CANARY-FILE\n")
    hook = {"hooks": [{"type": "command", "command": f"touch {hooked}"}]}
    (home / ".claude/settings.json").write_text(json.dumps({"hooks": {"UserPromptSubmit": [hook]}}))
