#!/bin/sh
# The main job, end to end, on the embedded offline runtime: nothing is sent, and nothing of yours is touched.
set -eu
here=$(CDPATH= cd -- "$(dirname -- "$0")/../.." && pwd)
PATH=$here/bin:$PATH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
XDG_STATE_HOME=$work/state
export PATH XDG_STATE_HOME

job() { # $1 writes, $2 reviews and judges
	cat <<JOB
thread-append t.jsonl "Write a haiku about pipes." \\
  | dispatch --to $1 --as writer \\
  | dispatch --to $2 --as reviewer "Review it in one sentence." \\
  | judge --by $2 --rubric correctness \\
  | thread-append t.jsonl | trace --format table
JOB
}

echo '$' "$(job echo echo)"
eval "$(job echo echo)"

echo
echo '$ mllm doctor'
mllm doctor

echo
found=
for program in claude codex; do
	mllm doctor --format json | grep -A1 "\"$program\"" | grep -q true && found="$found $program"
done
# shellcheck disable=SC2086  # the names are words
set -- $found
if [ $# -gt 0 ]; then
	echo "With what is usable here, the same line is (it costs what two or three calls cost):"
	job "$1" "${2:-$1}"
else
	echo "With claude and codex installed and logged in, the same line is:"
	job claude codex
fi
