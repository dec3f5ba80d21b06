#!/bin/sh
# Start-up of each command beside its floors, in turn, medians of 15: what a user waits for at every pipe.
# Installs the checkout as a user would (not editable) into a throw-away virtual environment.
set -eu
here=$(CDPATH= cd -- "$(dirname -- "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset PYTHONUNBUFFERED PYTHONDONTWRITEBYTECODE
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$here"
PATH=$work/venv/bin:$PATH HOME=$work/home
export PATH HOME
mkdir "$HOME"
cd "$work"
dispatch --to echo --new "a question" >thread.jsonl
printf '[[rules]]\nkeywords = "question"\ntarget = "a"\n' >rules.toml
exec "$work/venv/bin/python" "$here/tests/bench/paired.py" --runs "${RUNS:-15}" \
	--floor 'python3 -c "import click, orjson"' \
	'python3 -c pass' \
	'thread-append --new x' \
	'thread-append - < thread.jsonl' \
	'judge --check contains:question < thread.jsonl' \
	'route --rules rules.toml < thread.jsonl' \
	'trace < thread.jsonl' \
	'dispatch --to exec:cat --new x' \
	'thread-append --help' 'dispatch --help' 'judge --help' 'trace --help' 'mllm --help'
