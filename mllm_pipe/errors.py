"""Exit statuses, how they combine, and the few exceptions that carry them.

    Failure                 one thread, file or flag could not be dealt with: `status` says how the shell hears of it
    ├── Usage               2    the command line or the configuration is wrong, or there is nothing to answer
    ├── BadRecord           65   a record that a command needs does not hold to the envelope
    ├── Missing             66   no such thread, file or session
    ├── WriteFailed         74   what was to be written was not
    ├── InputCut            3    the stream ended without its end record
    ├── OverBudget          4    what is left of a budget may not be enough for the call
    └── CallFailed          a runtime gave no whole answer; `code` says why, STATUS_OF_CODE with which status
    Stopped(BaseException)  a signal asked us to end; never caught on the way up but to clean
"""

from __future__ import annotations

from typing import Any

OK, NO, USAGE, FAILED, BUDGET, CUT_OFF, NO_VERDICT = 0, 1, 2, 3, 4, 5, 6
BAD_RECORD, MISSING, UNAVAILABLE, DEFECT, WRITE_FAILED, TRY_LATER, DENIED, DEADLINE = 65, 66, 69, 70, 74, 75, 77, 124

# Why a call gave no whole answer, and the exit status of a command in which that was the only cause.
STATUS_OF_CODE = {
    "auth": DENIED,  # key missing, wrong or refused
    "permission": DENIED,  # the key may not do this
    "billing": DENIED,  # no credit, spend limit reached
    "rate_limit": TRY_LATER,
    "overloaded": TRY_LATER,
    "server": TRY_LATER,  # the other side failed before any content
    "network": UNAVAILABLE,  # refused, unresolved, reset before the request was answered
    "missing": UNAVAILABLE,  # the program is not installed
    "timeout": DEADLINE,
    "bad_request": FAILED,
    "bad_model": FAILED,
    "too_large": FAILED,
    "cut": FAILED,  # the answer began and did not end
    "malformed": FAILED,  # an answer that is none: HTML, an error under 200, broken events
    "empty": FAILED,
    "unheard": FAILED,  # --resume: asked before, and what came of it is unknown
    "exit": FAILED,  # the program ended with a failure of its own
    "length": CUT_OFF,  # stopped at the token limit
    "filter": CUT_OFF,
    "refusal": CUT_OFF,
    "losses": FAILED,  # --strict, and something of the thread could not be sent as it is
    "turns": BUDGET,  # the tools went on for longer than --max-turns
    "schema": CUT_OFF,  # structured output that does not hold to its schema
    "unrecorded": MISSING,  # replay has no answer for these turns
}


class Failure(Exception):
    """Something could not be done; the message is one line, for a person, and says the next step."""

    status = FAILED
    code = "failed"  # of the error record that it becomes


class Usage(Failure):
    status, code = USAGE, "usage"


class BadRecord(Failure):
    status, code = BAD_RECORD, "bad_record"


class Missing(Failure):
    status, code = MISSING, "not_found"


class WriteFailed(Failure):
    status, code = WRITE_FAILED, "write_failed"


class InputCut(Failure):
    code = "input_cut"


class OverBudget(Failure):
    status, code = BUDGET, "budget"


class CallFailed(Failure):
    """A runtime gave no whole answer.

    code: a key of STATUS_OF_CODE. billed: "no" (not sent, or refused before any work), "yes", "unknown".
    http_status: the status the other side gave, if any. retry_after_s: the wait that it asked for.
    result: what did arrive, in the shape that a runtime's `call` returns, when there is anything.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        billed: str = "unknown",
        http_status: int | None = None,
        retry_after_s: float | None = None,
        result: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.code, self.billed, self.http_status = code, billed, http_status
        self.retry_after_s, self.result = retry_after_s, result
        self.status = STATUS_OF_CODE[code]

    @property
    def retryable(self) -> bool:
        """True when the same call may do better later, and was surely not paid for."""
        return self.billed == "no" and self.status in (TRY_LATER, UNAVAILABLE) and self.code != "missing"


class Stopped(BaseException):
    """A signal, or a reader that left, asks the whole command to end; `signum` is what the shell shall see."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class Outcome:
    """What a command remembers of its threads, to decide its exit status once, at the end (DESIGN: exit status)."""

    def __init__(self) -> None:
        self.failures: set[int] = set()
        self.bad_lines = 0
        self.said_no = False
        self.all_no = False  # not a thread, but all of them together

    def fail(self, status: int) -> None:
        """A thread failed with this status."""
        self.failures.add(status)

    def status(self) -> int:
        """The exit status: write failure, usage, failures (one cause: its own, else 3), bad lines, "no", done."""
        for first in (WRITE_FAILED, USAGE):
            if first in self.failures:
                return first
        if self.failures:
            return self.failures.pop() if len(self.failures) == 1 else FAILED
        if self.bad_lines:
            return BAD_RECORD
        return NO if self.said_no else OK
