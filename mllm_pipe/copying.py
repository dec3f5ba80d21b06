"""cat for records: every line is checked for what a record must have, and nothing is kept but the batch at hand."""

from __future__ import annotations

from collections.abc import Callable

from mllm_pipe.envelope import CONTROL, Record, line_of
from mllm_pipe.errors import FAILED, Outcome, Usage
from mllm_pipe.lines import Lines, bad_line, parse
from mllm_pipe.stream import refuse_text, write
from mllm_pipe.terminal import kind_of, say


def copy(outcome: Outcome, complete: Callable[[Record], Record | None], max_line: int) -> int:
    """Copy stdin to stdout; the exit status. `complete` makes a record of a bare message, or gives None.

    A line that is no record goes on as an error record. Control records go on into a pipe only, and are obeyed.
    """
    lines = Lines(0, max_line)
    control_goes_on = kind_of(1) == "pipe"
    number, unended = 0, False
    for batch in lines.batches():
        out: list[bytes] = []
        for line in batch:
            number += 1
            record, fault = parse(line)
            if not fault and record["type"] not in CONTROL:
                out.append(line)  # type: ignore[arg-type]
            elif not fault:
                unended = record["type"] != "end"
                _obey(record, outcome)
                if control_goes_on:
                    out.append(line)  # type: ignore[arg-type]
            elif record and (made := complete(record)):
                out.append(line_of(made)[:-1])
            elif line:
                if number == 1:
                    refuse_text(line)
                outcome.bad_lines += 1
                say(f"stdin: line {number}: {fault}; passed on as an error record")
                out.append(line_of(bad_line(line, number, "-", fault))[:-1])
        if out:
            out.append(b"")
            write(b"\n".join(out))
    if not number:
        raise Usage("stdin is empty: did the command before fail?")
    if unended:
        outcome.fail(FAILED)
        say("input ended early: the command before was killed, or a filter dropped the end record")
    return outcome.status()


def _obey(control: Record, outcome: Outcome) -> None:
    """Remember what a control record says of the threads before it."""
    if control["type"] == "handoff" and control.get("status") != "ok":
        if control.get("status") == "no":
            outcome.said_no = True
        else:
            outcome.fail(FAILED)
    elif control["type"] == "end" and isinstance(control.get("bad_lines"), int):
        outcome.bad_lines += control["bad_lines"]
