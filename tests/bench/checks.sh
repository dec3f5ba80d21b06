#!/bin/sh
# judge with three checks over 100,000 records (50,000 threads of two), beside jq, in turn; then the records a second.
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
    for i in range(50_000):
        record = {"v": 1, "type": "message", "thread": f"t{i}", "at": "2026-11-22T20:13:43.342Z"}
        asked = record | {"id": new_id(), "role": "user", "content": f"How long is a day on planet {i}?"}
        said = record | {"id": new_id(), "role": "assistant", "content": f"The answer is {i}. " + "As far as it is known. " * 7}
        file.write(orjson.dumps(asked) + b"\n" + orjson.dumps(said) + b"\n")
END
cat >three.sh <<'END'
judge --check contains:known --check max-chars:4000 --check 'regex:answer is [0-9]+' < big.jsonl
END
"$python" "$here/tests/bench/paired.py" --runs "${RUNS:-5}" --floor 'jq -c . < big.jsonl' 'sh three.sh' | tee figures
"$python" -c '
import sys
seconds = float(open("figures").read().splitlines()[-1].split()[1].removesuffix("ms")) / 1000
print(f"{100_000 / seconds:,.0f} records/s")'
