"""Budgets: before a call its worst case is reserved, after it what it cost is settled, and nothing goes beyond.

A budget of a command is kept in memory. One of a day or a run holds across processes: the journal is its ledger, read
and added to under one lock. The intent of a call says its worst case, the outcome what it cost; a call of which nobody
knows what it cost (killed, silent, no price) has cost its worst case.

The worst case is the estimate of the prompt (mllm_pipe.window, rather too many tokens than too few), at the dearest
rate that the model has for input, and the longest answer that is allowed (--max-tokens, else the model's limit) at that
for output. An agent program decides by itself how often it asks; its worst case is that of one request.
"""

from __future__ import annotations

import os
import re
import time
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from functools import cache
from typing import Any, NamedTuple

import orjson

from mllm_pipe import models, prices, window
from mllm_pipe.calling import journal, living
from mllm_pipe.configuration import PLAIN, configured_budget
from mllm_pipe.envelope import Record, seconds_of
from mllm_pipe.errors import OverBudget, Usage
from mllm_pipe.runtimes import load
from mllm_pipe.storage import Appender, read_new
from mllm_pipe.terminal import note
from mllm_pipe.waiting import Changed

LONGEST_ANSWER = 32_000  # tokens, of a model whose limit is unknown
LOOK_AGAIN_S = 0.2
NAMES = tuple(PLAIN["budget"])


Ids = tuple[str, str]  # of a call, and the key of who is asked


class Worst(NamedTuple):
    """The most that a call can cost; usd is None where the model has no known price."""

    usd: Decimal | None
    tokens: int


class Limit(NamedTuple):
    """One limit: of this command, a day or a run; in usd or tokens."""

    scope: str
    unit: str
    most: Decimal

    def left(self, spent: Decimal) -> str:
        """For a person: the limit, and what is left of it."""
        left = max(self.most - spent, Decimal(0))
        whose = {"command": "", "day": " a day", "run": " a run"}[self.scope]
        amount = "${:f}" if self.unit == "usd" else "{:f} tokens"
        return f"the budget of {amount.format(self.most)}{whose} has {amount.format(left.normalize() + 0)} left"


def limits(max_cost: float | None, max_tokens_total: int | None) -> list[Limit]:
    """All limits in force: the flags', and of $MLLM_BUDGET, else [budget] of the configuration.

    $MLLM_BUDGET is like "day_usd=5,run_tokens=200000". Usage if one is no number or no limit.
    """
    found = []
    if max_cost is not None:
        found.append(Limit("command", "usd", Decimal(str(max_cost))))
    if max_tokens_total is not None:
        found.append(Limit("command", "tokens", Decimal(max_tokens_total)))
    said = os.environ.get("MLLM_BUDGET")
    for name, value in (_of_variable(said) if said else configured_budget()).items():
        most = Decimal(str(value))
        scope, unit = name.split("_")
        found.append(Limit(scope, unit, most))
    return found


def _of_variable(said: str) -> dict[str, Decimal]:
    """What $MLLM_BUDGET says. Usage if one is no number or no limit."""
    found = {}
    for name, _, value in [entry.partition("=") for entry in re.split(r"[\s,]+", said.strip(", "))]:
        if name not in NAMES:
            raise Usage(f"MLLM_BUDGET: budget: {name!r} is no limit; there are {', '.join(NAMES)}")
        try:
            found[name] = Decimal(value)
            if not found[name].is_finite() or found[name] < 0:
                raise InvalidOperation
        except InvalidOperation:
            raise Usage(f"MLLM_BUDGET: budget: {name} is {value!r}, which is no amount") from None
    return found


def with_run_limit(max_cost: float) -> str:
    """A $MLLM_BUDGET with all shared limits in force here, and so many dollars at the most for a run."""
    shared = {f"{limit.scope}_{limit.unit}": limit.most for limit in limits(None, None)}
    most = Decimal(str(max_cost))
    shared["run_usd"] = min(most, shared.get("run_usd", most))
    return ",".join(f"{name}={amount.normalize():f}" for name, amount in shared.items())


def worst_case(target: dict[str, Any], request: dict[str, Any]) -> Worst:
    """The most that this request can cost."""
    runtime = load(target["kind"])
    if getattr(runtime, "FREE", False):
        return Worst(Decimal(0), 0)
    row = models.of(target)
    prompt = window.estimate(request)
    prompt += getattr(runtime, "OWN_TOKENS", {}).get(target["allow"], 0)
    options = request.get("options", {})
    given = options.get("max_tokens") if models.takes(getattr(runtime, "API", ""), "max_tokens") else None
    held = target["max_tokens"] if getattr(runtime, "TAKES_MAX_TOKENS", False) else None
    answer = given if isinstance(given, int) else held or models.output_limit(row) or LONGEST_ANSWER
    rates = prices.rates(row, prompt, options.get("service_tier"), datetime.now(UTC)) if row else None
    if not rates:
        return Worst(None, prompt + answer)
    dearest = max(rates[name] for name in (prices.INPUT, prices.WRITE, prices.WRITE_1H))
    usd = dearest * prompt + max(rates[prices.OUTPUT], rates[prices.REASONING]) * answer
    return Worst(usd, prompt + answer)


class Budget:
    """The limits of a command, and what is spent and reserved of each."""

    def __init__(self, found: list[Limit]) -> None:
        """Usage if a limit of a day or a run is to be held without a journal."""
        self.own = [limit for limit in found if limit.scope == "command"]
        self.shared = [limit for limit in found if limit.scope != "command"]
        if self.shared and journal.mode() == "off":
            raise Usage("MLLM_JOURNAL=off, and the journal is the ledger of a budget for a day or a run")
        self.settled = Changed()
        self.spent = {limit: Decimal(0) for limit in self.own}
        self.reserved = {limit: Decimal(0) for limit in self.own}
        self.ledger = Ledger(any(limit.scope == "run" for limit in self.shared))
        self.unpaid: set[Ids] = set()  # of calls in flight: who was asked in vain, and surely not paid

    def reserve(self, target: dict[str, Any], request: dict[str, Any]) -> Worst:
        """Set the worst case of a call aside, and wait while only calls in flight stand in its way.

        OverBudget if there is not so much left; Usage if its price is unknown and money is limited.
        """
        worst = worst_case(target, request)
        if worst.usd is None and any(limit.unit == "usd" for limit in self.own + self.shared):
            raise Usage(f"{target['runtime']}: no budget in money can be held, {_why_unpriced(target)}; "
                        "or limit tokens: --max-tokens-total N")
        with self.settled:
            for limit in self.own if worst != _NOTHING else ():
                while self.spent[limit] + self.reserved[limit] + _of(worst, limit) > limit.most:
                    if not self.reserved[limit]:
                        raise _over(limit, self.spent[limit], worst)
                    self.settled.wait()
            for limit in self.own:
                self.reserved[limit] += _of(worst, limit)
        return worst

    def settle(
        self, ids: Ids, worst: Worst, cost_usd: float | None, usage: dict[str, Any] | None, unpaid: bool
    ) -> None:
        """What the call has cost after all, as of `spent_on`."""
        real = spent_on(worst, cost_usd, usage, unpaid)
        if unpaid:
            self.unpaid.add(ids)
        with self.settled:
            for limit in self.own:
                self.reserved[limit] -= _of(worst, limit)
                self.spent[limit] += _of(real, limit)
            self.settled.notify_all()

    def admit(self, ids: Ids, run: str, worst: Worst, until: float) -> Any:
        """For `journal.intend`: the check that is made under the lock of the journal. None if no limit is shared.

        The check raises OverBudget, or gives True if the call may be sent, False if it should be asked for again
        after LOOK_AGAIN_S: calls in flight, of whatever process, may leave enough.
        """
        if not self.shared or worst == _NOTHING:
            return None

        def check(appender: Appender) -> bool:
            now = time.time()
            self.ledger.read_on(appender)
            for limit in self.shared:
                spent, reserved = self.ledger.sums(limit, run, now, ids, self.unpaid)
                if spent + reserved + _of(worst, limit) > limit.most:
                    if spent + _of(worst, limit) > limit.most or not reserved:
                        raise _over(limit, spent, worst)
                    if now > until:
                        raise _over(limit, spent + reserved, worst)
                    return False
            return True

        return check


class Ledger:
    """What the journal says that days and runs have cost. Read on under its lock, line by line."""

    def __init__(self, run_matters: bool) -> None:
        """run_matters: False if only today counts; then older lines are not looked into."""
        self.run_matters, self.offset, self.inode = run_matters, 0, 0
        self.spent: dict[Any, Worst] = {}  # by run, and by day
        # by call and key: worst, until, process, day, run
        self.open: dict[str, dict[str, tuple[Worst, float, int | None, Any, str]]] = {}

    def read_on(self, appender: Appender) -> None:
        """Take in what the journal has gained."""
        inode = os.fstat(appender.descriptor).st_ino
        if inode != self.inode:  # pruned: begin anew
            self.inode, self.offset = inode, 0
            self.spent.clear()
            self.open.clear()
        self.offset = read_new(appender, self.offset, self._take)

    def sums(self, limit: Limit, run: str, now: float, ids: Ids, unpaid: set[Ids]) -> tuple[Decimal, Decimal]:
        """(spent, reserved by other calls in flight) of a limit. Who has not ended in time, or was killed, counts as
        spent.

        ids: of the call that asks; an earlier try of its own is no other call, and spent unless it is in `unpaid`.
        """
        where = _day(now) if limit.scope == "day" else run
        spent, reserved = _of(self.spent.get(where, _NOTHING), limit), Decimal(0)
        alive = cache(living.lives)
        for ident, intents in self.open.items():
            for key, (worst, until, process, *places) in intents.items():
                if where not in places or (ident, key) == ids or (ident, key) in unpaid:
                    continue
                if until > now and ident != ids[0] and (process is None or alive(process)):
                    reserved += _of(worst, limit)
                else:
                    spent += _of(worst, limit)
        return spent, reserved

    def _take(self, line: bytes) -> None:
        head = journal.HEAD.match(line)
        when = seconds_of(head[4].decode()) if head else None
        if not head or when is None or (not self.run_matters and when < time.time() - 2 * 86_400):
            return
        try:
            entry = orjson.loads(line)
        except orjson.JSONDecodeError:
            return  # torn: the intent of a call that was not sent, or the outcome of one that counts as unknown
        if entry["type"] == "intent":
            said = entry.get("worst", {"usd": "0", "tokens": 0, "until": 0})
            worst = Worst(None if said["usd"] is None else Decimal(said["usd"]), said["tokens"])
            calls = self.open.setdefault(entry["id"], {})
            calls[entry["key"]] = worst, said["until"], entry.get("process"), _day(when), entry["parent_run_id"]
        elif entry["id"] in self.open:
            self._settle(self.open.pop(entry["id"]), entry)

    def _settle(self, intents: dict[str, Any], outcome: Record) -> None:
        span = next((record for record in outcome["records"] if record["type"] == "span"), None)
        if not span:
            return  # refused on our side
        for key, (worst, _, _, *keys) in intents.items():
            if key == outcome["key"]:
                cost = spent_on(worst, span["cost_usd"], span["usage"], span["status"] == "error")
            elif any(attempt["status"] == "unknown" for attempt in span.get("attempts", [])):
                cost = worst  # of who was asked first and left no answer
            else:
                cost = _NOTHING
            for place in keys:
                self.spent[place] = _sum(self.spent.get(place, _NOTHING), cost)


_NOTHING = Worst(Decimal(0), 0)


def spent_on(worst: Worst, cost_usd: float | None, usage: dict[str, Any] | None, unpaid: bool) -> Worst:
    """What a call has cost: as is said, nothing where it was not paid for, its worst case where nobody knows."""
    if unpaid and usage is None:
        return _NOTHING
    tokens = usage.get("input_tokens", 0) + usage.get("output_tokens", 0) if usage else worst.tokens
    return Worst(worst.usd if cost_usd is None else Decimal(str(cost_usd)), tokens)


def _why_unpriced(target: dict[str, Any]) -> str:
    if not target["model"]:
        return "its model is not named; say -m MODEL"
    return f"the price of {target['model']} is unknown; mllm models --refresh may know it"


def entry_of(worst: Worst, until: float) -> dict[str, Any]:
    """The worst case as the intent of a call says it."""
    return {"usd": None if worst.usd is None else str(worst.usd), "tokens": worst.tokens, "until": until}


def _sum(one: Worst, other: Worst) -> Worst:
    return Worst((one.usd or Decimal(0)) + (other.usd or Decimal(0)), one.tokens + other.tokens)


def _of(cost: Worst, limit: Limit) -> Decimal:
    return Decimal(cost.tokens) if limit.unit == "tokens" else cost.usd or Decimal(0)


def _day(seconds: float) -> tuple[int, int]:
    """The day that a moment is in, here."""
    at = time.localtime(seconds)
    return at.tm_year, at.tm_yday


def _over(limit: Limit, spent: Decimal, worst: Worst) -> OverBudget:
    could = f"${worst.usd:.4f}" if limit.unit == "usd" else f"{worst.tokens} tokens"
    return OverBudget(f"{limit.left(spent)}, and this call could cost {could}; --max-tokens lowers that")


_told: list[bool] = []


def tell_waiting() -> None:
    """Say once that a call waits for others to be settled."""
    if not _told:
        _told.append(True)
        note("waiting: calls in flight may use up what is left of the budget")
