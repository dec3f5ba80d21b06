"""What the environment says of where we belong: the run, the group and its stage, the trace of others."""

from __future__ import annotations

import os
import re

from mllm_pipe.envelope import Record
from mllm_pipe.errors import Usage


def traceparent() -> str:
    """The W3C trace context of the environment, "" if there is none or it is malformed."""
    value = os.environ.get("TRACEPARENT", "")
    return value if value and re.fullmatch(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", value) else ""


def inherited_run() -> str:
    """$MLLM_PARENT_RUN_ID, "" if it is not set. Usage if it can be no id."""
    value = os.environ.get("MLLM_PARENT_RUN_ID", "")
    if len(value) > 200 or not value.isprintable():
        raise Usage("MLLM_PARENT_RUN_ID is no id: it has at most 200 printable characters")
    return value


def offered_run() -> str:
    """$MLLM_NEW_RUN_ID: the id of a run that begins here; all stages of a group are given the same. "" if not set."""
    return os.environ.get("MLLM_NEW_RUN_ID", "")[:200]


def path_of(group: str) -> str:
    """What the spans of a group are told of it: its name, after those of the groups that it is a stage of, as
    outer/inner. Usage if it is one of these itself: it would fire itself without an end."""
    outer = os.environ.get("MLLM_GROUP", "")
    if group in outer.split("/"):
        raise Usage(f"group {group} is one of its own stages: {outer}/{group} would never end; take it out of them")
    return f"{outer}/{group}" if outer else group


def in_group() -> Record:
    """The `group` and `stage` of what is done here, by $MLLM_GROUP and $MLLM_STAGE; {} where no group fired us."""
    found = {name: os.environ.get(f"MLLM_{name.upper()}", "")[:200] for name in ("group", "stage")}
    return {name: value for name, value in found.items() if value}
