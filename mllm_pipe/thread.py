"""Pure questions about a thread: its branch, what an agent sees of it, what is there to answer. DESIGN §2."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from mllm_pipe.envelope import Record, admit
from mllm_pipe.errors import BadRecord, Usage
from mllm_pipe.lines import digest
from mllm_pipe.stream import Thread

Turn = dict[str, Any]
UNNAMED = "assistant"  # who speaks when nobody said a name
USED = frozenset(["message", "verdict", "summary", "route", "tools"])


def admitted(thread: Thread) -> list[Record]:
    """The records of the thread that decide what is sent, each through the full door.

    A message that says of itself that it broke off (finish "error") is no turn. BadRecord names the first bad record.
    """
    used = [record for record in thread.records if record["type"] in USED and record.get("finish") != "error"]
    for record in used:
        try:
            admit(record, thread.raws[record["id"]])
        except BadRecord as fault:
            raise BadRecord(f"record {record['id']}: {fault}") from None
    return used


def parents(records: list[Record]) -> dict[str, str | None]:
    """Each message's id and the id of the one that it follows. BadRecord if `reply_to` names none before it."""
    found: dict[str, str | None] = {}
    before = None
    for record in records:
        if record["type"] != "message":
            continue
        parent = record.get("reply_to", before)
        if "reply_to" in record and parent not in found:
            raise BadRecord(f"message {record['id']} replies to {parent}, which is no message before it")
        found[record["id"]] = parent
        before = record["id"]
    return found


def tip_of(records: list[Record], parent_of: dict[str, str | None]) -> str | None:
    """The id that the thread stands at: the last message, or what a later verdict prefers."""
    tip = None
    for record in records:
        if record["type"] == "message":
            tip = record["id"]
        elif record["type"] == "verdict" and "preferred" in record:
            if record["preferred"] not in parent_of:
                raise BadRecord(f"verdict {record['id']} prefers {record['preferred']}, which is no message before it")
            tip = record["preferred"]
    return tip


def branch(records: list[Record], tip: str | None = None) -> list[Record]:
    """The messages from the first to the tip (the thread's own if none is given), oldest first."""
    parent_of = parents(records)
    tip = tip or tip_of(records, parent_of)
    messages = {record["id"]: record for record in records if record["type"] == "message"}
    line = []
    while tip is not None:
        line.append(messages[tip])
        tip = parent_of[tip]
    return line[::-1]


def rivals(records: list[Record], tip: Record) -> list[Record]:
    """The answers of one fan-out, none of them preferred: `tip` and its siblings of the same run; [] if it has none."""
    run = tip.get("parent_run_id")
    if run is None or tip["role"] != "assistant" or any(record.get("preferred") == tip["id"] for record in records):
        return []
    of_run = [
        record
        for record in records
        if record["type"] == "message"
        and record["role"] == "assistant"
        and record.get("parent_run_id") == run
    ]
    if len(of_run) < 2:
        return []
    parent_of = parents(records)
    answers = [record for record in of_run if parent_of[record["id"]] == parent_of[tip["id"]]]
    return answers if len(answers) > 1 else []


def left_out(records: list[Record], line: list[Record]) -> list[str]:
    """Ids of user messages beside the branch that nobody has answered."""
    answered = set(parents(records).values())
    there = {message["id"] for message in line}
    return [
        record["id"]
        for record in records
        if record["type"] == "message" and record["role"] == "user"
        and record["id"] not in there and record["id"] not in answered
    ]  # fmt: skip


def parts_of(content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Content as a list of parts; a string is one text part, an empty one none."""
    if isinstance(content, list):
        return content
    return [{"type": "text", "text": content}] if content else []


def content_of(parts: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """Parts as the commands write them: a plain string where there is one text part and nothing else."""
    if len(parts) == 1 and parts[0]["type"] == "text" and parts[0].keys() == {"type", "text"}:
        return str(parts[0]["text"])
    return parts


def text_of(content: str | list[dict[str, Any]]) -> str:
    """What a person reads of a content: its texts and refusals; structured output as JSON where no text is its twin."""
    parts = parts_of(content)
    said = "".join(part["text"] for part in parts if part["type"] in ("text", "refusal"))
    return said or "".join(orjson.dumps(part["value"]).decode() for part in parts if part["type"] == "data")


def speaker(message: Record) -> str:
    """The name of the agent that wrote it; UNNAMED where none is named."""
    return str(message.get("author", {}).get("agent", UNNAMED))


def fenced(label: str, text: str) -> str:
    """The text in a fence that it cannot close: the mark is a digest of label and text, and no text holds its own."""
    mark = digest(orjson.dumps([label, text]))[:24]
    return f"<<<{mark} {label}\n{text}\n{mark}>>>"


def quoted(message: Record) -> list[dict[str, Any]]:
    """Another agent's answer as this agent sees it: user text in a fence, with its author's name; files stay files."""
    parts = parts_of(message["content"])
    return _overheard(f"from {orjson.dumps(speaker(message)).decode()}", parts, parts)


def overheard(result: dict[str, Any], caller: str) -> list[dict[str, Any]]:
    """The result of another agent's call as this agent sees it: user text in a fence, as the call is; files stay."""
    return _overheard(f"to {orjson.dumps(caller).decode()}", [result], parts_of(result["content"]))


def _overheard(label: str, said: list[dict[str, Any]], parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was said, quoted, and what a text does not tell of its parts: files, and what is of no known type, so that
    whoever has no place for it says that it is dropped. Reasoning stays with whom it is of."""
    beside = [part for part in parts if part["type"] not in _TOLD]
    return [{"type": "text", "text": fenced(label, transcript_text(said))}, *beside]


_TOLD = frozenset(["text", "refusal", "data", "tool_call", "tool_result", "reasoning"])


def transcript_text(parts: list[dict[str, Any]]) -> str:
    """Parts as plain text for a reader who has no form for them: calls and results as JSON, files by name."""
    lines = []
    spoken = any(part["type"] == "text" for part in parts)
    for part in parts:
        if part["type"] in ("text", "refusal"):
            lines.append(part["text"])
        elif part["type"] == "data" and not spoken:
            lines.append(orjson.dumps(part["value"]).decode())
        elif part["type"] == "tool_call":
            lines.append(f"[called {part['name']} with {orjson.dumps(part['arguments']).decode()}]")
        elif part["type"] == "tool_result":
            came = "error" if part.get("is_error") else "result"
            lines.append(f"[{came} of {part['call_id']}: {transcript_text(parts_of(part['content']))}]")
        elif part["type"] == "file":
            lines.append(f"[file {part.get('name') or part.get('path') or part.get('url') or part['media_type']}]")
    return "\n".join(lines)


def heard(messages: list[Record], agent: str) -> Iterator[tuple[Record, str, list[dict[str, Any]]]]:
    """(message, role, parts) of each as `agent` has it: another agent's are quoted as user text, and so are the results
    of its calls; results are the user's."""
    callers: dict[str, str] = {}  # who made a call, by its id, if it is another agent
    for message in messages:
        role, parts = message["role"], parts_of(message["content"])
        if role == "assistant":
            calls = [part["id"] for part in parts if part["type"] == "tool_call"]
            if speaker(message) not in (agent, UNNAMED):
                role, parts = "user", quoted(message)
                callers |= dict.fromkeys(calls, speaker(message))
            else:
                callers = {ident: name for ident, name in callers.items() if ident not in calls}
        else:
            role = "user" if role == "tool" else role
            parts = [seen for part in parts for seen in (
                overheard(part, callers[part["call_id"]]) if part.get("call_id") in callers else [part])]  # fmt: skip
        yield message, role, parts


def view(messages: list[Record], agent: str) -> dict[str, Any]:
    """What `agent` is sent of a branch: {"system": text or None, "turns": [...]}, in the shape of mllm_pipe.runtimes.

    Leading system messages are the system text. Messages of this agent, and of no named agent, are its own turns;
    another's are quoted as user text, and so are the results of its calls. All user-side messages between two answers
    are one turn, results first.
    """
    system: list[str] = []
    turns: list[Turn] = []
    for message, role, parts in heard(messages, agent):
        if role == "system" and not turns:
            system.append(text_of(message["content"]))
            continue
        if role == "user" and turns and turns[-1]["role"] == "user":
            turns[-1]["parts"] += parts
            turns[-1]["ids"].append(message["id"])
            turns[-1]["sources"] += [message["id"]] * len(parts)
        else:
            origin = message.get("origin") if role == "assistant" else None
            turns.append({"role": role, "parts": list(parts), "ids": [message["id"]], "origin": origin,
                          "sources": [message["id"]] * len(parts)})  # fmt: skip
    for turn in turns:
        if turn["role"] == "user":
            order = sorted(range(len(turn["parts"])), key=lambda place: turn["parts"][place]["type"] != "tool_result")
            turn |= {name: [turn[name][place] for place in order] for name in ("parts", "sources")}
    return {"system": "\n\n".join(system) or None, "turns": turns}


def asked_again(request: dict[str, Any], parts: list[dict[str, Any]], text: str) -> dict[str, Any]:
    """The request that goes on after an answer that would not do; it is no part of the thread."""
    heard = {"type": "text", "text": transcript_text(parts) or "(nothing)"}
    said = {"role": "assistant", "parts": [heard], "ids": [], "origin": None}
    again = {"role": "user", "parts": [{"type": "text", "text": text}], "ids": [], "origin": None}
    return request | {"turns": [*request["turns"], said, again]}


def answered(request: dict[str, Any]) -> bool:
    """True if the view ends with this agent's own answer: there is nothing to answer. System text asks nothing."""
    asked = [turn for turn in request["turns"] if turn["role"] != "system"]
    return not asked or asked[-1]["role"] == "assistant"


def unasked(messages: list[Record]) -> bool:
    """True if a branch ends with an answer, whoever's it is: nobody has asked anything since."""
    spoken = [message for message in messages if message["role"] != "system"]
    return not spoken or spoken[-1]["role"] == "assistant"


def framed(system: str | None, turns: list[Turn]) -> str:
    """A view as one text, for a runtime without a form for history: every turn in its own fence, the newest last."""
    pieces = [fenced("system", system)] if system else []
    pieces += [fenced(turn["role"], transcript_text(turn["parts"])) for turn in turns]
    return "\n".join(pieces) + "\n"


def retry_of(messages: list[Record], prompt: str | list[dict[str, Any]]) -> bool:
    """True if the branch ends with this very prompt, unanswered: asking again is a retry, not a second question."""
    return bool(messages) and messages[-1]["role"] == "user" and messages[-1]["content"] == prompt


def answers_prompt(messages: list[Record], prompt: str | list[dict[str, Any]]) -> bool:
    """True if the branch ends with an answer to this very prompt: the batch has been here before."""
    return (
        len(messages) > 1
        and messages[-1]["role"] == "assistant"
        and messages[-2]["role"] == "user"
        and messages[-2]["content"] == prompt
    )


def only_thread(threads: list[str], wanted: str | None, where: str) -> str:
    """The one thread to go on with. Usage if there are several and none is named."""
    if wanted:
        return wanted
    if len(threads) > 1:
        shown = ", ".join(threads[:3]) + (", ..." if len(threads) > 3 else "")
        raise Usage(f"{where} has {len(threads)} threads; name one with --thread ({shown})")
    return threads[0] if threads else ""
