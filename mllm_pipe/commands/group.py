"""group: a chain of commands that fires as one, under one run."""

from __future__ import annotations

import shlex

import click

from mllm_pipe import cli
from mllm_pipe.envelope import new_id
from mllm_pipe.errors import NO, OK, Outcome, Stopped, Usage, WriteFailed
from mllm_pipe.grouping import plan as plans
from mllm_pipe.grouping.firing import LEFT, Firing
from mllm_pipe.lineage import inherited_run, offered_run
from mllm_pipe.signals import die_by
from mllm_pipe.stream import Sink, refuse_own_output, show
from mllm_pipe.terminal import kind_of, say
from mllm_pipe.times import LONGEST_S


@click.command("group", context_settings={"max_content_width": 100})
@cli.argument("name", metavar="NAME|FILE")
@cli.argument("prompt", required=False)
@cli.option("--new", is_flag=True, help="Start a thread with PROMPT; stdin is not read.")
@cli.option("--resume", metavar="RUN", help="Go on with this run: what it has an answer for is not asked again.")
@cli.option("--retry-unknown", is_flag=True, help="Ask again also what was asked and never heard, in all stages.")
@cli.option("--max-cost", type=cli.Number(0), metavar="USD",
            help="Send nothing that could take the run beyond this, whichever stage asks.")
@cli.option("--timeout", type=cli.Number(0, LONGEST_S, min_open=True), metavar="SECONDS",
            help="Limit of the whole.")
@cli.option("--print", "shown", is_flag=True, help="Print lines of sh that do the same; run nothing.")
@cli.option("--dry-run", is_flag=True, help="Print the stages, and what the first one would send; send nothing.")
@cli.option("-q", "--quiet", is_flag=True, callback=cli.hush, envvar="MLLM_QUIET",
            help="Say nothing on stderr but errors, in no stage.")
@cli.common_options
def command(name: str, prompt: str | None, new: bool, resume: str | None, retry_unknown: bool, max_cost: float | None,
            timeout: float | None, shown: bool, dry_run: bool, quiet: bool) -> int:  # fmt: skip
    """Fire the stages of a group, joined by pipes, between stdin and stdout.

    NAME is a group of mllm.toml, FILE a TOML file with its stages. PROMPT is put into each thread on stdin, or starts
    one. The status is that of the first stage that failed.
    """
    if prompt is not None and not prompt.strip():
        raise Usage("PROMPT is empty; an empty message is never sent")
    if new and prompt is None:
        raise Usage("--new starts a thread, and needs a PROMPT")
    starts = new or kind_of(0) in ("terminal", "null")
    if prompt == "@-" and not starts:
        raise Usage("PROMPT @- is all of stdin, so no thread is left there; to start one with it, say --new @-")
    plan = plans.find(name, prompt, starts)
    if shown:
        flags = {"--max-cost": max_cost is not None, "--timeout": timeout, "--resume": resume,
                 "--retry-unknown": retry_unknown}  # fmt: skip
        if flag := next(filter(flags.get, flags), None):
            raise Usage(f"--print shows the stages, and {flag} is in none of them; leave it out")
        show(plans.as_shell(plan))
        return OK
    refuse_own_output()
    run, told = _terms(resume, max_cost)
    told |= {name: "1" for name, wanted in {"MLLM_QUIET": quiet, "MLLM_RETRY_UNKNOWN": retry_unknown}.items() if wanted}
    firing = Firing(plan, told, timeout)
    if dry_run:
        return _dry_run(plan, firing)
    try:
        status = _fire(plan, firing)
    except Stopped:
        if way := _way_on(plan, run):
            say(f"{plan['name']}: ended by a signal{way}")
        raise
    except WriteFailed as fault:
        raise WriteFailed(f"{fault}{_way_on(plan, run)}") from None
    if status == LEFT:
        die_by(status - 128)
    if status not in (OK, NO) and firing.why:
        say(f"{plan['name']}: {firing.why}{_way_on(plan, run)}")
    return status


def _fire(plan: plans.Plan, firing: Firing) -> int:
    """Fire a group, once or in rounds; the exit status."""
    if not plan["until"]:
        return firing.once()
    as_text = kind_of(1) == "terminal"
    outcome, sink = Outcome(), Sink(records=not as_text)
    firing.rounds(sink, outcome, as_text)
    sink.end(None, outcome)
    return outcome.status()


def _way_on(plan: plans.Plan, run: str) -> str:
    """How what was paid for is used, "" if nothing was; where a group is a stage, the outer one says it."""
    from mllm_pipe.calling.recall import can_go_on

    return f"; the same line with --resume {run} goes on" if "/" not in plan["path"] and can_go_on(run) else ""


def _terms(resume: str | None, max_cost: float | None) -> tuple[str, dict[str, str]]:
    """(the run that begins where none is inherited, what all stages are told of it and of money)."""
    told: dict[str, str] = {}
    if resume:
        from mllm_pipe.calling.recall import run_of

        run = run_of(resume)
        told |= {"MLLM_RESUME": run, "MLLM_PARENT_RUN_ID": run}
    else:
        run = inherited_run() or offered_run() or new_id()
        told["MLLM_NEW_RUN_ID"] = run
    if max_cost is not None:
        from mllm_pipe.calling.budget import with_run_limit

        told |= {"MLLM_BUDGET": with_run_limit(max_cost), "MLLM_PARENT_RUN_ID": run}
    return run, told


def _dry_run(plan: plans.Plan, firing: Firing) -> int:
    """Show the stages, and let the first one say what it would send, if that is one that asks."""
    show("".join(f"# {label}: {shlex.join(argv)}\n" for label, argv in plans.of_round(plan, 1)))
    first = plan["stages"][0]
    if first[0] != "dispatch":
        return OK
    firing.plan = plan | {"stages": [[*first, "--dry-run"]], "until": None}
    return firing.once()


def main() -> None:
    """Entry point."""
    cli.run(command)
