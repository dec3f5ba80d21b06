"""On what terms answers are judged: everything that holds for all threads of a command."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from mllm_pipe.agents import evaluator_of, find
from mllm_pipe.calling.patience import Patience
from mllm_pipe.calling.pool import several
from mllm_pipe.calling.span import Io
from mllm_pipe.envelope import Record
from mllm_pipe.errors import CallFailed, Usage
from mllm_pipe.judging import checks, rubrics
from mllm_pipe.judging import reference as references
from mllm_pipe.runtimes import load
from mllm_pipe.terminal import note


class Terms:
    """By what and by whom is judged, and what is made of it."""

    def __init__(self, timeout_s: float, patience: Patience) -> None:
        self.timeout_s, self.patience = timeout_s, patience
        self.checks: list[checks.Check] = []
        self.need: checks.Exact | None = 1  # the least share of their weights; None: any of them
        self.rubric: rubrics.Rubric | None = None
        self.judges: list[dict[str, Any]] = []  # targets; none: the evaluator slot of who wrote the answer
        self.escalate: dict[str, Any] | None = None  # who is asked where they decide nothing
        self.combine: str | None = None  # majority or mean; None: majority, or as it was recorded
        self.repeats = 1
        self.replay = False  # recorded verdicts are scored anew, and nobody is asked
        self.pass_at: float | None = None  # as it was said; else that of the rubric
        self.cascade = self.reply = self.forbid_self = False
        self.pairwise = self.one_order = False
        self.seed: int | None = None  # of the order of answers; None: of the answers themselves
        self.against: Callable[[str], Record | None] | None = None  # the older answer of a thread
        self.reference: str | None = None  # the file that has those
        self.reference_of: Callable[[str], str | None] = lambda thread: None
        self.at_once: Callable[..., list[Any]] = several(0)  # a map over the judges
        self.votes: list[list[float] | None] = []  # of a panel: each judge's vote as a number, by thread
        self.told: set[Any] = set()  # what was said once and is not said again

    def asks_nobody(self) -> bool:
        """True if neither a model nor a program is asked: no thread takes long."""
        return not self.rubric and not any(check.rule.startswith("exec:") for check in self.checks)

    def judges_of(self, answer: Record) -> list[dict[str, Any]]:
        """Who judges an answer: --by, else the evaluator slot of the agent that wrote it. Usage if there is neither."""
        targets = self.judges or list(filter(None, [evaluator_of(answer)]))
        if not targets:
            raise Usage("a rubric needs a judge: --by SPEC, or the evaluator slot of the agent that wrote the answer; "
                        "checks do without")  # fmt: skip
        return targets


_ALONE = ("model", "base_url", "key_env")  # flags that are for one judge
_OF_JUDGES = ("by", "pass_at", "scale", "repeats", "combine", "forbid_self", *_ALONE)


def terms_of(flags: dict[str, Any], timeout_s: float, patience: Patience) -> Terms:
    """Takes what is about the judgement out of a command's flags.

    Usage if they make no sense together, or name what there is not; Missing if a file is not there.
    """
    rubric, rules, specs = flags.pop("rubric"), flags.pop("rules"), flags.pop("specs")
    pairwise, against, cascade = flags.pop("pairwise"), flags.pop("against"), flags.pop("cascade")
    escalate, reference = flags.pop("escalate"), flags.pop("reference")
    told = {name: flags.pop(name) for name in ("pass_at", "scale")}
    replay = flags.pop("replay")
    if replay and (specs or rules or pairwise or against or escalate):
        raise Usage("--replay asks nobody: leave out --by, --check, --pairwise, --against and --escalate")
    if not rubric and not rules and not replay:
        raise Usage(f"by what? say --rubric {'|'.join(rubrics.names())}|@FILE|TEXT, or --check RULE")
    if cascade and not (rubric and rules):
        raise Usage("--cascade needs both: --check RULE, and --rubric with --by")
    said = told | flags | {"by": specs or None, "repeats": flags["repeats"] if flags["repeats"] > 1 else None}
    _refuse_idle(said, rubric or replay, rules, replay, pairwise or against)
    specs = specs or tuple(filter(None, [os.environ.get("MLLM_BY")]))
    if (pairwise or against) and not (rubric and specs):
        raise Usage("answers are compared by a judge: --by SPEC --rubric RUBRIC")
    if escalate and not rubric:
        raise Usage("--escalate is for judges: --by SPEC --rubric RUBRIC")
    if pairwise and not against and rules:
        raise Usage("--check is about one answer, --pairwise about several; check the one that is preferred")
    if len(specs) > 1 and (lone := next((flag for flag in _ALONE if flags[flag]), None)):
        raise Usage(f"--{lone.replace('_', '-')} is for one --by alone; with several say --by RUNTIME:MODEL each")
    terms = Terms(timeout_s, patience)
    terms.replay, terms.pass_at = replay, told["pass_at"]
    terms.checks = [checks.check(rule, _runner(timeout_s), timeout_s) for rule in rules]
    terms.need, terms.cascade = checks.needed(flags.pop("need")), cascade
    for name in ("reply", "forbid_self", "one_order", "seed", "combine", "repeats"):
        setattr(terms, name, flags.pop(name))
    terms.pairwise = pairwise or bool(against)
    if terms.pairwise and (terms.reply or terms.repeats > 1):
        raise Usage("--reply and -n are for one answer that is scored; a comparison asks in both orders")
    if reference:
        terms.reference_of, terms.reference = references.read(reference), reference
    if against:
        terms.against = references.older(against)
    if rubric:
        terms.rubric = rubrics.find(rubric) | {name: value for name, value in told.items() if value is not None}
        terms.judges = [] if replay else [_judge(spec, flags) for spec in specs]
    if escalate:
        terms.escalate = _judge(escalate, {name: value for name, value in flags.items() if name not in _ALONE})
    terms.at_once = several(max(0, len(terms.judges) - 1))
    _tell_family(terms)
    return terms


def _refuse_idle(said: dict[str, Any], rubric: Any, rules: Any, replay: bool, compares: Any) -> None:
    """Usage if a flag was said that would change nothing: who says it believes that something is judged by it."""
    idle = []
    if not rubric:
        idle += [(name, "is for a judge: say by what, with --rubric; a --check asks nobody") for name in _OF_JUDGES]
    if not compares and not replay:
        idle += [(name, "is for comparisons: --pairwise, or --against FILE") for name in ("one_order", "seed")]
    elif compares:
        idle += [(name, "is for scores, and a comparison asks which answer is better") for name in ("scale", "pass_at")]
    if len(said["by"] or ()) < 2 and not replay:
        idle += [("combine", "is for a panel: several --by")]
    if not rules and said["need"] != "all":
        raise Usage("--need is for checks: --check RULE")
    for name, why in idle:
        if said[name] is not None and said[name] is not False:
            flag = "-n" if name == "repeats" else f"--{name.replace('_', '-')}"
            raise Usage(f"{flag} {why}")


def _judge(spec: str, flags: dict[str, Any]) -> dict[str, Any]:
    target = find(spec, **flags)[0]
    load(target["kind"])
    return target


def _tell_family(terms: Terms) -> None:
    if len(terms.judges) > 1:
        from mllm_pipe.judging.families import family_of

        families = {family_of(target) for target in terms.judges}
        if len(families) == 1 and (family := families.pop()):
            note(f"all {len(terms.judges)} judges are of one family ({family}): they err together")


def _runner(timeout: float) -> Callable[[list[str] | str, bytes], tuple[bool, str]]:
    """A program as a check: the answer on its stdin, status 0 passes. CallFailed if it cannot be run."""

    def run(command_line: list[str] | str, answer: bytes) -> tuple[bool, str]:
        argv = find(f"exec:{command_line}")[0]["argv"] if isinstance(command_line, str) else command_line
        status, said = load("command").run_check(argv, answer, Io(timeout).left)
        if status >= 126:  # not found, not executable, killed: it has not judged
            why = f"--check exec:{command_line}: exit status {status}{said and ': ' + said}"
            raise CallFailed("exit", why, billed="no")
        return status == 0, said or f"status {status}"

    return run
