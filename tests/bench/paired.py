"""Time shell lines beside a floor, in turn (floor, line, floor, line, ...), and print medians and their ratio.

    python tests/bench/paired.py --floor 'jq -c . < big' --runs 5 'thread-append - < big'
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import time


def seconds(line: str) -> float:
    """Wall time of one run of a line, its output thrown away. The shell is the same for all lines."""
    started = time.perf_counter()
    subprocess.run(["sh", "-c", line], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--floor", required=True)
    arguments.add_argument("--runs", type=int, default=15)
    arguments.add_argument("lines", nargs="+")
    given = arguments.parse_args()
    print(f"{os.cpu_count()} processors, medians of {given.runs}, in turn with the floor: {given.floor}")
    print(f"{'ratio':>6} {'median':>9} {'floor':>9}  line")
    for line in given.lines:
        seconds(line), seconds(given.floor)  # warm
        pairs = [(seconds(given.floor), seconds(line)) for _ in range(given.runs)]
        floor, median = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"{median / floor:6.2f} {median * 1000:7.1f}ms {floor * 1000:7.1f}ms  {line}", flush=True)


if __name__ == "__main__":
    main()
