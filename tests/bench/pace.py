"""A server with a limit: how much of it `dispatch -j` uses, and how often it is told 429, with nobody having told it.

    python tests/bench/pace.py --rate 10 --burst 10 --jobs 20 --seconds 60

The server is a token bucket. The first 30 seconds, in which the pace is learnt, are told apart.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from loopback.play import Play

LEARNING_S = 30.0


def main() -> None:
    given = argparse.ArgumentParser()
    given.add_argument("--rate", type=float, default=10, help="requests a second")
    given.add_argument("--burst", type=float, default=10, help="size of the bucket")
    given.add_argument("--jobs", type=int, default=20)
    given.add_argument("--seconds", type=float, default=60, help="so long is the work, at the full rate")
    given.add_argument("--answer", type=float, default=0.2, help="seconds that an answer takes")
    flags = given.parse_args()
    lock, tokens, at = threading.Lock(), flags.burst, time.monotonic()
    told: list[tuple[float, bool]] = []  # when, refused

    def play(number: int, text: str) -> tuple[int, dict[str, str], str]:
        nonlocal tokens, at
        with lock:
            now = time.monotonic()
            tokens, at = min(flags.burst, tokens + (now - at) * flags.rate), now
            refused = tokens < 1
            tokens -= 0 if refused else 1
            told.append((now, refused))
        if refused:
            return 429, {}, ""
        time.sleep(flags.answer)
        return 200, {}, "yes"

    with tempfile.TemporaryDirectory() as folder, Play(play) as server:
        line = '{"v":1,"type":"message","thread":"t%d","id":"m","role":"user","content":"question %d"}\n'
        count = int(flags.rate * flags.seconds)
        (Path(folder) / "in").write_text("".join(line % (n, n) for n in range(count)))
        env = os.environ | {"HOME": folder}
        dispatch = [str(Path(sys.executable).parent / "dispatch"), "-q", "-j", str(flags.jobs)]
        with open(Path(folder) / "in", "rb") as threads:
            done = subprocess.run([*dispatch, "--to", "openai-chat:m", "--base-url", server.url], stdin=threads,
                                  stdout=subprocess.DEVNULL, env=env, check=False)  # fmt: skip
    began = told[0][0]
    late = [(when - began, refused) for when, refused in told if when - began > LEARNING_S]
    print(f"status {done.returncode}, {count} threads in {told[-1][0] - began:.1f} s")
    for name, part, since in (("whole", [(when - began, refused) for when, refused in told], 0.0), ("after 30 s", late, LEARNING_S)):
        if part:
            refused = sum(no for _, no in part)
            used = (len(part) - refused) / (part[-1][0] - since) / flags.rate
            print(f"{name}: {used:.2f} of the rate used, {refused / len(part):.3f} of the answers 429")


if __name__ == "__main__":
    main()
