"""Which runs and calls are meant: by run, thread, time, group, runtime, model, status, slot."""

from __future__ import annotations

import re
from typing import Any

from mllm_pipe.envelope import Record, seconds_of
from mllm_pipe.errors import Missing, Usage

_UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
OF_CALL = ("runtime", "model", "slot", "agent")


class Selection:
    """What the flags name. A field that is None (or empty) asks for nothing.

    run: an id or the beginning of one. threads: ids. since, until: seconds of the epoch; a run belongs to the time at
    which it began. `asked` has the fields of spans that are asked for, with their values.
    """

    def __init__(self, run: str | None = None, threads: frozenset[str] = frozenset(), since: float | None = None,
                 until: float | None = None, group: str | None = None, status: str | None = None,
                 **asked: str | None) -> None:  # fmt: skip
        self.run, self.threads, self.since, self.until = run, threads, since, until
        self.group, self.status = group, status
        self.asked = {name: value for name, value in asked.items() if value is not None}

    def wants(self, run: dict[str, Any]) -> bool:
        """True if a run is meant: it has all that was asked for, and a call with all that is asked of calls."""
        started = seconds_of(run["started_at"]) if run["started_at"] else None
        return (
            (self.group is None or any(self._in_group(stage) for stage in run["stages"]))
            and (self.status is None or run["status"] == self.status)
            and (self.since is None or started is not None and started >= self.since)
            and (self.until is None or started is not None and started < self.until)
            and (not self.threads or any(stage["thread"] in self.threads for stage in run["stages"]))
            and (not self.asked or any(self._has(stage) for stage in run["stages"]))
        )

    def counts(self, span: Record) -> bool:
        """True if a call is meant, of whatever run it is: what is asked of runs is asked of the call itself."""
        started = seconds_of(span["started_at"])
        return (
            (self.group is None or self._in_group(span))
            and (self.status is None or span["status"] == self.status)
            and (self.since is None or started is not None and started >= self.since)
            and (self.until is None or started is not None and started < self.until)
            and (not self.threads or span["thread"] in self.threads)
            and self._has(span)
        )

    def _in_group(self, span: Record) -> bool:
        """True if a call ran in the group, or in one that is a stage of it."""
        return f"/{self.group}/" in f"/{span.get('group', '')}/"

    def _has(self, span: Record) -> bool:
        return all(span.get(name) == value for name, value in self.asked.items())

    def ident(self, known: list[str]) -> str:
        """The run that is meant, of those known. Missing if there is none; Usage if several begin like it."""
        wanted = str(self.run)
        found = sorted(ident for ident in known if ident.startswith(wanted))
        if wanted in found:
            return wanted
        if not found:
            raise Missing(f"run {wanted}: there is none of that name; trace --journal lists the newest")
        if len(found) > 1:
            shown = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
            raise Usage(f"run {wanted}: {len(found)} runs begin like that: {shown}")
        return found[0]


def moment(text: str | None, flag: str) -> float | None:
    """Seconds of the epoch of a time: now, today, yesterday, an age (90s is none: 30m, 12h, 2d, 1w), a date, RFC 3339.

    Days begin at midnight of the local time zone. Usage if it is none of these.
    """
    if text is None:
        return None
    from datetime import datetime, timedelta

    now = datetime.now()  # of no zone: each of these times has the offset of its own day
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    words = {"now": now, "today": midnight, "yesterday": midnight - timedelta(days=1)}
    if text in words:
        return words[text].timestamp()
    if (seconds := age(text)) is not None:
        return now.timestamp() - seconds
    try:
        if not re.match(r"\d{4}-\d\d-\d\d(T|$)", text, re.ASCII):
            raise ValueError
        return datetime.fromisoformat(text).astimezone().timestamp()
    except (ValueError, OverflowError):
        raise Usage(f"{flag} {text}: no time; say today, yesterday, 12h, 2d, 2026-11-24, "
                    "or 2026-11-24T15:00:00Z") from None  # fmt: skip


def age(text: str) -> float | None:
    """Seconds of 30m, 12h, 2d or 1w; None if it is no such age."""
    found = re.fullmatch(r"(\d{1,6})([mhdw])", text, re.ASCII)
    return float(int(found[1]) * _UNITS[found[2]]) if found else None
