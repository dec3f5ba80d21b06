"""Checks of an answer that need no model: what a --check RULE means, and the finding of several together."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import orjson

from mllm_pipe.bounded import Late, possible, within
from mllm_pipe.envelope import Record, admit, equal
from mllm_pipe.errors import CallFailed, Usage
from mllm_pipe.stream import Thread
from mllm_pipe.thread import parts_of, text_of

if TYPE_CHECKING:
    from fractions import Fraction

    Exact = Fraction | int  # a number that was typed, as it was typed

MOST = 10**9  # that a check may weigh
_NONE: Exact = 0
Said = tuple[bool | None, str]  # whether it holds (None: it cannot be known), and why
RunProgram = Callable[[list[str] | str, bytes], tuple[bool, str]]  # an argv or a command line, its stdin


class Subject:
    """What is checked: the answer, what belongs to its turn, and what it is held against."""

    __slots__ = ("text", "messages", "thread", "reference")

    def __init__(self, messages: list[Record], thread: Thread, reference: str | None) -> None:
        """messages: the branch of the thread that the answer ends. reference: of --reference."""
        self.text = text_of(messages[-1]["content"])
        self.messages, self.thread, self.reference = messages, thread, reference

    def turn(self) -> list[Record]:
        """The messages since the question: an answer, or with tools several and their results."""
        asked = max((place for place, one in enumerate(self.messages) if one["role"] == "user"), default=-1)
        return self.messages[asked + 1 :]

    def spans(self) -> list[Record]:
        """The spans of the calls that made the answer; [] if the span of one of them is not there. BadRecord."""
        runs = {message.get("run_id") for message in self.turn() if message["role"] == "assistant"}
        found = [record for record in self.thread.records if record["type"] == "span" and record["id"] in runs]
        for record in found:
            admit(record, self.thread.raws[record["id"]])
        return found if len(found) == len(runs) else []


Holds = Callable[[Subject], Said]


class Check:
    """A rule as it was given, how much it counts, and what it asks."""

    __slots__ = ("rule", "weight", "shown", "holds")

    def __init__(self, rule: str, weight: Exact, holds: Holds) -> None:
        self.rule, self.weight, self.shown, self.holds = rule, weight, float(weight), holds


def check(given: str, run: RunProgram, timeout_s: float) -> Check:
    """The check that --check [WEIGHT*]RULE names. `run` runs a program; timeout_s bounds what a text may keep busy.

    Usage if the rule is none.
    """
    weighted = re.match(r"([0-9]+(?:\.[0-9]+)?)\*", given)
    rule = given[weighted.end() :] if weighted else given
    weight = _exact(weighted[1]) if weighted else 1
    if not weight:
        raise Usage(f"--check {given!r}: a weight is more than 0")
    if weight > MOST:
        raise Usage(f"--check {given!r}: a weight is at most {MOST:.0e}")
    kind, colon, rest = rule.partition(":")
    if kind not in _KINDS:
        from mllm_pipe.configuration import nearest

        raise Usage(f"--check {given!r}: no such check{nearest(kind, list(_KINDS))}; there are {', '.join(_KINDS)}")
    make, sample = _KINDS[kind]
    if sample and not rest:
        raise Usage(f"--check {given!r}: say {kind}:{sample}")
    if colon and kind == "json":
        raise Usage(f"--check {given!r}: say json alone")
    try:
        return Check(rule, weight, make(rest, run, timeout_s))
    except Usage as wrong:
        said = str(wrong).removeprefix(f"--check {rule}: ")
        raise Usage(f"--check {given}: {said}") from None


def needed(text: str) -> Exact | None:
    """--need as the least share of the weights that must hold: all is 1, any None, for it is more than none of them."""
    if text in ("all", "any"):
        return 1 if text == "all" else None
    share = _exact(text) if re.fullmatch(r"[0-9]*\.?[0-9]+", text, re.ASCII) else 0
    if not 0 < share <= 1:
        raise Usage(f"--need {text}: say all, any, or a share of the weights above 0 and up to 1")
    return share


def _exact(text: str) -> Exact:
    """The decimal that was typed: 0.1 + 0.2 of it are 0.3."""
    from fractions import Fraction

    return Fraction(text)


def findings(checks: list[Check], need: Exact | None, subject: Subject) -> dict[str, Any]:
    """{"criteria", "score", "pass"} of all checks; pass is None where it hangs on what cannot be known."""
    criteria, held, unknown, total = [], _NONE, _NONE, _NONE
    for one in checks:
        holds, why = one.holds(subject)
        score = None if holds is None else 1.0 if holds else 0.0
        criteria.append({"name": one.rule, "score": score, "weight": one.shown, "pass": holds, "reason": why})
        total += one.weight
        if holds is None:
            unknown += one.weight
        elif holds:
            held += one.weight

    def enough(part: Exact) -> bool:
        return part > 0 if need is None else part >= need * total

    passed = True if enough(held) else None if enough(held + unknown) else False
    return {"criteria": criteria, "score": None if unknown else round(float(held / total), 4), "pass": passed}


# -- of the text


def _contains(wanted: str, *_: Any) -> Holds:
    return lambda subject: (True, "it is there") if wanted in subject.text else (False, "it is not there")


def _starts(given: str, *_: Any) -> Holds:
    wanted = given.lstrip()
    if not wanted:
        raise Usage("say starts:TEXT, with more than blanks")
    return lambda subject: _worded(subject.text.lstrip().startswith(wanted), "it starts so", "it starts otherwise")


def _equals(wanted: str, *_: Any) -> Holds:
    def holds(subject: Subject) -> Said:
        same = subject.text.strip() == _against(wanted, subject).strip()
        return _worded(same, "it is equal", "it differs")

    return holds


def _max_chars(most: str, *_: Any) -> Holds:
    if not most.isascii() or not most.isdigit():
        raise Usage("no whole number")
    limit = int(most)
    return lambda subject: (len(subject.text) <= limit, f"{len(subject.text)} characters")


def _regex(pattern: str, run: RunProgram, timeout_s: float) -> Holds:
    """A hostile text may keep a search busy for ever. CallFailed("timeout") when its time is over: in the main thread
    that is kept by `within`; in any other one the search is made by a program of its own.
    """
    try:
        search = re.compile(pattern).search
    except re.error as error:
        raise Usage(str(error)) from None
    limit = within(timeout_s)

    def holds(subject: Subject) -> Said:
        if not possible():
            import sys

            matches, _ = run([sys.executable, "-I", "-c", _SEARCH, pattern], subject.text.encode())
            return _worded(matches, "it matches", "nothing matches")
        try:
            with limit:
                found = search(subject.text) is not None
        except Late:
            raise _late(timeout_s) from None
        return _worded(found, "it matches", "nothing matches")

    return holds


def _late(timeout_s: float) -> CallFailed:
    why = f"a --check took longer than {timeout_s:g} s; --timeout sets the limit"
    return CallFailed("timeout", why, billed="no")


_SEARCH = "import re, sys; sys.exit(not re.search(sys.argv[1], sys.stdin.buffer.read().decode()))"


def _exec(command_line: str, run: RunProgram, _: float) -> Holds:
    return lambda subject: run(command_line, subject.text.encode())


# -- of the text as JSON


def _json(*_: Any) -> Holds:
    return lambda subject: _parsed(subject.text)[1:]


def _schema(path: str, _: RunProgram, timeout_s: float) -> Holds:
    from mllm_pipe import contract, structured

    schema = structured.from_file(path, f"--check schema:{path}")

    def holds(subject: Subject) -> Said:
        value, is_json, why = _parsed(subject.text)
        try:
            fault = contract.fault(value, schema, timeout_s) if is_json else why
        except contract.TooDeep as deep:
            return None, str(deep)
        return _worded(not fault, "it holds to the schema", fault)

    return holds


def _jsonpath(text: str, *_: Any) -> Holds:
    from mllm_pipe.judging import jsonpath

    steps, wanted = jsonpath.parse(text)

    def holds(subject: Subject) -> Said:
        value, is_json, why = _parsed(subject.text)
        if not is_json:
            return False, why
        found = jsonpath.select(value, steps)
        if not found or wanted is jsonpath.NO_VALUE:
            return _worded(bool(found), "it is there", "nothing is there")
        return _worded(any(equal(one, wanted) for one in found), "it is equal", "it differs")

    return holds


def _parsed(text: str) -> tuple[Any, bool, str]:
    try:
        return orjson.loads(text), True, "it is JSON"
    except orjson.JSONDecodeError as error:
        return None, False, f"{error.msg} at line {error.lineno}, column {error.colno}"


# -- of the text beside another


def _like(measure: str) -> Callable[[str, RunProgram, float], Holds]:
    def make(rest: str, _: RunProgram, timeout_s: float) -> Holds:
        from mllm_pipe.judging import likeness

        share, colon, wanted = rest.partition(":")
        least, how = _number(share), getattr(likeness, measure)
        if least > 1 or (colon and not wanted):
            raise Usage("say a share from 0 to 1, and perhaps :TEXT after it")

        def holds(subject: Subject) -> Said:
            found = how(subject.text, _against(wanted, subject), _deadline(timeout_s))
            return found >= least, f"{found:.4f}"

        return holds

    return make


def _deadline(timeout_s: float) -> Callable[[], None]:
    import time

    until = time.monotonic() + timeout_s

    def tick() -> None:
        if time.monotonic() > until:
            raise _late(timeout_s)

    return tick


def _against(wanted: str, subject: Subject) -> str:
    """The text of the rule, or of --reference. Usage if there is neither."""
    if wanted:
        return wanted
    if subject.reference is None:
        raise Usage("a --check has nothing to compare with: say it after a colon, or give --reference FILE")
    return subject.reference


# -- of how it came


def _max_cost(usd: str, *_: Any) -> Holds:
    most = _number(usd)

    def holds(subject: Subject) -> Said:
        spans = subject.spans()
        costs: list[float] = [span["cost_usd"] for span in spans if span.get("cost_usd") is not None]
        if not spans or len(costs) < len(spans):
            return None, "what it cost is unknown"
        return sum(costs) <= most, f"{sum(costs):.6f} USD"

    return holds


def _max_latency(limit: str, *_: Any) -> Holds:
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m)", limit)
    if not found:
        raise Usage("no time; say 500ms, 2s or 1m")
    most_ms = float(found[1]) * {"ms": 1, "s": 1000, "m": 60000}[found[2]]

    def holds(subject: Subject) -> Said:
        times = [span["duration_ms"] for span in subject.spans()]
        return (sum(times) <= most_ms, f"{sum(times):.0f} ms") if times else (None, "how long it took is unknown")

    return holds


def _tool_called(name: str, *_: Any) -> Holds:
    def holds(subject: Subject) -> Said:
        called = [part["name"] for message in subject.turn() for part in parts_of(message["content"])
                  if part["type"] == "tool_call"]  # fmt: skip
        return name in called, f"it called {', '.join(called) or 'none'}"

    return holds


def _number(text: str) -> float:
    if not re.fullmatch(r"[0-9]*\.?[0-9]+", text):
        raise Usage(f"{text or 'nothing'} is no number")
    return float(text)


def _worded(holds: bool, yes: str, no: str) -> Said:
    return holds, yes if holds else no


# kind: (what makes the check of what stands after the colon, a sample of that; "" if it may be left out)
_KINDS: dict[str, tuple[Callable[[str, RunProgram, float], Holds], str]] = {
    "contains": (_contains, "TEXT"),
    "equals": (_equals, ""),
    "starts": (_starts, "TEXT"),
    "regex": (_regex, "RE"),
    "json": (_json, ""),
    "schema": (_schema, "FILE"),
    "jsonpath": (_jsonpath, "$.PATH"),
    "similar": (_like("ratio"), "0.8"),
    "rouge": (_like("rouge_l"), "0.5"),
    "max-chars": (_max_chars, "N"),
    "max-cost": (_max_cost, "USD"),
    "max-latency": (_max_latency, "2s"),
    "tool-called": (_tool_called, "NAME"),
    "exec": (_exec, "CMD"),
}
