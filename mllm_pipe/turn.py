"""Taking a turn: what is there to answer, the calls, and the records that come of them. DESIGN §2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson

from mllm_pipe.calling import journal
from mllm_pipe.calling.call import Call, ask
from mllm_pipe.calling.patience import Patience
from mllm_pipe.envelope import Record, new_id, timestamp
from mllm_pipe.errors import CUT_OFF, WRITE_FAILED, CallFailed, Failure, Outcome, Usage
from mllm_pipe.stream import Thread
from mllm_pipe.terminal import note, program, say
from mllm_pipe.thread import (
    UNNAMED,
    admitted,
    answered,
    answers_prompt,
    asked_again,
    branch,
    content_of,
    left_out,
    parts_of,
    retry_of,
    rivals,
    speaker,
    unasked,
    view,
)
from mllm_pipe.window import condensed, newest

CUT_SHORT = {
    "length": "the answer was cut off at the token limit; --max-tokens sets it",
    "filter": "a content filter stopped the answer",
    "refusal": "it refused to answer",
}

# What a person can do about it, where the message of the other side does not say so itself.
NEXT_STEP = {
    "auth": "; see KEYS in mllm-pipe(7)",
    "permission": "; this key may not do that",
    "rate_limit": "; try later",
    "overloaded": "; try later",
    "server": "; try later",
    "network": "; is it running, and is the address right (--base-url)?",
    "bad_model": "; -m names another",
    "too_large": "; send less with --last N",
}


def next_step(failure: Failure) -> str:
    """What a person can do about it, for the end of the message: of an answer that is none, where what had come is."""
    came = failure.result if isinstance(failure, CallFailed) and failure.code in ("cut", "malformed") else None
    if came and came["parts"]:
        return f"; what had come is in the error record{' and the journal' * (journal.mode() == 'full')}"
    return NEXT_STEP.get(failure.code, "")


class Wish:
    """What the user asks for beside the answer: everything that holds for all threads of a command."""

    def __init__(self, target: dict[str, Any], agent: dict[str, Any], timeout_s: float) -> None:
        """target, agent: of mllm_pipe.agents. The agent is {"name", "system", "instruction"}."""
        self.target, self.agent, self.timeout_s = target, agent, timeout_s
        self.prompt: str | list[dict[str, Any]] | None = None
        self.route_id: str | None = None  # of the route that names the target, where the user did not
        self.pick: str | None = None  # of several answers, the one to go on from: its agent, runtime or id
        self.skip_answered = self.strict = False
        self.last: int | None = None  # this many messages, at most
        self.window: int | None = None  # tokens, where the user knows better than the table
        self.summarizer: dict[str, Any] | None = None  # the target of the slot
        self.schema: dict[str, Any] | None = None
        self.options: dict[str, Any] = {}
        self.tools: list[dict[str, Any]] = []
        self.tool_choice: str | None = None  # auto, none, required, or the name of a tool
        self.run_tool: Callable[[bytes], tuple[int, str, str]] | None = None
        self.max_turns = 10
        self.on_text: Callable[[str], None] | None = None
        self.patience = Patience()


class Turn:
    """A turn to take: the branch that it follows, what was made for it (prompt, tools), and what is asked."""

    __slots__ = ("messages", "made", "request")

    def __init__(self, messages: list[Record], made: list[Record], request: dict[str, Any]) -> None:
        self.messages, self.made, self.request = messages, made, request


def open_turn(thread: Thread, wish: Wish) -> Turn | None:
    """The turn that the agent is to take; None if the thread is to be skipped.

    BadRecord if the thread is unsound; Usage if there is nothing to answer, or several answers and none preferred;
    CutShort if it is to be skipped, but its answer was cut short.
    """
    agent, prompt = wish.agent, wish.prompt
    records = admitted(thread)
    messages = branch(records)
    if wish.skip_answered and messages and (answers_prompt(messages, prompt) if prompt else _own(messages[-1], agent)):
        if messages[-1].get("finish") in CUT_SHORT:
            raise cut_short(messages[-1])
        return None
    if messages and len(rival := rivals(records, messages[-1])) > 1:
        messages = branch(records, _picked(rival, wish.pick)["id"])
    for ident in left_out(records, messages):
        note(f"thread {thread.id}: message {ident} is on another branch and stays unanswered")
    run = list[Record]()  # what comes of the calls that the thread ends with
    if wish.run_tool and not prompt and messages and _calls(messages[-1], agent):
        from mllm_pipe.tools import answer_calls

        run = answer_calls(messages[-1], wish.run_tool, thread.run)
    made, tools = list(run), wish.tools
    if tools or any(record["type"] == "tools" for record in records):
        from mllm_pipe import tools as tooling

        if not tools:
            tools = tooling.declared(records)
        elif tools != tooling.declared(records):
            made.append(tooling.record_of(thread, tools))
    if prompt and not retry_of(messages, prompt):
        made.append(_user_message(thread.id, prompt, messages))
    elif not prompt and not run and agent["instruction"] and unasked(messages):
        made.append(_user_message(thread.id, agent["instruction"], messages))
    messages = condensed(messages, records) + [record for record in made if record["type"] == "message"]
    return Turn(messages, made, request_of(messages, wish, tools))


def _picked(rival: list[Record], name: str | None) -> Record:
    """The one of several answers to go on from. Usage if it is not named, or the name is of none or of several."""
    authors = [answer.get("author", {}) for answer in rival]
    named = [answer for answer, author in zip(rival, authors, strict=True)
             if name and name in (answer["id"], speaker(answer), author.get("runtime"), author.get("model"),
                         f"{author.get('runtime')}:{author.get('model')}")]  # fmt: skip
    if len(named) == 1:
        return named[0]
    names = ", ".join(f"{author.get('runtime') or speaker(answer)} {answer['id']}"
                      for answer, author in zip(rival, authors, strict=True))  # fmt: skip
    if name:
        raise Usage(f"--pick {name}: {len(named) or 'none'} of the {len(rival)} answers is of that name ({names})")
    raise Usage(f"{len(rival)} answers and none preferred ({names}); go on from one: --pick NAME, or judge --pairwise, "
                "or thread-append FILE --at ID TEXT")  # fmt: skip


def form_of(schema: dict[str, Any]) -> str:
    """A schema in words."""
    return f"Answer with JSON alone, which holds to this JSON Schema:\n{orjson.dumps(schema).decode()}"


def request_of(messages: list[Record], wish: Wish, tools: list[dict[str, Any]]) -> dict[str, Any]:
    """What is asked of the target, in the shape of mllm_pipe.runtimes. Usage if there is nothing to answer."""
    agent = wish.agent
    request = view(newest(messages, wish.last) if wish.last else messages, agent["name"])
    asked = [turn for turn in request["turns"] if turn["role"] != "system"]
    if not asked or not asked[-1]["parts"]:
        raise Usage("nothing to answer: it asks nothing yet; give a PROMPT")
    if answered(request) and _calls(messages[-1], agent):
        ways = "give a PROMPT, or --run-tools exec:CMD answers them"
        raise Usage(f"nothing to answer: it ends with calls of tools; {ways}")
    if answered(request):
        named = speaker(messages[-1]) != UNNAMED or agent["name"] == UNNAMED
        raise Usage(
            "nothing to answer: it ends with this agent's own answer; give a PROMPT, speak --as another, "
            "or --skip-answered"
            if named else "nothing to answer: the last answer names no agent, so it counts as this agent's own; "
            "give a PROMPT, or let that one speak --as somebody too"
        )  # fmt: skip
    request["system"] = "\n\n".join(filter(None, [request["system"], agent["system"]])) or None
    request["schema"] = wish.schema
    request |= {"form": form_of(wish.schema)} if wish.schema is not None else {}
    request |= {"tools": tools} if tools else {}
    if wish.tool_choice:
        from mllm_pipe.tools import choice

        request["tool_choice"] = choice(wish.tool_choice, tools)
    request |= {"options": wish.options} if wish.options else {}
    return request


def left_behind(messages: list[Record], wish: Wish) -> list[dict[str, Any]]:
    """The losses that the user asked for, with --last."""
    dropped = len(messages) - len(newest(messages, wish.last)) if wish.last else 0
    return [{"what": f"{dropped} older messages", "action": "dropped", "why": f"--last {wish.last}"}] * bool(dropped)


def take(turn: Turn, thread: Thread, wish: Wish, outcome: Outcome, made: list[Record]) -> CallFailed | None:
    """Ask until there is an answer to give: once, but for a repair of its form and for tools that are run.

    Everything that comes of it is added to `made`: answers, spans, results of tools, an error record. Why it failed,
    if it did.
    """
    request, messages = turn.request, turn.messages
    for _ in range(wish.max_turns):
        answer, failure = _answer(request, messages, thread, wish, outcome, made)
        if not answer or answer["finish"] != "tool" or not wish.run_tool:
            return failure
        from mllm_pipe.tools import answer_calls

        *spans, results = answer_calls(answer, wish.run_tool, thread.run)
        made += [*spans, results]
        messages = [*messages, answer, results]
        request = request_of(messages, wish, request.get("tools", []))
        request.pop("tool_choice", None)  # what had to be called was called; else it would never come to an answer
    failure = CallFailed("turns", f"it still calls tools after {wish.max_turns} turns; --max-turns sets the limit",
                         billed="yes")  # fmt: skip
    made.append(complaint(failure, thread))
    return failure


def _answer(request: dict[str, Any], messages: list[Record], thread: Thread, wish: Wish, outcome: Outcome,
            made: list[Record]) -> tuple[Record | None, CallFailed | None]:  # fmt: skip
    """One answer, asked for once more if it does not hold to the schema wanted; it, and why there is no whole one."""
    for _ in range(2):
        call, failure = _ask(request, messages, thread, wish, outcome)
        answer = next((record for record in call.made if record.get("finish") != "error"), None)
        why = ""
        if answer and wish.schema is not None and answer["finish"] == "stop":
            try:
                answer, why = _fitted(answer, wish.schema, wish.timeout_s)
            except CallFailed as late:
                answer, failure = None, CallFailed(late.code, str(late), billed="yes")
        made += [answer, call.span] if answer else [call.span]
        if failure:
            error = complaint(failure, thread, call.span)
            made.append(error | ({"content": call.made[0]["content"]} if call.made and not answer else {}))
        if not why:
            return answer, failure
        parts = call.result["parts"] if call.result else []
        request = asked_again(request, parts, f"That does not hold to the schema: {why}.\n{request['form']}")
    failure = CallFailed("schema", f"twice it did not hold to the schema: {why}", billed="yes")
    made.append(complaint(failure, thread, call.span) | {"content": call.made[0]["content"]})
    return None, failure


def _fitted(answer: Record, schema: dict[str, Any], seconds: float) -> tuple[Record | None, str]:
    """The answer with its value as a data part, or None and why it does not hold. It is in the journal either way.

    CallFailed if that cannot be found out in so many seconds.
    """
    from mllm_pipe import structured

    parts = parts_of(answer["content"])
    value, why = structured.value_of(parts, schema, seconds)
    return (None, why) if why else (answer | {"content": structured.with_value(parts, value)}, "")


def _ask(request: dict[str, Any], messages: list[Record], thread: Thread, wish: Wish,
         outcome: Outcome) -> tuple[Call, CallFailed | None]:  # fmt: skip
    """One call: it and why it gave no whole answer. What the journal could not keep is told of at once."""
    agent, target, tip = wish.agent, wish.target, messages[-1]["id"]
    about = {"thread": thread.id, "op": "dispatch", "slot": "response", "agent": agent["name"],
             "parent_run_id": thread.run, "input_id": tip}  # fmt: skip
    handed = next((message["id"] for message in reversed(messages) if message["role"] == "assistant"), tip)
    if handed != tip:
        about["handed_id"] = handed
    if wish.route_id:
        about["route_id"] = wish.route_id
    if agent["system"]:
        about["system"] = agent["system"]
    if dropped := left_behind(messages, wish):
        about["losses"] = dropped

    def make(result: dict[str, Any], span: Record) -> list[Record]:
        author = {"agent": agent["name"], "runtime": span["runtime"], "model": span["model"]}
        answer: Record = {
            "v": 1, "type": "message", "thread": thread.id, "id": new_id(), "at": timestamp(), "role": "assistant",
            "content": content_of(result["parts"]), "author": author | {"provider": result.get("provider")},
            "reply_to": tip, "run_id": span["id"], "parent_run_id": thread.run, "finish": result["finish"],
        }  # fmt: skip
        if result.get("origin"):
            answer["origin"] = result["origin"]
        return [answer]

    call = ask(target, request, about, timeout_s=wish.timeout_s, on_text=wish.on_text, make=make, strict=wish.strict,
               patience=wish.patience)  # fmt: skip
    tell_unkept(call, thread, outcome)
    failure = call.failure
    if failure is None and call.result and call.result["finish"] in CUT_SHORT:
        failure = CallFailed(call.result["finish"], CUT_SHORT[call.result["finish"]], billed="yes")
    return call, failure


def tell_unkept(call: Call, thread: Thread, outcome: Outcome) -> None:
    """Tell that the journal does not have a call's answer, which goes on all the same."""
    if call.unkept:
        say(f"thread {thread.id}: {call.unkept}; the answer goes on to stdout all the same")
        outcome.fail(WRITE_FAILED)


class CutShort(Failure):
    """An answer of the thread is not whole: it is no better for being old."""

    status, code = CUT_OFF, "cut_short"


def cut_short(answer: Record) -> CutShort:
    """That this answer is not a whole one, and how to ask for it again."""
    again = f"; ask again with: thread-append FILE --at {answer['reply_to']} TEXT" if "reply_to" in answer else ""
    return CutShort(f"answer {answer['id']} is not whole ({answer['finish']}){again}")


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


def _calls(message: Record, agent: dict[str, Any]) -> bool:
    """True if the message is this agent's own answer, and calls tools."""
    return _own(message, agent) and any(part["type"] == "tool_call" for part in parts_of(message["content"]))


def _user_message(thread: str, content: str | list[dict[str, Any]], before: list[Record]) -> Record:
    message: Record = {"v": 1, "type": "message", "thread": thread, "id": new_id(), "at": timestamp()}
    message |= {"role": "user", "content": content}
    if before:
        message["reply_to"] = before[-1]["id"]
    return message
