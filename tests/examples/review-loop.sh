#!/bin/sh
# The loop of review-loop.toml in lines of shell: write, review and judge, until the judge says yes.
#
#     review-loop.sh haiku.jsonl "Write a haiku about pipes."
#     WRITER=claude REVIEWER=codex JUDGE='--by gemini --rubric correctness' review-loop.sh haiku.jsonl "Write a haiku."
#
# `judge --reply` puts its reasons into the thread as a message to the writer, so a round needs no prompt. The status is
# 0 if it passed, 1 if it did not in that many rounds, and another if something failed, which ends the loop.
set -u
thread=$1 prompt=$2 rounds=${ROUNDS:-3}
MLLM_PARENT_RUN_ID=${MLLM_PARENT_RUN_ID:-review-$(date -u +%Y%m%dT%H%M%S)-$$}
export MLLM_PARENT_RUN_ID # the rounds are one run

thread-append "$thread" "$prompt" >/dev/null || exit
while :; do
	# shellcheck disable=SC2086  # the words of JUDGE are arguments
	dispatch -q --to "${WRITER:-exec:./writer}" --as writer <"$thread" |
		dispatch -q --to "${REVIEWER:-exec:./reviewer}" --as reviewer "Review the last draft in one sentence." |
		judge ${JUDGE:---check regex:APPROVED} --reply | thread-append "$thread" >/dev/null
	status=$? rounds=$((rounds - 1))
	if [ $status -ne 1 ] || [ $rounds -eq 0 ]; then exit $status; fi
done
