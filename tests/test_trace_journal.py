"""trace, asked of the journal: selections, sums, handoffs, SQL, and the index that follows the journal."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from contextlib import closing
from decimal import Decimal

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from traces import BEGAN, Story, keep

from mllm_pipe.envelope import timestamp
from mllm_pipe.runs import Fold
from mllm_pipe.tracing import journalled, ledger


def house(home, runs: int = 3) -> list[Story]:
    """A journal of as many runs, a day apart: writer, then reviewer."""
    stories = []
    for number in range(runs):
        story = Story(f"run-{number}", f"thread-{number}")
        day = number * 86_400_000
        draft = story.call("q", day, 1000, f"draft {number}", agent="writer", runtime="anthropic", model="opus", cost_usd=0.25,
                           usage={"input_tokens": 10, "output_tokens": 5})  # fmt: skip
        story.call("review it", day + 1500, 100 * (number + 1), "fine", agent="reviewer", runtime="ollama", model="qwen3",
                   status="error" if number == 1 else "ok", handed_id=draft)  # fmt: skip
        stories.append(story)
    keep(home, b"".join(story.journal() for story in stories))
    return stories


def test_with_no_stream_it_shows_the_newest_runs_of_the_journal(sh, home):
    house(home)
    assert [run["id"] for run in sh("trace").records] == ["run-0", "run-1", "run-2"]
    assert [run["id"] for run in sh("trace -n 2").records] == ["run-1", "run-2"]
    assert [run["id"] for run in sh("echo nothing | trace --journal").records] == ["run-0", "run-1", "run-2"]
    assert sh("trace --format table").out == """\
run    started                   status  group  stages   time  in  cached  out                    cost
run-0  2026-11-24T06:00:00.000Z  ok      -           2  1.60s  10       -    5  $0.250000 + 1 unpriced
run-1  2026-11-25T06:00:00.000Z  error   -           2  1.70s  10       -    5  $0.250000 + 1 unpriced
run-2  2026-11-26T06:00:00.000Z  ok      -           2  1.80s  10       -    5  $0.250000 + 1 unpriced
"""


@pytest.mark.parametrize("flags, runs", [
    ("run-1", [1]), ("--thread thread-2", [2]), ("--status error", [1]), ("--status ok", [0, 2]), ("--status no", []),
    ("--runtime ollama", [0, 1, 2]), ("--model gpt", []), ("--agent writer --runtime ollama", []),
    ("--since 2026-11-25", [1, 2]), ("--since 2026-11-25T07:00:00Z", [2]), ("--until 2026-11-25T06:00:00Z", [0]),
    ("--since 2026-11-25T07:00:00+01:00 --until 2026-11-26", [1]), ("--until yesterday --since 2030-01-01", []), ("--group none", []),
    ("--slot response --status error", [1]), ("--slot evaluator", []), ("--until 2030-01-01 -n 1", [2]),
])  # fmt: skip
def test_what_is_asked_for_is_shown(sh, home, flags, runs):
    house(home)
    ran = sh(f"trace {flags}", TZ="UTC")
    assert (ran.status, ran.err) == (0, "")
    found = [run["id"] for run in ran.records]
    assert [f"run-{number}" for number in runs] == found


def test_ages_and_days_are_counted_from_now(sh, home):
    (old,) = house(home, 1)
    now = time.time()
    for number, age in enumerate((3.5 * 86400, 86400, 10)):
        story = Story(f"ago-{number}", "t")
        story.call("q", (now - age - BEGAN) * 1000, 5, "a")
        with (home / ".local/state/mllm-pipe/journal.jsonl").open("ab") as file:
            file.write(story.journal())
    for flags, wanted in [("--since 2d", "12"), ("--until 2d", "0"), ("--since 1w --until 12h", "01"), ("--since 5m", "2"), ("--since 90m", "2"),
                          ("--since now", ""), ("--until now", "012")]:  # fmt: skip
        assert [run["id"] for run in sh(f"trace {flags}").records if run["id"].startswith("ago")] == [f"ago-{one}" for one in wanted], flags
        rows = sh(f"trace --by thread {flags}").records
        assert sum(row["calls"] for row in rows if row["key"] == "t") == len(wanted), flags
    zone = f"NOON{time.gmtime(now).tm_hour - 12:+d}"  # where it is between twelve and one
    midnight = sh("date -d 'today 00:00' +%s", TZ=zone).out
    (recent,) = [run for run in sh("trace --since today", TZ=zone).records if run["id"] == "ago-2"]
    assert int(midnight) <= now - 10 and recent
    assert [run["id"] for run in sh("trace --since yesterday --until today", TZ=zone).records] == ["ago-1"]


def test_a_run_is_found_by_a_unique_beginning_and_without_the_index(sh, home):
    house(home)
    (run,) = sh("trace run-1").records
    assert [stage["agent"] for stage in run["stages"]] == ["writer", "reviewer"]
    assert not (home / ".local/state/mllm-pipe/index.sqlite").exists()
    assert sh("trace run") == (2, "", "trace: run run: 3 runs begin like that: run-0, run-1, run-2\n")
    assert sh("trace nope") == (66, "", "trace: run nope: there is none of that name; trace --journal lists the newest\n")


@pytest.mark.parametrize("line, why", [
    ("trace --since tuesday", "trace: --since tuesday: no time; say today, yesterday, 12h, 2d, 2026-11-24, or 2026-11-24T15:00:00Z\n"),
    ("trace --by model --handoffs", "trace: --by, --handoffs, --sql, --export, --otlp and --prune are each a thing of its own; ask for one\n"),
    ("trace --tee", "trace: --tee and --all are for a stream on stdin, and there is none\n"),
    ("trace --by model --format tree", "trace: --format tree is for runs; say table, json, ndjson or csv\n"),
])  # fmt: skip
def test_what_cannot_be_meant_is_refused(sh, home, line, why):
    house(home)
    assert sh(line) == (2, "", why)


def test_without_a_journal_it_says_so(sh, home):
    ran = sh("trace")
    assert (ran.status, ran.out) == (66, "")
    assert ran.err == f"trace: there is no journal yet ({home}/.local/state/mllm-pipe/journal.jsonl); dispatch and judge write it\n"


def test_sums_by_model_count_what_is_unpriced(sh, home):
    house(home)
    assert sh("trace --by model").records == [
        {"key": "opus", "calls": 3, "failed": 0, "usage": {"input_tokens": 30, "output_tokens": 15}, "cost_usd": 0.75,
         "unpriced": 0, "p50_ms": 1000.0, "p95_ms": 1000.0, "p50_first_token_ms": 500.0, "p95_first_token_ms": 500.0},
        {"key": "qwen3", "calls": 3, "failed": 1, "usage": {}, "cost_usd": None, "unpriced": 3, "p50_ms": 200.0,
         "p95_ms": 300.0, "p50_first_token_ms": 100.0, "p95_first_token_ms": 150.0},
    ]  # fmt: skip
    assert sh("trace --by day --model qwen3 --format table").out == """\
day         calls  failed  in  cached  out    p50    p95  first p50  first p95     cost
2026-11-24      1       0   -       -    -  100ms  100ms       50ms       50ms  unknown
2026-11-25      1       1   -       -    -  200ms  200ms      100ms      100ms  unknown
2026-11-26      1       0   -       -    -  300ms  300ms      150ms      150ms  unknown
"""
    assert sh("trace --by agent --status error --format csv | tr -d '\\r'").out == (
        "key,calls,failed,usage,cost_usd,unpriced,p50_ms,p95_ms,p50_first_token_ms,p95_first_token_ms\n"
        "reviewer,1,1,{},,1,200.0,200.0,100.0,100.0\n")  # fmt: skip


def test_times_are_rounded_to_the_even_digit_by_every_key(sh, home):
    story = Story("run", "thread")
    for took in (1923.0, 1925.0, 1935.0):
        story.call("q", 0, took, "a", model=f"m{took:g}")
    keep(home, story.journal())
    times = {"m1923": (1920.0, 962.0), "m1925": (1920.0, 962.0), "m1935": (1940.0, 968.0)}  # 961.5, 962.5, 967.5
    for model, (took, first) in times.items():
        for key in ("model", "day", "thread"):
            (row,) = sh(f"trace --by {key} --model {model}").records
            assert (row["p50_ms"], row["p95_first_token_ms"]) == (took, first)


def test_which_version_was_reviewed_is_one_query(sh, home, work):
    lines = ["thread-append t 'Write.' | dispatch -q --to echo --as writer | thread-append t >/dev/null",
             "dispatch -q --to echo --as reviewer 'Review it.' < t | thread-append t >/dev/null"]  # fmt: skip
    for line in lines:
        sh(line)
    draft = next(record for record in map(orjson.loads, (work / "t").read_bytes().splitlines())
                 if record.get("author", {}).get("agent") == "writer")  # fmt: skip
    sha256 = sh("printf Write. | sha256sum").out.split()[0]
    wanted = {"message_id": draft["id"], "bytes": 6, "sha256": sha256, "from_agent": "writer", "to_agent": "reviewer"}
    (edge,) = [edge for edge in sh("trace --handoffs").records if edge["to_agent"] == "reviewer"]
    assert {name: edge[name] for name in wanted} == wanted
    asked = "select message_id, bytes, sha256, from_agent, to_agent from handoffs where to_agent = 'reviewer'"
    assert sh(f'trace --sql "{asked}"').records == [wanted]
    assert sh("trace --handoffs < t | tail -1").records[0]["sha256"] == sha256


def test_a_call_without_an_outcome_is_unknown_and_unpriced(sh, home):
    (story,) = house(home, 1)
    journal = keep(home, story.journal().splitlines(keepends=True)[0])
    (run,) = sh("trace").records
    assert (run["status"], run["cost_usd"], run["unpriced"]) == ("unknown", None, 1)
    assert sh("trace run-0").records == [run]
    assert [(row["calls"], row["failed"], row["unpriced"]) for row in sh("trace --by runtime").records] == [(1, 1, 1)]
    assert sh("trace --sql 'select id, calls, failed, unpriced, status, cost_usd from runs'").records == [
        {"id": "run-0", "calls": 1, "failed": 1, "unpriced": 1, "status": "unknown", "cost_usd": None}]  # fmt: skip
    assert sh("trace --sql 'select runtime, status from attempts'").records == [{"runtime": "anthropic", "status": "unknown"}]
    journal.write_bytes(story.journal())
    assert [row["unpriced"] for row in sh("trace --by runtime").records] == [0, 1]
    assert sh("trace --sql 'select count(*) as n from spans where status = \"unknown\"'").records == [{"n": 0}]


def test_a_file_of_threads_is_joined_with_what_the_journal_knows(sh):
    sh("thread-append t q | dispatch -q --to echo | thread-append --messages t >/dev/null")
    assert sh("trace < t").out == ""
    (run,) = sh("trace --thread t").records
    assert [(edge["from"], edge["wait_ms"] is not None) for edge in run["handoffs"]] == [("user", True)]


# -- SQL

VIEWS = {"runs": 3, "spans": 6, "attempts": 6, "messages": 6, "verdicts": 0, "handoffs": 6}


def test_the_views_have_what_they_are_documented_to_have(sh, home):
    house(home)
    for view, rows in VIEWS.items():
        assert len(sh(f"trace --sql 'select * from {view}'").records) == rows
    assert sh("trace --sql 'select id, status, calls, cost_usd, unpriced, duration_ms from runs order by id limit 1'").records == [
        {"id": "run-0", "status": "ok", "calls": 2, "cost_usd": 0.25, "unpriced": 1, "duration_ms": 1600.0}]  # fmt: skip
    assert sh("trace --sql 'select content, bytes from messages order by id limit 1'").records == [
        {"content": "draft 0", "bytes": 7}]  # fmt: skip
    assert sh("trace --format table --sql 'select from_agent, to_agent, wait_ms from handoffs where from_agent is not null limit 1'").out == """\
from_agent  to_agent  wait_ms
writer      reviewer    500.0
"""


@pytest.mark.parametrize("sql", ["delete from call", "drop view runs", "attach 'x.db' as x", "pragma query_only = off",
                                 "insert into kind values (1,2,3,4,5,6,7,8)", "select 1; select 2", "selec", "",
                                 "select load_extension('x')", "vacuum into 'x.db'"])  # fmt: skip
def test_sql_only_reads(sh, home, work, sql):
    house(home)
    ran = sh(f'trace --sql "{sql}"')
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith(("trace: --sql: ", "trace: --sql is empty; ")) and ran.err.count("\n") == 1
    assert list(work.iterdir()) == []


# -- the index


def test_the_index_follows_the_journal_and_may_be_deleted(sh, home):
    stories = house(home, 2)
    journal = home / ".local/state/mllm-pipe/journal.jsonl"
    index = journal.parent / "index.sqlite"
    asked = "trace --sql 'select count(*) as n from spans where status <> \"unknown\"'"
    assert sh(asked).records == [{"n": 4}]
    assert index.stat().st_mode & 0o777 == 0o600
    made = index.stat().st_ino
    more = Story("run-9", "t9")
    more.call("q", 0, 5, "a")
    with journal.open("ab") as file:
        file.write(more.journal()[:-20])  # a writer is in the middle of its line
    assert sh(asked).records == [{"n": 4}]
    with journal.open("ab") as file:
        file.write(more.journal()[-20:])
    assert sh(asked).records == [{"n": 5}]
    assert index.stat().st_ino == made  # it was followed, not made anew
    index.unlink()
    assert sh(asked).records == [{"n": 5}]
    index.write_bytes(b"no database, but it lies there" * 100)
    assert sh(asked).records == [{"n": 5}]
    shutil.copy(journal, journal.with_suffix(".new"))
    journal.with_suffix(".new").write_bytes(stories[0].journal())
    os.replace(journal.with_suffix(".new"), journal)  # pruned
    assert sh(asked).records == [{"n": 2}]
    assert sorted(path.name for path in journal.parent.iterdir()) == ["index.sqlite", "index.sqlite.lock", "journal.jsonl"]


def test_many_may_look_while_one_writes(sh, home):
    house(home, 40)
    ran = sh("for i in 1 2 3 4 5 6; do trace --by model -q >model.$i & done; "
             "for i in 1 2 3; do dispatch -q --to echo --new q >/dev/null; trace -q --by day >day.$i & "
             "rm -f ~/.local/state/mllm-pipe/index.sqlite; trace -q >runs.$i & done; wait; cat model.* day.* runs.*; trace --by runtime")  # fmt: skip
    assert (ran.status, ran.err) == (0, "")
    assert {row["key"]: row["calls"] for row in ran.records[-3:]} == {"anthropic": 40, "ollama": 40, "echo": 3}


def test_where_it_cannot_be_locked_none_is_changed(sh, home):
    house(home, 2)
    index = home / ".local/state/mllm-pipe/index.sqlite"
    asked = "trace --sql 'select count(*) as n from spans'"
    assert sh(asked).records == [{"n": 4}]
    index.with_suffix(".sqlite.lock").unlink()
    index.with_suffix(".sqlite.lock").mkdir()
    was = index.read_bytes()
    assert sh(f"dispatch -q --to echo --new q >/dev/null; {asked}").records == [{"n": 5}]
    assert index.read_bytes() == was
    index.unlink()
    assert sh(asked).records == [{"n": 5}] and not index.exists()


def test_where_it_cannot_be_written_it_is_made_in_memory(sh, home):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    house(home)
    os.chmod(home / ".local/state/mllm-pipe", 0o500)
    assert len(sh("trace").records) == 3


# -- sums

_costs = st.none() | st.decimals(min_value=0, max_value=10, places=9).map(float)
_calls = st.lists(
    st.tuples(st.integers(0, 3), _costs, st.integers(-5000, 5000), st.floats(0, 1e6), st.sampled_from(["ok", "error", "unknown"]),
              st.none() | st.integers(0, 10**6)),
    min_size=1, max_size=8,
)  # fmt: skip


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(_calls, min_size=50, max_size=50))
def test_totals_of_10000_runs_are_the_sums_of_their_calls(tmp_path_factory, runs):
    """200 examples of 50 runs. Runs, lines by model and the index say the same of the same calls."""
    fold, journal, spans = Fold(), b"", []
    for number, calls in enumerate(runs):
        story = Story(f"r{number}", f"t{number}")
        for model, cost, start, took, status, tokens in calls:
            story.call("q", start, took, None, model=f"m{model}", status=status, cost_usd=cost,
                       usage=None if tokens is None else {"input_tokens": tokens})  # fmt: skip
        journal += story.journal()
        for record in story.records:
            fold.take(record)
            spans += [record]
    folded = fold.runs()
    assert len(folded) == 50
    for run in folded:
        own = [span for span in spans if span["parent_run_id"] == run["id"]]
        known = [Decimal(repr(span["cost_usd"])) for span in own if span["cost_usd"] is not None]
        assert run["cost_usd"] == (float(sum(known)) if known else None)
        assert run["unpriced"] == len(own) - len(known)
        assert run["usage"].get("input_tokens", 0) == sum((span["usage"] or {}).get("input_tokens", 0) for span in own)
        assert run["duration_ms"] >= 0
        assert all(edge["wait_ms"] is None or edge["wait_ms"] >= 0 for edge in run["handoffs"])
    rows = ledger.by(spans, "model")
    assert sum(row["calls"] for row in rows) == len(spans)
    assert sum(row["unpriced"] for row in rows) == sum(span["cost_usd"] is None for span in spans)
    exact = sum((Decimal(repr(span["cost_usd"])) for span in spans if span["cost_usd"] is not None), Decimal())
    assert sum(Decimal(repr(row["cost_usd"] or 0.0)) for row in rows) == exact
    assert all(row["cost_usd"] is None or row["unpriced"] < row["calls"] for row in rows)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(runs=st.lists(_calls, min_size=1, max_size=30))
def test_the_index_counts_as_the_records_do(sh, home, runs):
    shutil.rmtree(home / ".local", ignore_errors=True)
    journal, spans = b"", []
    for number, calls in enumerate(runs):
        story = Story(f"r{number}", f"t{number}")
        for model, cost, start, took, status, tokens in calls:
            story.call("q", start, took, None, model=f"m{model}", status=status, cost_usd=cost, agent=f"a{model % 2}",
                       usage=None if tokens is None else {"input_tokens": tokens})  # fmt: skip
        journal += story.journal()
        spans += story.records
    keep(home, journal)
    for key in ("model", "day", "agent", "thread"):
        assert sh(f"trace --by {key}").records == orjson.loads(orjson.dumps(ledger.by(spans, key)))
    assert journalled.OUTCOME in journal
    assert timestamp(BEGAN) == "2026-11-24T06:00:00.000Z"


def test_times_that_were_counted_apart_are_counted_together_when_they_are_many(sh, home):
    first, more = Story("run", "t"), Story("more", "u")
    first.call("q", 0, 100, "a", model="m0")
    journal = keep(home, first.journal())
    assert [row["calls"] for row in sh("trace --by runtime").records] == [1]
    more.call("q", 0, 100, None, model="m#")
    with journal.open("ab") as file:
        file.writelines(more.journal().replace(b"m#", b"m%d" % number) for number in range(26_000))
    (row,) = sh("trace --by runtime").records
    assert (row["calls"], row["p50_ms"], row["p95_first_token_ms"]) == (26_001, 100.0, 50.0)
    asked = "select count(distinct pace.rowid), sum(value), max(value) from pace, json_each(times) where first = 0"
    with closing(sqlite3.connect(journal.parent / "index.sqlite")) as db:
        assert db.execute(asked).fetchall() == [(26_000, 26_001, 2)]


def test_a_long_journal_is_read_in_parts(sh, home):
    """Of 130 MB a process reads its part of at least 32: the index is what one alone makes, with calls that begin in one
    part and end in another, one that never ended, a bad line, and one that is not whole yet."""
    stories = []
    for number in range(300):
        story = Story(f"r{number}", f"t{number}")
        answer = story.call("q", number * 1000, 100 + number, "draft " * (7_000_000 if number == 200 else 60_000), model=f"m{number % 7}",
                            cost_usd=None if number % 3 else 0.1, usage={"input_tokens": number})  # fmt: skip
        verdict = story.verdict(number * 1000 + 500, [answer], number % 2 == 0)
        story.call(answer, number * 1000 + 200, 50, op="judge", slot="evaluator", model="judge", output_ids=[verdict])
        stories.append(story)
    lines = b"".join(story.journal() for story in stories).splitlines(keepends=True)
    intents, outcomes = lines[::2], lines[1::2]
    unheard = intents[5].replace(b'"id":"', b'"id":"unheard-', 1)
    journal = keep(home, b"".join([*intents[:200], unheard, *[line for pair in zip(outcomes, intents[200:], strict=False) for line in pair],
                                   *outcomes[400:], b"{no record\n", outcomes[0][:-50]]))  # fmt: skip
    asked = "trace --by model; trace --by day --status ok; trace --sql 'select * from spans order by id'; trace --sql 'select * from verdicts order by id'"
    one = sh(f"taskset -c {min(os.sched_getaffinity(0))} bash -c '{asked.replace(chr(39), chr(34))}'")
    (journal.parent / "index.sqlite").unlink()
    several = sh(asked)
    assert (one.status, one.err, several) == (0, "", one)
    assert len(one.records) == 8 + 1 + 601 + 300, "one was never heard"
    assert (one.records[0]["calls"], one.records[0]["unpriced"]) == (43, 28)
    assert sum(row["calls"] for row in one.records[:8]) == 601, "and the one that was never heard of"
    assert sorted(path.name for path in journal.parent.iterdir()) == ["index.sqlite", "index.sqlite.lock", "journal.jsonl"]


def test_what_a_killed_process_has_left_of_an_index_is_taken_away(sh, home):
    house(home)
    folder = home / ".local/state/mllm-pipe"
    for name in ("index.sqlite.new", "index.sqlite.new.0", "index.sqlite.new-journal", "index.sqlite-journal", "index.sqlite.mine"):
        (folder / name).write_text("begun")
    assert len(sh("trace").records) == 3
    assert sorted(path.name for path in folder.iterdir()) == [
        "index.sqlite", "index.sqlite.lock", "index.sqlite.mine", "journal.jsonl"]  # fmt: skip
