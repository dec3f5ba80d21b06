"""Runs, folded from records: what ran, how long, for how much, what came of it, and where it was handed over.

Money is summed over spans by id, once, in exact decimals; a span without a known cost makes the sum a floor, and
`unpriced` counts them. Durations are those of clocks that do not step; the waits between spans are differences of
clocks that may, and are never negative.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import orjson

from mllm_pipe.envelope import Record, seconds_of, timestamp
from mllm_pipe.lines import digest

USAGE = ("input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")
KINDS = ("span", "message", "verdict", "route", "summary", "error")  # what a run is made of
REDACTED = "redacted"  # the type of the one part that stands for a content of which only size and digest are told
_MOST = (1 << 64) - 1
_WORST = {"ok": 0, "no": 1, "unknown": 2, "error": 3}
_OF_SPAN = ("op", "slot", "agent", "runtime", "model", "status", "started_at", "duration_ms", "first_token_ms",
            "usage", "cost_usd", "saved_usd", "group", "stage", "input_id", "output_ids")  # fmt: skip


class Fold:
    """Takes records as they come, keeps of them what runs are made of, and gives the runs."""

    def __init__(self, *, digests: bool = False, texts: bool = False) -> None:
        """digests: of each message its size and sha256 are wanted. texts: messages and summaries are kept whole."""
        self.digests, self.texts = digests, texts
        self.spans: dict[str, Record] = {}
        self.messages: dict[tuple[str, str], Record] = {}  # without their content, unless texts are kept
        self.newest: dict[str, str] = {}  # of each thread, the id of the message that came last
        self.above: dict[tuple[str, str], str] = {}  # (thread, id of a message): id of the one that came before it
        self.findings: dict[tuple[str, str], Record] = {}  # verdicts, routes, summaries, errors
        self.made_by: dict[tuple[str, str], str] = {}  # (thread, id of a record): id of the span that made it

    def take(self, record: Record) -> None:
        """Use a record; one of a kind that no run is made of is passed over, and so is one that was here before."""
        kind, key = record["type"], (record["thread"], record["id"])
        if kind == "span":
            if self.spans.setdefault(record["id"], record) is record:
                for ident in record.get("output_ids", []):
                    self.made_by[record["thread"], ident] = record["id"]
        elif kind == "message":
            if key not in self.messages:
                if before := self.newest.get(record["thread"]):
                    self.above[key] = before
                self.newest[record["thread"]] = record["id"]
                self.messages[key] = record if self.texts else {n: v for n, v in record.items() if n != "content"}
                if self.digests:
                    self.messages[key] = self.messages[key] | digest_of(record)
        elif kind in KINDS and key not in self.findings:
            plain = self.texts or kind not in ("summary", "error")
            self.findings[key] = record if plain else {n: v for n, v in record.items() if n != "content"}

    def runs(self, wanted: set[str] | None = None) -> list[dict[str, Any]]:
        """One object for each run (of those wanted), the oldest first."""
        spans_of: dict[str, list[Record]] = {}
        for span in self.spans.values():
            spans_of.setdefault(span.get("parent_run_id", "-"), []).append(span)
        findings_of: dict[str, list[Record]] = {}
        for finding in self.findings.values():
            span = self.spans.get(str(self.maker(finding)), finding)
            findings_of.setdefault(span.get("parent_run_id", "-"), []).append(finding)
        known = set(spans_of) | {ident for ident, found in findings_of.items() if ident != "-"
                                 and any(_unspanned(finding) for finding in found)}  # fmt: skip
        runs = [self._run(ident, sorted(spans_of.get(ident, []), key=_order), findings_of.get(ident, []))
                for ident in known if wanted is None or ident in wanted]  # fmt: skip
        return sorted(runs, key=lambda run: (run["started_at"] or "", run["id"]))

    def made_of(self) -> dict[tuple[str, str], list[Record]]:
        """Findings by what made them: ("span", its id), or, where no span here did, ("run", the id of their run)."""
        found: dict[tuple[str, str], list[Record]] = {}
        for finding in self.findings.values():
            maker = self.maker(finding)
            key = ("span", maker) if maker in self.spans else ("run", finding.get("parent_run_id", "-"))
            found.setdefault((key[0], str(key[1])), []).append(finding)
        return found

    def join(self, other: Fold) -> None:
        """Take all that another fold has."""
        self.spans |= other.spans
        self.messages |= other.messages
        self.above |= other.above
        self.findings |= other.findings
        self.made_by |= other.made_by

    def maker(self, record: Record) -> str | None:
        """The id of the span that made a record; None if nobody says."""
        return self.made_by.get((record["thread"], record["id"])) or record.get("run_id")

    def _run(self, ident: str, spans: list[Record], findings: list[Record]) -> dict[str, Any]:
        starts = [start for span in spans if (start := seconds_of(span["started_at"])) is not None]
        ends = [end for span in spans if (end := ended(span)) is not None]
        statuses = [span["status"] for span in spans]
        answered = _answered(spans)
        statuses += ["no" for one in findings if _says_no(one) and not _mended(one, answered.get(one["thread"]))]
        statuses += ["error" for one in findings if one["type"] == "error" and "parent_run_id" in one
                     and self.maker(one) not in self.spans]  # a call's own status says what came of it # fmt: skip
        edges = {span["id"]: self.edges(span) for span in spans}
        made: dict[str, list[Record]] = {span["id"]: [] for span in spans}
        alone: list[Record] = []  # of no call of this run
        for finding in findings:
            made.get(str(self.maker(finding)), alone).append(finding)
        return {
            "type": "run",
            "id": ident,
            "group": next((outermost(span["group"]) for span in spans if "group" in span), None),
            "status": max(statuses, key=_WORST.__getitem__, default="ok"),
            "started_at": timestamp(min(starts)) if starts else None,
            "duration_ms": round((max(ends) - min(starts)) * 1000, 3) if starts else 0.0,
            "usage": usage_of(spans),
            "cost_usd": cost_of(spans),
            "unpriced": sum(span.get("cost_usd") is None for span in spans),
            "stages": [self._stage(span, made[span["id"]], edges[span["id"]]) for span in spans],
            "findings": [_finding(one) for one in alone],
            "handoffs": [edge for span in spans for edge in edges[span["id"]]],
        }

    def _stage(self, span: Record, findings: list[Record], edges: list[dict[str, Any]]) -> dict[str, Any]:
        stage = {"run_id": span["id"], "thread": span["thread"]}
        stage |= {name: span[name] for name in _OF_SPAN if name in span}
        attempts = span.get("attempts", [])
        if len(attempts) > 1 or any(attempt["status"] != "ok" for attempt in attempts):
            stage["attempts"] = attempts
        if span.get("losses"):
            stage["losses"] = span["losses"]
        waits = [edge["wait_ms"] for edge in edges if (span["thread"], edge["message_id"]) in self.made_by]
        if waits and None not in waits:
            stage["wait_ms"] = min(waits)  # since the last of what it worked on was there
        return stage | ({"findings": [_finding(one) for one in findings]} if findings else {})

    def edges(self, span: Record) -> list[dict[str, Any]]:
        """What was handed to a span: the newest answer that it worked on, or all that it compared, else the question;
        who made it, and how long it waited. bytes and sha256 are there if digests were wanted and it is known."""
        thread, found = span["thread"], []
        for ident in self._handed(span):
            maker = self.spans.get(self.made_by.get((thread, ident), ""))
            message = self.messages.get((thread, ident), {})
            author = message.get("author", {})
            ready = ended(maker) if maker else seconds_of(message["at"]) if "at" in message else None
            started = seconds_of(span["started_at"])
            asked = "user" if ident == span["input_id"] and span["op"] == "dispatch" else "earlier run"
            who = maker or {"runtime": author.get("runtime") or author.get("agent") or message.get("role", asked)}
            edge = {"from": label(who), "to": label(span), "thread": thread, "message_id": ident,
                    "wait_ms": None if ready is None or started is None
                    else max(0.0, round((started - ready) * 1000, 3))}  # fmt: skip
            if self.digests:
                ends = {"from": maker or author, "to": span}
                edge |= {f"{end}_{name}": one.get(name) for end, one in ends.items()
                         for name in ("agent", "runtime", "model")}  # fmt: skip
                edge |= {"from_run_id": maker["id"] if maker else None, "to_run_id": span["id"]}
                edge |= {name: message.get(name) for name in ("bytes", "sha256")}
            found.append(edge)
        return found

    def _handed(self, span: Record) -> list[str]:
        """Ids of the messages that a span worked on."""
        thread = span["thread"]
        for ident in span.get("output_ids", []):
            about = self.findings.get((thread, ident), {}).get("about", [])
            if len(about) > 1:
                return list(dict.fromkeys(about))
        if "input_id" not in span:
            return []
        above = span.get("handed_id") or span["input_id"]
        while above and (thread, above) not in self.made_by:
            above = self.messages.get((thread, above), {}).get("reply_to")
        return [above or span.get("handed_id") or span["input_id"]]

    def before(self, thread: str, ident: str | None) -> list[Record]:
        """The messages from the first that is known to this one, oldest first; [] if it is not known."""
        line: list[Record] = []
        while ident and (thread, ident) in self.messages and len(line) <= len(self.messages):
            message = self.messages[thread, ident]
            line.append(message)
            ident = message.get("reply_to") or self.above.get((thread, ident))
        return line[::-1]

    def unresolved(self) -> set[str]:
        """Threads in which an answer was worked on that nobody here made: it is of another run."""
        return {span["thread"] for span in self.spans.values() for ident in self._handed(span)
                if (ident == span.get("handed_id") or span["op"] != "dispatch")
                and (span["thread"], ident) not in self.made_by}  # fmt: skip


def digest_of(message: Record) -> dict[str, Any]:
    """Size and sha256 of a message's content: of the text in UTF-8, of parts as JSON without blanks. Of a redacted one
    what it says of itself."""
    content = message["content"]
    if isinstance(content, list) and len(content) == 1 and content[0]["type"] == REDACTED:
        return {name: content[0].get(name) for name in ("bytes", "sha256")}
    data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else orjson.dumps(content)
    return {"bytes": len(data), "sha256": digest(data)}


def usage_of(spans: list[Record]) -> dict[str, int]:
    """The sums of what is known, by kind of token."""
    known = [span["usage"] for span in spans if span.get("usage")]
    return {name: count_of(sum(usage.get(name, 0) for usage in known))
            for name in USAGE if any(name in usage for usage in known)}  # fmt: skip


def outermost(group: str) -> str:
    """Of groups in groups, as outer/inner, the one that was fired by hand: whose the run is."""
    return group.partition("/")[0]


def count_of(tokens: float) -> int:
    """A sum of tokens as JSON is written with it: at most what 64 bits hold."""
    return min(int(tokens), _MOST)


def cost_of(spans: list[Record]) -> float | None:
    """The exact sum of the known costs; None if none is known."""
    known = [Decimal(repr(span["cost_usd"])) for span in spans if span.get("cost_usd") is not None]
    return float(sum(known, Decimal())) if known else None


def label(span: Record) -> str:
    """Who a span, or an author, is, in words: the runtime, and the agent that it speaks for."""
    agent = span.get("agent")
    runtime = str(span.get("runtime", span.get("op", "user")))
    return f"{agent} ({runtime})" if agent and agent != "assistant" else runtime


def ended(span: Record) -> float | None:
    """When a span ended, in seconds of the epoch: its start and its duration, so never before it began."""
    start = seconds_of(span["started_at"])
    return None if start is None else start + float(span["duration_ms"]) / 1000


def _order(span: Record) -> float:
    return seconds_of(span["started_at"]) or 0.0


def _unspanned(finding: Record) -> bool:
    return finding["type"] != "summary" and finding.get("code") not in ("bad_line", "torn")


def _says_no(finding: Record) -> bool:
    return (
        finding["type"] == "verdict"
        and finding["pass"] is not True
        and "part" not in finding
        or (finding["type"] == "route" and finding["by"] == "none")
    )


def _answered(spans: list[Record]) -> dict[str, float]:
    """When each thread was asked for the last of its answers."""
    return {span["thread"]: _order(span) for span in spans if span["op"] == "dispatch" and span["status"] == "ok"}


def _mended(finding: Record, answered: float | None) -> bool:
    """True if its thread was answered anew after a finding: that answer is what counts (as in a handoff)."""
    at = seconds_of(finding.get("at", ""))
    return at is not None and answered is not None and answered >= at


def _finding(record: Record) -> dict[str, Any]:
    names = ("type", "thread", "at", "rubric", "pass", "score", "preferred", "consistent", "self_judged", "about",
             "router", "target", "by", "confidence", "reason", "covers", "code", "message", "billed")  # fmt: skip
    return {name: record[name] for name in names if name in record}
