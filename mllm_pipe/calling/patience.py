"""On what terms a target is asked: how often, how fast, who else is, for how much, and what need not be asked again."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

from mllm_pipe.agents import find
from mllm_pipe.calling.gate import Gates
from mllm_pipe.configuration import configured_budget
from mllm_pipe.errors import CallFailed, Usage
from mllm_pipe.runtimes import load

if TYPE_CHECKING:
    from mllm_pipe.calling.budget import Budget
    from mllm_pipe.calling.recall import Memory

LESSONS = 8  # further tries of a call that was told to slow down, where many are under way: how the pace is learnt


class Patience:
    """What holds for all calls of a command."""

    def __init__(
        self, max_retries: int = 0, retry_after_cap_s: float = 60.0, fallbacks: Sequence[dict[str, Any]] = ()
    ) -> None:
        self.max_retries, self.retry_after_cap_s, self.fallbacks = max_retries, retry_after_cap_s, fallbacks
        self.retry_unknown = False
        self.lessons = 0
        self.gates = Gates()
        self.budget: Budget | None = None
        self.memory: Memory | None = None

    @property
    def run(self) -> str:
        """The run that is resumed, so that all calls are part of it; "" if none is."""
        return (self.memory.run if self.memory else None) or ""

    def wait_s(self, tries: int, failure: CallFailed) -> float | None:
        """Seconds to wait after so many tries, None to give up. Only what was surely not paid for is asked again,
        unless the user says --retry-unknown.

        What the other side asks for counts, up to the cap, beyond which it is left alone; else full jitter over
        0.5 s doubled with each try, at most 8 s.
        """
        most = self.max_retries + (self.lessons if failure.code == "rate_limit" else 0)
        again = failure.retryable or (self.retry_unknown and failure.billed == "unknown")
        if tries > most or not again:
            return None
        asked = failure.retry_after_s
        if asked is not None:
            return asked if asked <= self.retry_after_cap_s else None
        from random import random  # few calls have to wait

        return random() * min(8.0, 0.5 * 2.0**tries)

    def alone(self) -> Patience:
        """The same for a call that has no fallback: a summary."""
        same = copy(self)
        same.fallbacks = ()
        return same


def patience_of(flags: dict[str, Any], jobs: int = 1) -> Patience:
    """Takes what is about these terms out of a command's flags. jobs: threads in flight.

    Usage if a fallback is unknown, or a limit is none; Missing if the run to resume is.
    """
    same = {name: flags[name] for name in ("max_tokens", "first_byte_s", "cwd", "allow")}
    fallbacks = [find(spec, **same)[0] for spec in flags.pop("fallbacks")]
    for target in fallbacks:
        load(target["kind"])
    patience = Patience(flags.pop("max_retries"), flags.pop("retry_after_cap_s"), fallbacks)
    patience.retry_unknown = flags.pop("retry_unknown")
    patience.lessons = LESSONS if jobs > 1 else 0
    patience.gates = Gates(flags.pop("rate"))
    max_cost, max_tokens = flags.pop("max_cost"), flags.pop("max_tokens_total")
    if max_cost is not None or max_tokens is not None or os.environ.get("MLLM_BUDGET") or configured_budget():
        from mllm_pipe.calling import budget

        patience.budget = budget.Budget(budget.limits(max_cost, max_tokens))
    resume, cache, youngest_s = flags.pop("resume"), flags.pop("cache"), flags.pop("cache_ttl")
    if resume and cache:
        raise Usage("--resume takes the answers of one run, --cache those of all; say one of them")
    if resume or cache or youngest_s is not None:
        from mllm_pipe.calling.recall import Memory

        patience.memory = Memory(resume, youngest=time.time() - youngest_s if youngest_s is not None else 0.0)
    return patience

