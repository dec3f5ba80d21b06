"""Claude Code (`claude -p`), headless and stateless. Seen with 2.1.197.

The history is a session file of our own that `--resume` reads, the newest turn a `stream-json` message on stdin. Two
oddities shape how that message is written, both seen on loopback:

- A prompt that begins with / is a command. What is looked at is the last text block alone, so an empty one is put
  there; it is dropped again before the request is made, and the text arrives as it was.
- A result of a tool on stdin loses the call that it belongs to. Such a newest turn goes into the session file, stdin
  stays empty, and CLAUDE_CODE_RESUME_INTERRUPTED_TURN lets the program go on from there. It would put a sentence of
  its own after it; a blank one is dropped.

Nothing in either place is expanded as @file with --bare or CLAUDE_CODE_DISABLE_ATTACHMENTS. The program itself adds
two system blocks that name it, and today's date before the first user turn.
"""

from __future__ import annotations

import os
from typing import Any

import orjson

from mllm_pipe.errors import CallFailed
from mllm_pipe.runtimes import _child, _files, _listening, _turns
from mllm_pipe.runtimes._claude_reply import SYNTHETIC, event_of, partial, reply, with_end, worth
from mllm_pipe.runtimes._program import distinct, key_for, options_of, write, wrong_program
from mllm_pipe.sessions.claude import block, lines, rules

STREAMS = TAKES_OPTIONS = TAKES_MAX_TOKENS = True
API = "claude"
OWN_TOKENS = {None: 400, "read": 2700, "write": 4100, "all": 9000}

SESSION = "00000000-0000-4000-8000-000000000000.jsonl"  # must be named like a UUID
SECRET = ("_KEY", "_TOKEN", "_HEADERS")
KEYS = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN")
# Tools that it may use by itself, of these only in its directory but for "all".
READ = ("Read", "Glob", "Grep")
WRITE = (*READ, "Edit", "Write", "NotebookEdit")
ALL = (*WRITE, "Bash", "WebFetch", "WebSearch")
TOOLS = {None: (), "read": READ, "write": WRITE, "all": ALL}
# Of a Claude Code that we may run in: its session, not its login.
NOT_OURS = ("CLAUDE_CODE_SESSION", "CLAUDE_CODE_CHILD_SESSION", "CLAUDE_CODE_SSE_PORT", "CLAUDE_CODE_ENTRYPOINT",
            "CLAUDE_CODE_RESUME", "CLAUDE_CODE_SUPERVISED", "CLAUDE_BG_")  # fmt: skip


# -- to the program ---------------------------------------------------------------------------------------------------


def session(target: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    """The request as {"history": the session file, b"" for none, "stdin": bytes, "options": what of the user's options
    it takes, "losses", "prefix", "endpoint"}. Pure.

    The lines of a thread are a prefix of those of the same thread later on.
    """
    rule = rules(_endpoint(target))
    placed, unplaced = _files.placed(_files.embedded(request["turns"]), lambda part, _: block(part))
    turns, renamed = distinct(placed)
    turns, bent = _turns.settle(turns, rule)
    rendered, dropped, prefix = _turns.render(request["system"], turns, rule, target.get("model"), _messages)
    messages: list[dict[str, Any]] = []
    for message in rendered:
        if message["role"] == "user" and messages and messages[-1]["role"] == "user":
            message = {**message, "content": [*messages.pop()["content"], *message["content"]]}
        messages.append(message)
    for message in messages:
        if message["content"][0]["type"] == "tool_result":
            message["content"].append({"type": "text", "text": ""})  # or the last text would gain a newline
    options, unfit = options_of(target, request, API)
    losses = [*unplaced, *renamed, *bent, *dropped, *unfit]
    made = {"options": options, "losses": losses, "prefix": prefix, "endpoint": rule["endpoint"]}
    if messages[-1]["content"][0]["type"] == "tool_result":
        return {**made, "history": lines(messages), "stdin": b""}
    newest = {"role": "user", "content": [*messages[-1]["content"], {"type": "text", "text": ""}]}
    prompt = {"type": "user", "message": newest, "parent_tool_use_id": None}
    return {**made, "history": lines(messages[:-1]), "stdin": orjson.dumps(prompt) + b"\n"}


def _messages(turn: dict[str, Any], keep: bool) -> list[dict[str, Any]]:
    """A settled turn as messages of the Messages API: one, or none. keep: with its reasoning."""
    parts = [part for part in turn["parts"] if part["type"] != "reasoning" or (keep and "raw" in part)]
    content = [block(part) for part in parts]
    # Without the model's name the program takes the reasoning for another model's, and drops it.
    named = {"model": turn["origin"]["model"]} if keep else {}
    return [{"role": turn["role"], "content": content, **named}] if content else []


def arguments(target: dict[str, Any], bare: bool, system: str, resume: str, options: dict[str, Any]) -> list[str]:
    """The command line. system: the file of the system text, which may be empty. resume: the session file, or "".
    options: of `session`."""
    allow = target.get("allow")
    return [
        "claude", "-p", "--input-format", "stream-json", "--output-format", "stream-json", "--verbose",
        "--include-partial-messages", "--no-session-persistence", "--tools", ",".join(TOOLS[allow]),
        "--strict-mcp-config", "--setting-sources", "", "--disable-slash-commands", "--system-prompt-file", system,
        *(["--bare"] if bare else []),
        *(["--permission-mode=acceptEdits"] if allow in ("write", "all") else []),
        *([f"--allowedTools={','.join(ALL)}"] if allow == "all" else []),  # root may not turn permissions off
        *([f"--model={target['model']}"] if target.get("model") else []),
        *([f"--effort={options['effort']}"] if options else []),
        *([f"--resume={resume}"] if resume else []),
    ]  # fmt: skip


def environment(target: dict[str, Any], key: tuple[str, str] | None, private: str, resumed: bool) -> dict[str, str]:
    """The child's variables. private: the directory of its state, "" for the user's own, which holds the login."""
    extra = {
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",  # no second, paid call for a title either
        "CLAUDE_CODE_DISABLE_ATTACHMENTS": "1",
        "CLAUDE_CODE_MAX_RETRIES": "1",
        "CLAUDE_CODE_DISABLE_NONSTREAMING_FALLBACK": "1",  # a cut answer would be asked for again, and paid twice
        "DISABLE_AUTOUPDATER": "1",
    }
    if private:
        extra |= {"CLAUDE_CONFIG_DIR": private, "HOME": private}
    if key and (key[0] not in KEYS or not os.environ.get(key[0])):
        extra |= {"ANTHROPIC_API_KEY": key[1], "ANTHROPIC_AUTH_TOKEN": "", "CLAUDE_CODE_OAUTH_TOKEN": ""}
    if target.get("base_url"):
        extra["ANTHROPIC_BASE_URL"] = target["base_url"]
    if target.get("max_tokens"):
        extra["CLAUDE_CODE_MAX_OUTPUT_TOKENS"] = str(target["max_tokens"])
    if resumed:
        extra |= {"CLAUDE_CODE_RESUME_INTERRUPTED_TURN": "1", "CLAUDE_CODE_RESUME_PROMPT": " "}
    env = _child.allowed_env(("ANTHROPIC_", "CLAUDE_"))
    return {name: value for name, value in env.items() if not name.startswith(NOT_OURS)} | extra


# -- the call ---------------------------------------------------------------------------------------------------------


def usable(target: dict[str, Any]) -> str:
    """ "" when claude is here and has a key or a login, else why it cannot be called."""
    try:
        if not key_for(target, KEYS) and not _logged_in():
            return "no key (export ANTHROPIC_API_KEY) and no login (run claude once)"
    except CallFailed as failed:
        return str(failed)
    return wrong_program("claude", "Claude Code")


def preview(target: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    """What `call` would run: argv, the variables of the vendor (keys masked), the session file and stdin as text."""
    made, key = session(target, request), key_for(target, KEYS)
    env = environment(target, key, "DIRECTORY/state" if key else "", not made["stdin"])
    secret = {name: "***" for name in env if name.endswith(SECRET)}
    resume = f"DIRECTORY/{SESSION}" if made["history"] else ""
    return {
        "argv": arguments(target, _bare(target, key), "DIRECTORY/system", resume, made["options"]),
        "env": {name: value for name, value in (env | secret).items() if name.startswith(("ANTHROPIC_", "CLAUDE_"))},
        "files": {"system": request["system"] or "", "session": made["history"].decode()},
        "stdin": made["stdin"].decode(),
        "losses": made["losses"],
    }


def call(target: dict[str, Any], request: dict[str, Any], io: Any) -> dict[str, Any]:
    """Runs claude in target["cwd"], or in an empty directory of its own; see mllm_pipe.runtimes."""
    made, key = session(target, request), key_for(target, KEYS, io)
    io.lost(made["losses"])
    events: list[dict[str, Any]] = []
    streamed: set[Any] = set()

    def on_line(line: bytes) -> None:
        event = event_of(line)
        if event is None:
            return
        events.append(event)
        if event["type"] == "stream_event":
            if event["event"]["type"] == "message_start":
                streamed.add(event["event"].get("message", {}).get("id"))
            elif piece := event["event"].get("delta", {}).get("text"):
                io.text(piece)
            elif target.get("max_tokens") and event["event"].get("delta", {}).get("stop_reason") == "max_tokens":
                raise _child.Enough  # it would have the answer continued, up to three times, each paid for
        elif event["type"] == "assistant" and event["message"].get("model") != SYNTHETIC:
            for block in event["message"]["content"]:
                if block.get("type") == "text" and event["message"].get("id") not in streamed:
                    io.text(block["text"])

    bare = _bare(target, key)
    with _child.scratch() as directory:
        cwd, state, system, resume = (os.path.join(directory, n) for n in ("cwd", "state", "system", SESSION))
        temporary = os.path.join(directory, "tmp")  # its shell leaves directories there
        os.mkdir(cwd)
        os.mkdir(temporary)
        write(system, (request["system"] or "").encode())
        write(resume, made["history"])
        env = environment(target, key, state if key else "", not made["stdin"]) | {"TMPDIR": temporary}
        argv = arguments(target, bare, system, resume if made["history"] else "", made["options"])
        secrets = [value for name, value in env.items() if name.endswith(SECRET) and value]
        try:
            ended = _child.run(
                argv,
                stdin=made["stdin"],
                env=env,
                cwd=target.get("cwd") or cwd,
                left=_listening.patient(target, io.left, lambda: events),
                on_bytes=_listening.by_line(on_line),
            )
        except _child.Enough:
            ended = _child.Exit(0, "")
        except CallFailed as failed:
            if events and events[-1]["type"] == "result":  # it had said all, and would not end
                return reply(events, made, secrets)
            failed.result = failed.result or worth(partial(events, made))
            raise
    if ended.status == 0:
        events = with_end(events)
    if events and events[-1]["type"] == "result":
        return reply(events, made, secrets)
    said = _child.last_line(ended.tail, secrets)
    message = f"exit status {ended.status} without a result{': ' + said if said else ''}"
    lost = worth(partial(events, made))
    raise CallFailed("exit", message, billed="unknown" if events else "no", result=lost)


def _endpoint(target: dict[str, Any]) -> str:
    return str(target.get("base_url") or os.environ.get("ANTHROPIC_BASE_URL") or "https://api.anthropic.com")


def _bare(target: dict[str, Any], key: tuple[str, str] | None) -> bool:
    """True with an API key: --bare reads no login, no keychain, no CLAUDE.md and no hooks. But it knows few tools."""
    return key is not None and key[0] != "CLAUDE_CODE_OAUTH_TOKEN" and not target.get("allow")


def _logged_in() -> bool:
    """True if there is a login of the user's, in a file or (macOS) noted as being in the keychain."""
    home = os.path.expanduser("~")
    state = os.environ.get("CLAUDE_CONFIG_DIR")
    if os.path.exists(os.path.join(state or os.path.join(home, ".claude"), ".credentials.json")):
        return True
    try:
        with open(os.path.join(state or home, ".claude.json"), "rb") as file:
            return b'"oauthAccount"' in file.read()
    except OSError:
        return False
