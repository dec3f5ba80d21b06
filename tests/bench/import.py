"""How long thread-import takes for a long session of Claude Code, beside orjson alone reading and writing its lines.

    python tests/bench/import.py [RECORDS [ANOTHER_CHECKOUT]]

Each in turn, best of seven; with another checkout, that one's thread-import too.
"""

from __future__ import annotations

import os
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


def timed(lines: list[list[str]], path: str, runs: int = 7) -> list[tuple[float, float, float]]:
    """(seconds, seconds of a processor, MB) of each line: the least times and the most memory of its runs, in turn."""
    beside = ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED")  # as a user has it
    environment = {name: value for name, value in os.environ.items() if name not in beside}
    seen: list[list[tuple[float, float, float]]] = [[] for _ in lines]
    for number in range(runs + 1):
        for line, measured in zip(lines, seen, strict=True):
            with open(path, "rb") as stdin, open(os.devnull, "wb") as away:
                began = time.perf_counter()
                child = subprocess.Popen(line, stdin=stdin, stdout=away, env=environment)
                _, status, used = os.wait4(child.pid, 0)
                took = time.perf_counter() - began
            child.returncode = os.waitstatus_to_exitcode(status)
            if child.returncode:
                sys.exit(f"{line[0]} ended with {child.returncode}")
            if number:  # the first run fills the caches
                measured.append((took, used.ru_utime + used.ru_stime, used.ru_maxrss / 1e3))
    return [
        (min(wall), min(processor), max(most)) for wall, processor, most in (zip(*one, strict=True) for one in seen)
    ]


def main() -> None:
    """Print the times, their ratio, and the most memory that each had."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    checkouts = [str(ROOT), *sys.argv[2:]]
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "00000000-0000-4000-8000-000000000abc.jsonl")
        session(path, count)
        print(f"{count} records, {os.path.getsize(path) / 1e6:.0f} MB")
        ours = [[os.path.join(one, "bin", "thread-import"), "--from", "claude", path] for one in checkouts]
        floor, *measured = timed([[sys.executable, "-c", FLOOR], *ours], path)
    print(f"{floor[0]:5.2f} s  {floor[1]:5.2f} s of a processor  x1.0  {floor[2]:4.0f} MB  orjson alone")
    for name, (wall, processor, most) in zip(checkouts, measured, strict=True):
        ratio = processor / floor[1]
        print(
            f"{wall:5.2f} s  {processor:5.2f} s of a processor  x{ratio:.1f}  {most:4.0f} MB  thread-import of {name}"
        )


if __name__ == "__main__":
    main()
