"""Who is meant by a name: runtimes, agents, presets, and the configuration, which is read only if a name needs it."""

from __future__ import annotations

import os
from typing import Any

from mllm_pipe import keys, runtimes
from mllm_pipe.builtin import builtin, presets
from mllm_pipe.configuration import Configuration, came_along, nearest, source_of, where
from mllm_pipe.configuration import read as read_configuration
from mllm_pipe.envelope import Record
from mllm_pipe.errors import Usage
from mllm_pipe.times import LONGEST_S

Target = dict[str, Any]
Agent = dict[str, Any]

_NOBODY: Agent = {"name": None, "system": None, "instruction": None, "models": None, "entry": None, "file": None}
_UNSET: Target = {"model": None, "base_url": None, "key_env": None, "key_command": None, "key_name": None,
                  "key_withheld": None, "pass_env": (), "max_tokens": None, "cwd": None, "allow": None}
KEYLESS = ("echo", "exec", "replay", "opencode")  # what `mllm keys` keeps no key for


def slot(agent: Agent, response: Target, name: str) -> Target | None:
    """The target of an agent's slot; one that is not set is the response slot. None for what is no configured agent."""
    if agent["models"] is None:
        return None
    if name not in agent["models"]:
        return response
    found, _ = named_at(("agents", agent["entry"], "models", name), agent["models"][name])
    return seen_from_file(found, agent["file"])


def evaluator_of(message: Record) -> Target | None:
    """The evaluator slot of the agent that wrote a message; unset, it is that agent's response slot, so its own model.

    None if the author is no configured agent: the name stands in a record, so it is looked up among those alone, and
    never taken for a runtime or a program. Usage if the slot names nothing that there is.
    """
    author = message.get("author", {}).get("agent")
    if author is None or author not in read_configuration()["agents"]:
        return None
    target, agent = configured_agent(author)
    return slot(agent, target, "evaluator")


def configured_agent(name: str) -> tuple[Target, Agent]:
    """The target and the agent of [agents.NAME], which there must be, whatever else bears the name."""
    configuration = read_configuration()
    configured = configuration["agents"][name]
    slots = configured.get("models", {})
    if "runtime" not in configured and "response" not in slots:
        raise Usage(f"{where(configuration, 'agents', name)}: agents.{name}: runtime is missing")
    said_by = ("models", "response") if "response" in slots else ("runtime",)
    target = _runtime_of(("agents", name, *said_by), slots.get("response", configured.get("runtime")), configuration)
    said: Agent = {key: configured.get(key) for key in ("system", "instruction")}
    file = source_of(configuration, "agents", name).path
    said |= {"name": name, "models": slots, "entry": name, "file": file}
    return _UNSET | {"spec": name} | target, _NOBODY | said


def find(spec: str, *, model: str | None = None, **flags: Any) -> tuple[Target, Agent]:
    """The target that a SPEC names, and the agent that it speaks as.

    SPEC is RUNTIME, RUNTIME:MODEL or RUNTIME/MODEL, exec:COMMAND, replay:FILE, or an agent or runtime named in
    mllm.toml. `flags` (base_url, key_env, pass_env, max_tokens) win over the configuration when they are set.
    The agent is {"name", "system", "instruction", "models": its slots, "entry", "file": where they are configured},
    with None where nothing is configured.
    Usage if the name is unknown.
    """
    agent: Agent = dict(_NOBODY)
    name, _, rest = spec.partition(":")
    if name in ("exec", "command"):
        target: Target = {"runtime": "exec", "kind": "command", "argv": _words(rest, spec)}
    elif name == "replay":
        if not rest:
            raise Usage("replay: no file; say replay:FILE")
        target = {"runtime": "replay", "kind": "replay", "path": rest}
    else:
        name, wanted = parted(spec)
        target, agent = _named(name)
        if wanted:
            target["model"] = wanted
    target = _UNSET | target
    target["spec"] = spec
    target |= {flag: value for flag, value in flags.items() if value}
    if flags.get("key_env"):
        target |= {"key_command": None, "key_name": None}  # that one and no other
    elif flags.get("base_url"):
        target |= {"key_name": None, "key_withheld": target["key_name"]}  # it was kept for another place
    if model:
        target["model"] = model
    return target, agent


def named_at(keys: tuple[str, ...], spec: str, **flags: Any) -> tuple[Target, Agent]:
    """As `find`, of a SPEC that mllm.toml has at these keys. Usage, with file and line, if it names nobody."""
    try:
        return find(spec, **flags)
    except Usage as wrong:
        section, name, *more = keys
        at = where(read_configuration(), section, name, *more)
        raise Usage(f"{at}: {'.'.join(keys)} names nobody: {wrong}") from None


def parted(spec: str) -> tuple[str, str]:
    """(name, model) of a SPEC; "" for no model."""
    cut = min((spec.index(mark) for mark in ":/" if mark in spec), default=len(spec))
    return spec[:cut], spec[cut + 1 :]


def _words(command: str, spec: str) -> list[str]:
    words = _split(command, spec)
    if not words:
        raise Usage("exec: no command; say 'exec:PROGRAM ARGUMENTS'")
    return words


def _split(command: str, where_from: str) -> list[str]:
    """The words of a command, split as a shell does, which none is."""
    import shlex

    try:
        return shlex.split(command)
    except ValueError as error:
        raise Usage(f"{where_from}: {error}") from None


def _named(name: str) -> tuple[Target, Agent]:
    agent: Agent = dict(_NOBODY)
    if name in builtin() and name not in ("exec", "replay"):
        return {"runtime": name, "kind": name} | _kept_key(name), agent
    known = presets()
    if name in known:
        return {"runtime": name, "kind": "openai-chat"} | known[name] | _kept_key(name), agent
    configuration = read_configuration()
    if name in configuration["agents"]:
        return configured_agent(name)
    if name in configuration["runtimes"]:
        return _named_runtime(name, configuration)[0], agent
    everything = [*builtin(), *known, *configuration["agents"], *configuration["runtimes"]]
    raise Usage(f"{name!r} is no runtime or agent{nearest(name, everything)}; mllm doctor lists what is usable here")


def _runtime_of(keys: tuple[str, ...], spec: str, configuration: Configuration) -> Target:
    """The target of an agent, by the SPEC that mllm.toml has at these keys. A runtime may bear the name of an agent; an
    agent is no runtime of another."""
    name, model = parted(spec)
    section, agent, *more = keys
    if name in configuration["runtimes"]:
        return _named_runtime(name, configuration)[0] | ({"model": model} if model else {})
    if name in (*builtin(), *presets(), "command"):
        return seen_from_file(named_at(keys, spec)[0], source_of(configuration, section, agent).path)
    known = [*builtin(), *presets(), *configuration["runtimes"]]
    at = where(configuration, section, agent, *more)
    way = f"; say [runtimes.{name}]" if name else ""
    raise Usage(f"{at}: agents.{agent}: {name!r} is no runtime{nearest(name, known)}{way}")


def _named_runtime(name: str, configuration: Configuration) -> tuple[Target, Agent]:
    configured = dict(configuration["runtimes"][name])
    kind = configured.pop("kind", None)
    if not isinstance(kind, str):
        raise Usage(f"{where(configuration, 'runtimes', name)}: runtimes.{name}: kind is missing")
    if kind == "command":
        command = configured.pop("command", None)
        if isinstance(command, str):
            configured["argv"] = _words(command, f"{where(configuration, 'runtimes', name, 'command')}: {name}")
        elif isinstance(command, list) and command and all(isinstance(word, str) for word in command):
            configured["argv"] = command
        else:
            raise Usage(f"{where(configuration, 'runtimes', name)}: runtimes.{name}: command is missing")
        configured = seen_from_file(configured, source_of(configuration, "runtimes", name).path)
    if kind == "replay" and "path" not in configured:
        raise Usage(f"{where(configuration, 'runtimes', name)}: runtimes.{name}: path is missing")
    if configured.get("protocol", "text") not in ("text", "ndjson"):
        at = where(configuration, "runtimes", name, "protocol")
        raise Usage(f"{at}: runtimes.{name}.protocol is not text or ndjson")
    for limit in ("timeout_s", "first_byte_s"):
        seconds = configured.get(limit, 1)
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds <= LONGEST_S:
            at = where(configuration, "runtimes", name, limit)
            raise Usage(f"{at}: runtimes.{name}.{limit} is no number of seconds up to {LONGEST_S:.0f}")
    if not keys.names_variable(str(configured.get("key_env", "_"))):
        at = where(configuration, "runtimes", name, "key_env")
        raise Usage(f"{at}: runtimes.{name}.key_env is no name of a variable; the key itself is not kept there")
    if "key_command" in configured:
        configured["key_command"] = _key_command(name, configured["key_command"], configuration)
    # A project's file says where its runtimes are, so a key that the user keeps by that name is none of theirs.
    ours = not came_along(source_of(configuration, "runtimes", name))
    return {"runtime": name, "kind": kind} | configured | (_kept_key(name) if ours else {}), {}


def _kept_key(name: str) -> Target:
    """By which name `mllm keys` keeps the key of a runtime; opencode has one for each of many vendors."""
    return {"key_name": None if name in KEYLESS else name}


def _key_command(name: str, command: Any, configuration: Configuration) -> list[str]:
    """The words of a key_command; a program that is named relatively is taken from where the configuration lies."""
    at = f"{where(configuration, 'runtimes', name, 'key_command')}: runtimes.{name}.key_command"
    words = _split(command, at) if isinstance(command, str) else command
    if not isinstance(words, list) or not words or not words[0] or not all(isinstance(word, str) for word in words):
        raise Usage(f"{at} is no command; say 'PROGRAM ARGUMENTS' or a list of these words")
    found: list[str] = seen_from_file({"argv": words}, source_of(configuration, "runtimes", name).path)["argv"]
    return found


def seen_from_file(target: Target, path: str) -> Target:
    """The target, with a program that is named relatively, as ./bot, taken from where the configuration lies."""
    argv = target.get("argv", [""])
    if "/" not in argv[0] or os.path.isabs(argv[0]):
        return target
    return target | {"argv": [os.path.join(os.path.dirname(os.path.abspath(path)), argv[0]), *argv[1:]]}


def usable_here() -> list[str]:
    """The names of the built-in runtimes that could be called here; nothing is sent."""
    return [name for name, why_not in survey() if not why_not]


def survey() -> list[tuple[str, str]]:
    """Each built-in runtime, preset and runtime of mllm.toml, and why it cannot be called here ("" if it can, as far as
    one sees). No key command is asked."""
    found = []
    for name in builtin():
        target: Target = _UNSET | {"runtime": name, "kind": name} | _kept_key(name)
        if name in ("exec", "replay"):
            found.append((name, ""))  # as usable as the program or the file that is named
        else:
            found.append((name, _unusable(name, target)))
    known = presets()
    for name in known:
        target = _UNSET | _named(name)[0]
        found.append((name, _unusable("openai-chat", target) or _deaf(target["base_url"])))
    try:
        configuration = read_configuration()
        for name in configuration["runtimes"]:
            target = _UNSET | _named_runtime(name, configuration)[0]
            found.append((name, _unusable(target["kind"], target)))
    except Usage as wrong:
        found.append(("mllm.toml", str(wrong)))
    return found


def _unusable(kind: str, target: Target) -> str:
    """Why a target cannot be called, "" if it can."""
    try:
        return str(runtimes.load(kind).usable(target))
    except Usage as wrong:
        return str(wrong)


def key_names() -> list[str]:
    """The runtimes that a key can be kept for: the built-in ones that need any, presets, the user's own."""
    configuration = read_configuration()
    named = configuration["runtimes"]
    mine = [name for name in named if not came_along(source_of(configuration, "runtimes", name))]
    return sorted({*builtin(), *presets(), *mine} - {*KEYLESS})


def _deaf(base_url: str) -> str:
    """Why a server on this machine cannot be called, "" if something listens there or it is elsewhere."""
    import socket
    from urllib.parse import urlsplit

    at = urlsplit(base_url)
    if at.hostname not in ("127.0.0.1", "localhost", "::1"):
        return ""
    try:
        socket.create_connection((at.hostname, at.port or 80), timeout=1).close()
    except OSError:
        return f"nothing listens at {at.hostname}:{at.port}"
    return ""
