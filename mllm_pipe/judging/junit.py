"""Verdicts as JUnit XML: a test case a thread, for the readers that CI systems have.

The form is that which Jenkins, GitLab and junitparser read: <testsuites>, <testsuite> with counts, <testcase> with
<failure> for a negative verdict and <error> where there is no valid one; <system-err> has the judges that gave none.
"""

from __future__ import annotations

import re
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from mllm_pipe.judging.report import Row, lines

# What XML 1.0 cannot hold, not even escaped (§2.2, Char)
_NO_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def document(rows: list[Row], name: str) -> str:
    """The whole file, for these rows; name: of the suite."""
    failed = sum(row["pass"] is False for row in rows)
    errors = sum(row["pass"] is None for row in rows)
    counts = f'tests="{len(rows)}" failures="{failed}" errors="{errors}" time="{_seconds(rows):.3f}"'
    cases = "".join(_case(row, name) for row in rows)
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<testsuites {counts}>\n"
        f'<testsuite name={_quoted(name)} skipped="0" {counts}>\n{cases}</testsuite>\n</testsuites>\n'
    )


def _case(row: Row, name: str) -> str:
    head = f'<testcase name={_quoted(row["thread"])} classname={_quoted(name)} time="{_seconds([row]):.3f}"'
    silent = "".join(f"{_who(vote)} has not voted: {vote['failure']['message']}\n" for vote in row["votes"]
                     if vote.get("part") == "panel" and "failure" in vote)  # fmt: skip
    heard = f"<system-err>{escape(_clean(silent))}</system-err>\n" if silent else ""
    if row["pass"] is True:
        return f"{head}>\n{heard}</testcase>\n" if heard else f"{head}/>\n"
    kind, sort, message = "error", "no_verdict", "no valid verdict"
    if row["pass"] is False:
        kind, sort = "failure", "negative"
        message = "score unknown" if row["score"] is None else f"score {row['score']:.4g}"
    elif row["failure"]:
        sort, message = row["failure"].code, str(row["failure"])
    said = escape(_clean(lines(row["verdicts"])))
    return f"{head}>\n<{kind} type={_quoted(sort)} message={_quoted(message)}>{said}</{kind}>\n{heard}</testcase>\n"


def _who(vote: dict[str, Any]) -> str:
    author = vote.get("author", {})
    return "judge " + ":".join(filter(None, dict.fromkeys([author.get("runtime"), author.get("model")])))


def _seconds(rows: list[Row]) -> float:
    return sum(float(span["duration_ms"]) for row in rows for span in row["spans"]) / 1000


def _quoted(value: Any) -> str:
    return quoteattr(_clean(str(value)))


def _clean(text: str) -> str:
    return _NO_XML.sub("\ufffd", text)
