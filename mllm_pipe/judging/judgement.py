"""The judgement of a thread: what of it is judged, by the checks and by the model, and what the next command gets."""

from __future__ import annotations

from mllm_pipe.envelope import Record
from mllm_pipe.errors import WRITE_FAILED, Failure, Outcome, Usage
from mllm_pipe.judging import checks
from mllm_pipe.judging.asking import Undecided, by_model, verdict_record
from mllm_pipe.judging.replying import reply
from mllm_pipe.judging.terms import Terms
from mllm_pipe.stream import Thread
from mllm_pipe.thread import admitted, branch, rivals
from mllm_pipe.turn import CUT_SHORT, complaint, cut_short


class Judged:
    """What comes of judging a thread: the records to add, its final verdicts among them, and why there is none."""

    __slots__ = ("made", "failure")

    def __init__(self, made: list[Record], failure: Failure | None) -> None:
        self.made, self.failure = made, failure

    def verdicts(self) -> list[Record]:
        return [record for record in self.made if record["type"] == "verdict"]

    def negative(self) -> bool:
        return any(record["pass"] is False for record in self.verdicts())


def judge(thread: Thread, terms: Terms, outcome: Outcome) -> Judged:
    """Judge the answer at the end of a thread. Nothing is raised but WriteFailed."""
    made: list[Record] = []
    try:
        failure = _judge(thread, terms, made, outcome)
    except Failure as refusal:
        if refusal.status == WRITE_FAILED:
            raise
        failure = refusal
    judged = Judged(made, failure)
    if failure:
        made.append(complaint(failure, thread, next((r for r in made[::-1] if r["type"] == "span"), None)))
    elif terms.reply and judged.negative():
        made.append(reply(thread, judged.verdicts()))
    return judged


def _judge(thread: Thread, terms: Terms, made: list[Record], outcome: Outcome) -> Failure | None:
    """Add the verdicts on the thread to `made`; why there is none, if so."""
    if thread.fault:
        return thread.fault
    messages = _subject(thread)
    about = {"about": [messages[-1]["id"]], "parent_run_id": thread.run}
    if terms.checks:
        found = checks.findings(terms.checks, terms.need,
                                checks.Subject(messages, thread, terms.reference_of(thread.id)))  # fmt: skip
        author = {"agent": "check", "runtime": "check"}
        made.append(verdict_record(thread, about | {"author": author, "rubric": "check"} | found))
        if found["pass"] is None:
            return Undecided("; ".join(f"{one['name']}: {one['reason']}" for one in found["criteria"]
                                       if one["pass"] is None))  # fmt: skip
    if not terms.rubric or (terms.cascade and not found["pass"]):
        return None
    return by_model(thread, messages, terms.judge_of(messages[-1]), terms.rubric, about, made, outcome,
                    terms.timeout_s, terms.patience)  # fmt: skip


def _subject(thread: Thread) -> list[Record]:
    """The branch whose tip is to be judged. Usage if the tip is no answer."""
    records = admitted(thread)
    messages = branch(records)
    if not messages or messages[-1]["role"] != "assistant":
        raise Usage("nothing to judge: the thread does not end with an answer; dispatch comes first")
    if rivals(records, messages[-1]):
        raise Usage("nothing to judge: it has several answers and none is preferred")
    if messages[-1].get("finish") in CUT_SHORT:
        raise cut_short(messages[-1])
    return messages
