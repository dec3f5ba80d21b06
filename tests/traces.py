"""Records of runs with set times, as files of threads and as journals, for what has to be compared to the letter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from mllm_pipe.envelope import timestamp

BEGAN = 1_795_500_000.0  # 2026-11-24
Record = dict[str, Any]


class Story:
    """Records of one run, in the order of its making. Times are milliseconds since its beginning."""

    def __init__(self, run: str = "run-1", thread: str = "t") -> None:
        self.run, self.thread, self.records, self.count = run, thread, list[Record](), 0

    def _add(self, kind: str, at: float, **fields: Any) -> str:
        self.count += 1
        ident = fields.pop("id", None) or f"{self.run}-{kind}-{self.count}"
        record = {"v": 1, "type": kind, "thread": fields.pop("thread", self.thread), "id": ident,
                  "at": timestamp(BEGAN + at / 1000)}  # fmt: skip
        self.records.append(record | {"parent_run_id": self.run} | fields)
        return ident

    def ask(self, text: Any, at: float = 0, **fields: Any) -> str:
        """A user message; its id."""
        return self._add("message", at, **{"role": "user", "content": text} | fields)

    def call(self, input_id: str, start: float, took: float, said: str | None = "x", **fields: Any) -> str:
        """A span, and the answer that it made if anything was said; the id of the answer, or else of the span."""
        span = {"op": "dispatch", "slot": "response", "runtime": "echo", "model": None, "status": "ok", "usage": None,
                "cost_usd": None} | fields  # fmt: skip
        ident = fields.get("id") or f"{self.run}-span-{self.count + 2}"
        outputs = []
        if said is not None and span["op"] in ("dispatch", "tool"):
            author = {name: span[name] for name in ("agent", "runtime", "model") if span.get(name)}
            outputs = [self._add("message", start + took, role="assistant", content=said, author=author, reply_to=input_id,
                                 run_id=ident, finish="stop", thread=span.get("thread", self.thread))]  # fmt: skip
        outputs += span.pop("output_ids", [])
        self._add("span", start + took, **span | {"id": ident}, started_at=timestamp(BEGAN + start / 1000),
                  duration_ms=float(took), first_token_ms=took / 2, input_id=input_id, output_ids=outputs)  # fmt: skip
        return outputs[0] if outputs else ident

    def verdict(self, at: float, about: list[str], passed: bool | None, **fields: Any) -> str:
        """A verdict; its id."""
        return self._add("verdict", at, about=about, **{"pass": passed}, **fields)

    def route(self, at: float, target: str | None, by: str) -> str:
        """A route; its id."""
        return self._add("route", at, router="support", target=target, by=by)

    def stream(self) -> bytes:
        """The records as lines."""
        return b"".join(orjson.dumps(record) + b"\n" for record in self.records)

    def journal(self) -> bytes:
        """The lines that the commands would have left in the journal: an intent and an outcome a span."""
        lines = []
        for span in (record for record in self.records if record["type"] == "span"):
            made = [record for record in self.records if record["id"] in span["output_ids"]]
            head = {"id": span["id"], "key": "k", "at": span["started_at"]}
            about = {name: span[name] for name in ("thread", "op", "slot", "agent", "parent_run_id", "input_id", "group",
                                                   "handed_id", "runtime", "model") if name in span}  # fmt: skip
            lines.append({"v": 1, "type": "intent"} | head | about)
            lines.append({"v": 1, "type": "outcome"} | head | {"status": span["status"], "records": [span, *made]})
        return b"".join(orjson.dumps(line) + b"\n" for line in lines)


def keep(home: Path, journal: bytes) -> Path:
    """Put a journal where the commands look for it."""
    path = home / ".local" / "state" / "mllm-pipe" / "journal.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(journal)
    return path
