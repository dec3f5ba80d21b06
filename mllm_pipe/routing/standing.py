"""Which stored route still holds. A route is data: what it says counts only if the configuration says so too.

It is the newest one of the thread's branch, and it holds while its router is configured, its target is a child of that
router, and nobody has been asked by name (--to) on the branch since.
"""

from __future__ import annotations

from mllm_pipe.configuration import Configuration
from mllm_pipe.envelope import Record
from mllm_pipe.errors import Failure


class NoRoute(Failure):
    """No stored route holds; the message says why, and is empty where there is none."""


def standing(records: list[Record], messages: list[Record], found: Configuration) -> Record:
    """The route that holds. NoRoute if none does.

    records: all of the thread, of which messages and routes went through the full door; messages: its branch.
    """
    there = {message["id"] for message in messages}
    newest: Record | None = None
    explicit: Record | None = None  # the first call since that was no route's
    before = None
    for record in records:
        kind = record["type"]
        if kind == "message":
            before = record["id"]
        elif kind == "route" and record.get("input_id", before) in there:
            newest, explicit = record, None
        elif kind == "span" and record.get("op") == "dispatch" and "route_id" not in record:
            asked = record.get("input_id")
            explicit = explicit or (record if isinstance(asked, str) and asked in there else None)
    if newest is None:
        raise NoRoute("")
    router, target = newest["router"], newest["target"]
    if target is None:
        raise NoRoute(f"router {_shown(router)} found no route")
    way = f"the route to {_shown(target)} is not obeyed: "
    if router not in found["routers"]:
        raise NoRoute(f"{way}{_shown(router)} is no router of mllm.toml")
    if target not in found["routers"][router].get("children", ()):
        raise NoRoute(f"{way}that is no child of router {router}")
    if target not in found["agents"]:
        raise NoRoute(f"{way}that is no agent")
    if explicit:
        raise NoRoute(f"{way}another was asked by name since")
    return newest


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
