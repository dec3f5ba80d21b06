"""trace, and what may be wrong with the journal that it asks: nothing of it hides the rest, and every way of asking finds the same."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import orjson
import pytest
from traces import Story, keep

from mllm_pipe.envelope import SCHEMA_PATH
from mllm_pipe.tracing.columns import USAGE
from mllm_pipe.tracing.typed import Attempt, Span, Usage

LEFT_OUT = "trace: {}: a line of a call does not hold to the envelope; left out\n"
SUMS = "trace --by model; trace --by day; trace --by thread; trace --sql 'select sum(calls) as calls, sum(cost_usd) > 0 as paid from runs'"


def story(number: int, runtime: str = "echo", **fields) -> Story:
    made = Story(f"run-{number}", f"t{number}")
    made.call("q", number * 86_400_000, 5, "a", **{"runtime": runtime, "cost_usd": 0.5, "usage": {"input_tokens": 1}} | fields)
    return made


def changed(line: bytes, **fields) -> bytes:
    """A line of the journal whose span says something else."""
    outcome = orjson.loads(line)
    outcome["records"][0] |= fields
    return orjson.dumps(outcome) + b"\n"


OUTCOME = story(9).journal().splitlines()[1]
UNSOUND = {
    "no time": b'{"v":1,"type":"intent","id":"fx1"}\n',
    "no thread": b'{"v":1,"type":"intent","id":"fx1","key":"k","at":"2026-11-24T06:00:00.000Z","op":"dispatch"}\n',
    "nothing": b'{"v":1,"type":"outcome","id":"fx2","key":"k","at":"2026-11-24T06:00:00.000Z","status":"ok","records":[{"type":"span"}]}\n',
    "duration null": changed(OUTCOME, duration_ms=None),
    "duration negative": changed(OUTCOME, duration_ms=-1),
    "cost a text": changed(OUTCOME, cost_usd="0.5"),
    "cost true": changed(OUTCOME, cost_usd=True),
    "tokens a text": changed(OUTCOME, usage={"input_tokens": "12"}),
    "tokens in parts": changed(OUTCOME, usage={"input_tokens": 1.5}),
    "usage a list": changed(OUTCOME, usage=[1]),
    "status unknown word": changed(OUTCOME, status="great"),
    "a day": changed(OUTCOME, started_at="yesterday"),
    "no texts": changed(OUTCOME, thread=7),
    "a model of numbers": changed(OUTCOME, model=[4]),
    "attempts": changed(OUTCOME, attempts=["x"]),
    "an attempt of no status": changed(OUTCOME, attempts=[{"runtime": "echo"}]),
    "outputs": changed(OUTCOME, output_ids=[["x"]]),
    "a run null": changed(OUTCOME, parent_run_id=None),
}  # fmt: skip


@pytest.mark.parametrize("line", UNSOUND.values(), ids=UNSOUND)
def test_a_line_that_is_no_call_is_left_out_and_told_of(sh, home, line):
    journal = keep(home, story(1).journal() + line + story(2).journal())
    ran = sh(f"trace; {SUMS}; trace --handoffs")
    assert ran.status == 0
    assert ran.err == LEFT_OUT.format(journal) * 6
    assert [run["id"] for run in ran.records[:2]] == ["run-1", "run-2"]
    assert [row["calls"] for row in ran.records[2:-2]] == [2, 1, 1, 1, 1, 2]


# After so much that is no call the rest of the journal is long, and spans of a long one are read many at once.
MANY = b'{"v":1,"type":"note","text":"' + b"a" * 2**21 + b'"}\n'
UNUSUAL = [
    {}, {"duration_ms": 5}, {"duration_ms": 10**30}, {"duration_ms": 0.0005}, {"first_token_ms": None}, {"first_token_ms": 2**60},
    {"cost_usd": 0}, {"cost_usd": 999.9999999}, {"cost_usd": 1000}, {"cost_usd": 2.5e-12}, {"cost_source": "table"},
    {"usage": {}}, {"usage": {"input_tokens": 2**40 - 1}}, {"usage": {"input_tokens": 2**40, "output_tokens": 1.0}},
    {"usage": {"cache_write_tokens": 9, "cache_write_1h_tokens": 4, "reasoning_tokens": None}}, {"usage": {"input_tokens": 3, "new": 1.5}},
    {"stage": 1}, {"stage": "1"}, {"stage": -1}, {"stage": 2**64}, {"group": "a/b"}, {"agent": "\u00e9\u0000"}, {"thread": "\U0001f600\n"},
    {"started_at": "2026-11-24T06:00:00Z"}, {"started_at": "2026-11-24T06:00:00.123456789Z"}, {"at": None}, {"v": 2},
    {"attempts": []}, {"attempts": [{"runtime": "echo", "status": "ok"}]}, {"attempts": [{"runtime": "echo", "status": "error", "code": "\u00e9"}]},
    {"attempts": [{"runtime": "echo", "model": None, "status": "unknown", "wait_ms": 1}, {"runtime": "echo", "status": "ok", "new": [1.0]}]},
    {"losses": [{"what": "a", "action": "moved"}, {"what": "b", "action": "dropped"}]}, {"output_ids": []}, {"output_ids": ["x", "\u00e9"]},
    {"op": "judge", "slot": "evaluator"}, {"status": "error"}, {"status": "unknown"}, {"handed_id": "q"}, {"system": "\u00e9" * 300},
    {"saved_usd": 1, "cached_run_id": "x"}, {"of_another_version": {"a": [1, {"b": None}]}},
]  # fmt: skip


def unusual(number: int) -> bytes:
    """The lines of a call that no other is like."""
    intent, outcome = story(number + 100).journal().splitlines()
    made = orjson.loads(outcome)
    made["records"][0] |= UNUSUAL[number]
    return intent + b"\n" + json.dumps(made, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def test_a_long_journal_is_found_to_say_what_a_short_one_says(sh, home):
    """Whatever a span is, it is read as by itself also among many; and if it is left out, then it alone."""
    lines = story(1).journal() + b"".join([*map(unusual, range(len(UNUSUAL))), *list(UNSOUND.values())[1:]]) + story(2).journal()
    asked = f"{SUMS}; trace --by runtime; trace --sql 'select * from spans order by id'; trace --sql 'select * from attempts order by run_id, number'"
    left_out = f"{len(UNSOUND) - 1} lines of calls do not hold to the envelope; left out\n"
    journal = keep(home, lines)
    few = sh(asked)
    assert (few.status, few.err) == (0, f"trace: {journal}: {left_out}" * 7)
    assert sum(row["calls"] for row in few.records if row.get("key") == "echo") == len(UNUSUAL) + 2
    keep(home, MANY + lines)
    many = sh(asked)
    assert (many.status, many.err, many.out) == (0, few.err, few.out)


def test_an_index_that_is_made_in_parts_says_what_one_in_one_piece_says(sh, home):
    """Beyond 64 MiB there are several processes, where there are processors: calls may begin in one part and end in another."""
    calls = [story(1).journal(), *map(unusual, range(len(UNUSUAL))), story(2).journal()]
    begun, ended = zip(*(call.splitlines(keepends=True) for call in calls), strict=True)
    left_out = list(UNSOUND.values())[1:]
    lines = [*begun[:20], *left_out[:2], *ended[:5], *begun[20:], *ended[5:], *left_out[2:], story(3).journal()[:-9]]
    journal = keep(home, b"".join(line + MANY for line in lines[:-1]) + lines[-1])
    (home / "asked").write_text(f"{SUMS}; trace; trace --by runtime; trace --sql 'select * from spans order by id'; trace --handoffs\n")
    in_parts = sh("sh ~/asked")
    (journal.parent / "index.sqlite").unlink()
    in_one = sh(f"taskset -c {min(os.sched_getaffinity(0))} sh ~/asked")
    assert in_parts.status == 0 and len(in_parts.records) > len(UNUSUAL) and in_one == in_parts


def test_msgspec_is_loaded_for_a_long_journal_alone(sh, home):
    for before, loaded in ((b"", "0\n"), (MANY, "1\n")):
        keep(home, before + story(1).journal())
        assert sh('python -X importtime "$(command -v trace)" 2>&1 >/dev/null | grep -c " msgspec$"; true').out == loaded


def test_of_many_spans_every_field_of_the_envelope_is_known():
    """One that has another field is read by itself, which takes longer."""
    schema = orjson.loads(Path(SCHEMA_PATH).read_bytes())
    for typed, name in ((Span, "span"), (Usage, "usage"), (Attempt, "attempt")):
        wanted = set(schema["$defs"][name]["properties"]) | ({"v", "type", "thread", "id", "at"} if typed is Span else set())
        assert set(typed.__struct_fields__) == wanted
    assert Usage.__struct_fields__[: len(USAGE)] == USAGE  # the columns are taken in this order


def test_an_outcome_that_has_no_records_hides_no_other(sh, home):
    empty = b'{"v":1,"type":"outcome","id":"fx","key":"k","at":"2026-11-24T06:00:00.000Z","status":"ok","records":[],"result":{"records":[{"x":1}]}}\n'
    journal = keep(home, story(1).journal() + empty + story(2).journal())
    ran = sh("trace --by runtime")
    assert (ran.status, ran.err) == (0, LEFT_OUT.format(journal))
    assert [row["calls"] for row in ran.records] == [2]


@pytest.mark.parametrize("before", [b"", MANY], ids=["few", "many"])
def test_two_halves_of_spans_make_no_whole_one(sh, home, before):
    """What one line opens and another closes belongs to neither, nor is one taken for another."""
    head, sound = OUTCOME[: OUTCOME.index(b"{", 1)], story(1).journal() + story(2).journal()
    opens = head + b'{"v":1,"type":"span","x":[{"y":1},{"v":1,"type":"span"}]}\n'
    closes = head + b'{"y":1}]},{"v":1,"type":"span"}]}\n'
    two = story(3).journal().replace(b'},{"v":1,"type":"message"', b'},{"type":"message","v":1')
    journal = keep(home, before + opens + closes + two + sound)
    ran = sh("trace --by runtime; trace --sql 'select id from runs order by id'")
    assert (ran.status, ran.err) == (0, f"trace: {journal}: 2 lines of calls do not hold to the envelope; left out\n" * 2)
    assert [row.get("calls", row.get("id")) for row in ran.records] == [3, "run-1", "run-2", "run-3"]


def test_numbers_beyond_those_of_sqlite_break_no_sum(sh, home, work):
    (work / "bot").write_text('cat >/dev/null; echo \'{"type":"span","cost_usd":1e7,"usage":{"input_tokens":\'$1\'}}\'; '
                              'echo \'{"role":"assistant","content":"hi"}\'')  # fmt: skip
    (work / "m.toml").write_text("".join(
        f'[runtimes.bot{number}]\nkind = "command"\nprotocol = "ndjson"\ncommand = ["sh", "bot", "{tokens}"]\n'
        for number, tokens in enumerate((9223372036854775807, 9223372036854775808, 18446744073709551615))))  # fmt: skip
    for bot in (0, 0, 1, 2):
        assert sh(f"MLLM_CONFIG=m.toml dispatch -q --to bot{bot} --new Hi > s; trace < s | jq -r .cost_usd").out == "10000000\n"
    ran = sh(f"{SUMS}; trace --by runtime; trace --since today --by slot; trace --journal --format otlp | wc -l")
    assert (ran.status, ran.err) == (0, "")
    for row in ran.records[:-1]:
        assert row.get("cost_usd") in (4e7, 2e7, 1e7, None)
    assert ran.records[-1] == 4
    assert sh("sed 's/\"parent_run_id\":\"[^\"]*\"/\"parent_run_id\":\"one\"/g' ~/.local/state/mllm-pipe/journal.jsonl | jq -c 'select(.records).records[]' > all; "
              "trace < all | jq -r .usage.input_tokens").out == "18446744073709552000\n"  # fmt: skip


def test_a_journal_that_was_cut_and_grew_again_is_another(sh, home):
    first, second, third = (story(number).journal() for number in (1, 2, 3))
    journal = keep(home, first + second)
    asked = "trace --sql 'select id from runs order by id'; trace | jq -c '{id}'"
    assert sh(asked).records == [{"id": "run-1"}, {"id": "run-2"}] * 2
    with journal.open("r+b") as file:
        file.truncate(len(first))
        file.seek(0, 2)
        file.write(third + story(4, group="a longer one").journal())
    assert sh(asked).records == [{"id": "run-1"}, {"id": "run-3"}, {"id": "run-4"}] * 2


def test_killed_runs_stand_where_they_were_begun(sh, home):
    unheard = b"".join(Story(f"dead-{number}", "old").journal() + story(number).journal().splitlines(keepends=True)[0].replace(
        b"run-", b"dead-") for number in range(25))  # fmt: skip
    keep(home, unheard + b"".join(story(number).journal() for number in (30, 31, 32)))
    assert [run["id"] for run in sh("trace -n 1").records] == ["run-32"]
    assert [run["id"] for run in sh("trace").records] == [*[f"dead-{number}" for number in range(8, 25)], "run-30", "run-31", "run-32"]


@pytest.mark.parametrize("flags, wanted", [
    ("--status error --runtime echo", "b"), ("--status error --runtime exec", "b"), ("--status unknown --agent x", "c"),
    ("--status unknown --model m", "c"), ("--status unknown --slot response", "c"), ("--thread t2 --runtime echo", "b"),
    ("--until 2026-11-25T12:00:00Z --runtime exec", "bc"), ("--since 2026-11-25T12:00:00Z --runtime exec", ""),
    ("--runtime exec --agent x", ""), ("--group g --runtime exec", "b"), ("--status ok --runtime echo", "a"),
    ("--status no --runtime echo", ""),
])  # fmt: skip
def test_what_is_asked_of_a_run_may_be_true_of_one_call_each(sh, home, work, flags, wanted):
    """The journal, its stream, and its file say the same."""
    a, b, c = Story("a", "t1"), Story("b", "t1"), Story("c", "t3")
    a.call("q", 0, 5, "a", agent="x")
    b.call("q", 86_400_000, 5, "a", group="g")
    b.call("q", 3 * 86_400_000, 5, None, runtime="exec", status="error", thread="t2", group="g")
    c.call("q", 0, 5, "a", agent="x", model="m")
    c.call("q", 2 * 86_400_000, 5, None, runtime="exec", status="unknown")
    stories = (a, b, c)
    keep(home, b"".join(one.journal() for one in stories))
    (work / "s").write_bytes(b"".join(one.stream() for one in stories))
    ran = sh(f"trace {flags} | jq -r .id | tr -d '\\n'; echo; trace --all {flags} < s | jq -r .id | tr -d '\\n'")
    assert "".join(sorted(ran.out.split("\n")[0])) == "".join(sorted(ran.out.split("\n")[1])) == wanted


def test_readers_wait_for_no_reader(sh, home):
    """One reads and reads on: others look at the same time, and see also what came since."""
    journal = keep(home, story(1).journal())
    slow = "with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n"
    ran = sh(f"trace --journal --by model | jq .calls; timeout 600 trace --sql '{slow}' & timeout 300 trace | jq -r .id; "
             "dispatch -q --to echo --new hi >/dev/null; timeout 300 trace --by runtime | jq -c .calls; kill $!; wait")  # fmt: skip
    assert (ran.status, ran.out, ran.err) == (0, "1\nrun-1\n2\n", "")
    with closing(sqlite3.connect(journal.parent / "index.sqlite")) as db:
        assert db.execute("select sum(calls) from chunk").fetchall() in ([(1,)], [(2,)])


def test_what_lies_where_the_index_should_does_not_hide_the_journal(sh, home):
    journal = keep(home, story(1).journal())
    (journal.parent / "index.sqlite").mkdir()
    assert sh("trace --by runtime | jq .calls") == (0, "1\n", "")
    assert sorted(path.name for path in journal.parent.iterdir()) == ["index.sqlite", "index.sqlite.lock", "journal.jsonl"]
    journal.unlink()
    journal.mkdir()
    assert sh("trace") == (74, "", f"trace: {journal} cannot be read: it is no regular file\n")


@pytest.mark.parametrize("place", ["0, 99999999999999", "-1, 10", "0, 'all'", "'x', 5", "0, -1"])
def test_a_place_in_the_journal_that_is_none_is_no_defect(sh, home, place):
    keep(home, story(1).journal())
    ran = sh(f"trace --sql \"select in_journal({place}, 'x', 'content') as content\"")
    assert (ran.status, ran.out, ran.err) in ((0, '{"content":null}\n', ""), (2, "", "trace: --sql: user-defined function raised exception\n"))
