"""The runs that are meant, from the journal or from a file of threads."""

from __future__ import annotations

import os
from typing import Any

from mllm_pipe.envelope import Record, admit
from mllm_pipe.errors import FAILED, BadRecord, Missing, Outcome
from mllm_pipe.runs import KINDS, Fold
from mllm_pipe.stream import Sink, Source, Thread
from mllm_pipe.terminal import say
from mllm_pipe.tracing.selection import Selection

Runs = list[dict[str, Any]]


def take(fold: Fold, thread: Thread, outcome: Outcome) -> None:
    """Use the records of a thread that runs are made of, each through the full door; one that does not pass is told
    of, and left out of the sums."""
    for record in thread.records:
        if record["type"] in KINDS:
            try:
                admit(record, thread.raws[record["id"]])
            except BadRecord as fault:
                outcome.bad_lines += 1
                say(f"thread {record['thread']}: record {record['id']}: {fault}; left out")
            else:
                fold.take(record)


def chosen(fold: Fold, wanted: Selection, runs: set[str] | None = None) -> Runs:
    """The runs of a fold (of those named) that are meant, the oldest first."""
    found = fold.runs(runs)
    if wanted.run:
        ident = wanted.ident([run["id"] for run in found])
        found = [run for run in found if run["id"] == ident]
    return [run for run in found if wanted.wants(run)]


def from_file(path: str, fold: Fold, outcome: Outcome) -> frozenset[str]:
    """Use a file of threads; their ids. Missing if it is not there."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise Missing(f"--thread {path}: {error.strerror}") from None
    source = Source(outcome, lambda _: None, descriptor=descriptor, again=True, name=path)
    threads = set()
    for thread in source.threads():
        take(fold, thread, outcome)
        threads.add(thread.id)
    os.close(descriptor)
    return frozenset(threads)


def need_id(thread: str | None, file: bool) -> None:
    """Nothing was found of --thread: Missing if that is the name of a file, which a thread may have, but hardly has."""
    if thread and not file and ("/" in thread or thread.endswith((".json", ".jsonl", ".ndjson"))):
        raise Missing(f"--thread {thread}: there is no such file, and no thread of that name has such a run")


def from_stream(fold: Fold, outcome: Outcome, every: bool, tee: bool, grouped: bool, max_line: int) -> set[str] | None:
    """Use the stream on stdin, copied on if `tee`. The runs of its handoffs; None if all of them are meant, since it
    has none, is a file, or `every` one is asked for."""
    sink = Sink(records=tee)
    source = Source(outcome, sink.record, grouped=grouped, max_line=max_line, again=True)
    handed = set()
    for thread in source.threads():
        take(fold, thread, outcome)
        if thread.fault:
            say(f"thread {thread.id}: {thread.fault}")
            outcome.fail(thread.fault.status)
        elif thread.status == "failed":
            outcome.fail(FAILED)
        outcome.said_no = outcome.said_no or thread.status == "no"
        if thread.handed:
            handed.add(thread.run)
        sink.thread(thread, [], "failed" if thread.fault else thread.status)
    sink.end(source, outcome)
    return handed if handed and source.from_pipe and not every else None


def with_journal(fold: Fold, wanted: Selection) -> Runs:
    """The runs of a file's threads that are meant: of the fold, and of the journal if there is one."""
    try:
        from_journal(fold, Selection(threads=wanted.threads), 0)
    except Missing:
        pass
    return chosen(fold, wanted)


def from_journal(fold: Fold, wanted: Selection, limit: int) -> Runs:
    """The newest runs of the journal that are meant, at most `limit` of them (0: all), the oldest first.

    A single run is found without the index. Where digests are wanted, answers that earlier runs made are found too.
    Missing if there is no journal, or no such run.
    """
    from mllm_pipe.tracing import journalled

    if wanted.run:
        journalled.fold_entries(fold, journalled.entries_of(wanted.run))
        found = chosen(fold, wanted)
    else:
        found = _newest(fold, wanted, limit)
    if fold.digests:
        if threads := fold.unresolved():
            journalled.fold_entries(fold, journalled.entries_of_threads(threads))
        found = fold.runs({run["id"] for run in found})
    return found


def _newest(fold: Fold, wanted: Selection, limit: int) -> Runs:
    """By the index: at most `limit` runs (0: all), the oldest first; their records go into the fold."""
    from mllm_pipe.tracing import journalled
    from mllm_pipe.tracing.index import Index

    found: Runs = []
    with Index() as index:
        for run, entries in index.runs(wanted):
            one = Fold(digests=fold.digests, texts=fold.texts)
            journalled.fold_entries(one, iter(entries))
            runs = [made for made in one.runs({run}) if wanted.wants(made)]
            if runs:
                fold.join(one)
                found += runs
                if len(found) == limit:
                    break
    return sorted(found, key=lambda run: (run["started_at"] or "", run["id"]))


def spans_of(fold: Fold, runs: Runs, wanted: Selection) -> list[Record]:
    """The calls of these runs that are meant."""
    idents = {run["id"] for run in runs}
    return [span for span in fold.spans.values() if span.get("parent_run_id", "-") in idents and wanted.counts(span)]


def handoffs(runs: Runs) -> list[dict[str, Any]]:
    """A flat line for every edge of the runs: from whom, to whom, which message, which bytes of it, how long it waited.

    The fold that they are of has to have been made with digests.
    """
    names = ("thread", "from_agent", "from_runtime", "from_model", "to_agent", "to_runtime", "to_model", "message_id",
             "bytes", "sha256", "wait_ms", "from_run_id", "to_run_id")  # fmt: skip
    return [{"run": run["id"], **{name: edge[name] for name in names}} for run in runs for edge in run["handoffs"]]
