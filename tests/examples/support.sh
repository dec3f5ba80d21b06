#!/bin/sh
# A support desk: each line TENANT<tab>QUESTION on stdin is a thread that goes to the specialist it is for, by the rules of
# support.toml, or by its router model where no rule matches. The threads go to desk.jsonl; who got what is printed.
#
#     MLLM_CONFIG=support.toml support.sh <inbox.tsv
#     thread-append desk.jsonl --thread ID "And when?" | group desk | thread-append desk.jsonl     the same specialist goes on
#     route support --explain <desk.jsonl                                                         which rules match, and why
set -u
made=$(jq -Rc 'split("\t") | {role: "user", content: .[1], meta: {tenant: .[0]}, thread: "\(now)-\(input_line_number)"}' |
	thread-append - | group desk -q | thread-append desk.jsonl)
status=$? # of the group: thread-append hands it on
printf '%s\n' "$made" | jq -r 'select(.type == "route") | "\(.target)\t\(.by)\t\(.reason)"'
exit $status
