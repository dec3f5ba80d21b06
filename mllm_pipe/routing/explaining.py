"""What a router would do with a thread and why, for a person; nothing is sent."""

from __future__ import annotations

from typing import Any

from mllm_pipe.routing.deciding import Decision
from mllm_pipe.routing.router import Router
from mllm_pipe.routing.subject import Subject
from mllm_pipe.terminal import one_line

Explained = dict[str, Any]


def explained(decision: Decision, router: Router) -> Explained:
    """{"thread", "rules": [{"name", "target", "matches", "why"}], "then"} of a decision by rules that was made.

    Every rule stands there by itself, in the order in which they are tried; `then` is what comes of it. The decision's
    failure is raised.
    """
    if decision.failure:
        raise decision.failure
    rows = [
        {"name": rule.name, "target": target or rule.target, "matches": target is not None, "why": why}
        for rule, target, why in router["rules"].explained(Subject(decision.messages))
    ]
    return {"thread": decision.thread.id, "rules": rows, "then": _then(decision, router)}


def _then(decision: Decision, router: Router) -> str:
    route = decision.route
    if route is None:
        return f"no rule matches: {router['target']['spec']} is asked"
    if decision.kept:
        return f"it keeps the route that it has, to {route['target']} ({route['by']}); --reroute decides again"
    return f"{route['target'] or 'no route'}, by {route['by']}: {route['reason']}"


def text_of(found: Explained) -> str:
    """The same as lines of text."""
    names = [f"{row['name']} -> {row['target'] or '?'}" for row in found["rules"]]
    width = max(map(len, names), default=0)
    rows = [f"  {'yes' if row['matches'] else 'no '}  {name.ljust(width)}  {row['why']}"
            for name, row in zip(names, found["rules"], strict=True)]  # fmt: skip
    return "".join([f"{one_line(line)}\n" for line in (f"thread {found['thread']}", *rows, f"  {found['then']}")])
