"""What all threads together come to, for CI: the least pass rate, what has changed since a baseline, agreement with
people, a JUnit file.
"""

from __future__ import annotations

import os
from typing import Any

import orjson

from mllm_pipe.errors import Outcome, Usage, WriteFailed
from mllm_pipe.judging import reference as files
from mllm_pipe.judging.judgement import Judged
from mllm_pipe.stream import Thread, show
from mllm_pipe.terminal import kind_of, note, say

SIGNIFICANT = 0.05  # a loss since the baseline with a p below this is a no


class Gate:
    """Gathers a row for each thread, where anything is wanted of them, and closes the stream."""

    def __init__(self, flags: dict[str, Any], form: str) -> None:
        """Takes --labels, --baseline, --min-pass-rate and --junit out of the flags. form: text, ndjson or json.

        Usage or Missing if a file that is named cannot be used.
        """
        labels, baseline = flags.pop("labels"), flags.pop("baseline")
        self.least, self.junit, self.form = flags.pop("min_pass_rate"), flags.pop("junit"), form
        self.labels = _labels(labels) if labels else None
        self.before = _before(baseline) if baseline else None
        if self.junit and not os.path.isdir(os.path.dirname(self.junit) or "."):
            raise Usage(f"--junit {self.junit}: there is no such directory")
        if self.junit and os.path.isfile(self.junit):
            for descriptor, name in enumerate(("stdin", "stdout")):
                if os.path.samestat(os.fstat(descriptor), os.stat(self.junit)):
                    raise Usage(f"--junit {self.junit} is also {name}, which would be lost")
        self.looked_at = form == "text" or (kind_of(2) == "terminal" and not os.environ.get("CI"))
        self.wanted = self.looked_at or form == "json" or any(
            one is not None for one in (self.labels, self.before, self.least, self.junit))  # fmt: skip
        self.rows: list[dict[str, Any]] = []  # of mllm_pipe.judging.report

    @property
    def alone(self) -> bool:
        """True if it is not each thread that says no, but all of them together."""
        return self.least is not None

    def take(self, thread: Thread, judged: Judged) -> None:
        """Note what came of a thread."""
        if self.wanted:
            from mllm_pipe.judging.report import row_of

            self.rows.append(row_of(thread, judged))

    def close(self) -> bool:
        """Write what is wanted of all rows; True if they say no together. WriteFailed if --junit cannot be written."""
        if not self.wanted:
            return False
        from mllm_pipe.judging import report

        found: dict[str, Any] = {"summary": report.summary(self.rows)}
        said = report.table(self.rows) if len(self.rows) > 1 or self.least is not None else ""
        if self.before is not None:
            found["baseline"] = report.changes(self.rows, self.before)
            said += report.changed(found["baseline"])
        if self.labels is not None:
            from mllm_pipe.judging import calibration

            found["agreement"] = calibration.agreement(self.rows, self.labels)
            said += calibration.text(found["agreement"])
            if left_out := found["agreement"]["not_counted"]:
                whys = ", ".join(f"{count} {why}" for why, count in sorted(left_out.items()))
                note(f"--labels: {sum(left_out.values())} labels are not counted: {whys}")
        if self.form == "json":
            show(orjson.dumps(found, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode())
        elif self.form == "text":
            show(("\n" if said else "") + said)
        elif self.looked_at or self.labels is not None or self.before is not None:
            for line in said.splitlines():
                note(line)
        if self.junit:
            _write(self.junit, self.rows)
        return self._says_no(found)

    def _says_no(self, found: dict[str, Any]) -> bool:
        no = self.least is not None and _too_few(self.least, found["summary"])
        since = found.get("baseline")
        if since and since["p"] < SIGNIFICANT and len(since["regressions"]) > len(since["improvements"]):
            say(f"{len(since['regressions'])} regressions since the baseline are no chance (p = {since['p']:g})")
            no = True
        return no


def _too_few(least: float, sums: dict[str, Any]) -> bool:
    """True, and said, if fewer threads pass than this share of all."""
    from mllm_pipe.judging import report, statistics

    passed, count = sums["passed"], sums["threads"]
    if passed >= statistics.typed(least) * max(count, 1):  # in whole numbers and the decimal that was typed
        return False
    say(f"{passed} of {count} threads pass ({report.percent(sums)}); --min-pass-rate asks for {100 * least:g}%")
    return True


def _labels(path: str) -> dict[str, Any]:
    from mllm_pipe.judging import calibration

    return calibration.labels(path)


def _before(path: str) -> dict[str, bool | None]:
    """By thread, whether it passed as the verdicts of a file say. Missing, Usage, BadRecord; Usage if it has none."""
    from mllm_pipe.calling.patience import Patience
    from mllm_pipe.judging.replay import replay
    from mllm_pipe.judging.report import row_of
    from mllm_pipe.judging.terms import Terms

    terms = Terms(0.0, Patience())
    found = {}
    for thread in files.threads_of(path, "--baseline"):
        judged = replay(thread, terms, Outcome())
        if judged.verdicts:
            found[thread.id] = row_of(thread, judged)["pass"]
    if not found:
        raise Usage(f"--baseline {path}: it holds no verdict; save one with: judge ... > {path}")
    return found


def _write(path: str, rows: list[dict[str, Any]]) -> None:
    from mllm_pipe.judging import junit

    try:
        with open(path, "w", encoding="utf-8", errors="replace") as file:
            file.write(junit.document(rows, "judge"))
    except OSError as error:
        raise WriteFailed(f"--junit {path}: {error.strerror}") from None
