"""mllm trust and mllm config: which files are in force, and what they and the environment say."""

from __future__ import annotations

import os
import re
from typing import Any

import click
import orjson

from mllm_pipe import cli, configuration, keys, trust
from mllm_pipe.errors import Missing, Usage
from mllm_pipe.files import whole
from mllm_pipe.stream import show
from mllm_pipe.terminal import kind_of

# What stands for a flag, and what holds if nothing says otherwise.
VARIABLES = {"MLLM_TO": None, "MLLM_BY": None, "MLLM_TIMEOUT": "600", "MLLM_JOURNAL": "full", "MLLM_BUDGET": None,
             "MLLM_RESUME": None, "MLLM_RETRY_UNKNOWN": None, "MLLM_QUIET": None, "MLLM_CONFIG": None}  # fmt: skip
_SECRET = re.compile(r"(?i)(^|_)(key|token|secret|password|headers?|authorization)($|_)")
_NAMES_OF_SECRETS = ("key_env", "max_tokens", "pass_env")


@click.command("trust")
@cli.argument("file", required=False, type=cli.NAMED_FILE)
@cli.option("--list", "listing", is_flag=True, help="List the files that were trusted: trusted, changed or gone.")
@cli.option("--revoke", is_flag=True, help="Trust the file no more.")
@cli.common_options
def trust_command(file: str | None, listing: bool, revoke: bool) -> int:
    """Use a project's mllm.toml from now on, as it is: one changed byte, and it is asked again.

    FILE is the one found from here upwards if none is named. It is shown, so trust is given at a terminal only.
    """
    if listing:
        if file or revoke:
            raise Usage("--list stands alone")
        shown = [(path.replace("\n", "\\u000a"), state) for path, state in trust.listed()]  # a line each
        show("".join(f"{state.ljust(7)}  {path}\n" for path, state in shown))
        return 0
    path = file or configuration.project_file()
    if not path:
        raise Missing("no mllm.toml from here up to the root of the repository; name a FILE")
    if revoke:
        if not trust.revoke(path):
            raise Missing(f"{path} was not trusted; mllm trust --list shows what is")
        show(f"{os.path.relpath(path)} is trusted no more\n")
        return 0
    content = whole(path)
    configuration.checked("project", path, content)
    if kind_of(0) != "terminal" or kind_of(1) != "terminal":
        raise Usage(f"trust is given at a terminal, by who has read the file; in a script: MLLM_CONFIG={path}")
    show(content.decode().rstrip("\n") + "\n")
    trust.add(path, content)
    show(f"{os.path.relpath(path)} is trusted as it stands above\n")
    return 0


@click.command("config")
@cli.argument("name", required=False)
@cli.option("--format", "form", type=click.Choice(["text", "ndjson"]), help="text on a terminal, ndjson in a pipe.")
@cli.common_options
def config_command(name: str | None, form: str | None) -> int:
    """Show the configuration in force: every value, and which file and line, or what else, it comes from.

    NAME is the beginning of the values to show: agents, agents.writer. Secrets are masked.
    """
    rows = [row for row in _rows() if not name or f"{row['key']}.".startswith(f"{name}.")]
    if name and not rows:
        raise Missing(f"nothing is configured as {name}; mllm config shows all")
    if (form or ("text" if kind_of(1) == "terminal" else "ndjson")) == "ndjson":
        show("".join(orjson.dumps(row).decode() + "\n" for row in rows))
        return 0
    settings = [f"{row['key']} = {orjson.dumps(row['value']).decode()}" for row in rows]
    width = min(60, max(map(len, settings), default=0))
    show("".join(f"{said.ljust(width)}  # {_origin(row)}\n" for said, row in zip(settings, rows, strict=True)))
    return 0


def _rows() -> list[dict[str, Any]]:
    """{"key", "value", "origin", "file", "line"} of every value: the environment's, then the files'."""
    rows: list[dict[str, Any]] = []
    for variable, default in VARIABLES.items():
        value = os.environ.get(variable)
        rows.append({"key": variable, "value": value or default, "origin": "environment" if value else "default"})
    found = configuration.read()
    for section in (*configuration.ENTRIES, *configuration.PLAIN):
        for entry, value in found[section].items():
            source = configuration.source_of(found, section, entry)
            for path, leaf in _leaves((section, entry), value):
                line = configuration.line_of_key(source.text, path)
                secret = any(_SECRET.search(str(key)) and key not in _NAMES_OF_SECRETS for key in path[2:])
                rows.append({"key": ".".join(map(str, path)), "value": "***" if secret else _bare(leaf),
                             "origin": source.origin, "file": source.path, "line": line})  # fmt: skip
    for name, _ in keys.listed():
        place = {"origin": "mllm keys", "file": keys.path_of(name), "line": 1}
        rows.append({"key": f"keys.{name}", "value": "***"} | place)
    return rows


def _leaves(keys: tuple[Any, ...], value: Any) -> list[tuple[tuple[Any, ...], Any]]:
    """(keys, value) of everything that is no table, or is an empty one."""
    if isinstance(value, dict) and value:
        return [leaf for key, inner in value.items() for leaf in _leaves((*keys, key), inner)]
    if isinstance(value, list) and any(isinstance(one, dict) for one in value):
        return [leaf for place, inner in enumerate(value) for leaf in _leaves((*keys, place), inner)]
    return [(keys, value)]


def _bare(value: Any) -> Any:
    """The value as JSON has it, without a name and password, or a key, in an address."""
    if isinstance(value, str) and "://" in value:
        return keys.without_secrets(value)
    return value if isinstance(value, (str, int, float, bool, list, dict)) else str(value)


def _origin(row: dict[str, Any]) -> str:
    return f"{row['origin']}: {row['file']}:{row['line']}" if "file" in row else str(row["origin"])
