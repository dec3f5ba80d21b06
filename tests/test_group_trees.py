"""What trace says of a group that was fired: the whole tree, and the same sums by the stream and by the journal."""

from __future__ import annotations

import re
from hashlib import sha256

import orjson
import pytest
from test_trace_tree import WIDE, told

WRITER = "exec:sh -c 'echo draft $(grep -c again)'"
AGAIN = "--base-url http://127.0.0.1:9 --max-retries 1 --fallback echo:small"
FAN_OUT = """\
run ID  ok  group g  TIME  T  6 in  4 out  $0.000000
├─ fan-out of 2
│  ├─ 1: dispatch  echo:ONE  ok  BAR  T  $0.000000
│  └─ 1: dispatch  echo:ONE  ok  BAR  T  $0.000000
├─ 2: dispatch editor  echo:large  ok  BAR  T  $0.000000
└─ verdict  pass 1.00 by check
"""
FALLBACK = """\
run ID  ok  group g  TIME  T  7 in  7 out  $0.000000
├─ 1: dispatch writer  echo:small  ok  BAR  T  $0.000000
│  ├─ attempt 1  openai-chat:m  error network  T
│  ├─ attempt 2  openai-chat:m after T  error network  T
│  └─ attempt 3  echo:small  ok  T
└─ 2: dispatch reviewer  echo:large  ok  BAR  T  $0.000000
"""
FAILED = """\
run ID  unknown  group g  TIME  T  1 in  1 out  $0.000000 + 1 unpriced
├─ 1: dispatch writer  echo:small  ok  BAR  T  $0.000000
└─ 2: dispatch reviewer  exec  unknown  BAR  T  unknown
   ├─ attempt 1  exec  unknown exit  T
   └─ error  exit: false: exit status 1
"""
THREE_ROUNDS = """\
run ID  no  group g  TIME  T  unknown
├─ 1.1: dispatch writer  exec  ok  BAR  T  unknown
├─ verdict  fail 0.00 by check
├─ 2.1: dispatch writer  exec  ok  BAR  T  unknown
├─ verdict  fail 0.00 by check
├─ 3.1: dispatch writer  exec  ok  BAR  T  unknown
└─ verdict  fail 0.00 by check
"""


def drawn(tree: str) -> str:
    """A tree with times masked, and of a fan-out who comes first."""
    return re.sub(r"(?m)^(│.*1: dispatch  echo):\w+", r"\1:ONE", told(tree))


@pytest.mark.parametrize("stages, more, tree, status", [
    (["dispatch --to echo:small --to echo:large", "dispatch --to echo:large --as editor --pick echo:small 'Go on.'",
      "judge --check contains:Go"], "", FAN_OUT, 0),
    ([f"dispatch --to openai-chat/m {AGAIN} --as writer", "dispatch --to echo:large --as reviewer"], "", FALLBACK, 0),
    (["dispatch --to echo:small --as writer", "dispatch --to exec:false --as reviewer", "dispatch --to echo --as editor",
      "judge --check json"], "", FAILED, 3),
    ([f'dispatch --to "{WRITER}" --as writer'], "until = 'judge --check contains:never'", THREE_ROUNDS, 1),
])  # fmt: skip
def test_the_tree_of_a_group(sh, work, stages, more, tree, status):
    (work / "g.toml").write_text(f"stages = {orjson.dumps(stages).decode()}\n{more}\n")
    ran = sh("group -q --new g.toml Write. 2>/dev/null | tee out | trace --format tree; echo ${PIPESTATUS[0]}", **WIDE)
    shown, _, ended = ran.out.rstrip("\n").rpartition("\n")
    assert (int(ended), drawn(f"{shown}\n")) == (status, tree)
    by_stream, by_journal = sh("trace < out").records, sh("trace --journal --group g").records
    assert by_stream[0]["handoffs"][2:] == by_journal[0]["handoffs"][2:]
    assert [[run[name] for name in ("id", "group", "duration_ms", "usage", "cost_usd")] for run in by_stream] == \
        [[run[name] for name in ("id", "group", "duration_ms", "usage", "cost_usd")] for run in by_journal]  # fmt: skip


def test_what_was_handed_over_says_which_version_was_reviewed(sh, work):
    stages = orjson.dumps([f'dispatch --to "{WRITER}" --as writer', "dispatch --to 'exec:echo So so.' --as reviewer 'Review it.'"])
    (work / "g.toml").write_text(f"stages = {stages.decode()}\nuntil = 'judge --check contains:never'\nmax_rounds = 2\n")
    assert sh("group -q --new g.toml Write. > out").status == 1
    answers = sh("jq -c 'select(.role == \"assistant\")' out").records
    assert [one["author"]["agent"] for one in answers] == ["writer", "reviewer", "writer", "reviewer"]
    edges = sh("trace --handoffs < out").records
    for edge, answer, reader in zip(edges[1:], answers, ("reviewer", "writer", "reviewer"), strict=False):
        assert (edge["from_agent"], edge["to_agent"], edge["message_id"], edge["sha256"]) == (
            answer["author"]["agent"], reader, answer["id"], sha256(answer["content"].encode()).hexdigest())  # fmt: skip
    assert len(edges) == 4


@pytest.mark.parametrize("rounds, status, said", [(1, 1, "no"), (3, 0, "ok")])
def test_a_run_is_no_as_long_as_its_last_answer_was_not_good_enough(sh, work, rounds, status, said):
    verdict = '{"criteria":[{"name":"correctness","score":%s,"reason":"r"}]}'
    (work / "evaluator").write_text(f"#!/bin/sh\ngrep -q 'draft 1' && echo '{verdict % 5}' || echo '{verdict % 1}'\n")
    (work / "evaluator").chmod(0o755)
    stages = orjson.dumps([f'dispatch --to "{WRITER}" --as writer']).decode()
    (work / "g.toml").write_text(f"stages = {stages}\nuntil = 'judge --by exec:./evaluator --rubric correctness'\nmax_rounds = {rounds}\n")
    ran = sh("group -q --new g.toml Write. | tee out | trace; exit ${PIPESTATUS[0]}")
    assert (ran.status, ran.records[0]["status"]) == (status, said)
    assert sh("trace --journal").records[0]["status"] == said
    assert sh("trace --sql 'select status from runs'").records == [{"status": said}]
    assert [len(sh(f"trace --journal --status {one}").records) for one in ("ok", "no")] == [said == "ok", said == "no"]

PAIR = """\
run ID  ok  group g  TIME  T  11 in  5 out  $0.000000 + 3 unpriced
├─ fan-out of 2
│  ├─ 1: dispatch ONE
│  └─ 1: dispatch ONE
├─ 2: judge  exec  ok  BAR  T  unknown
│  └─ verdict  pass ONE by correctness
├─ 2: judge  exec  ok  BAR  T  unknown
│  └─ verdict  pass ONE by correctness
├─ verdict  pass 1.00 by correctness, prefers one answer
└─ 3: dispatch editor  echo:large  ok  BAR  T  $0.000000
"""


def test_a_fan_out_whose_picker_compares_in_both_orders_goes_on_from_the_one_preferred(sh, work):
    pick = "sed '/^Answer B/q' | grep -q longer && echo '{\"better\":\"A\",\"reason\":\"r\"}' || echo '{\"better\":\"B\",\"reason\":\"r\"}'"
    (work / "evaluator").write_text(f"#!/bin/sh\n{pick}\n")
    (work / "evaluator").chmod(0o755)
    stages = ["dispatch --to echo:small --to 'exec:echo A longer answer.'",
              "judge --pairwise --by exec:./evaluator --rubric correctness", "dispatch --to echo:large --as editor 'Go on.'"]  # fmt: skip
    (work / "g.toml").write_text(f"stages = {orjson.dumps(stages).decode()}\n")
    ran = sh("group -q --new g.toml 'Name a colour.' | tee out | trace --format tree; echo ${PIPESTATUS[0]}", **WIDE)
    shown, _, ended = ran.out.rstrip("\n").rpartition("\n")
    unordered = re.sub(r"(│  └─ verdict  pass) \S+", r"\1 ONE", re.sub("(1: dispatch).*", r"\1 ONE", drawn(f"{shown}\n")))
    assert (int(ended), unordered) == (0, PAIR), "which order is asked first, is drawn by lot"
    preferred, above = sh("jq -r '.preferred // empty' out").out.strip(), sh("jq -r 'select(.content == \"Go on.\" and .role == \"user\").reply_to' out").out
    assert above.strip() == preferred
