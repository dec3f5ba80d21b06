"""On what terms answers are judged: everything that holds for all threads of a command."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mllm_pipe.agents import evaluator_of, find
from mllm_pipe.envelope import Record
from mllm_pipe.errors import CallFailed, Usage
from mllm_pipe.judging import checks, rubrics
from mllm_pipe.judging import reference as references
from mllm_pipe.patience import Patience
from mllm_pipe.runtimes import load
from mllm_pipe.span import Io


class Terms:
    """By what and by whom is judged, and what is made of it."""

    def __init__(self, timeout_s: float, patience: Patience) -> None:
        self.timeout_s, self.patience = timeout_s, patience
        self.checks: list[checks.Check] = []
        self.need = 1.0  # the least share of their weights
        self.rubric: rubrics.Rubric | None = None
        self.judge: dict[str, Any] | None = None  # the target; None: the evaluator slot of who wrote the answer
        self.cascade = self.reply = False
        self.reference_of: Callable[[str], str | None] = lambda thread: None

    def checked(self, rules: tuple[str, ...], need: str, reference: str | None) -> None:
        """Take the checks. Usage if one is none, Missing if a file that is named is not there."""
        self.checks = [checks.check(rule, _runner(self.timeout_s), self.timeout_s) for rule in rules]
        self.need = checks.needed(need)
        if reference:
            self.reference_of = references.read(reference)

    def judged(self, rubric: str, spec: str | None, flags: dict[str, Any]) -> None:
        """Take the rubric and the judge. Usage or Missing if one is not there."""
        self.rubric = rubrics.find(rubric)
        if spec:
            self.judge = find(spec, **flags)[0]
            load(self.judge["kind"])

    def judge_of(self, answer: Record) -> dict[str, Any]:
        """Who judges an answer: --by, else the evaluator slot of the agent that wrote it. Usage if there is neither."""
        target = self.judge or evaluator_of(answer)
        if target is None:
            raise Usage("a rubric needs a judge: --by SPEC, or the evaluator slot of the agent that wrote the answer; "
                        "checks do without")  # fmt: skip
        return target


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
