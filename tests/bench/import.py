"""How long thread-import takes for a long session of Claude Code, beside orjson alone reading and writing its lines.

    python tests/bench/import.py [RECORDS]
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import orjson

FLOOR = "import orjson,sys\nfor line in sys.stdin.buffer: sys.stdout.buffer.write(orjson.dumps(orjson.loads(line)))"
ROOT = Path(__file__).resolve().parent.parent.parent


def session(path: str, count: int) -> None:
    """Turns of four lines: a question, a call, its result, an answer; each in the shape that the program writes."""
    sample = (ROOT / "tests/data/sessions/claude-session-file.jsonl").read_bytes().splitlines()
    lines = [one for one in map(orjson.loads, sample) if one["type"] in ("user", "assistant")]
    before = None
    with open(path, "wb") as file:
        for number in range(count):
            one = orjson.loads(orjson.dumps(lines[number % 4]))
            one |= {"uuid": f"{number:08x}-0000-4000-8000-000000000000", "parentUuid": before}
            before = one["uuid"]
            if one["type"] == "assistant":
                one["message"]["id"] = f"msg_{number}"
            for part in one["message"]["content"] if isinstance(one["message"]["content"], list) else []:
                part |= {"id": f"call_{number}"} if part["type"] == "tool_use" else {}
                part |= {"tool_use_id": f"call_{number - 1}"} if part["type"] == "tool_result" else {}
            file.write(orjson.dumps(one) + b"\n")


def timed(argv: list[str], given: str) -> float:
    """Seconds of the quickest of three runs."""
    best = float("inf")
    for _ in range(3):
        with open(given, "rb") as stdin, open(os.devnull, "wb") as away:
            began = time.perf_counter()
            subprocess.run(argv, stdin=stdin, stdout=away, check=True)
            best = min(best, time.perf_counter() - began)
    return best


def main() -> None:
    """Print the times, their ratio, and the most memory that a child had."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "00000000-0000-4000-8000-000000000abc.jsonl")
        session(path, count)
        size = os.path.getsize(path) / 1e6
        floor = timed([sys.executable, "-c", FLOOR], path)
        ours = timed([str(ROOT / "bin" / "thread-import"), "--from", "claude", path], os.devnull)
        most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3
    print(f"{count} records, {size:.0f} MB: orjson {floor:.2f} s, thread-import {ours:.2f} s = x{ours / floor:.1f}; {most:.0f} MB RSS")


if __name__ == "__main__":
    main()
