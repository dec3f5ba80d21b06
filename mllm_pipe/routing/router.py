"""A router: its children, its rules, its model, from [routers.NAME] or from a file of its own."""

from __future__ import annotations

import os
from typing import Any

from mllm_pipe import configuration
from mllm_pipe.agents import Target, configured_agent, find, seen_from_file, slot
from mllm_pipe.configuration import Configuration, Wrong, nearest
from mllm_pipe.errors import Usage
from mllm_pipe.routing.rules import Rules

# A router is made of the entry of mllm.toml, or of a file:
#   {"name", "children": {agent: its description}, "default": agent or None, "min_confidence": 0..1,
#    "target": who is asked where no rule matches, or None, "rules": Rules}
Router = dict[str, Any]

MIN_CONFIDENCE = 0.5


def find_router(name: str | None, file: str | None = None, flags: dict[str, Any] | None = None) -> Router:
    """The router of a name; without one, the only one there is. file: rules of its own, over those of the name.

    A file without a name is a router for itself, whose children need be no agents. flags: of the command, for the model
    that it asks. Usage if there is none, or if what stands in it has no meaning, with file and line.
    """
    router = _find(name, file)
    if router["target"]:
        router["target"] |= {flag: value for flag, value in (flags or {}).items() if value}
    return router


def _find(name: str | None, file: str | None) -> Router:
    if file and not name:
        own = configuration.entry_in(file, "routers")
        return _made(os.path.splitext(os.path.basename(file))[0], own.tables, configuration.fault_in(own), file, None)
    found = configuration.read()
    name = name or _only(found)
    if name not in found["routers"]:
        known = list(found["routers"])
        there_are = f"; there are {', '.join(known)}" if known else "; say [routers.NAME] in mllm.toml, or --rules FILE"
        raise Usage(f"{name!r} is no router{nearest(name, known) or there_are}")
    source = configuration.source_of(found, "routers", name)
    fault = configuration.fault_in(source)

    def wrong(why: str, *keys: str | int) -> Usage:
        return fault(why, "routers", name, *keys)

    router = _made(name, found["routers"][name], wrong, source.path, found)
    if not file:
        return router
    own = configuration.entry_in(file, "routers")
    own_fault = configuration.fault_in(own)

    def wrong_in_either(why: str, *keys: str | int) -> Usage:
        return (own_fault if keys[0] in own.tables else wrong)(why, *keys)

    return _made(name, found["routers"][name] | own.tables, wrong_in_either, file, found)


def _only(found: Configuration) -> str:
    known: list[str] = list(found["routers"])
    if len(known) == 1:
        return known[0]
    if known:
        raise Usage(f"which router? name one of {', '.join(known)}")
    raise Usage("no router; say [routers.NAME] in mllm.toml, or --rules FILE")


def _made(name: str, entry: dict[str, Any], wrong: Wrong, path: str, found: Configuration | None) -> Router:
    """The router of an entry. found: the configuration whose agents its children are; None: they need be none."""
    rules = entry.get("rules", [])
    named = [rule["target"] for rule in rules if "target" in rule]
    named += [entry["default"]] if "default" in entry else []
    children = entry.get("children") or ([] if found else list(dict.fromkeys(named)))
    if not children:
        raise wrong("names none: which agents may it choose?", "children")
    agents = found["agents"] if found else {child: {} for child in children}
    for child in children:
        if child not in agents:
            known = list(agents)
            raise wrong(f"has {child!r}, no agent{nearest(child, known)}; say [agents.{child}]", "children")
    if "default" in entry and entry["default"] not in children:
        raise wrong(f"is {entry['default']!r}, no child{nearest(entry['default'], children)}", "default")
    return {
        "name": name,
        "children": {child: agents[child].get("description", "") for child in children},
        "default": entry.get("default"),
        "min_confidence": entry.get("min_confidence", MIN_CONFIDENCE),
        "target": _target(name, entry, wrong, path, found),
        "rules": Rules(rules, children, wrong, os.path.dirname(path)),
    }  # fmt: skip


def _target(name: str, entry: dict[str, Any], wrong: Wrong, path: str, found: Configuration | None) -> Target | None:
    """Who is asked where no rule matches: the router slot; unset, the response slot. A router is an agent of its own,
    and where an agent bears its name, what is unset is that agent's. None if nothing is set: then nobody is asked."""
    slots = entry.get("models", {})
    ways = {("models", "router"): slots.get("router"), ("models", "response"): slots.get("response"),
            ("runtime",): entry.get("runtime")}  # fmt: skip
    for keys, spec in ways.items():
        if spec is not None:
            try:
                return seen_from_file(find(spec)[0], path)
            except Usage as nobody:
                raise wrong(f"names nobody: {nobody}", *keys) from None
    if found and name in found["agents"]:
        response, agent = configured_agent(name)
        return slot(agent, response, "router")
    return None
