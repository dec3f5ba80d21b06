"""Making room: where a request is longer than the model's window, the summarizer slot puts older turns in short."""

from __future__ import annotations

from typing import Any

from mllm_pipe import window
from mllm_pipe.calling.call import ask
from mllm_pipe.envelope import Record
from mllm_pipe.errors import Outcome, Usage
from mllm_pipe.stream import Thread
from mllm_pipe.terminal import note
from mllm_pipe.turn import Turn, Wish, request_of, tell_unkept

SMALL = 16_000  # tokens; below it the table of models is not even opened


def fitted(turn: Turn, thread: Thread, wish: Wish, outcome: Outcome, made: list[Record]) -> Turn:
    """The turn, or the same with its older messages in short; the span and the summary are added to `made`.

    A model whose window is unknown is trusted to fit. Usage if it does not fit and no summarizer is configured:
    nothing is ever cut off in silence. CallFailed if the summarizer fails.
    """
    size = window.estimate(turn.request)
    if size < SMALL and wish.window is None:
        return turn
    limit = wish.window or _window_of(wish.target)
    if not limit or size + min(window.RESERVE, limit // 4) <= limit:
        return turn
    whose = wish.target.get("model") or wish.target["runtime"]
    about = f"it has about {size} tokens, and the window of {whose} is {limit}"
    if not wish.summarizer:
        raise Usage(f"{about}; send less with --last N, name a larger model with -m, or give the agent a summarizer")
    covered = window.to_cover(turn.messages, limit // 2)
    if not covered:
        raise Usage(f"{about}; its newest turn alone does not fit")
    span_about = {"thread": thread.id, "op": "summarize", "slot": "summarizer", "agent": wish.agent["name"],
                  "parent_run_id": thread.run, "input_id": covered[-1]["id"]}  # fmt: skip
    summarizer = wish.summarizer

    def make(result: dict[str, Any], span: Record) -> list[Record]:
        author = {"runtime": summarizer["runtime"], "model": span["model"], "provider": result.get("provider")}
        return [window.summary_record(thread, covered, result["parts"], author)]

    call = ask(summarizer, window.question(covered), span_about, timeout_s=wish.timeout_s, make=make,
               patience=wish.patience.alone())  # fmt: skip
    made.append(call.span)
    tell_unkept(call, thread, outcome)
    if call.failure:
        raise call.failure
    made += call.made
    note(f"thread {thread.id}: {about}; {len(covered)} older messages are sent as a summary from here on")
    messages = window.condensed(turn.messages, call.made)
    return Turn(messages, turn.made, request_of(messages, wish, turn.request.get("tools", [])))


def _window_of(target: dict[str, Any]) -> int | None:
    """The window of the target's model by the table, None if nobody knows."""
    from mllm_pipe import models

    return models.window(models.of(target)) if target.get("model") else None
