"""Codex (`codex exec`), headless and stateless. Seen with 0.169.0.

The history is a rollout file of our own that `fork --ephemeral` reads, the newest text stands on stdin, where nothing
is expanded or trimmed (seen: /help, @file, $skill, -x, blanks). Each text part is an item of its own, in the history as
on stdin, so that a turn reads the same when it is the newest and when it is not.

HOME and CODEX_HOME are directories of the call's own (not under the temp directory, or codex complains), since both
may hold skills, and a `$name` in the prompt puts the skill of that name into the request. A login is shared by a link
to its auth.json, through which codex writes a token that it has renewed (seen).

The program has no text deltas
and tells neither model nor cost.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import orjson

from mllm_pipe.errors import CallFailed
from mllm_pipe.runtimes import _child, _faults, _files, _listening, _shape, _turns
from mllm_pipe.runtimes._program import distinct, key_for, login_at, options_of, uuid_of, write, wrong_program
from mllm_pipe.sessions.codex import failures_told, rollout, rules
from mllm_pipe.sessions.codex import item as _item

STREAMS = TAKES_OPTIONS = TAKES_SCHEMA = True
API = "codex"
OWN_TOKENS = {None: 900, "read": 2100, "write": 2100, "all": 2100}

KEYS = ("OPENAI_API_KEY", "CODEX_API_KEY")
NOBODY = "no key (export OPENAI_API_KEY) and no login (run: codex login)"
LONGEST_PROMPT = 1 << 20  # characters; codex refuses more on stdin, but takes it in a rollout
NOT_OURS = ("CODEX_SANDBOX", "CODEX_THREAD", "CODEX_API_KEY")
# Codex has no call without instructions, and its own are 17 KB about the tools that are off here.
NO_SYSTEM = "You are a helpful assistant."
NO_TEXT = "Continue."  # what stands for the text of a turn that has none; an empty stdin is refused

# A feature that a version does not know is ignored here; `--disable` of one would end the program.
SETTINGS = (
    "analytics.enabled=false", 'approval_policy="never"', 'web_search="disabled"',
    'shell_environment_policy.inherit="core"', "include_environment_context=false",
    "include_permissions_instructions=false", "include_collaboration_mode_instructions=false",
    "skills.include_instructions=false", "skills.bundled.enabled=false", "project_doc_max_bytes=0",
    "agents.enabled=false", "tools.experimental_request_user_input.enabled=false",
    *(f"features.{name}=false" for name in (
        "plugins", "goals", "view_image", "skill_search", "apps", "tool_suggest",
        "sleep_tool", "image_generation", "unbounded_connection_retries")),
)  # fmt: skip

# With tools, a sandbox of the system holds them: "write" is for the directory and the temp directories.
NO_TOOLS = ("features.shell_tool=false", "features.unified_exec=false")
SANDBOX = {None: "read-only", "read": "read-only", "write": "workspace-write", "all": "danger-full-access"}


# -- to the program ---------------------------------------------------------------------------------------------------


def session(target: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    """The request as {"items": Responses API items of the history, "stdin": str, "options", "losses": [...]}. Pure.

    CallFailed("too_large") if the newest text is longer than codex takes.
    """
    rule = rules(_base_url(target, None))
    placed, unplaced = _files.placed(_files.embedded(request["turns"]), lambda part, _: _item(part, "user"))
    turns, renamed = distinct(placed)
    turns, bent = _turns.settle(turns, rule)
    turns = [_text_last(failures_told(turn, bent), bent) if turn["role"] == "user" else turn for turn in turns]
    turns = _system_before(turns, bent)
    items, dropped, _ = _turns.render(request["system"], turns, rule, target.get("model"), _items)
    newest = items[-1]["content"][0]["text"]
    if len(newest) > LONGEST_PROMPT:
        said = f"the newest text has {len(newest)} characters, it takes {LONGEST_PROMPT}; attach it as a file"
        raise CallFailed("too_large", said, billed="no")
    options, unfit = options_of(target, request, API)
    losses = [*unplaced, *renamed, *bent, *dropped, *unfit]
    return {"items": items[:-1], "stdin": newest, "options": options, "losses": losses}


def _text_last(turn: dict[str, Any], losses: list[dict[str, Any]]) -> dict[str, Any]:
    """A user turn with a text as its last part, as stdin can be nothing else; so in the history too."""
    parts = turn["parts"]
    texts = [part for part in parts if part["type"] == "text"]
    if not texts:
        _turns.loss(losses, turn, "text", "synthesised", f"there must be one, and it has none: {NO_TEXT}")
    elif parts[-1] is not texts[-1]:
        _turns.loss(losses, turn, "file", "moved", "before the last text of its turn")
    last = texts[-1] if texts else {"type": "text", "text": NO_TEXT}
    return {**turn, "parts": [*(part for part in parts if part is not last), last]}


def _system_before(turns: list[dict[str, Any]], losses: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """System turns between what the user says and its answer, put before the user's last text: that stands on stdin."""
    out: list[dict[str, Any]] = []
    for place, turn in enumerate(turns):
        after = next((later["role"] for later in turns[place:] if later["role"] != "system"), "assistant")
        if turn["role"] != "system" or after != "assistant" or not out or out[-1]["role"] != "user":
            out.append(turn)
            continue
        _turns.loss(losses, turn, "system text", "moved", "before the last text of the user's turn")
        *before, last = out[-1]["parts"]
        out[-1:] = [*([{**out[-1], "parts": before}] if before else []), turn, {**out[-1], "parts": [last]}]
    return out


def _items(turn: dict[str, Any], _keep: bool) -> list[dict[str, Any]]:
    """A settled turn as input items of the Responses API. No reasoning: codex does not tell what makes it valid."""
    role = "developer" if turn["role"] == "system" else turn["role"]
    return [_item(part, role) for part in turn["parts"] if part["type"] != "reasoning"]


def session_id(request: dict[str, Any]) -> str:
    """The id of the rollout: it becomes the prompt_cache_key, so all turns of a thread share it."""
    return uuid_of(request["system"], request["turns"][0]["parts"])


def arguments(target: dict[str, Any], key: tuple[str, str] | None, fork: str, system: str, schema: str,
              options: dict[str, Any]) -> list[str]:  # fmt: skip
    """The command line. fork: the id of the rollout, or "". system, schema: files, schema may be "". options: of
    `session`."""
    allow = target.get("allow")
    settings = [*SETTINGS, *(() if allow else NO_TOOLS), f"sandbox_mode={_toml(SANDBOX[allow])}",
                f"model_instructions_file={_toml(system)}",
                *(f"{name}={_toml(value)}" for name, value in options.items())]  # fmt: skip
    # The built-in provider asks for a cut answer five times more, each of them paid, ignores OPENAI_BASE_URL and tries
    # WebSockets first. One without a URL asks whom a login is for, and as OpenAI it asks as the built-in one does.
    url = _base_url(target, key)
    provider = f'name="mllm",base_url={_toml(url)}' if url else 'name="OpenAI",requires_openai_auth=true'
    provider += ',env_key="OPENAI_API_KEY"' if key else ""
    provider += ',wire_api="responses",request_max_retries=1,stream_max_retries=0'
    settings += ['model_provider="mllm"', f"model_providers.mllm={{{provider}}}"]
    return [
        "codex", "exec", *(["fork", fork] if fork else []), "--json", "--ephemeral", "--skip-git-repo-check",
        "--ignore-user-config", "--ignore-rules",
        *([f"--model={target['model']}"] if target.get("model") else []),
        *([f"--output-schema={schema}"] if schema else []),
        *(word for setting in settings for word in ("-c", setting)),
        "-",
    ]  # fmt: skip


def environment(key: tuple[str, str] | None, home: str) -> dict[str, str]:
    """The child's variables. home: the directory of its state. Its sandbox leaves files in the temp directory."""
    env = _child.allowed_env(("OPENAI_", "CODEX_"))
    ours = {name: value for name, value in env.items() if not name.startswith(NOT_OURS)}
    temporary = os.path.join(os.path.dirname(home), "tmp")
    return ours | {"HOME": home, "CODEX_HOME": home, "TMPDIR": temporary} | ({"OPENAI_API_KEY": key[1]} if key else {})


def _base_url(target: dict[str, Any], key: tuple[str, str] | None) -> str:
    given = target.get("base_url") or os.environ.get("OPENAI_BASE_URL") or ""
    return given or ("https://api.openai.com/v1" if key else "")


def _toml(text: str) -> str:
    """A TOML string; JSON's escapes are among TOML's."""
    return orjson.dumps(text).decode()


# -- from the program -------------------------------------------------------------------------------------------------


def reply(
    events: Sequence[dict[str, Any]],
    model: str | None = None,
    losses: Sequence[dict[str, str]] = (),
    secrets: Sequence[str] = (),
) -> dict[str, Any]:
    """The result that the events of a run say (see mllm_pipe.runtimes), `turn.completed` or `turn.failed` last. Pure.

    model: the one asked for. An `error` event alone is no end. CallFailed tells no secret.
    """
    return _shape.said(
        events, lambda some: _partial(some, model, losses), lambda result: _answer(events, result, secrets)
    )


def _answer(events: Sequence[dict[str, Any]], result: dict[str, Any], secrets: Sequence[str]) -> dict[str, Any]:
    if events[-1]["type"] == "turn.completed":
        if any(part["type"] == "text" and part["text"].strip() for part in result["parts"]):
            return {**result, "finish": "stop"}
        raise CallFailed("empty", "it ended without an answer", billed="yes", result=_worth(result))
    text = str((events[-1].get("error") or {}).get("message") or "no reason given")
    for reason, finish in (("max_output_tokens", "length"), ("content_filter", "filter")):
        if f"reason: {reason}" in text and result["parts"]:
            return {**result, "finish": finish}
    raise _failure(text, _worth(result), secrets)


def partial(
    events: Sequence[dict[str, Any]], model: str | None = None, losses: Sequence[dict[str, str]] = ()
) -> dict[str, Any]:
    """What had come by the last of the events, as a result with finish "error"."""
    return _shape.so_far(events, lambda some: _partial(some, model, losses))


def _partial(events: Sequence[dict[str, Any]], model: str | None, losses: Sequence[dict[str, str]]) -> dict[str, Any]:
    parts: list[dict[str, Any]] = []
    for event in events:
        item = event.get("item") or {}
        if item.get("type") == "agent_message" and item.get("text"):
            said = any(part["type"] == "text" for part in parts)
            parts.append({"type": "text", "text": ("\n\n" if said else "") + item["text"]})
        elif item.get("type") == "reasoning" and item.get("text"):
            parts.append({"type": "reasoning", "text": item["text"]})
    used = events[-1].get("usage") if events else None
    usage = {ours: used[theirs] for ours, theirs in _USAGE.items() if theirs in used} if used else None
    return {"parts": parts, "finish": "error", "model": model, "provider": "openai", "usage": usage, "cost_usd": None,
            "cost_source": None, "origin": {"api": "codex", "model": model}, "losses": list(losses)}  # fmt: skip


_USAGE = {"input_tokens": "input_tokens", "cache_read_tokens": "cached_input_tokens",
          "cache_write_tokens": "cache_write_input_tokens", "output_tokens": "output_tokens",
          "reasoning_tokens": "reasoning_output_tokens"}  # fmt: skip

# What the prose of a failure says, first match wins: code, billed.
_PROSE = (
    (r"stream disconnected|idle timeout", "cut", "unknown"),
    (r"timed? ?out", "timeout", "unknown"),
    (r"usage limit|rate limit", "rate_limit", "no"),
    (r"[Qq]uota|billing", "billing", "no"),
    (r"high demand|overloaded|at capacity", "overloaded", "no"),  # 500 and 503
    (r"Connection failed|error sending request|waiting for network", "network", "no"),
    (r"context window|maximum length|too long", "too_large", "no"),
    (r"[Mm]issing environment variable|[Nn]ot logged in|log in again|sign in", "auth", "no"),
    (r"model.{0,80}(not exist|not found|not supported)", "bad_model", "no"),
)


def _failure(text: str, result: dict[str, Any] | None, secrets: Sequence[str]) -> CallFailed:
    """The program's prose as a failure: it has a status in it, is the body of a 400, or is known by its words."""
    status = re.search(r"(?:unexpected|last) status:? (\d{3})", text)
    try:
        body = orjson.loads(text)
    except orjson.JSONDecodeError:
        body = None
    if status or isinstance(body, dict):
        value = body if isinstance(body, dict) else {"error": {"message": text}}
        fault = _faults.of_reply(int(status[1]) if status else 400, {}, orjson.dumps(value), secrets)
        code, billed, said = fault.code, "unknown" if result else fault.billed, _faults.message(value)
        number = fault.http_status
    else:
        known = (row for row in _PROSE if re.search(row[0], text))
        _, code, billed = next(known, ("", "exit", "unknown"))
        said, number = text, None
    hint = "; check OPENAI_API_KEY, or log in with: codex login" if code == "auth" else ""
    message = f"{_faults.tidy(said, secrets)}{hint}"
    return CallFailed(code, message, billed=billed, http_status=number, result=result)


def _worth(result: dict[str, Any]) -> dict[str, Any] | None:
    """The partial result, if it says anything."""
    return result if result["parts"] or result["usage"] else None


# -- the call ---------------------------------------------------------------------------------------------------------


def usable(target: dict[str, Any]) -> str:
    """ "" when codex is here and has a key or a login, else why it cannot be called."""
    try:
        key = key_for(target, KEYS)
    except CallFailed as failed:
        return str(failed)
    if not _base_url(target, key) and not os.path.exists(_login()):
        return NOBODY
    return wrong_program("codex", "codex-cli")


def preview(target: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    """What `call` would run: argv, the variables of the vendor (keys masked), the rollout and stdin as text."""
    made, key = session(target, request), key_for(target, KEYS)
    ident = session_id(request) if made["items"] else ""
    env = environment(key, "DIRECTORY/home")
    schema = "" if request["schema"] is None else "DIRECTORY/schema"
    return {
        "argv": arguments(target, key, ident, "DIRECTORY/system", schema, made["options"]),
        "env": {n: "***" if n.endswith("_KEY") else v for n, v in env.items() if n.startswith(("OPENAI_", "CODEX_"))},
        "files": {"system": request["system"] or NO_SYSTEM, "schema": request["schema"],
                  "rollout": rollout(made["items"], ident).decode() if ident else ""},
        "stdin": made["stdin"],
        "losses": made["losses"],
    }  # fmt: skip


def call(target: dict[str, Any], request: dict[str, Any], io: Any) -> dict[str, Any]:
    """Runs codex in target["cwd"], or in an empty directory of its own; see mllm_pipe.runtimes."""
    made, key, model = session(target, request), key_for(target, KEYS, io), target.get("model")
    io.lost(made["losses"])
    if not _base_url(target, key) and not os.path.exists(_login()):
        raise CallFailed("auth", NOBODY, billed="no")  # it would ask all the same
    events: list[dict[str, Any]] = []
    said = False

    def on_line(line: bytes) -> None:
        nonlocal said
        event = _event(line)
        if event is None:
            return
        events.append(event)
        if event.get("item", {}).get("type") == "agent_message" and event["item"].get("text"):
            io.text(("\n\n" if said else "") + event["item"]["text"])
            said = True

    with _child.scratch(_cache()) as directory:
        cwd, home, system, schema = (os.path.join(directory, name) for name in ("cwd", "home", "system", "schema"))
        ident = session_id(request) if made["items"] else ""
        os.mkdir(cwd)
        os.mkdir(os.path.join(directory, "tmp"))
        write(system, (request["system"] or NO_SYSTEM).encode())
        write(schema, orjson.dumps(request["schema"]))
        write(os.path.join(home, "sessions/2026/01/01", f"rollout-2026-01-01T00-00-00-{ident}.jsonl"),
               rollout(made["items"], ident))  # fmt: skip
        argv = arguments(target, key, ident, system, schema if request["schema"] is not None else "", made["options"])
        env = environment(key, home)
        secrets = [value for name, value in env.items() if name.endswith("_KEY") and value]
        with _login_in(home, shared=not _base_url(target, key)):
            try:
                ended = _child.run(
                    argv,
                    stdin=made["stdin"].encode(),
                    env=env,
                    cwd=target.get("cwd") or cwd,
                    left=_listening.patient(target, io.left, lambda: events),
                    on_bytes=_listening.by_line(on_line),
                )
            except CallFailed as failed:
                if _over(events):  # it had said all, and would not end
                    return reply(events, model, made["losses"], secrets)
                failed.result = failed.result or _worth(partial(events, model, made["losses"]))
                raise
    if _over(events):
        return reply(events, model, made["losses"], secrets)
    text = _child.last_line(ended.tail, secrets) or f"exit status {ended.status} without a result"
    raise _failure(text, _worth(partial(events, model, made["losses"])), secrets)


def _event(line: bytes) -> dict[str, Any] | None:
    """The event of a line, if it is one that says something here. `error` items are mere warnings."""
    try:
        event = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    wanted = isinstance(event, dict) and event.get("type") in ("item.completed", "turn.completed", "turn.failed")
    return event if wanted else None


def _over(events: Sequence[dict[str, Any]]) -> bool:
    return bool(events) and events[-1]["type"] in ("turn.completed", "turn.failed")


@contextmanager
def _login_in(home: str, *, shared: bool) -> Iterator[None]:
    """The user's login in a home of the call's own, if it is to be used."""
    with login_at(os.path.join(home, "auth.json"), _login()) if shared else nullcontext():
        yield


def _login() -> str:
    """The file of the user's login."""
    return os.path.join(os.environ.get("CODEX_HOME") or os.path.join(os.path.expanduser("~"), ".codex"), "auth.json")


def _cache() -> str:
    """A place for private homes that is not the temp directory."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "mllm-pipe")
