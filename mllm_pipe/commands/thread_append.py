"""thread-append: put messages into a thread, on a stream or in a file."""

from __future__ import annotations

import os
from typing import Any

import click

from mllm_pipe import attachments, cli
from mllm_pipe.envelope import Record, holds, line_of, new_id, timestamp
from mllm_pipe.errors import BadRecord, Missing, Outcome, Usage
from mllm_pipe.storage import Appender
from mllm_pipe.copying import copy
from mllm_pipe.stream import Sink, Source, Thread, refuse_own_output, show
from mllm_pipe.terminal import kind_of, say
from mllm_pipe.thread import only_thread, parents, text_of, tip_of
from mllm_pipe.threadfile import ThreadFile


@click.command("thread-append", context_settings={"max_content_width": 100})
@click.argument("file", required=False)
@click.argument("text", nargs=-1)
@click.option("--new", is_flag=True, help="Start a thread; stdin is not read.")
@click.option("--role", type=click.Choice(["user", "assistant", "system", "tool"]), default="user",
              help="Who speaks; user.")
@click.option("--system", metavar="TEXT", help="Put a system message before it.")
@click.option("-a", "--attachment", "files", multiple=True, metavar="FILE", help="Attach a file's bytes; - is stdin.")
@click.option("--thread", "wanted", metavar="ID", help="The thread; you may choose its id.")
@click.option("--at", metavar="ID", help="Reply to this message: fork the thread there.")
@click.option("--messages", is_flag=True, help="Store messages only.")
@click.option("--sync", is_flag=True, help="Wait until the disk has it.")
@click.option("--format", "form", type=click.Choice(["text", "ndjson"]),
              help="What stdout gets; ndjson, and the answer as text on a terminal.")
@cli.stream_options
def command(file: str | None, text: tuple[str, ...], new: bool, role: str, system: str | None, files: tuple[str, ...],
            wanted: str | None, at: str | None, messages: bool, sync: bool, form: str | None, grouped: bool,
            max_line: int, quiet: bool) -> int:  # fmt: skip
    """Append messages to a thread.

    \b
    thread-append FILE TEXT...   extend a thread kept in FILE, and emit it
    thread-append FILE           store what comes on stdin: each record that FILE lacks
    thread-append - [TEXT...]    extend each thread on stdin; complete bare messages
    thread-append --new TEXT...  start a thread

    A TEXT of @NAME is read from the file of that name, @- from stdin.
    """
    if new and file is not None:
        text, file = (file, *text), None
    if file is None and not new:
        raise Usage("no FILE; say FILE, - for the thread on stdin, or --new")
    if wanted is not None and not 0 < len(wanted) <= 200:
        raise Usage("--thread takes an id of 1..200 characters")
    outcome = Outcome()
    as_text = form == "text" or (form is None and kind_of(1) == "terminal")
    sink = Sink(records=not as_text)
    new_messages = _messages(text, role, system, files)
    if new:
        if not new_messages:
            raise Usage("--new: no TEXT; an empty message is never sent")
        thread = Thread(wanted or new_id())
        _extend(thread, new_messages, at)
        return _emit_one(thread, sink, outcome, quiet, as_text)
    if file == "-":
        return _filter(new_messages, sink, outcome, wanted, at, grouped, max_line, as_text)
    assert file is not None
    if kind_of(1) == "file" and os.path.exists(file) and os.path.samestat(os.stat(file), os.fstat(1)):
        raise Usage(f"{file} is also stdout; its records would stand in it twice")
    store = ThreadFile(Appender(file, sync=sync), messages_only=messages)
    if new_messages:
        return _extend_file(store, new_messages, sink, outcome, wanted, at, quiet, as_text)
    return _store(store, sink, outcome, wanted, at, max_line, grouped, as_text)


def _messages(text: tuple[str, ...], role: str, system: str | None, files: tuple[str, ...]) -> list[Record]:
    """The new messages, without thread and ids: the system text, then TEXT and attachments as one."""
    made: list[Record] = []
    if system:
        made.append({"role": "system", "content": _read_text(system)})
    said = "\n".join(_read_text(piece) for piece in text)
    if text and not said.strip():
        raise Usage("TEXT is empty; an empty message is never sent")
    parts = [attachments.part(name) for name in files]
    if parts:
        made.append({"role": role, "content": [{"type": "text", "text": said}] * bool(said) + parts})
    elif said:
        made.append({"role": role, "content": said})
    return made


def _read_text(piece: str) -> str:
    """A TEXT as it is, or what @NAME or @- says, as plain text."""
    if not piece.startswith("@"):
        return piece
    data = attachments.read(piece[1:])
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise BadRecord(f"{piece[1:]} is no UTF-8 text; attach it with -a") from None


def _extend(thread: Thread, messages: list[Record], at: str | None) -> list[Record]:
    """Complete the messages and add them at the tip (or `at`); the records added."""
    known = parents(thread.records)
    if at is not None and at not in known:
        raise Missing(f"thread {thread.id} has no message {at} to reply to")
    tip = at or tip_of(thread.records, known)
    made = []
    for message in messages:
        record = {"v": 1, "type": "message", "thread": thread.id, "id": new_id(), "at": timestamp()} | message
        if tip and "reply_to" not in record:
            record["reply_to"] = tip
        if not holds(record):
            raise BadRecord("the message does not hold to the envelope; see mllm validate")
        tip = record["id"]
        thread.add(record, line_of(record)[:-1])
        made.append(record)
    return made


def _emit_one(thread: Thread, sink: Sink, outcome: Outcome, quiet: bool, as_text: bool, where: str = "") -> int:
    if as_text and not quiet:
        count = sum(record["type"] == "message" for record in thread.records)
        say(f"{where}thread {thread.id}: {count} message{'s' * (count != 1)}")
    thread.run = Source(outcome, sink.record).run()
    sink.thread(thread, [], "ok")
    sink.end(None, outcome)
    return outcome.status()


def _extend_file(store: ThreadFile, messages: list[Record], sink: Sink, outcome: Outcome, wanted: str | None,
                 at: str | None, quiet: bool, as_text: bool) -> int:  # fmt: skip
    """FILE TEXT: under the lock, read the one thread, extend it and write it back; then emit it."""
    with store.appender:
        threads = store.read_threads(outcome, sink.record)
        ident = only_thread(list(threads), wanted, store.appender.path) or new_id()
        thread = threads.get(ident) or Thread(ident)
        try:
            made = _extend(thread, messages, at)
        except BadRecord as fault:
            raise BadRecord(f"{store.appender.path}: thread {ident}: {fault}") from None
        store.appender.append(b"".join(map(line_of, made)), ident)
    return _emit_one(thread, sink, outcome, quiet, as_text, f"{store.appender.path}: ")


def _store(store: ThreadFile, sink: Sink, outcome: Outcome, wanted: str | None, at: str | None, max_line: int,
           grouped: bool, as_text: bool) -> int:  # fmt: skip
    """| thread-append FILE: store what FILE does not have, thread by thread, and hand the threads on."""
    if kind_of(0) in ("terminal", "null"):
        raise Usage("nothing to append: say a TEXT, or pipe records in")
    if at:
        raise Usage("--at goes with a TEXT")
    loose: list[Record] = []  # error records of bad lines: they belong to no thread that is under way

    def pass_on(record: Record) -> None:
        loose.append(record)
        sink.record(record)

    source = Source(outcome, pass_on, again=True, grouped=grouped, max_line=max_line,
                    complete=_completer(wanted, lambda: store.last_thread(outcome)))  # fmt: skip
    answer = ""
    for thread in source.threads():
        if thread.fault is None or thread.status == "failed":
            with store.appender:
                added = store.add(thread, outcome)
                loose = store.add_loose(loose)
            answers = [record for record in added if record["type"] == "message" and record["role"] == "assistant"]
            answer = text_of(answers[-1]["content"]) if answers else answer
        _hand_on(thread, sink, outcome)
    if loose:
        with store.appender:
            store.add_loose(loose)
    sink.end(source, outcome)
    if as_text and answer:
        show(answer.rstrip("\n") + "\n")
    return outcome.status()


def _filter(messages: list[Record], sink: Sink, outcome: Outcome, wanted: str | None, at: str | None, grouped: bool,
            max_line: int, as_text: bool) -> int:  # fmt: skip
    """- [TEXT]: extend each thread on stdin; with nothing to add, copy."""
    refuse_own_output()
    if kind_of(0) in ("terminal", "null"):
        raise Usage("stdin is empty; to start a thread: thread-append --new TEXT")
    if not messages:
        return copy(outcome, _completer(wanted, lambda: ""), max_line)
    source = Source(outcome, sink.record, grouped=grouped, max_line=max_line, complete=_completer(wanted, lambda: ""))
    found = False
    for thread in source.threads():
        if wanted in (None, thread.id):
            found = True
            if thread.fault is None and thread.status != "failed":
                try:
                    _extend(thread, messages, at)
                except (BadRecord, Missing) as fault:
                    thread.fault = fault
        _hand_on(thread, sink, outcome)
    sink.end(source, outcome)
    if not found:
        raise Missing(f"stdin has no thread {wanted}")
    if as_text:
        say("the thread was extended and went nowhere; pipe it on, or: thread-append FILE TEXT")
    return outcome.status()


def _hand_on(thread: Thread, sink: Sink, outcome: Outcome) -> None:
    if thread.fault:
        say(f"thread {thread.id}: {thread.fault}")
        outcome.fail(thread.fault.status)
        thread.status = "failed"
    elif thread.status == "failed":
        outcome.fail(3)
    elif thread.status == "no":
        outcome.said_no = True
    sink.thread(thread, [], thread.status)


def _completer(wanted: str | None, default: Any) -> Any:
    """A function that makes a record of a bare {"role", "content"} object: jq and printf can write messages."""
    last: dict[str, str] = {}

    def complete(bare: Record) -> Record | None:
        if "v" in bare or "role" not in bare or "content" not in bare:
            return None
        thread = bare.get("thread") or wanted
        if not thread:
            thread = last.setdefault("", default() or new_id())
        record = {"v": 1, "type": "message", "thread": thread, "id": new_id(), "at": timestamp()} | bare
        if not isinstance(thread, str) or not holds(record):
            return None
        if thread in last and "reply_to" not in record:
            record["reply_to"] = last[thread]
        last[thread] = record["id"]
        return record

    return complete


def main() -> None:
    """Entry point."""
    cli.run(command)
