"""thread-append: put messages into a thread, on a stream or in a file."""

from __future__ import annotations

import os

import click

from mllm_pipe import cli
from mllm_pipe.copying import copy
from mllm_pipe.envelope import Record, line_of, new_id
from mllm_pipe.errors import FAILED, BadRecord, Failure, Missing, Outcome, Usage
from mllm_pipe.files import whole
from mllm_pipe.message import Completer, extend
from mllm_pipe.storage import Appender
from mllm_pipe.stream import Sink, Source, Thread, refuse_own_output, show
from mllm_pipe.terminal import kind_of, note, say
from mllm_pipe.thread import only_thread, text_of
from mllm_pipe.threadfile import ThreadFile


@click.command("thread-append", context_settings={"max_content_width": 100})
@cli.argument("file", required=False, type=cli.NAMED_FILE)
@cli.argument("text", nargs=-1)
@cli.option("--new", is_flag=True, help="Start a thread; stdin is not read.")
@cli.option("--role", type=click.Choice(["user", "assistant", "system", "tool"]), default="user",
            help="Who speaks (default user).")
@cli.option("--system", metavar="TEXT", help="Put a system message before it.")
@cli.option("-a", "--attachment", "files", multiple=True, type=cli.NAMED_FILE, metavar="FILE",
            help="Attach a file's bytes; - is stdin.")
@cli.option("--thread", "wanted", metavar="ID", help="The thread; you may choose its id.")
@cli.option("--at", metavar="ID", help="Reply to this message: fork the thread there.")
@cli.option("--messages", is_flag=True, help="Store messages only.")
@cli.option("--sync", is_flag=True, help="Wait until the disk has it.")
@cli.option("--format", "form", type=click.Choice(["text", "ndjson"]),
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
    if not file and not new:
        raise Usage("no FILE; say FILE, - for the thread on stdin, or --new")
    if wanted is not None and not 0 < len(wanted) <= 200:
        raise Usage("--thread takes an id of 1..200 characters")
    if file == "-" and ("@-" in text or "-" in files):
        raise Usage("stdin is the thread, so @- and -a - have nothing to read; to start one with them, say --new")
    as_text = form == "text" or (form is None and kind_of(1) == "terminal")
    outcome, sink = Outcome(), Sink(records=not as_text)
    new_messages = _messages(text, role, system, files)
    if new:
        if not new_messages:
            raise Usage("--new: no TEXT; an empty message is never sent")
        thread = Thread(wanted or new_id())
        extend(thread, new_messages, at)
        return _emit(thread, sink, outcome, said="new " if as_text else "")
    if file == "-":
        refuse_own_output()
        if kind_of(0) in ("terminal", "null"):
            raise Usage("no thread on stdin; to start one: thread-append --new TEXT")
        if not new_messages:
            return copy(outcome, Completer(wanted), max_line)
        source = Source(outcome, sink.record, grouped=grouped, max_line=max_line, complete=Completer(wanted))
        return _extend_stream(source, new_messages, sink, outcome, wanted, at)
    assert file is not None
    if kind_of(1) == "file" and os.path.exists(file) and os.path.samestat(os.stat(file), os.fstat(1)):
        raise Usage(f"{file} is also stdout; its records would stand in it twice")
    store = ThreadFile(Appender(file, sync=sync), messages_only=messages)
    if new_messages:
        thread = _extend_file(store, new_messages, sink, outcome, wanted, at)
        return _emit(thread, sink, outcome, said=f"{file}: " if as_text else "")
    if kind_of(0) in ("terminal", "null"):
        raise Usage(f"nothing to append: say a TEXT, or pipe records in: ... | thread-append {file}")
    if at:
        raise Usage("--at goes with a TEXT")
    complete = Completer(wanted, store.only, store.tip)
    loose: list[Record] = []  # error records of bad lines, which belong to no thread under way
    source = Source(outcome, loose.append, again=True, grouped=grouped, max_line=max_line, complete=complete)
    answer = _store(source, store, sink, outcome, complete, loose)
    if as_text and answer:
        show(answer.rstrip("\n") + "\n")
    return outcome.status()


def _messages(text: tuple[str, ...], role: str, system: str | None, files: tuple[str, ...]) -> list[Record]:
    """The new messages, without thread and ids: the system text, then TEXT and attachments as one."""
    made: list[Record] = []
    if system:
        made.append({"role": "system", "content": _read_text(system)})
    said = "\n".join(_read_text(piece) for piece in text)
    if text and not said.strip():
        raise Usage("TEXT is empty; an empty message is never sent")
    if files:
        from mllm_pipe import attachments

        parts = [attachments.part(name) for name in files]
        made.append({"role": role, "content": [{"type": "text", "text": said}] * bool(said) + parts})
    elif said:
        made.append({"role": role, "content": said})
    return made


def _read_text(piece: str) -> str:
    """A TEXT as it is, or what @NAME or @- says, as plain text."""
    if not piece.startswith("@"):
        return piece
    name = piece[1:]
    if not name:
        raise Usage("@ names no file; say @FILE, or @- for stdin")
    try:
        return whole(0 if name == "-" else name).decode()
    except UnicodeDecodeError:
        raise BadRecord(f"{name} is no UTF-8 text; attach it with -a") from None


def _emit(thread: Thread, sink: Sink, outcome: Outcome, *, said: str) -> int:
    """Send on a thread that was made or read here. `said`: how what a person is told of it begins, "" for nothing."""
    if said:
        count = sum(record["type"] == "message" for record in thread.records)
        note(f"{said}thread {thread.id}: {count} message{'s' * (count != 1)}")
    thread.run = Source(outcome, sink.record).run()
    sink.thread(thread, [], "ok")
    sink.end(None, outcome)
    return outcome.status()


def _extend_file(store: ThreadFile, messages: list[Record], sink: Sink, outcome: Outcome, wanted: str | None,
                 at: str | None) -> Thread:  # fmt: skip
    """FILE TEXT: under one lock, read the thread, extend it, and append what is new; the whole thread."""
    with store.appender:
        threads = store.threads_locked(outcome, sink.record)
        ident = only_thread(list(threads), wanted, store.appender.path) or new_id()
        thread = threads.get(ident) or Thread(ident)
        try:
            made = extend(thread, messages, at)
        except BadRecord as fault:
            raise BadRecord(f"{store.appender.path}: thread {ident}: {fault}") from None
        store.appender.append(b"".join(map(line_of, made)), ident)
    return thread


def _extend_stream(source: Source, messages: list[Record], sink: Sink, outcome: Outcome, wanted: str | None,
                   at: str | None) -> int:  # fmt: skip
    """- TEXT: extend each thread on stdin, or the one wanted, and hand it on."""
    found = False
    for thread in source.threads():
        if wanted in (None, thread.id):
            found = True
            if thread.fault is None and thread.status != "failed":
                try:
                    extend(thread, messages, at)
                except Failure as fault:
                    thread.fault = fault
        _hand_on(thread, thread, sink, outcome)
    sink.end(source, outcome)
    if not found:
        raise Missing(f"stdin has no thread {wanted}")
    return outcome.status()


def _store(source: Source, store: ThreadFile, sink: Sink, outcome: Outcome, complete: Completer,
           loose: list[Record]) -> str:  # fmt: skip
    """| FILE: store what FILE lacks, thread by thread, and hand the threads on; the newest answer's text, "" if it was
    seen as it came where it would stand."""
    answer = ""
    for thread in source.threads():
        for record in loose:
            sink.record(record)
        extended = thread.id in complete.last and store.tip(thread.id) is not None and kind_of(1) != "null"
        with store.appender:
            added = store.add_locked(thread, outcome)
            store.add_loose_locked(loose)
        for record in added:
            if record["type"] == "message" and record["role"] == "assistant":
                answer = "" if sink.terminal and record["id"] == thread.shown else text_of(record["content"])
        # bare messages came without the thread that they extend: what goes on is the whole of it
        _hand_on(thread, store.whole(thread.id) if extended else thread, sink, outcome)
    for record in loose:
        sink.record(record)
    if loose:
        with store.appender:
            store.add_loose_locked(loose)
    sink.end(source, outcome)
    return answer


def _hand_on(thread: Thread, whole: Thread, sink: Sink, outcome: Outcome) -> None:
    """Send on `whole` with what the handoff of `thread` said; a thread with a fault is a failed one."""
    whole.run, whole.shown = thread.run, thread.shown
    made = []
    if thread.fault:
        from mllm_pipe.turn import complaint

        say(f"thread {thread.id}: {thread.fault}")
        outcome.fail(thread.fault.status)
        made.append(complaint(thread.fault, thread))
        thread.status = "failed"
    elif thread.status == "failed":
        outcome.fail(FAILED)
    outcome.said_no = outcome.said_no or thread.status == "no"
    sink.thread(whole, made, thread.status)


def main() -> None:
    """Entry point."""
    cli.run(command)
