# A build step: one agent writes, another reviews and mends, a judge passes the text, or the build fails.
#
#     make -f gate.mk                offline, with sed for a writer
#     make -f gate.mk WRITER=claude REVIEWER=codex JUDGE='--by anthropic/claude-opus-4-8 --rubric correctness'
#
# thread-append and trace hand on what the judge said, so make needs no pipefail. What was said and paid for stands in
# notes.jsonl either way, and a further build is a further turn of that thread; notes.md is written when it has passed.

WRITER ?= exec:sed -n 's/^fix: /- Mended: /p'
REVIEWER ?= exec:sed -n 's/^- Mended.*/&./p'
JUDGE ?= --check contains:Mended --check max-chars:500

.DELETE_ON_ERROR:

notes.md: commits.txt
	@thread-append notes.jsonl "Write release notes of these commits:" @commits.txt | \
	  dispatch -q --to "$(WRITER)" --as writer | \
	  dispatch -q --to "$(REVIEWER)" --as reviewer "Review the notes; answer with the whole text, mended." | \
	  judge $(JUDGE) | thread-append notes.jsonl | trace --format table
	@jq -rs 'map(select(.author.agent == "reviewer"))[-1].content' notes.jsonl > $@
