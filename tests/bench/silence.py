"""From silence to the fallback: how long after the first-token limit the next one is asked.

    python tests/bench/silence.py --calls 100 --runs 5

All calls are in flight at once, against a server that takes a request and says nothing, or sends a head, or a head and
comments; the fallback answers at once. The figures are of the span's first attempt, without the limit.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import orjson

sys.path.insert(0, str(Path(__file__).parent.parent))
from loopback.chaos import Chaos

LIMIT_S = 1.0
ASKED = '{"v":1,"type":"message","thread":"t%d","id":"m","role":"user","content":"question %d"}\n'


def main() -> None:
    given = argparse.ArgumentParser()
    given.add_argument("--calls", type=int, default=100)
    given.add_argument("--runs", type=int, default=5)
    flags = given.parse_args()
    bin = Path(sys.executable).parent
    with Chaos() as server, tempfile.TemporaryDirectory() as home:
        threads = "".join(ASKED % (number, number) for number in range(flags.calls)).encode()
        for silence in ("silence", "head-then-silence", "head-then-pings"):
            late: list[float] = []
            for _ in range(flags.runs):
                argv = [bin / "dispatch", "-j", str(flags.calls), "--to", "vllm/m", "--fallback", "echo", "--first-token",
                        str(LIMIT_S), "--base-url", server.url(silence, "openai-chat", "/v1")]  # fmt: skip
                env = {"HOME": home, "PATH": os.environ["PATH"]}
                ran = subprocess.run(argv, input=threads, env=env, capture_output=True, check=True)
                spans = [orjson.loads(line) for line in ran.stdout.splitlines() if b'"type":"span"' in line]
                assert all(span["runtime"] == "echo" for span in spans) and len(spans) == flags.calls
                late += [span["attempts"][0]["duration_ms"] / 1000 - LIMIT_S for span in spans]
            late.sort()
            print(f"{silence:18} {len(late)} calls: median {late[len(late) // 2]:.3f} s, p99 {late[len(late) * 99 // 100]:.3f} s, "
                  f"longest {late[-1]:.3f} s")  # fmt: skip


if __name__ == "__main__":
    main()
