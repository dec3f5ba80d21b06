"""A judge's turn: the question, the call, one repair try, and the verdict that comes of it."""

from __future__ import annotations

from typing import Any

from mllm_pipe.call import ask
from mllm_pipe.envelope import Record, new_id, timestamp
from mllm_pipe.errors import NO_VERDICT, CallFailed, Failure, Outcome
from mllm_pipe.judging import verdict
from mllm_pipe.patience import Patience
from mllm_pipe.stream import Thread
from mllm_pipe.terminal import note
from mllm_pipe.turn import tell_unkept


class NoVerdict(Failure):
    """The judge gave no valid verdict, twice."""

    status = NO_VERDICT
    code = "no_verdict"


class Undecided(Failure):
    """What the verdict hangs on cannot be known."""

    status = NO_VERDICT
    code = "no_verdict"


def by_model(thread: Thread, messages: list[Record], target: dict[str, Any], rubric: dict[str, Any],
              about: dict[str, Any], made: list[Record], outcome: Outcome,
              timeout: float, patience: Patience) -> Failure | None:  # fmt: skip
    """Ask the judge, once more if its answer is no verdict; the spans and the verdict are added to `made`.

    None when there is a verdict, else why there is none: the call failed, or NoVerdict.
    """
    answer = messages[-1]
    request = verdict.question(messages, rubric)
    why = ""
    for _ in range(2):
        span_about = {"thread": thread.id, "op": "judge", "slot": "evaluator", "parent_run_id": thread.run,
                      "input_id": answer["id"]}  # fmt: skip
        found: dict[str, Any] = {"criteria": [], "score": None, "pass": None}

        def make(result: dict[str, Any], span: Record, found: dict[str, Any] = found) -> list[Record]:
            nonlocal why
            try:
                found |= verdict.read(result["parts"], rubric)
            except verdict.Invalid as invalid:
                why = str(invalid)
                return []
            author = {"agent": "judge", "runtime": span["runtime"], "model": span["model"],
                      "provider": result.get("provider")}  # fmt: skip
            body = about | {"author": author, "rubric": rubric["name"], "run_id": span["id"]} | found
            if _same_model(author, answer.get("author", {})):
                body["self_judged"] = True
            return [verdict_record(thread, body)]

        call = ask(target, request, span_about, timeout_s=timeout, make=make, patience=patience)
        made += [call.span, *call.made]
        tell_unkept(call, thread, outcome)
        if call.failure:
            return CallFailed(call.failure.code, f"{target['runtime']}: {call.failure}", billed=call.failure.billed)
        if call.made:
            if call.made[0].get("self_judged"):
                note(f"thread {thread.id}: {target['runtime']} judged its own model's answer; --by another is fairer")
            return None
        request = verdict.repair(request, call.result["parts"] if call.result else [], why)
    nothing = {"rubric": rubric["name"], "criteria": [], "score": None, "pass": None}
    made.append(verdict_record(thread, about | {"author": {"agent": "judge", "runtime": target["runtime"]}} | nothing))
    return NoVerdict(f"{target['runtime']} gave no valid verdict, twice: {why}")


def _same_model(judge: dict[str, Any], author: dict[str, Any]) -> bool:
    """True if judge and author are one model; of a program that names no model, if they are one runtime."""
    if judge["model"] or author.get("model"):
        return bool(judge["model"] == author.get("model"))
    return bool(judge["runtime"] == author.get("runtime"))


def verdict_record(thread: Thread, body: dict[str, Any]) -> Record:
    """A verdict on a thread, with its id and time."""
    return {"v": 1, "type": "verdict", "thread": thread.id, "id": new_id(), "at": timestamp()} | body
