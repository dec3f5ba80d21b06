"""opencode (`opencode run`), headless and stateless. Seen with 1.18.33. A model is PROVIDER/MODEL.

The history is a document of our own that `import` puts into a database of the call's own; the newest text stands on
stdin, where nothing is expanded (seen: /help, @file, $skill, -x, blanks). A user turn is one text, as stdin can be
nothing else; its files are a message before it, so that a turn reads the same when it is the newest and when not.

All of its directories are the call's own: the first start of two at once in one of them fails, and what the user has
set up there is not asked for. The configuration is in a variable, in which {env:X} and {file:X} are filled in: so the
system text stands in a file. `_opencode_reply.PLUGIN` goes along.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import orjson

from mllm_pipe.errors import CallFailed, Usage
from mllm_pipe.runtimes import _child, _endpoint, _files, _listening, _opencode_reply, _turns
from mllm_pipe.runtimes._program import distinct, key_for, login_at, uuid_of, write, wrong_program
from mllm_pipe.sessions.opencode_document import TIME, rules, with_results
from mllm_pipe.sessions.opencode_document import document as in_form
from mllm_pipe.sessions.opencode_document import part as kept_as

STREAMS = TAKES_MAX_TOKENS = True
OWN_TOKENS = {None: 150, "read": 1500, "write": 2400, "all": 6800}

Json = dict[str, Any]

# Where the key of a provider is, if not in PROVIDER_API_KEY. Of several names the first that is set counts.
KEYS = {
    "google": ("GOOGLE_GENERATIVE_AI_API_KEY", "GEMINI_API_KEY", "GOOGLE_API_KEY"), "vercel": ("AI_GATEWAY_API_KEY",),
    "alibaba": ("DASHSCOPE_API_KEY",), "fireworks-ai": ("FIREWORKS_API_KEY",), "huggingface": ("HF_TOKEN",),
    "moonshotai": ("MOONSHOT_API_KEY",), "opencode-go": ("OPENCODE_API_KEY",), "togetherai": ("TOGETHER_API_KEY",),
    "zai": ("ZHIPU_API_KEY",), "zhipuai": ("ZHIPU_API_KEY",),
}  # fmt: skip
# Providers that want more than a key.
ALSO = {"amazon-bedrock": ("AWS_",), "azure": ("AZURE_",), "google-vertex": ("GOOGLE_",),
        "google-vertex-anthropic": ("GOOGLE_",)}  # fmt: skip
SECRET = ("_KEY", "_TOKEN", "_ID")
NO_SYSTEM = "You are a helpful assistant."  # without a system text it sends 30 KB of its own
NO_TEXT = "Continue."  # what stands for the text of a turn that has none; an empty stdin is refused
ALLOW: dict[str | None, dict[str, str]] = {
    None: {"*": "deny"},
    "read": {"*": "deny", "read": "allow", "glob": "allow", "grep": "allow", "list": "allow"},
    "write": {"*": "deny", "read": "allow", "glob": "allow", "grep": "allow", "list": "allow", "edit": "allow"},
    "all": {"*": "allow"},
}
OFF = ("AUTOUPDATE", "MODELS_FETCH", "DEFAULT_PLUGINS", "LSP_DOWNLOAD", "SHARE", "PROJECT_CONFIG", "AUTOCOMPACT",
       "PRUNE", "CLAUDE_CODE", "EXTERNAL_SKILLS")  # fmt: skip


# -- to the program ---------------------------------------------------------------------------------------------------


def session(target: Json, request: Json) -> Json:
    """The request as {"messages": those before the newest, "stdin": str, "session", "losses", "provider", ...}. Pure.

    Usage if the target names no provider and model.
    """
    provider, model = _model(target)
    endpoint = _endpoint.endpoint(target.get("base_url") or "") or provider
    rule = rules(endpoint)
    placed, unplaced = _files.placed(_files.embedded(request["turns"]), lambda part, _: kept_as(part))
    turns, renamed = distinct(placed)
    turns, bent = _turns.settle(turns, rule)
    unsent: list[Json] = []

    def messages_of(turn: Json, _keep: bool) -> list[Json]:
        return _messages(turn, unsent)

    rendered, dropped, prefix = _turns.render(request["system"], turns, rule, target.get("model"), messages_of)
    messages = with_results(rendered)
    ident = uuid_of(request["system"], request["turns"][0]["parts"]).replace("-", "")
    return {"messages": messages[:-1], "stdin": messages[-1]["parts"][0]["text"], "session": f"ses_{ident[:26]}",
            "losses": [*unplaced, *renamed, *bent, *unsent, *dropped], "provider": provider, "model": model,
            "prefix": prefix, "endpoint": endpoint}  # fmt: skip


def _model(target: Json) -> tuple[str, str]:
    provider, _, model = (target.get("model") or "").partition("/")
    if not provider or not model:
        raise Usage(f"opencode: {provider or 'no model'}: say PROVIDER/MODEL, such as anthropic/claude-haiku-4-5")
    return provider, model


def _messages(turn: Json, losses: list[Json]) -> list[Json]:
    """A settled turn as messages: an answer as one, what the user says as results, files and one text."""
    if turn["role"] == "assistant":
        parts = [kept_as(part) for part in turn["parts"] if part["type"] != "reasoning"]
        return [{"role": "assistant", "parts": parts}] if parts else []
    results = [part for part in turn["parts"] if part["type"] == "tool_result"]
    others = [kept_as(part) for part in turn["parts"] if part["type"] != "tool_result"]
    texts = [part["text"] for part in others if part["type"] == "text"]
    files = [part for part in others if part["type"] != "text"]
    if not texts:
        _turns.loss(losses, turn, "text", "synthesised", f"there must be one, and it has none: {NO_TEXT}")
    elif files and others[-1]["type"] != "text":
        _turns.loss(losses, turn, "file", "moved", "before the text of its turn")
    text = {"type": "text", "text": "\n\n".join(texts) or NO_TEXT}
    return [
        *([{"role": "results", "parts": results}] if results else []),
        *([{"role": "user", "parts": files}] if files else []),
        {"role": "user", "parts": [text]},
    ]


def document(made: Mapping[str, Any], cwd: str) -> Json:
    """The throw-away session, as `opencode import` reads it."""
    model = {"providerID": made["provider"], "modelID": made["model"]}
    messages = [
        {**message, "id": f"msg_{number:012d}{0:014d}", "at": TIME + number, "model": model}
        for number, message in enumerate(made["messages"], 1)
    ]
    # Tools that no permission turns off.
    off = [{"permission": name, "pattern": "*", "action": "deny"} for name in ("question", "plan_enter", "plan_exit")]
    return in_form(messages, made["session"], cwd, "mllm", "mllm", permission=off)


def configuration(target: Json, made: Mapping[str, Any], key: tuple[str, str] | None, place: str) -> Json:
    """The configuration. place: the directory of the call."""
    model: Json = {}
    options: Json = {"apiKey": f"{{env:{key[0]}}}"} if key else {}
    if target.get("base_url"):
        options["baseURL"] = target["base_url"]
        # It sends no file to a model of which it does not know that it takes them.
        model |= {"attachment": True, "modalities": {"input": ["text", "image", "pdf"], "output": ["text"]}}
    agent = {"mode": "primary", "prompt": f"{{file:{place}/system}}", "permission": ALLOW[target.get("allow")]}
    return {
        "provider": {made["provider"]: {"options": options, "models": {made["model"]: model}}},
        "model": f"{made['provider']}/{made['model']}",
        "agent": {"mllm": agent},
        "plugin": [f"file://{place}/plugin.js"],
        "share": "disabled",
        "autoupdate": False,
        "snapshot": False,
    }


def arguments(made: Mapping[str, Any]) -> list[str]:
    """The command line. Without a title it would ask the model for one."""
    resumed = ["--session", made["session"]] if made["messages"] else ["--title", "mllm"]
    return ["opencode", "run", "--format", "json", "--thinking", "--agent", "mllm",
            f"--model={made['provider']}/{made['model']}", *resumed]  # fmt: skip


def environment(target: Json, made: Mapping[str, Any], key: tuple[str, str] | None, place: str) -> dict[str, str]:
    """The child's variables: none of the user's OPENCODE_*, which would steer it."""
    env = _child.allowed_env(ALSO.get(made["provider"], ())) | ({key[0]: key[1]} if key else {})
    env |= {f"XDG_{name.upper()}_HOME": os.path.join(place, name) for name in ("data", "state", "config", "cache")}
    env |= {f"OPENCODE_DISABLE_{name}": "1" for name in OFF}
    if target.get("max_tokens"):
        env["OPENCODE_EXPERIMENTAL_OUTPUT_TOKEN_MAX"] = str(target["max_tokens"])
    config = orjson.dumps(configuration(target, made, key, place)).decode()
    return env | {"HOME": os.path.join(place, "home"), "TMPDIR": os.path.join(place, "tmp"),
                  "OPENCODE_CONFIG_CONTENT": config}  # fmt: skip


# -- the call ---------------------------------------------------------------------------------------------------------


def usable(target: Json) -> str:
    """ "" when opencode is here and has a key or a login, else why it cannot be called."""
    try:
        if target.get("model"):
            provider, _ = _model(target)
            ready = _key(target, provider) or target.get("base_url") or provider in ALSO
        else:
            ready = any(_key(target, provider) for provider in ("anthropic", "openai", "openrouter", "opencode", *KEYS))
    except (CallFailed, Usage) as failed:
        return str(failed)
    if not ready and not os.path.exists(_login()):
        return "no key (export the one of the provider) and no login (run: opencode auth login)"
    return wrong_program("opencode", "opencode run", "--help")


def preview(target: Json, request: Json) -> Json:
    """What `call` would run: argv, the variables that we set (keys masked), its files, and stdin."""
    made = session(target, request)
    key = _key(target, made["provider"])
    env = environment(target, made, key, "DIRECTORY")
    shown = {n: v for n, v in env.items() if n.startswith(("OPENCODE_", *ALSO.get(made["provider"], ())))}
    return {
        "argv": arguments(made),
        "env": {n: "***" if n.endswith(SECRET) else v for n, v in shown.items()} | ({key[0]: "***"} if key else {}),
        "files": {"system": request["system"] or NO_SYSTEM, "plugin": _opencode_reply.PLUGIN.decode(),
                  "import": document(made, target.get("cwd") or "DIRECTORY/cwd") if made["messages"] else ""},
        "stdin": made["stdin"],
        "losses": made["losses"],
    }  # fmt: skip


class _Hopeless(Exception):
    """The program would only ask again."""


def call(target: Json, request: Json, io: Any) -> Json:
    """Runs opencode in target["cwd"], or in an empty directory of its own; see mllm_pipe.runtimes."""
    made = session(target, request)
    key = _key(target, made["provider"], io)
    io.lost(made["losses"])
    events: list[Json] = []

    def on_line(line: bytes) -> None:
        event = _opencode_reply.event(line)
        if event is None:
            return
        events.append(event)
        if piece := _opencode_reply.piece(events, len(events) - 1):
            io.text(piece)
        if _opencode_reply.hopeless(event):
            raise _Hopeless

    with _child.scratch() as place:
        cwd = os.path.realpath(target.get("cwd") or os.path.join(place, "cwd"))
        _furnish(place, request)
        env = environment(target, made, key, place)
        secrets = [value for name, value in env.items() if name.endswith(SECRET) and value]
        login = _login()
        linked = os.path.exists(login) and not key
        with login_at(os.path.join(place, "data/opencode/auth.json"), login) if linked else nullcontext():
            if made["messages"]:
                _import(made, env, cwd, place, io, secrets)
            ended: _child.Exit | None = None
            try:
                ended = _child.run(
                    arguments(made),
                    stdin=made["stdin"].encode(),
                    env=env,
                    cwd=cwd,
                    left=_listening.patient(target, io.left, lambda: events),
                    on_bytes=_listening.by_line(on_line),
                )
            except _Hopeless:
                pass
            except CallFailed as failed:
                came = _opencode_reply.partial(events, made)
                failed.result = failed.result or (came if came["parts"] or came["usage"] else None)
                raise
    return _opencode_reply.reply(events, made, ended, secrets)


def _furnish(place: str, request: Json) -> None:
    """Puts into the directory of a call what the program finds there."""
    # It installs this package from the network, unless it finds that it has done so.
    lock = {"packages": {"": {"dependencies": {"@opencode-ai/plugin": "*"}}}}
    for path, data in (
        ("system", (request["system"] or NO_SYSTEM).encode()),
        ("plugin.js", _opencode_reply.PLUGIN),
        ("config/opencode/package-lock.json", orjson.dumps(lock)),
    ):
        write(os.path.join(place, path), data)
    for name in ("cwd", "home", "tmp", "data/opencode", "config/opencode/node_modules"):
        os.makedirs(os.path.join(place, name))


def _import(
    made: Mapping[str, Any], env: Mapping[str, str], cwd: str, place: str, io: Any, secrets: Sequence[str]
) -> None:
    """Has opencode read the history. CallFailed if it does not."""
    path = os.path.join(place, "history.json")
    write(path, orjson.dumps(document(made, cwd)))
    argv = ["opencode", "import", path]
    ended = _child.run(argv, stdin=b"", env=env, cwd=cwd, left=io.left, on_bytes=lambda _: None)
    if ended.status:
        said = _child.last_line(ended.tail, secrets)
        raise CallFailed("exit", f"it does not take the history: {said or ended.status}", billed="no")


def _key(target: Json, provider: str, io: Any = None) -> tuple[str, str] | None:
    return key_for(target, KEYS.get(provider) or (provider.upper().replace("-", "_") + "_API_KEY",), io)


def _login() -> str:
    """The file of the user's logins."""
    data = os.environ.get("XDG_DATA_HOME") or os.path.join(os.path.expanduser("~"), ".local/share")
    return os.path.join(data, "opencode/auth.json")
