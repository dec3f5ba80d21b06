"""trace: runs, totals, handoffs."""

from __future__ import annotations

from decimal import Decimal

import orjson
from conftest import masked
from hypothesis import given, settings
from hypothesis import strategies as st

from mllm_pipe.runs import Fold

PIPE = "thread-append --new one two | dispatch --to echo --as writer | dispatch --to echo --as reviewer 'Review it.'"


def test_a_pipe_ends_in_one_run_with_its_stages_and_totals(sh):
    (run,) = sh(f"{PIPE} | judge --by echo --rubric correctness -q | trace").records
    assert [(stage["op"], stage.get("agent"), stage["runtime"]) for stage in run["stages"]] == [
        ("dispatch", "writer", "echo"), ("dispatch", "reviewer", "echo"), ("judge", None, "echo")]  # fmt: skip
    assert run["usage"]["input_tokens"] == sum(stage["usage"]["input_tokens"] for stage in run["stages"])
    assert (run["status"], run["cost_usd"], run["unpriced"], run["group"]) == ("ok", 0, 0, None)
    assert [(edge["from"], edge["to"]) for edge in run["handoffs"]] == [
        ("user", "writer (echo)"), ("writer (echo)", "reviewer (echo)"), ("reviewer (echo)", "echo")]  # fmt: skip


def test_from_a_pipe_its_own_run_and_from_a_file_all(sh):
    sh("for i in 1 2 3; do thread-append t q$i | dispatch --to echo | thread-append t; done")
    assert len(sh("trace < t").records) == 3
    assert len(sh("dispatch --to echo more < t | trace").records) == 1
    assert len(sh("dispatch --to echo more < t | trace --all").records) == 4
    assert len(sh("cat t | trace").records) == 3


def test_the_table_is_for_people(sh):
    ran = sh(f"{PIPE} | trace --format table")
    shown = masked(ran.out)
    assert [line.split()[:4] for line in shown.splitlines()] == [
        ["run", "ID", "ok", "TIME"],
        ["stage", "runtime", "model", "status"],
        ["1", "dispatch", "writer", "echo"],
        ["2", "dispatch", "reviewer", "echo"],
        ["total", shown.splitlines()[4].split()[1], *shown.splitlines()[4].split()[2:4]],
        ["handoff", "user", "->", "writer"],
        ["handoff", "writer", "(echo)", "->"],
    ]
    assert orjson.loads(sh(f"{PIPE} | trace --format json").out)[0]["type"] == "run"


def test_tee_copies_the_stream_and_speaks_on_stderr(sh):
    ran = sh(f"{PIPE} | trace --tee --format ndjson | thread-append t | cat")
    assert ran.kinds() == "begin user assistant span user assistant span ok end"
    assert orjson.loads(ran.err)["type"] == "run"


def test_a_failed_thread_is_traced_and_the_status_says_so(sh):
    ran = sh("dispatch --to exec:false --new q 2>/dev/null | trace")
    assert ran.status == 3
    (run,) = ran.records
    assert (run["status"], run["unpriced"], run["cost_usd"]) == ("unknown", 1, None) or run["status"] == "error"
    ran = sh("dispatch --to echo --new q | judge --check contains:zz | trace")
    assert (ran.status, ran.records[0]["status"]) == (1, "no")


def test_a_span_that_does_not_hold_is_left_out_and_told_of(sh, work):
    (work / "t").write_text('{"v":1,"type":"span","thread":"t","id":"s","op":"dispatch"}\n')
    ran = sh("trace < t")
    assert (ran.status, ran.out) == (65, "")
    assert ran.err == "trace: thread t: record s: the record lacks status, started_at, duration_ms; left out\n"


def test_no_stream_is_a_usage_error(sh):
    assert sh("trace").status == 66


costs = st.none() | st.decimals(min_value=0, max_value=10, places=8).map(float)
spans = st.lists(st.tuples(costs, st.integers(0, 10**6), st.floats(0, 1e6), st.integers(0, 3600)), min_size=1, max_size=12)


@settings(max_examples=300, deadline=None)
@given(spans, st.integers(1, 3))
def test_totals_are_the_sums_of_the_spans_each_counted_once(figures, times):
    fold = Fold()
    for number, (cost, tokens, duration, start) in enumerate(figures):
        span = {"v": 1, "type": "span", "thread": "t", "id": str(number), "parent_run_id": "r", "op": "dispatch", "status": "ok",
                "started_at": f"2026-01-01T{start // 60 % 24:02d}:{start % 60:02d}:00.000Z", "duration_ms": duration,
                "usage": {"input_tokens": tokens}, "cost_usd": cost}  # fmt: skip
        for _ in range(times):
            fold.take(span)
    (run,) = fold.runs()
    known = [Decimal(repr(cost)) for cost, *_ in figures if cost is not None]
    assert run["cost_usd"] == (float(sum(known)) if known else None)
    assert run["unpriced"] == len(figures) - len(known)
    assert run["usage"]["input_tokens"] == sum(tokens for _, tokens, *_ in figures)
    assert run["duration_ms"] >= max(duration for _, _, duration, _ in figures) - 1
    assert all(stage["duration_ms"] >= 0 for stage in run["stages"])
