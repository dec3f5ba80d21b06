#!/bin/sh
# Copying 500,000 records (282 MB) beside jq, in turn, medians of 3; then the peak memory, and whether the output is equal.
set -eu
here=$(CDPATH= cd -- "$(dirname -- "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset PYTHONUNBUFFERED PYTHONDONTWRITEBYTECODE
python=$here/.venv/bin/python
PATH=$here/.venv/bin:$PATH
export PATH
cd "$work"
"$python" - <<'END'
import orjson
from mllm_pipe.envelope import new_id
with open("big.jsonl", "wb") as file:
    for i in range(500_000):
        record = {"v": 1, "type": "message", "thread": f"t{i // 10}", "id": new_id(), "at": "2026-11-22T20:13:43.342Z",
                  "role": "user", "content": "lorem ipsum " * 34, "n": i}
        file.write(orjson.dumps(record) + b"\n")
END
"$python" "$here/tests/bench/paired.py" --runs "${RUNS:-3}" --floor 'jq -c . < big.jsonl' 'thread-append - < big.jsonl'
thread-append - <big.jsonl >copied.jsonl && cmp copied.jsonl big.jsonl && echo "output equal"
"$python" -c '
import resource, subprocess
subprocess.run("thread-append - < big.jsonl > /dev/null", shell=True, check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024, "MiB peak memory")'
