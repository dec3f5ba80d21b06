"""Runs as records for another machine, whose `trace` shows them as this one does; redacted, without any text. Pure.

What is redacted is put together from the fields that are known to hold none: a field that nobody knows is left out.
A content becomes one part of the type `redacted`, with size and sha256 as --handoffs gives them of the text itself.
"""

from __future__ import annotations

import re
from typing import Any

from mllm_pipe.envelope import Record
from mllm_pipe.lines import digest
from mllm_pipe.runs import REDACTED, Fold, digest_of

Json = dict[str, Any]
_NAME = re.compile(r"[\w.@/:-]{1,80}|redacted \(\d{1,12} bytes, sha256 [0-9a-f]{64}\)", re.ASCII)
_ALL = ("v", "type", "thread", "id", "at", "run_id", "parent_run_id")
_KEPT = {
    "message": ("role", "reply_to", "finish"),
    "span": ("traceparent", "op", "slot", "agent", "runtime", "model", "started_at", "duration_ms", "first_token_ms",
             "status", "usage", "cost_usd", "cost_source", "saved_usd", "cached_run_id", "input_id", "handed_id",
             "output_ids", "group", "stage"),
    "verdict": ("about", "score", "pass", "pass_at", "part", "votes", "preferred", "consistent", "against", "escalated",
                "combine", "agreement", "effective_votes", "self_judged"),
    "route": ("router", "target", "confidence"),
    "summary": ("covers",),
    "error": ("code", "stage", "retryable", "billed"),
}  # fmt: skip


def of_runs(runs: list[Json], fold: Fold, *, redact: bool) -> list[Record]:
    """The records of runs, thread by thread: all that is known of the messages of their threads, then their spans and
    findings, each kind in its order.

    The fold has to have been made with its texts.
    """
    idents = {run["id"] for run in runs}
    threads = dict.fromkeys(one["thread"] for run in runs for one in [*run["stages"], *run["findings"]])
    spans = [span for span in fold.spans.values() if span.get("parent_run_id", "-") in idents]
    own = {span["id"] for span in spans}
    findings = [one for one in fold.findings.values() if fold.maker(one) in own or one.get("parent_run_id") in idents]
    of_thread: dict[str, list[Record]] = {thread: [] for thread in threads}
    for record in [*fold.messages.values(), *spans, *findings]:
        if record["thread"] in of_thread:
            of_thread[record["thread"]].append(record)
    records = [record for thread in threads for record in of_thread[thread]]
    return [redacted(record) for record in records] if redact else records


def redacted(record: Record) -> Record:
    """A record without its texts: each replaced by its size and digest."""
    kind = record["type"]
    kept = {name: record[name] for name in (*_ALL, *_KEPT[kind]) if name in record}
    if "content" in record:
        kept["content"] = [{"type": REDACTED} | digest_of(record)]
    author = {name: value for name, value in record.get("author", {}).items()
              if name in ("agent", "runtime", "model", "provider")}  # fmt: skip
    kept |= {"author": author} if author else {}
    if kind == "span":
        kept |= {"attempts": [_only(one, ("runtime", "model", "status", "code", "wait_ms", "duration_ms"))
                              for one in record.get("attempts", [])]}  # fmt: skip
        kept |= {"losses": [_only(one, ("action",)) | {"what": _name(one["what"])} for one in record["losses"]]} \
            if "losses" in record else {}  # fmt: skip
    elif kind == "verdict":
        kept |= {"rubric": _name(record["rubric"])} if "rubric" in record else {}
        kept |= {"criteria": [_only(one, ("score", "weight", "pass")) | {"name": _name(one["name"])}
                              for one in record["criteria"]]} if "criteria" in record else {}  # fmt: skip
    elif kind == "route":
        word, colon, name = record["by"].partition(":")
        kept |= {"by": word + colon + _name(name)}
    elif kind == "error":
        kept |= {"message": _name(record["message"])}
    return kept


def _only(value: Json, names: tuple[str, ...]) -> Json:
    return {name: value[name] for name in names if name in value}


def _name(text: str) -> str:
    """A name as it is; a text that is none by its size and digest."""
    if not text or _NAME.fullmatch(text):
        return text
    data = text.encode("utf-8", "surrogatepass")
    return f"redacted ({len(data)} bytes, sha256 {digest(data)})"
