"""trace --export, --redact and --prune: runs for another machine, and a journal that stays small."""

from __future__ import annotations

import signal
import subprocess

import orjson
import pytest
from conftest import environment
from test_trace_tree import WIDE, sequential
from traces import BEGAN, Story, keep

from mllm_pipe.envelope import timestamp

VIEWS = ("--format tree", "--handoffs", "--by model", "--format otlp")


def kept(home) -> list[dict]:
    path = home / ".local/state/mllm-pipe/journal.jsonl"
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


# -- a bundle


def test_a_bundle_is_traced_elsewhere_as_it_is_here(sh, home):
    sh("thread-append t 'Write.' | dispatch -q --to echo --as writer | dispatch -q --to echo --as critic 'Review it.'"
       " | judge -q --by echo --rubric correctness | thread-append t >/dev/null")  # fmt: skip
    run = sh("trace < t").records[0]["id"]
    sh(f"trace --export < t > stream.ndjson; trace --export {run} > journal.ndjson; trace --export --thread t {run[:20]} > both.ndjson")
    for view in VIEWS:
        here = sh(f"trace {view} < t", **WIDE).out
        assert here and sh(f"mv {home} {home}.away; HOME=/nonexistent trace {view} < stream.ndjson; mv {home}.away {home}", **WIDE).out == here
        assert sh(f"trace {view} < both.ndjson", **WIDE).out == here
        # the journal has no questions, so the first handoff has no bytes and no wait
        there = sh(f"trace {view} < journal.ndjson", **WIDE).out
        assert there == sh(f"trace {view} {run}", **WIDE).out
    assert sh("cat stream.ndjson | dispatch -q --to echo more | thread-append u | tail -1").status == 0


def test_only_what_is_asked_for_is_in_a_bundle(sh, work):
    other = Story("run-2", "u")
    other.call(other.ask("x"), 0, 1)
    (work / "t").write_bytes(sequential().stream() + other.stream())
    assert {record["thread"] for record in sh("trace --export run-2 < t").records} == {"u"}
    assert sh("trace --export nope < t").status == 66
    assert sh("trace --export --status error < t") == (0, "", "")


CANARIES = ("QUESTION", "ANSWER", "REASON", "SYSTEM", "ERRORTEXT", "WHYROUTE", "SUMMARY", "LOSSES", "RUBRIC TEXT", "META", "FUTURE",
            "ARGUMENT", "RULE TEXT", "ENDPOINT")  # fmt: skip


def test_a_redacted_bundle_has_no_text_and_is_traced_all_the_same(sh, work):
    story = Story()
    question = story.ask("QUESTION", meta={"a": "META"}, far="FUTURE")
    answer = story.call(question, 0, 10, [{"type": "tool_call", "id": "c", "name": "f", "arguments": {"a": "ARGUMENT"}},
                        {"type": "text", "text": "ANSWER"}], system="SYSTEM", losses=[{"what": "LOSSES of m", "action": "dropped", "why": "LOSSES"}],
                        attempts=[{"runtime": "echo", "status": "error", "code": "x", "far": "FUTURE"}], far="FUTURE")  # fmt: skip
    verdict = story.verdict(30, [answer], True, rubric="RUBRIC TEXT", criteria=[{"name": "a RULE TEXT", "score": 1, "reason": "REASON"}])
    story.call(answer, 20, 10, op="judge", output_ids=[verdict])
    story._add("error", 50, code="bad_request", message="ERRORTEXT of ours", content="ANSWER", raw="FUTURE")
    story._add("route", 60, router="r", target="b", by="rule:RULE TEXT", reason="WHYROUTE")
    story._add("summary", 70, content="SUMMARY", covers=["m"], origin={"endpoint": "ENDPOINT"})
    (work / "t").write_bytes(story.stream())
    ran = sh("trace --export --redact < t > r; cat r")
    assert [word for word in CANARIES if word in ran.out] == []
    assert len(ran.records) == len(story.records)
    assert sh("trace --handoffs < r").out == sh("trace --handoffs < t").out, "with the sizes and digests of the texts"
    for flags in ("--by model", "--by day", "--format csv", "--format otlp | wc -l"):
        assert sh(f"trace {flags} < r").out == sh(f"trace {flags} < t").out
    content = ran.records[0]["content"]
    assert content == [{"type": "redacted", "bytes": 8, "sha256": sh("printf QUESTION | sha256sum").out.split()[0]}]
    assert "8 bytes, sha256" in sh("trace --format html < r").out
    assert sh("trace --export --redact < r").out == ran.out
    assert sh("mllm validate < r").status == 0


# -- pruning


def old_and_new(home, *ages: float) -> list[Story]:
    """A journal with a run of two calls for each age in days."""
    stories = []
    now = float(orjson.loads(subprocess.check_output(["date", "+%s"])))
    for number, age in enumerate(ages):
        story = Story(f"run-{number}", f"t{number}")
        at = (now - age * 86400 - BEGAN) * 1000
        story.call("q", at, 1000, "draft", agent="writer", cost_usd=0.25)
        story.call("q", at + 1500, 100, "fine")
        stories.append(story)
    keep(home, b"".join(story.journal() for story in stories))
    return stories


def test_what_ended_long_ago_is_taken_out(sh, home):
    old_and_new(home, 200, 91, 89, 1.5)
    assert [row["calls"] for row in sh("trace --by runtime").records] == [8]
    ran = sh("trace --prune 90d")
    assert (ran.status, ran.out) == (0, "")
    assert ran.err.startswith("trace: 4 calls taken out; the journal is ")
    assert [run["id"] for run in sh("trace").records] == ["run-2", "run-3"]
    assert [row["calls"] for row in sh("trace --by runtime").records] == [4], "the index is made anew"
    journal = home / ".local/state/mllm-pipe/journal.jsonl"
    assert journal.stat().st_mode & 0o777 == 0o600
    before = journal.read_bytes()
    assert sh("trace -q --prune 90d") == (0, "", "")
    assert journal.read_bytes() == before
    assert sorted(path.name for path in journal.parent.iterdir()) == ["index.sqlite", "index.sqlite.lock", "journal.jsonl"]
    sh("trace -q --prune 1d")
    assert sh("trace").records == []


def test_a_call_is_kept_or_taken_out_whole(sh, home):
    (story,) = old_and_new(home, 91)
    lines = [orjson.loads(line) for line in story.journal().splitlines()]
    unheard, late = dict(lines[0]), lines[2:4]
    unheard["id"] = "never-heard"
    now = timestamp()
    late[1]["at"] = now  # began before, and ended just now
    keep(home, b"".join(orjson.dumps(line) + b"\n" for line in [*lines[:2], unheard, *late]) + b'{"v":1,"type":"intent","id":"torn')
    assert sh("trace --prune 90d").status == 0
    begun, ended, torn, note = (home / ".local/state/mllm-pipe/journal.jsonl").read_bytes().splitlines()
    assert [orjson.loads(line) for line in (begun, ended)] == late
    assert torn == b'{"v":1,"type":"intent","id":"torn' and orjson.loads(note)["code"] == "torn", "known damage"


@pytest.mark.parametrize("line, status, why", [
    ("trace --prune 1h", 2, "trace: --prune 1h: no age of a day or more; say 90d or 12w\n"),
    ("trace --prune ever", 2, "trace: --prune ever: no age of a day or more; say 90d or 12w\n"),
    ("trace --prune 90d --by model", 2, "trace: --by, --handoffs, --sql, --export, --otlp and --prune are each a thing of its own; ask for one\n"),
])  # fmt: skip
def test_what_cannot_be_pruned(sh, home, line, status, why):
    old_and_new(home, 100)
    assert sh(line) == (status, "", why)
    assert len(kept(home)) == 4


def test_without_a_journal_there_is_nothing_to_prune(sh, home):
    path = home / ".local/state/mllm-pipe/journal.jsonl"
    assert sh("trace --prune 90d") == (66, "", f"trace: there is no journal yet ({path})\n")
    assert not path.parent.exists()


def test_nothing_that_is_written_meanwhile_is_lost(sh, home):
    """Three writers, and eight prunes: each answer that was given is in the journal at the end."""
    old_and_new(home, *[100] * 300)
    ran = sh("for w in 1 2 3; do (for i in 1 2 3 4 5 6; do dispatch -q --to echo --new \"$w.$i\" --text; done > said.$w) & done; "
             "for i in 1 2 3 4 5 6 7 8; do trace -q --prune 90d; done; wait; sort said.*")  # fmt: skip
    said = [f"{writer}.{number}" for writer in (1, 2, 3) for number in range(1, 7)]
    assert (ran.status, ran.err, ran.out.split()) == (0, "", said)
    answers = [record["content"] for entry in kept(home) if entry["type"] == "outcome" for record in entry["records"][1:]]
    assert sorted(answers) == said


def test_a_prune_that_is_killed_leaves_the_journal_whole(home, work):
    stories = old_and_new(home, *[100] * 2000, 1)
    whole = b"".join(story.journal() for story in stories)
    for tenths in range(1, 8):
        path = keep(home, whole)
        child = subprocess.Popen(["trace", "-q", "--prune", "90d"], env=environment(home), cwd=work, stdin=subprocess.DEVNULL)
        try:
            child.wait(tenths * 0.05)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            child.wait()
        assert path.read_bytes() in (whole, stories[-1].journal())
    subprocess.run(["trace", "-q", "--prune", "90d"], env=environment(home), cwd=work, stdin=subprocess.DEVNULL, check=True)
    assert [path.name for path in path.parent.iterdir()] == ["journal.jsonl"], "what a killed one has left is taken away"


def test_a_prune_that_cannot_write_changes_nothing(sh, home):
    old_and_new(home, 100, *[1] * 20)
    path = home / ".local/state/mllm-pipe/journal.jsonl"
    before = path.read_bytes()
    ran = sh("ulimit -f 4; trace --prune 90d")
    assert (ran.status, ran.out) == (74, "")
    assert ran.err.startswith(f"trace: {path}.pruned: ") and ran.err.endswith(": File too large; the journal is as it was\n")
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
