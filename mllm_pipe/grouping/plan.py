"""What a group is: its stages as command lines, and for a loop who says when it is done. Read, checked, and pure.

    {"name": "review", "path": "review", "begin": ["thread-append", "--new", "--", PROMPT] | None,
     "stages": [["dispatch", "--to", "writer"], ...], "until": ["judge", ...] | None, "max_rounds": 3}
"""

from __future__ import annotations

import os
import shlex
from typing import Any

from mllm_pipe import configuration
from mllm_pipe.errors import Usage
from mllm_pipe.lineage import path_of

Plan = dict[str, Any]
ROUNDS = 3  # at most, where a loop does not say


def find(name: str, prompt: str | None, starts: bool) -> Plan:
    """The plan of a group that is configured, or of the TOML file with that name, as it was told on the command line.

    prompt: a first stage puts it into each thread, or into a new one if this `starts` one. Usage if there is no such
    group, or it is none.
    """
    if name.endswith(".toml") or "/" in name:
        plan = _of_file(name)
    else:
        known = configuration.read()
        if name not in known["groups"]:
            near = configuration.nearest(name, list(known["groups"]))
            instead = f"say [groups.{name}] in {known['file']}, or name a file: ./{name}.toml"
            raise Usage(f"{name!r} is no group{near}; {instead}")
        source = configuration.source_of(known, "groups", name)
        plan = _plan(name, known["groups"][name], source, ("groups", name))
    begin = None if prompt is None else ["thread-append", "--new" if starts else "-", "--", prompt]
    return plan | {"begin": begin, "path": path_of(plan["name"])}


def _of_file(path: str) -> Plan:
    source = configuration.entry_in(path, "groups")
    return _plan(os.path.basename(path).removesuffix(".toml"), source.tables, source, ())


def _plan(name: str, entry: dict[str, Any], source: configuration.Source, at: configuration.Keys) -> Plan:
    fault = configuration.fault_in(source)

    def wrong(why: str, *keys: str | int) -> Usage:
        return fault(why, *at, *keys)

    def words(command: str, *keys: str | int) -> list[str]:
        try:
            found = shlex.split(command)
        except ValueError as error:
            raise wrong(f"is no command line: {error}", *keys) from None
        if not found:
            raise wrong("is empty", *keys)
        return found

    if not entry.get("stages"):
        raise wrong('has no stages; say stages = ["dispatch --to ...", "judge ..."]')
    stages = [words(command, "stages") for command in entry["stages"]]
    until = words(entry["until"], "until") if "until" in entry else None
    if until and until[0] != "judge":
        raise wrong(f"is {until[0]!r}; what says when a loop is done is a judge", "until")
    if "max_rounds" in entry and not until:
        raise wrong('needs until = "judge ...", which says when it is done', "max_rounds")
    return {"name": name, "stages": stages, "until": until, "max_rounds": entry.get("max_rounds", ROUNDS)}


def of_round(plan: Plan, number: int) -> list[tuple[str, list[str]]]:
    """(label, command line) of each stage of a round, from 1; but for the last one its judge tells the writer why.

    The label is what a stage is called in spans and messages: its place in `stages`, in a loop after the round, as 2.1;
    0 for what puts the prompt into the thread.
    """
    stages = list(enumerate(plan["stages"], 1))
    if number == 1 and plan["begin"]:
        stages = [(0, plan["begin"]), *stages]
    if not plan["until"]:
        return [(str(place), argv) for place, argv in stages]
    reply = ["--reply"] if number < plan["max_rounds"] and "--reply" not in plan["until"] else []
    stages.append((len(plan["stages"]) + 1, [*plan["until"], *reply]))
    return [(f"{number}.{place}", argv) for place, argv in stages]


def variables(plan: Plan, label: str) -> dict[str, str]:
    """What a stage is told of where it stands."""
    return {"MLLM_GROUP": plan["path"], "MLLM_STAGE": label}


def as_shell(plan: Plan) -> str:
    """Lines of sh that do the same: a pipeline; of a loop, for one thread on stdin, the rounds around one."""

    def line(label: str, argv: list[str]) -> str:
        told = variables(plan, label).items()
        return " ".join([*(f"{name}={shlex.quote(value)}" for name, value in told), shlex.join(argv)])

    if not plan["until"]:
        return " |\n  ".join(line(*stage) for stage in of_round(plan, 1)) + "\n"
    once = plan | {"begin": None, "max_rounds": 1}
    judge = line(*of_round(once, 1)[-1]) + ("" if "--reply" in plan["until"] else " $reply")
    chain = " |\n    ".join([*(line(*stage) for stage in of_round(once, 1)[:-1]), judge])
    chain = chain.replace("MLLM_STAGE=1.", "MLLM_STAGE=$n.")
    last = f"[ $n -lt {plan['max_rounds']} ]"
    return (
        'export MLLM_PARENT_RUN_ID="${MLLM_PARENT_RUN_ID:-$(date +%s).$$}"\n'
        f't=$(mktemp) && {shlex.join(plan["begin"] or ["cat"])} >"$t" || exit\n'
        f"n=1; {last} && reply=--reply || reply=\n"
        f'while <"$t" {chain} |\n    thread-append "$t" >/dev/null; s=$?; [ $s -eq 1 ] && {last}; do\n'
        f"  n=$((n + 1)); {last} || reply=\n"
        f"done\n"
        f'cat "$t"; rm -f "$t"; exit $s\n'
    )
