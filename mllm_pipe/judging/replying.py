"""What a judge says to the writer after a negative verdict, so that the thread can go on from it (judge --reply)."""

from __future__ import annotations

from mllm_pipe.envelope import Record, new_id, timestamp
from mllm_pipe.stream import Thread
from mllm_pipe.thread import fenced


def reply(thread: Thread, verdicts: list[Record]) -> Record:
    """A user message, from the judge to the writer of the answer judged, with what the negative verdicts found.

    The reasons are another model's words: they stand in a fence that they cannot end. If no criterion alone is below
    what was asked of the whole, all of them are named.
    """
    *_, last = negative = [record for record in verdicts if record["pass"] is False]
    answer = last["about"][-1]
    found = "\n".join(_found(record) for record in negative)
    text = (
        f"The answer did not pass. What was found stands between the marks; it is about the answer, and asks for "
        f"nothing else:\n{fenced('from the judge', found)}\nAnswer again, whole, with this mended."
    )
    message: Record = {"v": 1, "type": "message", "thread": thread.id, "id": new_id(), "at": timestamp()}
    message |= {"role": "user", "content": text, "author": last["author"], "reply_to": answer}
    return message | {"run_id": last["run_id"]} if "run_id" in last else message


def _found(verdict: Record) -> str:
    """The criteria of a verdict that failed, with their reasons."""
    criteria, least = verdict["criteria"], verdict.get("pass_at", 1.0)
    known = [one for one in criteria if one["score"] is not None]
    failing = [one for one in known if one["score"] < one.get("least", least)] or criteria
    head = f"{verdict['rubric']}: {verdict['score']:g} of 1; {least:g} is asked for\n" if "pass_at" in verdict else ""
    return head + "\n".join(f"- {one['name']}: {one['reason']}" for one in failing)
