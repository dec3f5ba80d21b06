"""trace --format tree: each kind of run as a whole tree."""

from __future__ import annotations

import os
import re

import pytest
from conftest import masked
from traces import Story

WIDE = {"COLUMNS": "100"}


def drawn(sh, work, story: Story, **environment: str) -> str:
    (work / "t").write_bytes(story.stream())
    ran = sh("trace --format tree < t", **(WIDE | environment))
    assert (ran.status, ran.err) == (0, "")
    return ran.out


def sequential() -> Story:
    story = Story()
    question = story.ask("Write it.")
    draft = story.call(question, 0, 1000, "draft", agent="writer", runtime="anthropic", model="claude-opus-5-5", group="review",
                       stage=1, usage={"input_tokens": 10, "output_tokens": 200}, cost_usd=0.0125)  # fmt: skip
    review = story.call(draft, 1500, 500, "fine", agent="reviewer", runtime="openai", model="gpt-5.4", group="review", stage=2,
                        usage={"input_tokens": 210, "output_tokens": 5}, cost_usd=0.002)  # fmt: skip
    verdict = story.verdict(2100, [review], True, score=0.75, rubric="correctness")
    story.call(review, 2000, 100, op="judge", slot="evaluator", runtime="google", model="gemini-3-pro", group="review",
               stage=3, output_ids=[verdict], usage={"input_tokens": 300, "output_tokens": 9})  # fmt: skip
    return story


def test_a_sequential_group(sh, work):
    assert drawn(sh, work, sequential()) == """\
run run-1  ok  group review  2026-11-24T06:00:00.000Z
│  2.10s  520 in  214 out  $0.014500 + 1 unpriced
├─ 1: dispatch writer    anthropic:claude-opus-5-5  ok  ▕███████▋        ▏          1.00s  $0.012500
├─ 2: dispatch reviewer  openai:gpt-5.4             ok  ▕       ····███▊ ▏  +500ms  500ms  $0.002000
└─ 3: judge              google:gemini-3-pro        ok  ▕               ▊▏          100ms    unknown
   └─ verdict  pass 0.75 by correctness
"""


def test_a_routed_group(sh, work):
    story = Story()
    question = story.ask("I want a refund.")
    route = story.route(40, "billing", "rule:refund")
    story.call(question, 0, 40, op="route", slot="router", runtime="openai", model="gpt-5-nano", group="desk", stage=1,
               output_ids=[route], cost_usd=0.00001)  # fmt: skip
    story.call(question, 60, 400, "Done.", agent="billing", runtime="anthropic", model="claude-haiku-5", group="desk", stage=2,
               cost_usd=0.001, losses=[{"what": "part 1 of message a", "action": "dropped", "why": "images are not taken"}])  # fmt: skip
    assert drawn(sh, work, story) == """\
run run-1  ok  group desk  2026-11-24T06:00:00.000Z  460ms  $0.001010
├─ 1: route             openai:gpt-5-nano         ok  ▕██▏                     ▏     40ms  $0.000010
│  └─ route  support -> billing (rule:refund)
└─ 2: dispatch billing  anthropic:claude-haiku-5  ok  ▕   ████████████████████▉▏    400ms  $0.001000
   └─ loss  part 1 of message a dropped: images are not taken
"""


def test_a_route_by_rule_needs_no_call(sh, work):
    story = Story()
    question = story.ask("I want a refund.")
    story.route(60, "billing", "rule:refund")  # within the millisecond
    story.call(question, 60, 400, "Done.", agent="billing", runtime="echo")
    assert drawn(sh, work, story) == """\
run run-1  ok  2026-11-24T06:00:00.060Z  400ms  unknown
├─ route  support -> billing (rule:refund)
└─ dispatch billing  echo  ok  ▕█████████████████████████████████████████████████▏    400ms  unknown
"""


def test_a_fan_out_with_a_judge(sh, work):
    story = Story()
    question = story.ask("Name a colour.")
    one = story.call(question, 0, 800, "blue", runtime="anthropic", model="claude-opus-5-5", cost_usd=0.01)
    two = story.call(question, 0, 1200, "red", runtime="openai", model="gpt-5.4", cost_usd=0.004)
    verdict = story.verdict(1500, [one, two], True, score=0.6, rubric="colour", preferred=two, consistent=True)
    story.call(two, 1250, 250, op="judge", slot="evaluator", runtime="google", model="gemini-3-pro", output_ids=[verdict],
               cost_usd=0.001)  # fmt: skip
    assert drawn(sh, work, story) == """\
run run-1  ok  2026-11-24T06:00:00.000Z  1.50s  $0.015000
├─ fan-out of 2
│  ├─ dispatch  anthropic:claude-opus-5-5  ok  ▕█████████████▉            ▏         800ms  $0.010000
│  └─ dispatch  openai:gpt-5.4             ok  ▕████████████████████▊     ▏         1.20s  $0.004000
└─ judge        google:gemini-3-pro        ok  ▕                    ·████▍▏  +50ms  250ms  $0.001000
   └─ verdict  pass 0.60 by colour, prefers one answer
"""
    edges = sh("trace --handoffs < t").records
    assert [(edge["from_model"], edge["to_model"], edge["bytes"], edge["wait_ms"]) for edge in edges] == [
        (None, "claude-opus-5-5", 14, 0), (None, "gpt-5.4", 14, 0),
        ("claude-opus-5-5", "gemini-3-pro", 4, 450), ("gpt-5.4", "gemini-3-pro", 3, 50)]  # fmt: skip


def test_summaries_and_several_threads(sh, work):
    story = Story()
    for thread in ("a", "b"):
        question = story.ask("Go on.", thread=thread)
        summary = story._add("summary", 100, thread=thread, content="before", covers=["m1", "m2", "m3"])
        story.call(question, 0, 100, op="summarize", slot="summarizer", thread=thread, output_ids=[summary])
        story.call(question, 100, 300, "on", thread=thread)
    assert drawn(sh, work, story) == """\
run run-1  ok  2026-11-24T06:00:00.000Z  400ms  unknown
├─ thread a
│  ├─ summarize  echo  ok  ▕█████████████▎                                       ▏    100ms  unknown
│  │  └─ summary  of 3 messages
│  └─ dispatch   echo  ok  ▕             ███████████████████████████████████████▊▏    300ms  unknown
└─ thread b
   ├─ summarize  echo  ok  ▕█████████████▎                                       ▏    100ms  unknown
   │  └─ summary  of 3 messages
   └─ dispatch   echo  ok  ▕             ███████████████████████████████████████▊▏    300ms  unknown
"""


@pytest.mark.parametrize("columns", ["20", "40", "60", "79", "100", "200"])
def test_it_fits_the_width_of_the_terminal(sh, work, columns):
    story = sequential()
    story.call(story.ask("再び"), 3000, 1, "x", agent="日本語のエージェントの長い名前", runtime="runtime-with-a-very-long-name", model="m" * 80)
    from mllm_pipe.tracing.words import width

    wide = max(map(width, drawn(sh, work, story, COLUMNS=columns).splitlines()))
    assert wide <= max(int(columns), 48)


def test_clocks_that_step_back_draw_nothing_negative(sh, work):
    story = Story()
    question = story.ask("q", at=5000)
    draft = story.call(question, 3000, 100, "one")
    story.call(draft, 1000, 100, "two")
    shown = drawn(sh, work, story)
    assert "-" not in re.sub(r"run-1|2026-\d\d-\d\d", "", shown)
    (run,) = sh("trace < t").records
    assert run["duration_ms"] == 2100
    assert [edge["wait_ms"] for edge in run["handoffs"]] == [0, 0]


@pytest.mark.parametrize("form", ["ndjson", "tree", "html", "otlp", "csv"])
def test_a_batch_takes_time_by_its_length(sh, work, form):
    """Four times as many threads, each judged, take about four times as long."""
    took = []
    for count in (500, 2000):
        story = Story()
        for number in range(count):
            question = story.ask("q", at=number, thread=f"t{number}")
            answer = story.call(question, number, 5, "a", thread=f"t{number}", model="m")
            verdict = story.verdict(number + 6, [answer], True, thread=f"t{number}", score=1.0)
            story.call(answer, number + 5, 1, op="judge", thread=f"t{number}", model="j", output_ids=[verdict])
        (work / "t").write_bytes(story.stream())
        before = os.times()
        assert sh(f"trace --format {form} < t >/dev/null") == (0, "", "")
        after = os.times()
        took.append(after.children_user - before.children_user)
    assert took[1] < 8 * took[0], "processor time, start-up included"


# -- of real lines of shell


def told(text: str) -> str:
    """The tree with its bars, times and waits masked; how long they are decides whether its head is one line or two."""
    text = re.sub("▕.*▏", "BAR", masked(text))
    text = re.sub(r"\+?\b(\d+h\d\dm|\d+m\d\ds|\d+(\.\d+)?m?s)\b", "T", text)
    text = re.sub(r"(?<=\S) {2,}", "  ", text)
    return re.sub(r"T  T  ", "T  ", text.replace("+T", "T")).replace("\n│  T  ", "  T  ", 1)


def test_a_retry_with_fallback(sh):
    ran = sh("dispatch --to openai-chat/m --base-url http://127.0.0.1:9 --max-retries 1 --fallback echo --new q 2>/dev/null"
             " | trace --format tree", **WIDE)  # fmt: skip
    assert told(ran.out) == """\
run ID  ok  TIME  T  1 in  1 out  $0.000000
└─ dispatch  echo  ok  BAR  T  $0.000000
   ├─ attempt 1  openai-chat:m  error network  T
   ├─ attempt 2  openai-chat:m after T  error network  T
   └─ attempt 3  echo  ok  T
"""


def test_a_failed_stage(sh):
    ran = sh("thread-append --new q | dispatch --to echo --as writer | dispatch --to exec:false --as critic 2>/dev/null"
             " | dispatch --to echo --as editor | trace --format tree", **WIDE)  # fmt: skip
    assert ran.status == 3
    assert told(ran.out) == """\
run ID  unknown  TIME  T  1 in  1 out  $0.000000 + 1 unpriced
├─ dispatch writer  echo  ok  BAR  T  $0.000000
└─ dispatch critic  exec  unknown  BAR  T  unknown
   ├─ attempt 1  exec  unknown exit  T
   └─ error  exit: false: exit status 1
"""


def test_a_loop_of_three_rounds_is_one_run(sh):
    ran = sh("""export MLLM_PARENT_RUN_ID=improve; thread-append t "Name a colour." >/dev/null
        for round in 1 2 3; do
          dispatch -q --to echo --as writer "Round $round." < t | judge --check contains:zz -q | thread-append t >/dev/null
        done; trace --format tree < t""", **WIDE)
    assert told(ran.out) == """\
run improve  no  TIME  T  33 in  9 out  $0.000000
├─ dispatch writer  echo  ok  BAR  T  $0.000000
├─ verdict  fail 0.00 by check
├─ dispatch writer  echo  ok  BAR  T  $0.000000
├─ verdict  fail 0.00 by check
├─ dispatch writer  echo  ok  BAR  T  $0.000000
└─ verdict  fail 0.00 by check
"""


GROUPS = """
[agents.writer]
runtime = "echo:small"
[agents.reviewer]
runtime = "echo:large"
instruction = "Review it."
[agents.billing]
description = "refunds"
runtime = "echo:small"
[routers.support]
children = ["billing"]
[[routers.support.rules]]
name = "refund"
keywords = ["refund"]
target = "billing"
[routers.desk]
children = ["billing", "writer"]
models = { router = "exec:echo '{\\"target\\": \\"billing\\", \\"confidence\\": 0.9, \\"reason\\": \\"money\\"}'" }
[groups.review]
stages = ["dispatch --to writer", "dispatch --to reviewer", "judge --by echo --rubric correctness"]
[groups.ruled]
stages = ["route support", "dispatch"]
[groups.asked]
stages = ["route desk", "dispatch"]
"""


@pytest.mark.parametrize("group, tree", [
    ("review", """\
run ID  ok  group review  TIME  T  240 in  19 out  $0.000000
├─ 1: dispatch writer  echo:small  ok  BAR  T  $0.000000
├─ 2: dispatch reviewer  echo:large  ok  BAR  T  $0.000000
└─ 3: judge  echo  ok  BAR  T  $0.000000
   └─ verdict  pass 1.00 by correctness
"""),
    ("ruled", """\
run ID  ok  group ruled  TIME  T  4 in  4 out  $0.000000
├─ route  support -> billing (rule:refund)
└─ 2: dispatch billing  echo:small  ok  BAR  T  $0.000000
"""),
    ("asked", """\
run ID  ok  group asked  TIME  T  4 in  4 out  $0.000000 + 1 unpriced
├─ 1: route desk  exec  ok  BAR  T  unknown
│  └─ route  desk -> billing (model)
└─ 2: dispatch billing  echo:small  ok  BAR  T  $0.000000
"""),
])  # fmt: skip
def test_a_group_as_it_was_fired(sh, work, group, tree):
    (work / "mllm.toml").write_text(GROUPS)
    ran = sh(f"group -q --new {group} 'I want a refund.' | trace --format tree", MLLM_CONFIG=str(work / "mllm.toml"), **WIDE)
    assert (ran.status, ran.err, told(ran.out)) == (0, "", tree)
    (run,) = sh(f"trace --journal --group {group}").records
    assert run["group"] == group
    assert sh("trace --journal --group other").records == []


def test_a_fan_out_as_it_was_fired_goes_on_from_one_and_is_judged(sh):
    ran = sh("dispatch -q --to echo:small --to exec:cat --new 'Name a colour.' | dispatch -q --to echo:large --as editor --pick exec 'Go on.'"
             " | judge -q --by echo --rubric correctness | trace --format tree", **WIDE)  # fmt: skip
    answers = ["dispatch  echo:small  ok  BAR  T  $0.000000", "dispatch  exec  ok  BAR  T  unknown"]
    assert told(ran.out) in [f"""\
run ID  ok  TIME  T  219 in  6 out  $0.000000 + 1 unpriced
├─ fan-out of 2
│  ├─ {first}
│  └─ {second}
├─ dispatch editor  echo:large  ok  BAR  T  $0.000000
└─ judge  echo  ok  BAR  T  $0.000000
   └─ verdict  pass 1.00 by correctness
""" for first, second in (answers, answers[::-1])], "they are asked at once: whichever began first"
