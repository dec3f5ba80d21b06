"""Taking a turn: what is there to answer, the call, and the records that come of it. DESIGN §2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mllm_pipe.call import Call, ask
from mllm_pipe.envelope import Record, new_id, timestamp
from mllm_pipe.errors import CallFailed, Failure, Usage
from mllm_pipe.stream import Thread
from mllm_pipe.terminal import note, program
from mllm_pipe.thread import (
    UNNAMED,
    admitted,
    answered,
    answers_prompt,
    branch,
    content_of,
    left_out,
    retry_of,
    rivals,
    speaker,
    view,
)

CUT_SHORT = {
    "length": "the answer was cut off at the token limit; --max-tokens sets it",
    "filter": "a content filter stopped the answer",
    "refusal": "it refused to answer",
}


class Turn:
    """A turn to take: the messages made for it (the prompt), what is asked, and the message it follows."""

    __slots__ = ("made", "request", "tip")

    def __init__(self, made: list[Record], request: dict[str, Any], tip: str) -> None:
        self.made, self.request, self.tip = made, request, tip


def open_turn(thread: Thread, prompt: str | None, agent: dict[str, Any], skip_answered: bool) -> Turn | None:
    """The turn that `agent` {"name", "system", "instruction"} is to take; None if the thread is to be skipped.

    BadRecord if the thread is unsound; Usage if there is nothing to answer, or several answers and none preferred;
    CallFailed if it is to be skipped, but its answer was cut short: it is no better for being old.
    """
    records = admitted(thread)
    messages = branch(records)
    if skip_answered and messages and (answers_prompt(messages, prompt) if prompt else _own(messages[-1], agent)):
        if messages[-1].get("finish") in CUT_SHORT:
            raise cut_short(messages[-1]["finish"], billed="no")
        return None
    if messages and len(rival := rivals(records, messages[-1])) > 1:
        names = ", ".join(f"{speaker(answer)} {answer['id']}" for answer in rival)
        raise Usage(f"{len(rival)} answers and none preferred ({names}); fork at one: thread-append FILE --at ID TEXT")
    for ident in left_out(records, messages):
        note(f"thread {thread.id}: message {ident} is on another branch and stays unanswered")
    made: list[Record] = []
    if prompt and not retry_of(messages, prompt):
        made.append(_user_message(thread.id, prompt, messages))
    elif not prompt and agent["instruction"] and answered(view(messages, agent["name"])):
        made.append(_user_message(thread.id, agent["instruction"], messages))
    messages = [*messages, *made]
    request = view(messages, agent["name"])
    if not request["turns"] or not request["turns"][-1]["parts"]:
        raise Usage("nothing to answer: it asks nothing yet; give a PROMPT")
    if answered(request):
        named = speaker(messages[-1]) != UNNAMED or agent["name"] == UNNAMED
        raise Usage(
            "nothing to answer: it ends with this agent's own answer; give a PROMPT, speak --as another, "
            "or --skip-answered"
            if named else "nothing to answer: the last answer names no agent, so it counts as this agent's own; "
            "give a PROMPT, or let that one speak --as somebody too"
        )  # fmt: skip
    request["system"] = "\n\n".join(filter(None, [request["system"], agent["system"]])) or None
    return Turn(made, request | {"schema": None}, messages[-1]["id"])


def take(
    turn: Turn,
    thread: Thread,
    target: dict[str, Any],
    agent: dict[str, Any],
    *,
    timeout_s: float,
    on_text: Callable[[str], None] | None,
) -> tuple[Call, list[Record], CallFailed | None]:
    """Ask, and make the records: (the call, [answer, span, error], why it failed if it did)."""
    about = {"thread": thread.id, "op": "dispatch", "slot": "response", "agent": agent["name"],
             "parent_run_id": thread.run, "input_id": turn.tip}  # fmt: skip
    if agent["system"]:
        about["system"] = agent["system"]

    def make(result: dict[str, Any], span: Record) -> list[Record]:
        author = {"agent": agent["name"], "runtime": target["runtime"], "model": span["model"]}
        answer: Record = {
            "v": 1, "type": "message", "thread": thread.id, "id": new_id(), "at": timestamp(), "role": "assistant",
            "content": content_of(result["parts"]), "author": author | {"provider": result.get("provider")},
            "reply_to": turn.tip, "run_id": span["id"], "parent_run_id": thread.run, "finish": result["finish"],
        }  # fmt: skip
        if result.get("origin"):
            answer["origin"] = result["origin"]
        return [answer]

    call = ask(target, turn.request, about, timeout_s=timeout_s, on_text=on_text, make=make)
    failure = call.failure
    if failure is None and call.result and call.result["finish"] in CUT_SHORT:
        failure = cut_short(call.result["finish"], billed="yes")
    made = [*(record for record in call.made if record.get("finish") != "error"), call.span]
    if failure:
        error = complaint(failure, thread, call.span)
        if call.failure and call.made:
            error["content"] = call.made[0]["content"]
        made.append(error)
    return call, made, failure


def cut_short(finish: str, *, billed: str) -> CallFailed:
    """An answer that came, and is not the whole one."""
    return CallFailed(finish, CUT_SHORT[finish], billed=billed)


def complaint(failure: Failure, thread: Thread, span: Record | None = None) -> Record:
    """The error record of a thread that could not go on, for the next command."""
    call = failure if isinstance(failure, CallFailed) else None
    record: Record = {
        "v": 1, "type": "error", "thread": thread.id, "id": new_id(), "at": timestamp(), "code": failure.code,
        "message": str(failure), "stage": program(), "retryable": bool(call and call.retryable),
        "billed": call.billed if call else "no", "parent_run_id": thread.run,
    }  # fmt: skip
    if span:
        record["run_id"] = span["id"]
    return record


def _own(message: Record, agent: dict[str, Any]) -> bool:
    """True if the message is this agent's own answer."""
    return message["role"] == "assistant" and speaker(message) in (agent["name"], UNNAMED)


def _user_message(thread: str, text: str, before: list[Record]) -> Record:
    message: Record = {"v": 1, "type": "message", "thread": thread, "id": new_id(), "at": timestamp()}
    message |= {"role": "user", "content": text}
    if before:
        message["reply_to"] = before[-1]["id"]
    return message
