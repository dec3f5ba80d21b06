"""Writers on one file under random kill -9: is a record that was acknowledged ever lost, or glued to another?

    python tests/storm.py --seconds 60 --writers 16 --file /tmp/storm.jsonl

Each writer is a process that appends records of 0.2 KB to 3 MB through mllm_pipe.storage and, after each, writes the
record's number to a pipe: that is the acknowledgement. Killed writers are replaced at once.
"""

from __future__ import annotations

import argparse
import os
import random
import select
import signal
import subprocess
import sys
import time

import orjson

WRITER = """
import sys, random
from mllm_pipe.envelope import line_of
from mllm_pipe.storage import Appender
import os
path, writer = sys.argv[1], sys.argv[2]
sizes = random.Random(writer)
appender = Appender(path)
number = 0
while True:
    number += 1
    size = sizes.choice([200, 200, 2000, 20000, 20000, 300000, 3000000 if number % 20 == 0 else 200])
    record = {"v": 1, "type": "message", "thread": "storm", "id": f"{writer}-{number}", "role": "user", "content": "x" * size}
    with appender:
        appender.append(line_of(record), "storm")
    os.write(1, f"{writer}-{number}\\n".encode())
"""


def main() -> int:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--seconds", type=float, default=60)
    arguments.add_argument("--writers", type=int, default=16)
    arguments.add_argument("--file", required=True)
    given = arguments.parse_args()
    acknowledged: set[str] = set()
    started = kills = 0

    def start() -> subprocess.Popen:
        nonlocal started
        started += 1
        return subprocess.Popen([sys.executable, "-c", WRITER, given.file, f"w{started}"], stdout=subprocess.PIPE, bufsize=0)

    def collect(writer: subprocess.Popen, rest: dict[int, bytes]) -> bool:
        data = os.read(writer.stdout.fileno(), 1 << 16)
        *lines, rest[writer.pid] = (rest.get(writer.pid, b"") + data).split(b"\n")
        acknowledged.update(line.decode() for line in lines)
        return bool(data)

    rest: dict[int, bytes] = {}
    writers = [start() for _ in range(given.writers)]
    until, next_kill = time.monotonic() + given.seconds, time.monotonic() + 0.5
    while time.monotonic() < until:
        ready, _, _ = select.select([writer.stdout for writer in writers], [], [], 0.02)
        for writer in [writer for writer in writers if writer.stdout in ready]:
            collect(writer, rest)
        if time.monotonic() >= next_kill:
            next_kill += 0.09
            kills += 1
            place = random.randrange(len(writers))
            end(writers[place], rest, collect)
            writers[place] = start()
    for writer in writers:
        end(writer, rest, collect)
    return report(given.file, acknowledged, kills)


def end(writer: subprocess.Popen, rest: dict[int, bytes], collect) -> None:
    """Kill a writer, and hear what it had acknowledged by then."""
    writer.send_signal(signal.SIGKILL)
    while collect(writer, rest):
        pass
    writer.wait()
    writer.stdout.close()


def report(path: str, acknowledged: set[str], kills: int) -> int:
    """Read the file; one line of figures, and the exit status."""
    found: dict[str, int] = {}
    fragments = glued = torn = 0
    with open(path, "rb") as file:
        lines = file.read().split(b"\n")
    for line in lines[:-1]:
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError:
            fragments += 1
            glued += line.count(b'{"v":1,') > 1
            continue
        if record["type"] == "error":
            torn += 1
        else:
            found[record["id"]] = found.get(record["id"], 0) + 1
    lost = acknowledged - found.keys()
    twice = sum(count > 1 for count in found.values())
    print(f"acknowledged {len(acknowledged)} kills {kills} lost {len(lost)} glued {glued} twice {twice} "
          f"fragments {fragments} noted {torn} bytes {os.path.getsize(path)}")  # fmt: skip
    return 1 if lost or glued or twice or not acknowledged or fragments > kills + 16 else 0


if __name__ == "__main__":
    sys.exit(main())
