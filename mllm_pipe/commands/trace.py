"""trace: what ran, how long it took, what it cost, where it was handed over. It ends a pipe, or asks the journal."""

from __future__ import annotations

import gc
import os
from typing import Any

import click

from mllm_pipe import cli
from mllm_pipe.errors import Outcome, Usage
from mllm_pipe.runs import Fold
from mllm_pipe.stream import refuse_own_output, show
from mllm_pipe.terminal import kind_of, note, safe
from mllm_pipe.tracing import forms, gather, ledger
from mllm_pipe.tracing.selection import OF_CALL, Selection, moment

NEWEST = 20  # runs of the journal


@click.command("trace", context_settings={"max_content_width": 100})
@cli.argument("run", required=False)
@cli.option("--journal", is_flag=True, help="Ask the journal, whatever stdin is.")
@cli.option("--all", "every", is_flag=True, help="Every run of the stream, not only those that this pipe made.")
@cli.option(
    "-n",
    "--newest",
    type=click.IntRange(0),
    metavar="N",
    help="Of the journal, the newest N runs (default 20; 0: all).",
)
@cli.option("--thread", metavar="ID|FILE", help="Runs of this thread, or of the threads of a file.")
@cli.option("--since", metavar="TIME", help="Begun then or later: today, 12h, 2d, a date, RFC 3339.")
@cli.option("--until", metavar="TIME", help="Begun before that.")
@cli.option("--group", metavar="NAME", help="Runs of this group.")
@cli.option("--status", type=click.Choice(["ok", "no", "unknown", "error"]), help="Runs, or calls, that ended so.")
@cli.option("--runtime", metavar="NAME", help="With a call of this runtime.")
@cli.option("--model", metavar="NAME", help="With a call that this model answered.")
@cli.option("--agent", metavar="NAME", help="With a call of this agent.")
@cli.option("--slot", metavar="NAME", help="With a call of this slot: response, router, summarizer, evaluator.")
@cli.option("--by", type=click.Choice(ledger.KEYS), help="Sums over the calls, one line for each of these.")
@cli.option("--handoffs", is_flag=True, help="One line for each message that was handed over.")
@cli.option("--sql", metavar="SELECT", help="Ask the journal's index; man trace has its views.")
@cli.option("--export", is_flag=True, help="Write the records of the runs, for a trace elsewhere.")
@cli.option("--redact", is_flag=True, help="With --export: size and digest instead of every text.")
@cli.option("--otlp", metavar="URL|env", help="Send the runs to a collector; env: as OTEL_EXPORTER_OTLP_* say.")
@cli.option("--content", is_flag=True, help="Let --otlp and --format otlp tell what was said.")
@cli.option("--prune", metavar="AGE", help="Take out of the journal what ended longer ago: 90d, 12w.")
@cli.option("--tee", is_flag=True, help="Copy the stream to stdout, and speak on stderr.")
@cli.option(
    "--format",
    "form",
    type=click.Choice(forms.FORMS),
    help="table on a terminal (tree of a single RUN), ndjson in a pipe.",
)
@cli.stream_options
def command(run: str | None, journal: bool, every: bool, newest: int | None, thread: str | None, since: str | None,
            until: str | None, by: str | None, handoffs: bool, sql: str | None, export: bool, redact: bool,
            otlp: str | None, content: bool, prune: str | None, tee: bool, form: str | None, grouped: bool,
            max_line: int, quiet: bool, **asked: Any) -> int:  # fmt: skip
    """Show what ran, how long it took, what it cost, and where it was handed over.

    At the end of a pipe: the runs of its handoffs. From a file: all its runs. With neither: the newest of the journal,
    or RUN, by its id or the beginning of one. A run is what one pipeline did.

    \b
    $ dispatch -q --to echo --new "Say hello." | trace --format tree
    $ trace --by model --since today
    $ trace --sql 'select model, count(*) as calls from spans group by model'
    """
    questions = [by is not None, handoffs, sql is not None, export, otlp is not None, prune is not None]
    if sum(questions) > 1:
        raise Usage("--by, --handoffs, --sql, --export, --otlp and --prune are each a thing of its own; ask for one")
    if redact and not export or content and otlp is None and form != "otlp":
        raise Usage("--redact is for --export, --content for --otlp and --format otlp")
    asks_journal = journal or kind_of(0) in ("terminal", "null")
    if asks_journal and (tee or every):
        raise Usage("--tee and --all are for a stream on stdin, and there is none")
    filters = {"RUN": run, "--thread": thread, "--since": since, "--until": until, "-n": newest}
    filters |= {f"--{name}": value for name, value in asked.items()}
    given = [name for name, value in filters.items() if value is not None]
    file = bool(thread and os.path.isfile(thread))
    if sql is not None or prune is not None:
        what = "--sql" if prune is None else "--prune"
        if given:
            raise Usage(f"{what} is not narrowed by {', '.join(given)}" + ("; say where ... in it" if sql else ""))
        if not asks_journal:
            raise Usage(f"{what} asks the journal, and there is a stream on stdin; say --journal, or < /dev/null")
    if newest is not None and (by or run or file or not asks_journal):
        raise Usage("-n is how many runs of the journal are listed; it goes with no --by, RUN, FILE or stream")
    if prune is not None:
        from mllm_pipe.tracing.upkeep import prune as taken_out

        note(taken_out(prune))
        return 0
    form = form or ("ndjson" if kind_of(2 if tee else 1) != "terminal" else "tree" if run else "table")
    wanted = Selection(run, since=moment(since, "--since"), until=moment(until, "--until"),
                       **{name: asked[name] for name in ("group", "status", *OF_CALL)})  # fmt: skip
    sends = otlp is not None or form == "otlp"
    texts, outcome = export or content or form == "html", Outcome()
    fold = Fold(digests=handoffs or sends or texts, texts=texts)
    if thread:
        wanted.threads = gather.from_file(thread, fold, outcome) if file else frozenset([thread])
    if sql is not None or by and asks_journal and not file:
        from mllm_pipe.tracing.index import Index

        gc.disable()  # rows make no cycles, and of many threads looking for some takes an eighth of the time
        with Index(rows=sql is not None) as index:
            if sql is not None:
                from mllm_pipe.tracing.asking import query

                rows = query(index, sql)
            else:
                rows = index.by(str(by), wanted)
        if not rows and by:
            gather.need_id(thread, file)
        _speak(forms.of_sums(rows, by, form) if by else forms.of_rows(rows, form), tee)
        return outcome.status()
    if not asks_journal:
        refuse_own_output()
        runs = gather.chosen(fold, wanted, gather.from_stream(fold, outcome, every, tee, grouped, max_line))
    elif file:
        runs = gather.with_journal(fold, wanted)
    else:
        runs = gather.from_journal(fold, wanted, NEWEST if newest is None else newest)
    if not runs:
        gather.need_id(thread, file)
    if otlp is not None:
        note(forms.sent(runs, fold, content, otlp))
    elif by:
        _speak(forms.of_sums(ledger.by(gather.spans_of(fold, runs, wanted), by), by, form), tee)
    elif handoffs:
        _speak(forms.of_rows(gather.handoffs(runs), form), tee)
    elif export:
        _speak(forms.of_records(runs, fold, redact), tee)
    else:
        brief = asks_journal and not run and not file
        _speak(forms.of_runs(runs, form, fold, brief=brief, content=content), tee)
    return outcome.status()


def _speak(text: str, aside: bool) -> None:
    if aside:
        os.write(2, safe(text).encode())
    else:
        show(text)


def main() -> None:
    """Entry point."""
    cli.run(command)
