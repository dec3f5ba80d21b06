"""thread-import: a session of an agent program, a conversation of llm or a request of an API as a thread."""

from __future__ import annotations

import gc
import os
from types import ModuleType

import click
import orjson

from mllm_pipe import cli, places, sessions
from mllm_pipe.errors import Missing, Outcome, Usage
from mllm_pipe.lines import bad_line
from mllm_pipe.sessions import choice
from mllm_pipe.sessions.growing import frozen
from mllm_pipe.sessions.store import Held
from mllm_pipe.stream import Sink, Source, Thread, show
from mllm_pipe.terminal import kind_of, note, say

MESSAGE = b'{"v":1,"type":"message"'
WHY = "no JSON object, or one nested too deeply"


@click.command("thread-import", context_settings={"max_content_width": 100})
@cli.argument("session", required=False)
@cli.option("--from", "program", type=click.Choice(sessions.READ), required=True, help="Whose session it is.")
@cli.option("--last", is_flag=True, help="The newest session of this directory.")
@cli.option("--list", "listing", is_flag=True, help="Say which sessions this directory has, newest first.")
@cli.option("--all", "everywhere", is_flag=True, help="With --last, --list and the picker: of every directory.")
@cli.option("--cid", metavar="ID", help="Of llm: the conversation of this id, or the beginning of one.")
@cli.option("--format", "form", type=click.Choice(["text", "ndjson"]),
            help="What stdout gets; of --list text on a terminal, else ndjson.")
@cli.option("-q", "--quiet", is_flag=True, callback=cli.hush, help="Say nothing on stderr but errors.")
@cli.common_options
def command(session: str | None, program: str, last: bool, listing: bool, everywhere: bool, cid: str | None,
            form: str | None, quiet: bool) -> int:  # fmt: skip
    """Read a session of an agent program, and emit it as a thread.

    SESSION is its file, its id, or the beginning of its id; without one, at a terminal, it is picked from a list. Of
    anthropic, openai and google it is a file with a request's body or an array of messages, - for stdin. Nothing is
    changed, and the program may still be running: a session is read up to its last whole line.

    \b
    $ thread-import --from claude --list --all
    """
    module = sessions.load(program)
    if cid is not None and program != "llm":
        raise Usage("--cid is for --from llm; say SESSION")
    wanted = session if cid is None else cid
    if listing:
        if program in sessions.APIS:
            raise Usage(f"{program} keeps no sessions here; say the FILE of a request")
        if wanted is not None or last:
            raise Usage("--list takes no SESSION and no --last")
        return _list(module, _where(everywhere), (form or ("text" if kind_of(1) == "terminal" else "ndjson")) == "text")
    gc.disable()  # records make no cycles, and looking for some takes a third of the time
    one = _chosen(module, program, session, cid, last, everywhere)
    outcome, sink = Outcome(), Sink(records=form != "text" and (form == "ndjson" or kind_of(1) != "terminal"))
    made, reader = choice.read(module, one)
    thread = Thread(made["thread"])
    thread.lines = frozen(made["records"])
    if not reader.bad and not any(line.startswith(MESSAGE) for line in thread.lines):
        raise Missing(f"{one.path}: no conversation of {module.PROGRAM}")
    for line, number in reader.bad:
        outcome.bad_lines += 1
        say(f"{one.path}: line {number}: {WHY}; passed on as an error record")
        sink.record(bad_line(line, number, thread.id or "-", f"{program}: {WHY}"))
    if sessions.newer(made["version"], module.KNOWN):
        by = f"{module.PROGRAM} {made['version']}"
        note(f"{one.path}: written by {by}, newer than {module.KNOWN}, which is known here")
    halves = f"{sessions.counted(reader.halves, 'line')} with half a character, for which U+FFFD stands"
    torn = "the last line is not whole yet; it is left out"
    for said in [*made["notes"], *[halves] * bool(reader.halves), *[torn] * reader.torn]:
        note(f"{one.path}: {said}")
    if not sink.records:
        messages = sum(line.startswith(MESSAGE) for line in thread.lines)
        note(f"thread {thread.id}: {sessions.counted(messages, 'message')}; pipe it on, or into: | thread-append FILE")
    thread.run = Source(outcome, sink.record).run()
    sink.thread(thread, [], "ok")
    sink.end(None, outcome)
    return outcome.status()


def _chosen(module: ModuleType, program: str, session: str | None, cid: str | None, last: bool,
            everywhere: bool) -> Held:  # fmt: skip
    """The session that the flags name, or that is picked. Usage if they name none, or more than one."""
    if sum([session is not None and cid is None, cid is not None, last]) > 1:
        raise Usage("say one of: a SESSION or its FILE, --last, --list")
    if session is not None and (session == "-" or os.sep in session or os.path.isfile(session)):
        one = choice.in_file(session)
        return one if cid is None else one._replace(ident=cid)
    if program in sessions.APIS:
        if session is not None:
            raise Missing(f"{session}: no such file")
        raise Usage(f"say the FILE of a request to {program}, or - for stdin")
    if last:
        return choice.newest(module.held(_where(everywhere)), program, everywhere)
    if cid is not None or session is not None:
        return choice.named(module.held(None), str(session if cid is None else cid))
    if kind_of(0) != "terminal" or kind_of(2) != "terminal":
        raise Usage("say one of: a SESSION or its FILE, --last, --list")
    found = module.held(_where(everywhere))
    choice.newest(found, program, everywhere)  # says it if there is none
    return choice.pick(module, found)


def _where(everywhere: bool) -> str | None:
    """The directory whose sessions are meant; None for those of all."""
    return None if everywhere else places.directory()


def _list(module: ModuleType, cwd: str | None, as_text: bool) -> int:
    """One line a session, newest first."""
    outcome = Outcome()
    for one in sorted(module.held(cwd), key=lambda one: -one.at):
        try:
            row = choice.row(module, one)
        except Missing as missing:
            say(str(missing))
            outcome.fail(missing.status)
            continue
        show(f"{choice.line(row)}\n" if as_text else orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE).decode())
    return outcome.status()


def main() -> None:
    """Entry point."""
    cli.run(command)
