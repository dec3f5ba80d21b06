"""thread-import: a session of an agent program as a thread."""

from __future__ import annotations

import gc
import os
from typing import Any

import click
import orjson

from mllm_pipe import cli, sessions
from mllm_pipe.envelope import Record, line_of, timestamp
from mllm_pipe.errors import Missing, Outcome, Usage
from mllm_pipe.lines import bad_line
from mllm_pipe.sessions.store import Reader, age, says_first
from mllm_pipe.stream import Sink, Source, Thread, show
from mllm_pipe.terminal import kind_of, note, say
from mllm_pipe.thread import text_of

Json = dict[str, Any]
WHY = "no JSON object, or one nested too deeply"


@click.command("thread-import", context_settings={"max_content_width": 100})
@click.argument("session", required=False)
@click.option("--from", "program", type=click.Choice(sessions.READ), required=True, help="Whose session it is.")
@click.option("--last", is_flag=True, help="The newest session of this directory.")
@click.option("--list", "listing", is_flag=True, help="Say which sessions this directory has, newest first.")
@click.option("--all", "everywhere", is_flag=True, help="With --last and --list: of every directory.")
@click.option("--format", "form", type=click.Choice(["text", "ndjson"]),
              help="What stdout gets; of --list text on a terminal, else ndjson.")
@click.option("-q", "--quiet", is_flag=True, callback=cli.hush, help="Say nothing on stderr but errors.")
@cli.common_options
def command(session: str | None, program: str, last: bool, listing: bool, everywhere: bool, form: str | None,
            quiet: bool) -> int:  # fmt: skip
    """Read a session of an agent program, and emit it as a thread.

    SESSION is its file, its id, or the beginning of its id. The session is not changed, and its program may still be
    running: it is read up to its last whole line.

    \b
    $ thread-import --from claude --list --all
    """
    module = sessions.load(program)
    if sum([session is not None, last, listing]) != 1:
        raise Usage("say one of: a SESSION or its FILE, --last, --list")
    cwd = None if everywhere else os.getcwd()
    if listing:
        return _list(module, cwd, (form or ("text" if kind_of(1) == "terminal" else "ndjson")) == "text")
    path = _newest(module.found(cwd), program, everywhere) if last else _named(module, str(session))
    outcome, sink = Outcome(), Sink(records=form != "text" and (form == "ndjson" or kind_of(1) != "terminal"))
    made, reader = _read(module, path)
    thread = Thread(made["thread"])
    thread.lines = [line_of(one)[:-1] for one in made["records"]]
    messages = sum(one["type"] == "message" for one in made["records"])
    if not messages and not reader.bad:
        raise Missing(f"{path}: no conversation of {module.PROGRAM}")
    for line, number in reader.bad:
        outcome.bad_lines += 1
        say(f"{path}: line {number}: {WHY}; passed on as an error record")
        sink.record(bad_line(line, number, thread.id or "-", f"{program}: {WHY}"))
    if sessions.newer(made["version"], module.KNOWN):
        note(f"{path}: written by {module.PROGRAM} {made['version']}, newer than {module.KNOWN}, which is known here")
    for said in [*made["notes"], *(["the last line is not whole yet; it is left out"] if reader.torn else [])]:
        note(f"{path}: {said}")
    if not sink.records:
        note(f"thread {thread.id}: {messages} messages; pipe it on, or into: | thread-append FILE")
    thread.run = Source(outcome, sink.record).run()
    sink.thread(thread, [], "ok")
    sink.end(None, outcome)
    return outcome.status()


def _read(module: Any, path: str) -> tuple[Json, Reader]:
    """The records of a session's file, and what was read."""
    stem = os.path.basename(path).removesuffix(".jsonl")
    named = stem[-36:] if sessions.UUID.fullmatch(stem[-36:]) else says_first(path, "sessionId")
    name = (named or says_first(path, "id", "payload") or stem)[:200] or "session"
    gc.disable()  # records make no cycles, and looking for some takes a third of the time
    reader = Reader(path)
    made: Json = module.records(reader.entries(), name)
    return made, reader


def _newest(paths: list[str], program: str, everywhere: bool) -> str:
    if not paths:
        where = "" if everywhere else " of this directory; --all looks everywhere"
        raise Missing(f"{program} has no session{where}")
    return max(paths, key=lambda path: (age(path), path))


def _named(module: Any, name: str) -> str:
    """The file that the user names, or of the session whose id begins so."""
    if os.sep in name or os.path.isfile(name):
        return name
    paths = [path for path in module.found(None) if _ident(path).startswith(name) and name]
    if len(paths) == 1:
        return str(paths[0])
    some = f"{len(paths)} sessions begin so; say more of it" if paths else "no such session; --list --all shows them"
    raise Missing(f"{name}: {some}")


def _ident(path: str) -> str:
    stem = os.path.basename(path).removesuffix(".jsonl")
    return stem[-36:] if stem.startswith("rollout-") else stem.removeprefix("session-")


def _list(module: Any, cwd: str | None, as_text: bool) -> int:
    """One line a session, newest first."""
    paths = sorted(module.found(cwd), key=age, reverse=True)
    for path in paths:
        made, _ = _read(module, path)
        said = [one for one in made["records"] if one["type"] == "message"]
        row = {"session": _ident(path), "at": timestamp(age(path)), "turns": _turns(said),
               "tokens": _tokens(made["records"]), "bytes": os.path.getsize(path), "first": _first(said),
               "path": path}  # fmt: skip
        if as_text:
            shown = f"{row['session']}  {str(row['at'])[:16]}  {row['turns']:4} turns  {row['tokens']:8} tokens"
            show(f"{shown}  {row['first']}\n")
        else:
            show(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE).decode())
    return 0


def _turns(messages: list[Record]) -> int:
    return sum(one["role"] == "user" for one in messages)


def _tokens(records: list[Record]) -> int:
    """Of all calls, prompts and answers."""
    spans = [one["usage"] for one in records if one["type"] == "span"]
    return sum(used.get("input_tokens", 0) + used.get("output_tokens", 0) for used in spans)


def _first(messages: list[Record]) -> str:
    """The first words that the user said."""
    said = next((text_of(one["content"]) for one in messages if one["role"] == "user"), "")
    return " ".join(said.split())[:60]


def main() -> None:
    """Entry point."""
    cli.run(command)
