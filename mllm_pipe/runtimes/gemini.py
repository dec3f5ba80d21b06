"""Gemini CLI (`gemini`), headless and stateless. Seen with 0.61.0. (`google.py` is the API.)

The whole thread, the newest turn too, is a session file of our own that `--session-file` reads: nothing in it is
expanded, and it takes pictures, results of tools, and more than stdin does. What the program would do to it, and what
keeps it from that (all seen on loopback):

- A user turn that begins with / or ? or is blank is left out. An empty part with `thought: false` before it hides its
  beginning, and is itself dropped before the request is made.
- A turn about date and directory is put first, unless the first turn has the id of just that turn.
- stdin must say something: it says the name of a command of our own whose prompt is empty, and that is dropped too.
  The name is a new one each time, or a project could have a command of that name.

So the request holds the turns and nothing else. An untrusted workspace keeps the project's settings, hooks and servers
out (but for allow "all": untrusted, it runs no git). A log that the program calls telemetry tells the finish reason,
which its events do not.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import orjson

from mllm_pipe.errors import CallFailed
from mllm_pipe.runtimes import _child, _files, _gemini_reply, _listening, _turns
from mllm_pipe.runtimes._program import distinct, key_for, login_at, options_of, write, wrong_program
from mllm_pipe.runtimes.google import NO_SIGNATURE
from mllm_pipe.sessions.gemini import HIDDEN, lines, rules
from mllm_pipe.sessions.gemini import part as kept_as

STREAMS = TAKES_OPTIONS = TAKES_SCHEMA = TAKES_MAX_TOKENS = True
API = "gemini"
OWN_TOKENS = {None: 150, "read": 1600, "write": 3100, "all": 7300}

Json = dict[str, Any]

KEYS = ("GEMINI_API_KEY", "GOOGLE_API_KEY")
SECRET = ("_KEY", "_TOKEN", "_HEADERS")
LOGINS = ("oauth_creds.json", "google_accounts.json")
# Its own default asks a model which model to ask, and pays for that too. `flash` is its name for the newest Flash.
MODEL = "flash"
NO_SYSTEM = "You are a helpful assistant."  # without a system text it sends 30 KB of its own
LONGEST = 4 << 20  # characters; it takes more than that for too many tokens for any model, and ends without a word
# Steers what the program does, and is ours to say.
NOT_OURS = ("GEMINI_CLI", "GEMINI_TELEMETRY", "GEMINI_SYSTEM_MD", "GEMINI_WRITE_SYSTEM_MD", "GEMINI_PROMPT",
            "GEMINI_SANDBOX", "GEMINI_MODEL", "GEMINI_RESTRICTED", "GEMINI_DEBUG")  # fmt: skip
READ = ["list_directory", "read_file", "read_many_files", "glob", "grep_search"]
WRITE = ["replace", "write_file"]


# -- to the program ---------------------------------------------------------------------------------------------------


def session(target: Json, request: Json) -> Json:
    """The request as {"history": the session file, "system": its text, "options", "losses", "prefix", "endpoint"}.

    Pure. The lines of a thread are a prefix of those of the same thread later on. CallFailed("too_large") if the
    program would make no request for it.
    """
    rule = rules(_endpoint(target), user_first=True)
    placed, unplaced = _files.placed(_files.embedded(request["turns"]), lambda part, _: kept_as(part))
    turns, renamed = distinct(placed)
    turns, bent = _turns.settle(turns, rule)
    rendered, dropped, prefix = _turns.render(request["system"], turns, rule, target.get("model"), _records)
    size = sum(len(part.get("text", "")) for record in rendered for part in record["content"])
    if size > LONGEST:
        said = f"the thread has {size} characters of text, it takes {LONGEST}; summarize it, or send fewer with --last"
        raise CallFailed("too_large", said, billed="no")
    system, changed = _system(request["system"])
    options, unfit = options_of(target, request, API)
    losses = [*unplaced, *renamed, *bent, *dropped, *changed, *unfit]
    return {"history": lines(rendered), "system": system, "options": options.get("generationConfig", {}),
            "losses": losses, "prefix": prefix, "endpoint": rule["endpoint"]}  # fmt: skip


def _records(turn: Json, _keep: bool) -> list[Json]:
    """A settled turn as records: one, or for results and what is said to them two. No reasoning: it is not told."""
    if turn["role"] == "assistant":
        parts = [kept_as(part) for part in turn["parts"] if part["type"] != "reasoning"]
        if call := next((part for part in parts if "functionCall" in part), None):
            # The program puts it there by itself, but only until the user says something more: then old turns change.
            parts[parts.index(call)] = call | {"thoughtSignature": NO_SIGNATURE}
        return [{"type": "gemini", "content": parts, "model": "assistant"}] if parts else []
    results = [kept_as(part) for part in turn["parts"] if part["type"] == "tool_result"]
    said = [kept_as(part) for part in turn["parts"] if part["type"] != "tool_result"]
    # After results there is always a second record: if they came last, an answer would be made up between.
    both = [{"type": "user", "content": [HIDDEN, *results]}] if results else []
    return [*both, {"type": "user", "content": [HIDDEN, *said]}]


def _system(text: str | None) -> tuple[str, list[Json]]:
    """The text of the system file, and what is lost: the program fills in some ${...}, and joins empty lines."""
    if not text or not text.strip():
        return NO_SYSTEM, []
    losses: list[Json] = []
    broken = re.sub(r"\$\{(?=(AgentSkills|SubAgents|AvailableTools|\w+_ToolName)\})", "$ {", text)
    if broken != text:
        _turns.loss(losses, {}, "${...} of the system text", "downgraded", "sent as $ {...}, or it would be filled in")
    if "\n\n\n" in text:
        _turns.loss(losses, {}, "empty lines of the system text", "dropped", "only one is kept of several in a row")
    return broken, losses


def settings(target: Json, auth: str, schema: Json | None, log: str, options: Json) -> Json:
    """The settings file. auth: how it logs in, "" if that is unknown. log: the path of the telemetry. options: of
    `session`."""
    allow = target.get("allow")
    tools = {None: [], "read": READ, "write": READ + WRITE}
    generation: Json = {"maxOutputTokens": target["max_tokens"]} if target.get("max_tokens") else {}
    generation |= options
    if schema is not None:
        generation |= {"responseMimeType": "application/json", "responseJsonSchema": schema}
    override = {"match": {"overrideScope": "core"}, "modelConfig": {"generateContentConfig": generation}}
    return {
        "security": {"auth": {"selectedType": auth} if auth else {}, "folderTrust": {"enabled": False},
                     "environmentVariableRedaction": {"enabled": True}},
        "general": {"enableAutoUpdate": False, "maxAttempts": 1},  # a cut answer would be asked for again, and paid
        "privacy": {"usageStatisticsEnabled": False},
        "telemetry": {"enabled": True, "target": "local", "otlpEndpoint": "", "outfile": log, "logPrompts": False},
        "context": {"includeDirectoryTree": False},
        "skills": {"enabled": False},
        # Each would make paid calls of its own.
        "model": {"compressionThreshold": 1000, "disableLoopDetection": True, "skipNextSpeakerCheck": True},
        **({"tools": {"core": tools[allow]}} if allow in tools else {}),
        **({"modelConfigs": {"customOverrides": [override]}} if generation else {}),
    }  # fmt: skip


def policy(target: Json) -> bytes:
    """The rules that let tools run unasked that ask otherwise."""
    names = WRITE if target.get("allow") == "write" else []
    return "".join(f'[[rule]]\ntoolName = "{name}"\ndecision = "allow"\npriority = 500\n' for name in names).encode()


def arguments(target: Json, resume: str) -> list[str]:
    """The command line. resume: the session file."""
    return [
        "gemini", "--output-format=stream-json", f"--model={target.get('model') or MODEL}", f"--session-file={resume}",
        "--raw-output", "--accept-raw-output-risk",
        *(["--approval-mode=yolo"] if target.get("allow") == "all" else []),
    ]  # fmt: skip


def environment(target: Json, key: tuple[str, str] | None, place: str) -> dict[str, str]:
    """The child's variables. place: the directory of the call."""
    env = {n: v for n, v in _child.allowed_env(("GEMINI_", "GOOGLE_")).items() if not n.startswith(NOT_OURS)}
    if key:
        env = {n: v for n, v in env.items() if n not in KEYS and not n.startswith("GOOGLE_GENAI_USE_")}
        env |= {"GEMINI_API_KEY": key[1], "HOME": os.path.join(place, "home")}
    if target.get("base_url"):
        env["GOOGLE_GEMINI_BASE_URL"] = target["base_url"].rstrip("/").removesuffix("/v1beta")
    return env | {
        "TMPDIR": os.path.join(place, "tmp"),  # every error leaves the whole thread there
        "GEMINI_CLI_HOME": os.path.join(place, "home"),
        "GEMINI_CLI_NO_RELAUNCH": "true",
        "GEMINI_CLI_TRUST_WORKSPACE": "true" if target.get("allow") == "all" else "false",
        "GEMINI_SYSTEM_MD": os.path.join(place, "system"),
    }


# -- the call ---------------------------------------------------------------------------------------------------------


def usable(target: Json) -> str:
    """ "" when gemini is here and has a key or a login, else why it cannot be called."""
    try:
        if not key_for(target, KEYS) and not _auth(None):
            return "no key (export GEMINI_API_KEY) and no login (run gemini once)"
    except CallFailed as failed:
        return str(failed)
    return wrong_program("gemini", "Gemini CLI", "--help")


def preview(target: Json, request: Json) -> Json:
    """What `call` would run: argv, the variables of the vendor (keys masked), its files, and stdin."""
    made, key = session(target, request), key_for(target, KEYS)
    env = environment(target, key, "DIRECTORY")
    shown = {name: value for name, value in env.items() if name.startswith(("GEMINI_", "GOOGLE_"))}
    return {
        "argv": arguments(target, "DIRECTORY/session.jsonl"),
        "env": {name: "***" if name.endswith(SECRET) else value for name, value in shown.items()},
        "files": {"system": made["system"], "session": made["history"].decode(),
                  "settings": settings(target, _auth(key), request["schema"], "DIRECTORY/log", made["options"])},
        "stdin": "/COMMAND",
        "losses": made["losses"],
    }  # fmt: skip


def call(target: Json, request: Json, io: Any) -> Json:
    """Runs gemini in target["cwd"], or in an empty directory of its own; see mllm_pipe.runtimes."""
    made, key = session(target, request), key_for(target, KEYS, io)
    io.lost(made["losses"])
    events: list[Json] = []

    def on_line(line: bytes) -> None:
        event = _gemini_reply.event(line)
        if event is None:
            return
        events.append(event)
        if piece := _gemini_reply.piece(events, len(events) - 1):
            io.text(piece)

    with _child.scratch() as place:
        _furnish(place, target, request, made, key)
        env = environment(target, key, place)
        secrets = [value for name, value in env.items() if name.endswith(SECRET) and value]
        with _login_in(os.path.join(place, "home/.gemini"), shared=not key):
            try:
                ended = _child.run(
                    arguments(target, os.path.join(place, "session.jsonl")),
                    stdin=b"/" + os.fsencode(os.path.basename(place)),
                    env=env,
                    cwd=target.get("cwd") or os.path.join(place, "cwd"),
                    left=_listening.patient(target, io.left, lambda: _gemini_reply.begun(events)),
                    on_bytes=_listening.by_line(on_line),
                )
            except CallFailed as failed:
                if not _gemini_reply.over(events):
                    failed.result = failed.result or _gemini_reply.worth(_gemini_reply.partial(events, made))
                    raise
                ended = _gemini_reply.ENDED  # it had said all, and would not end
        log = _read(os.path.join(place, "log"))
    if _gemini_reply.over(events):
        return _gemini_reply.reply(events, made, log=log, ended=ended, secrets=secrets)
    lost = _gemini_reply.worth(_gemini_reply.partial(events, made, log))
    raise _gemini_reply.no_result(ended, lost, secrets)


def _furnish(place: str, target: Json, request: Json, made: Json, key: tuple[str, str] | None) -> None:
    """Puts into the directory of a call what the program finds there."""
    home = os.path.join(place, "home/.gemini")
    chosen = settings(target, _auth(key), request["schema"], os.path.join(place, "log"), made["options"])
    for path, data in (
        (f"{home}/settings.json", orjson.dumps(chosen)),
        (f"{home}/commands/{os.path.basename(place)}.toml", b'prompt = ""\n'),
        (f"{home}/policies/mllm.toml", policy(target)),
        (f"{place}/session.jsonl", made["history"]),
        (f"{place}/system", made["system"].encode()),
        (f"{place}/.env", b""),  # it takes the first on the way up to the root
    ):
        write(path, data)
    for name in ("cwd", "tmp"):
        os.mkdir(os.path.join(place, name))


def _auth(key: tuple[str, str] | None) -> str:
    """How the program logs in, by its own names; "" if there is no way that we see."""
    if key:
        return "gemini-api-key"
    if os.environ.get("GOOGLE_GENAI_USE_VERTEXAI") == "true":
        return "vertex-ai"
    logged_in = os.path.exists(os.path.join(_home(), LOGINS[0])) or os.environ.get("GOOGLE_GENAI_USE_GCA") == "true"
    return "oauth-personal" if logged_in else ""


def _home() -> str:
    """The directory of the user's own state."""
    return os.path.join(os.environ.get("GEMINI_CLI_HOME") or os.path.expanduser("~"), ".gemini")


@contextmanager
def _login_in(home: str, *, shared: bool) -> Iterator[None]:
    """The user's login in a home of the call's own, if there is one and it is to be used."""
    with ExitStack() as stack:
        for name in LOGINS:
            login = os.path.join(_home(), name)
            if shared and os.path.exists(login):
                stack.enter_context(login_at(os.path.join(home, name), login))
        yield


def _endpoint(target: Json) -> str:
    given = target.get("base_url") or os.environ.get("GOOGLE_GEMINI_BASE_URL")
    return str(given or "https://generativelanguage.googleapis.com")


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""
