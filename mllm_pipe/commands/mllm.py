"""mllm: the umbrella. `mllm NAME` is the command NAME; and doctor, models, validate, completion, trust, config."""

from __future__ import annotations

import importlib
import platform
import sys

import click
import orjson

from mllm_pipe import __version__, cli
from mllm_pipe.agents import survey
from mllm_pipe.commands.keys import keys_command
from mllm_pipe.commands.rubrics import rubrics_command
from mllm_pipe.commands.settings import config_command, trust_command
from mllm_pipe.configuration import untrusted
from mllm_pipe.envelope import CONTROL, admit
from mllm_pipe.errors import BAD_RECORD, BadRecord, Usage
from mllm_pipe.lines import MAX_LINE, Lines, Long, blank, parse
from mllm_pipe.stream import show
from mllm_pipe.terminal import kind_of, say

# The commands that stand on their own too, and what each says of itself in `mllm --help`.
COMMANDS = {
    "thread-append": "Append messages to a thread.",
    "dispatch": "Ask a runtime for the next turn of each thread.",
    "route": "Say which agent each thread should go to.",
    "group": "Fire a chain of commands as one, under one run.",
    "judge": "Judge the answer at the end of each thread.",
    "thread-import": "Read a session of an agent program as a thread.",
    "thread-export": "Write a thread as a session that an agent program goes on with.",
    "trace": "Show the runs of a stream: time, tokens, cost, handoffs.",
}


class Umbrella(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *self.commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        found: click.Command = importlib.import_module(f"mllm_pipe.commands.{cmd_name.replace('-', '_')}").command
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [*COMMANDS.items(), *((name, command.get_short_help_str(80)) for name, command in self.commands.items())]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group("mllm", cls=Umbrella, context_settings={"max_content_width": 100})
@cli.common_options
def command() -> None:
    """Work with several LLMs at once, from the shell. `mllm NAME` is the same as NAME."""


@command.command()
@cli.option("--format", "form", type=click.Choice(["text", "json"]), default="text",
            help="What stdout gets (default text).")
@cli.common_options
def doctor(form: str) -> int:
    """Say which runtimes are usable here, and why others are not. Nothing is sent that costs."""
    found = survey()
    if form == "json":
        rows = [{"runtime": name, "usable": not why_not, "why_not": why_not or None} for name, why_not in found]
        show(orjson.dumps(rows, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode())
        return 0
    width = max(len(name) for name, _ in found)
    lines = [f"mllm-pipe {__version__}, Python {platform.python_version()}, {sys.platform}"]
    lines += [f"  {name.ljust(width)}  {'usable' if not why_not else 'no: ' + why_not}" for name, why_not in found]
    if project := untrusted():
        lines.append(f"  {project} is not used: it came with this directory; mllm trust shows and uses it")
    show("\n".join(lines) + "\n")
    return 0


@command.command()
@cli.argument("pattern", required=False)
@cli.option("--provider", metavar="NAME", help="Only of this provider.")
@cli.option("--format", "form", type=click.Choice(["table", "ndjson"]), help="table on a terminal, ndjson in a pipe.")
@cli.option("--date", is_flag=True, help="Say of when and whom the table is, and where it lies.")
@cli.option("--refresh", metavar="FILE|URL", help="Use this table from now on: litellm's price table or one of ours.")
@cli.common_options
def models(pattern: str | None, provider: str | None, form: str | None, date: bool, refresh: str | None) -> int:
    """List the models that are known: window, longest answer, prices in US dollars a million tokens, capabilities.

    PATTERN is a part of the model's name, or has * and ?. What the table does not say is unknown.
    """
    from mllm_pipe import modellist

    if refresh:
        if pattern or provider or date:
            raise Usage("--refresh stands alone; list the models with another mllm models")
        show(modellist.refresh(refresh))
    elif date:
        show(modellist.origin())
    else:
        rows = modellist.chosen(pattern, provider)
        form = form or ("table" if kind_of(1) == "terminal" else "ndjson")
        show(modellist.table(rows) if form == "table" else modellist.ndjson(rows))
    return 0


@command.command()
@cli.option("--max-line", type=click.IntRange(1), default=MAX_LINE, metavar="BYTES",
            help="Longest line that is taken (default 64 MiB).")
@cli.common_options
def validate(max_line: int) -> int:
    """Check a stream against the schema; status 65 if a line does not hold to it."""
    if kind_of(0) in ("terminal", "null"):
        raise Usage("nothing to validate; say: mllm validate < FILE")
    from mllm_pipe.calling.inflight import stop_when_reader_leaves

    stop_when_reader_leaves()
    lines = Lines(0, max_line)
    number = faults = records = 0
    for batch in lines.batches():
        for line in batch:
            number += 1
            if blank(line):
                continue
            record, fault = parse(line)
            if not fault and not isinstance(line, Long):
                try:
                    admit(record, line)
                    records += record["type"] not in CONTROL
                except BadRecord as refused:
                    fault = str(refused)
            if fault:
                faults += 1
                say(f"stdin: line {number}: {fault}")
    if not number:
        raise Usage("stdin is empty: did the command before fail?")
    show(f"{records} records hold to the envelope, {faults} lines do not\n")
    return BAD_RECORD if faults else 0


@command.command()
@cli.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@cli.option("--for", "name", type=click.Choice([*COMMANDS, "mllm"]), help="Only of this command.")
@cli.common_options
def completion(shell: str, name: str | None) -> int:
    """Print completion for a shell: eval "$(mllm completion bash)"."""
    show("".join(completion_source(shell, one) for one in ([name] if name else [*COMMANDS, "mllm"])))
    return 0


def completion_source(shell: str, name: str) -> str:
    """The completion script of one command; it asks the command itself, so it is never out of date."""
    from click.shell_completion import get_completion_class

    chosen = get_completion_class(shell)
    assert chosen is not None
    if shell == "bash":  # click would start bash to learn its version, when the script is made
        chosen = type("Bash", (chosen,), {"_check_version": staticmethod(lambda: None)})
    return chosen(command, {}, name, cli.completion_variable(name)).source() + "\n"


@command.command("sessions")
@cli.option("--format", "form", type=click.Choice(["text", "json"]), default="text",
            help="What stdout gets (default text).")
@cli.common_options
def sessions_command(form: str) -> int:
    """Say how many sessions of each agent program are here, how large, and where; thread-import reads them."""
    from mllm_pipe import sessions
    from mllm_pipe.sessions import store

    rows = [{"program": name, **store.measure(sessions.load(name).held(None))} for name in sessions.KEPT]
    if form == "json":
        show(orjson.dumps(rows, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode())
        return 0
    for row in rows:
        last = f"newest {row['newest'][:16]} in {row['folder']}" if row["sessions"] else ""
        show(f"{row['program']:8}{row['sessions']:6} sessions{row['bytes'] / 1e6:10.1f} MB  {last}".rstrip() + "\n")
    return 0


command.add_command(trust_command)
command.add_command(config_command)
command.add_command(keys_command)
command.add_command(rubrics_command)


def main() -> None:
    """Entry point."""
    arguments = sys.argv[1:]
    if arguments and arguments[0] in COMMANDS:  # as if it had been called by its own name
        name = arguments[0]
        module = importlib.import_module(f"mllm_pipe.commands.{name.replace('-', '_')}")
        cli.run(module.command, arguments[1:], name)
    cli.run(command)
