#!/bin/sh
# A nightly batch: each line of questions.txt is a thread that goes through the group `nightly`, into DATE.jsonl, with
# what it took in DATE.csv.
#
#     MLLM_CONFIG=nightly.toml nightly.sh          by cron; the agents are those of nightly.toml
#     MOST=5 nightly.sh                            for five dollars at most
#
# A night is one run, named by its date. Started again, after a kill or a status 75 (try later), it takes the answers and
# verdicts that it has from the journal, and asks for the rest. The status is that of the group: 1 if the judge said no
# of an answer, 4 if the money is spent, and so on.
set -u
night=${NIGHT:-$(date -u +%F)}
export MLLM_PARENT_RUN_ID="nightly-$night" # of all commands below, so that they are one run

# The id of a thread is a digest of its question: the same line is never asked twice in a night.
while IFS= read -r question; do
	id=$(printf %s "$question" | cksum | tr ' ' -)
	grep -qs "\"thread\":\"$id\"" "$night.jsonl" || thread-append "$night.jsonl" --thread "$id" "$question"
done <questions.txt >/dev/null

group nightly -q --resume "$MLLM_PARENT_RUN_ID" ${MOST:+--max-cost "$MOST"} <"$night.jsonl" >"$night.new"
status=$?
thread-append "$night.jsonl" <"$night.new" >/dev/null
rm "$night.new"

trace "$MLLM_PARENT_RUN_ID" --by agent --format csv >"$night.csv"
exit $status
