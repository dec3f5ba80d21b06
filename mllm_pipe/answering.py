"""Answering a thread: by one agent, or by several at once, whose answers are then siblings. DESIGN §2."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

from mllm_pipe.calling.span import Io
from mllm_pipe.compact import fitted
from mllm_pipe.envelope import Record, line_of
from mllm_pipe.errors import WRITE_FAILED, Failure, Outcome, Usage
from mllm_pipe.runtimes import load, worded
from mllm_pipe.stream import Thread
from mllm_pipe.thread import UNNAMED, text_of
from mllm_pipe.turn import Turn, Wish, complaint, left_behind, open_turn, take

Several = Callable[[Callable[[Any], Any], list[Any]], list[Any]]


class Answered:
    """What came of a thread: the records that are added, and which of the agents failed, each with why."""

    __slots__ = ("made", "failures", "whole")

    def __init__(self, made: list[Record], failures: list[tuple[Wish | None, Failure]], whole: bool) -> None:
        """whole: False if the thread fails; of a fan-out, if none has answered."""
        self.made, self.failures, self.whole = made, failures, whole


def refused(thread: Thread, why: Failure, wish: Wish | None = None) -> Answered:
    """What comes of a thread that is not sent."""
    return Answered([complaint(why, thread)], [(wish, why)], False)


def answer(thread: Thread, wishes: list[Wish], outcome: Outcome, at_once: Several) -> Answered:
    """Let each of the wishes be answered, all of them from the same message. at_once: a map for several.

    Nothing is raised but WriteFailed. A thread that is to be skipped gets nothing.
    """
    made: list[Record] = []
    try:
        if thread.fault:
            raise thread.fault
        first = open_turn(thread, wishes[0])
        if first is None:
            return Answered([], [], True)
        made += first.made
        turns = [first, *(_beside(thread, first, wish) for wish in wishes[1:])]
    except Failure as refusal:
        made.append(complaint(refusal, thread))
        return Answered(made, [(wishes[0], refusal)], False)

    def one(place: int) -> tuple[list[Record], Failure | None]:
        return _answered(turns[place], thread, wishes[place], outcome)

    places = list(range(len(wishes)))
    failures: list[tuple[Wish | None, Failure]] = []
    thread.status = "ok"
    for place, (added, failure) in zip(places, at_once(one, places) if len(wishes) > 1 else [one(0)], strict=True):
        made += added
        if failure:
            failures.append((wishes[place], failure))
    return Answered(made, failures, len(failures) < len(wishes))


def _beside(thread: Thread, first: Turn, wish: Wish) -> Turn:
    """The turn of a further agent: it answers the message that the first one answers."""
    shared = thread.with_more(first.made)
    turn = open_turn(shared, wish)
    asked = [record["content"] for record in first.made if record["type"] == "message"]
    others = asked and asked != [wish.prompt or wish.agent["instruction"]]
    if turn is None or others or any(record["type"] == "message" for record in turn.made):
        raise Usage("several --to are asked the same thing: give a PROMPT, instead of the instruction of one of them")
    return turn


def _answered(turn: Turn, thread: Thread, wish: Wish, outcome: Outcome) -> tuple[list[Record], Failure | None]:
    """What is added for one agent, and why it fails if it does."""
    made: list[Record] = []
    failure: Failure | None
    try:
        failure = take(fitted(turn, thread, wish, outcome, made), thread, wish, outcome, made)
    except Failure as refusal:
        if refusal.status == WRITE_FAILED:
            raise
        failure = refusal
    if failure and not any(record["type"] == "error" for record in made):
        made.append(complaint(failure, thread))
    return made, failure


def preview(thread: Thread, wishes: list[Wish], show: Callable[[str], None]) -> Answered:
    """Show what each of them would be sent, and what of the thread would be lost, and send nothing."""
    for wish in map(copy, wishes):
        wish.run_tool = None  # no program is run either
        try:
            if thread.fault:
                raise thread.fault
            turn = open_turn(thread, wish)
            if turn:
                asked, ignored = worded(wish.target, turn.request)
                sent = load(wish.target["kind"]).preview(wish.target, asked)
                losses = ignored + sent.pop("losses", [])
                Io(wish.timeout_s, strict=wish.strict).lost(losses)
                losses = left_behind(turn.messages, wish) + losses
                show(line_of({"thread": thread.id} | sent | ({"losses": losses} if losses else {})).decode())
        except Failure as refusal:
            return Answered([], [(wish, refusal)], False)
    return Answered([], [], True)


def told(answers: list[Record], several: bool) -> str:
    """The answer for a person; of several who were asked, each with who says it."""
    if not several:
        return text_of(answers[-1]["content"]).rstrip("\n") + "\n"
    said = []
    for record in answers:
        author = record["author"]
        names = [author["runtime"], author["model"]] if author["agent"] == UNNAMED else [author["agent"]]
        said.append(f"== {':'.join(filter(None, names))} ==\n{text_of(record['content'])}".rstrip("\n") + "\n")
    return "\n".join(said)
