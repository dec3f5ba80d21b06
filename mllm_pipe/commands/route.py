"""route: say where each thread should go, by rules, by a model, by default; dispatch without --to obeys."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import click

from mllm_pipe import cli
from mllm_pipe.calling.inflight import stop_when_reader_leaves
from mllm_pipe.calling.patience import patience_of
from mllm_pipe.calling.pool import in_flight
from mllm_pipe.envelope import Record, line_of
from mllm_pipe.errors import FAILED, Outcome, Usage
from mllm_pipe.routing.deciding import Decision
from mllm_pipe.routing.router import find_router
from mllm_pipe.runtimes import load
from mllm_pipe.stream import Sink, Source, refuse_own_output, show
from mllm_pipe.terminal import kind_of, one_line, say
from mllm_pipe.turn import next_step


@click.command("route", context_settings={"max_content_width": 100})
@cli.argument("name", required=False)
@cli.option("--rules", metavar="FILE", help="Rules of its own, in TOML, instead of those in [routers.NAME].")
@cli.option("--min-confidence", type=cli.Number(0, 1), metavar="SHARE",
            help="Below it the model's answer is not taken (default: the router's, or 0.5).")
@cli.option("--reroute", is_flag=True, help="Decide again for threads that have a route.")
@cli.option("--explain", is_flag=True, help="Show every rule, and why it matches or not; send nothing.")
@cli.option("--eval", "labels", metavar="LABELS", help="Say how good the router is on the prompts of this file.")
@cli.option("--fit", metavar="LOG", help="Make a learned router of this log, for rules of kind learned; with -o.")
@cli.option("-o", "--output", metavar="FILE", help="With --fit: where it is written.")
@cli.option("--strong-share", type=cli.Number(0, 1), metavar="SHARE",
            help="With --fit on weak and strong: how many are to go to the strong one (default: where it pays).")
@cli.option("-j", "--jobs", type=click.IntRange(1, 2000), default=1, metavar="N",
            help="Threads of which the model is asked at once (default 1).")
@cli.option("--unordered", is_flag=True, help="With -j: a thread goes out as soon as it is decided.")
@cli.option("--format", "form", type=click.Choice(["text", "ndjson"]), help="What stdout gets; ndjson in a pipe.")
@cli.runtime_options
@cli.stream_options
def command(name: str | None, rules: str | None, min_confidence: float | None, reroute: bool, explain: bool,
            labels: str | None, fit: str | None, output: str | None, strong_share: float | None, jobs: int,
            unordered: bool, form: str | None, grouped: bool, max_line: int, quiet: bool, timeout: float,
            **flags: Any) -> int:  # fmt: skip
    """Say where each thread on stdin should go, as the router NAME of mllm.toml says.

    Its rules are tried first; if none matches, the model of its router slot is asked, else it is the default. The
    thread goes on with the route, and dispatch without --to obeys it. No route is status 1.
    """
    as_text = form == "text" or (form is None and kind_of(1) == "terminal")
    if fit:
        if not output or name or rules or labels:
            raise Usage("say route --fit LOG -o FILE, and perhaps --strong-share")
        from mllm_pipe.routing import measuring

        report = measuring.made(fit, output, strong_share)
        show(measuring.text_of(report) if as_text else line_of(report).decode())
        return 0
    if output or strong_share is not None:
        raise Usage("-o and --strong-share go with --fit LOG")
    if labels and explain:
        raise Usage("--eval asks for what --explain does not send: say one of them")
    patience = patience_of(flags, jobs)
    router = find_router(name, rules, flags)
    if min_confidence is not None:
        router["min_confidence"] = min_confidence
    if router["target"]:
        load(router["target"]["kind"])
    if not labels and kind_of(0) in ("terminal", "null"):
        raise Usage("no thread to route; pipe one in: ... | route")
    refuse_own_output()
    outcome, sink = Outcome(), Sink(records=not as_text and not explain)
    source = Source(outcome, sink.record, grouped=grouped, max_line=max_line, run=patience.run)
    stop_when_reader_leaves()

    def first(decision: Decision) -> None:
        if decision.thread.status != "failed":
            decision.by_rules(router, reroute)

    def work(decision: Decision) -> None:
        if not explain and decision.thread.status != "failed":
            decision.by_model(router, timeout, patience, outcome, measuring=bool(labels))

    def decided(decisions: Iterable[Decision], ordered: bool = True) -> Iterator[Decision]:
        for decision, _ in in_flight(decisions, work, jobs, ordered=ordered, first=first):
            if decision.failure:
                say(f"thread {decision.thread.id}: {decision.failure}{next_step(decision.failure)}")
                outcome.fail(decision.failure.status)
            yield decision

    if labels:
        from mllm_pipe.routing import measuring

        report = measuring.measured(router, labels, source.run(), decided)
        show(measuring.text_of(report) if as_text else line_of(report).decode())
        return outcome.status()
    for decision in decided(map(Decision, source.threads()), not unordered):
        thread, failure, route = decision.thread, decision.failure, decision.route
        if explain and not failure and thread.status != "failed":
            from mllm_pipe.routing import explaining

            told = explaining.explained(decision, router)
            show(explaining.text_of(told) if as_text else line_of(told).decode())
            continue
        if failure or route is None:
            if not failure:
                outcome.fail(FAILED)  # before it came here
            sink.thread(thread, decision.made, "failed")
            continue
        none = route["target"] is None
        outcome.said_no = outcome.said_no or none or thread.status == "no"
        if as_text:
            show(_line(route))
        sink.thread(thread, decision.made, "no" if none else thread.status)
    sink.end(source, outcome)
    return outcome.status()


def _line(route: Record) -> str:
    """A route for a person."""
    where = f"{route['target'] or 'none'}  {route['by']}  thread {route['thread']}"
    return one_line(f"{where}  {route.get('reason', '')}") + "\n"


def main() -> None:
    """Entry point."""
    cli.run(command)
