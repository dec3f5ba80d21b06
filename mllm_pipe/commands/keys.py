"""mllm keys: the keys that are kept in files of mode 0600."""

from __future__ import annotations

import sys

import click
import orjson

from mllm_pipe import cli, keys
from mllm_pipe.agents import key_names
from mllm_pipe.configuration import nearest
from mllm_pipe.errors import Usage
from mllm_pipe.stream import show
from mllm_pipe.terminal import kind_of


@click.group("keys")
@cli.common_options
def keys_command() -> None:
    """Keep keys of runtimes, each in a file of its own that only you can read."""


class _Unsaid(click.Command):
    """What is wrong with its arguments may be the key, so it is not said again."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError:
            why = "keys set takes a NAME and nothing else; the key comes from stdin: op read ... | mllm keys set NAME"
            raise Usage(why) from None


@keys_command.command("set", cls=_Unsaid)
@cli.argument("name")
@cli.common_options
def set_command(name: str) -> int:
    """Keep the key of the runtime NAME: what stdin says, or what is typed at a hidden prompt; no argument holds it."""
    known = key_names()
    if name not in known:
        there = f"{nearest(name, known)}; there are {', '.join(known)}"
        raise Usage(f"NAME is no runtime that a key is kept for{there}")  # it may be the key
    if kind_of(0) == "terminal":
        value = str(click.prompt(f"Key of {name}", hide_input=True, default="", show_default=False, err=True))
    else:
        given = sys.stdin.buffer.read(keys.LONGEST + 2) if sys.stdin else b""  # none with <&-
        if not given:
            raise Usage(f"stdin is empty; the key comes from there: op read ... | mllm keys set {name}")
        value = given.decode(errors="replace").removesuffix("\n").removesuffix("\r")
    keys.keep(name, value)
    return 0


@keys_command.command("list")
@cli.option("--format", "form", type=click.Choice(["text", "json"]), default="text",
            help="What stdout gets (default text).")
@cli.common_options
def list_command(form: str) -> int:
    """List the runtimes that a key is kept for; the keys are not shown."""
    found = keys.listed()
    if form == "json":
        rows = [{"runtime": name, "file": keys.path_of(name), "fault": fault or None} for name, fault in found]
        show(orjson.dumps(rows, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode())
        return 0
    width = max((len(name) for name, _ in found), default=0)
    for name, fault in found:
        show(f"{name.ljust(width)}  ***  {keys.path_of(name)}{' ' + fault if fault else ''}\n")
    return 0


@keys_command.command("rm")
@cli.argument("name")
@cli.common_options
def rm_command(name: str) -> int:
    """Remove the key that is kept for the runtime NAME."""
    keys.forget(name)
    return 0
