"""Groups of the real claude and codex, against loopback servers: in sequence, routed, and killed."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from programs import carrying
from test_main_job import needs_programs, said, vendors  # noqa: F401

GROUPS = """
[agents.writer]
runtime = "claude"
system = "You write."
[agents.reviewer]
runtime = "codex"

[groups.review]
stages = ["dispatch --to writer", "dispatch --to reviewer 'Review it.'", "judge --by claude --rubric correctness"]

[agents.billing]
description = "refunds, invoices"
runtime = "claude"
[agents.technical]
description = "errors, crashes"
runtime = "codex"
[routers.support]
children = ["billing", "technical"]
default = "technical"
[[routers.support.rules]]
name = "money"
keywords = ["refund"]
target = "billing"

[groups.desk]
stages = ["route support", "dispatch -j 2"]
"""


@pytest.fixture
def fire(vendors, work):  # noqa: F811
    """The shell with both programs, and with the groups above."""
    (work / "mllm.toml").write_text(GROUPS)
    return lambda line, **more: vendors(line, MLLM_CONFIG=str(work / "mllm.toml"), **more)


@needs_programs
def test_claude_writes_codex_reviews_claude_judges_as_one_group(fire, vendors):  # noqa: F811
    ran = fire("group -q --new review 'Write a haiku.' | tee out | trace")
    assert (ran.status, ran.err) == (0, "")
    (run,) = ran.records
    assert (run["group"], run["status"], run["unpriced"]) == ("review", "ok", 1)
    assert [(stage["stage"], stage["op"], stage["runtime"], stage["status"]) for stage in run["stages"]] == [
        ("1", "dispatch", "claude", "ok"), ("2", "dispatch", "codex", "ok"), ("3", "judge", "claude", "ok")]  # fmt: skip
    assert [(edge["from"], edge["to"]) for edge in run["handoffs"]] == [
        ("user", "writer (claude)"), ("writer (claude)", "reviewer (codex)"), ("reviewer (codex)", "claude")]  # fmt: skip
    assert run["duration_ms"] > sum(stage["duration_ms"] for stage in run["stages"][:1]) > 0
    assert run["cost_usd"] == sum(stage["cost_usd"] for stage in run["stages"] if stage["runtime"] == "claude") > 0
    draft, review = run["stages"][0]["output_ids"][0], run["stages"][1]["output_ids"][0]
    assert [edge["message_id"] for edge in run["handoffs"][1:]] == [draft, review]
    assert (len(vendors.claude.calls()), len(vendors.codex.calls())) == (2, 1)
    assert [text for role, text in said(vendors.codex.calls()[0]) if role == "user"][-1].endswith("Review it.")
    edges = fire(f"trace {run['id']} --handoffs").records
    assert [edge["sha256"] for edge in edges[1:]] == [
        fire(f"jq -rj 'select(.id == \"{ident}\").content' out | sha256sum | cut -c -64").out.strip() for ident in (draft, review)]


@needs_programs
def test_a_routed_group_sends_each_thread_to_its_program(fire, vendors, work):  # noqa: F811
    fire("thread-append in --thread a 'I want a refund.' >/dev/null; thread-append in --thread b 'It crashes.' >/dev/null")
    ran = fire("group -q desk < in | tee out | trace")
    assert (ran.status, ran.err) == (0, "")
    (run,) = ran.records
    assert sorted((stage["thread"], stage["stage"], stage["agent"], stage["runtime"]) for stage in run["stages"]) == [
        ("a", "2", "billing", "claude"), ("b", "2", "technical", "codex")]  # fmt: skip
    assert [(one["target"], one["by"]) for one in run["findings"]] == [("billing", "rule:money"), ("technical", "default")]
    assert (len(vendors.claude.calls()), len(vendors.codex.calls())) == (1, 1)
    again = fire("group -q desk < out 2>/dev/null")
    assert (again.status, len(vendors.claude.calls()), len(vendors.codex.calls())) == (2, 1, 1), "there is nothing to answer"


@needs_programs
@pytest.mark.parametrize("stage", ["writer", "reviewer"])
def test_a_group_that_is_killed_takes_its_programs_along_and_pays_for_nothing_twice(fire, vendors, home, stage):  # noqa: F811
    servers = {"writer": vendors.claude, "reviewer": vendors.codex}
    silent = {"writer": f"ANTHROPIC_BASE_URL={vendors.claude.url('hang')}",
              "reviewer": f"OPENAI_BASE_URL={vendors.codex.url('hang')}/v1"}[stage]  # fmt: skip
    until = time.monotonic() + 600

    def kill() -> None:
        while not servers[stage].calls("hang"):
            assert time.monotonic() < until, f"the {stage} asks nothing"
            time.sleep(0.01)
        while len(found := set(carrying(f"HOME={home}\0")) & set(carrying("bin/group\0")) - set(carrying("MLLM_STAGE="))) != 1:
            assert time.monotonic() < until, found  # what it has just started is like it for a moment
            time.sleep(0.01)
        os.kill(found.pop(), signal.SIGKILL)

    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill)
        ran = fire(f"export {silent}; timeout 600 group -q --new review 'Write.' > out", MLLM_PARENT_RUN_ID="evening")
        killed.result()
    assert ran.status == 137
    while left := carrying("MLLM_GROUP=review\0"):
        assert time.monotonic() < until, f"{left} outlive the group"
        time.sleep(0.01)
    ran = fire("group -q --new review 'Write.' --resume evening --retry-unknown | trace")
    assert (ran.status, ran.err, ran.records[0]["id"]) == (0, "", "evening")
    assert {name: len(server.calls("ok")) for name, server in servers.items()} == {"writer": 2, "reviewer": 1}
    assert {name: len(server.calls("hang")) for name, server in servers.items()} == {"writer": 0, "reviewer": 0} | {stage: 1}


@needs_programs
def test_the_gate_of_the_examples_builds_with_them(vendors, work):  # noqa: F811
    (work / "commits.txt").write_text("fix: quotes in fields\n")
    gate = Path(__file__).parent / "examples/gate.mk"
    ran = vendors(f"make -s -f {gate} WRITER=claude REVIEWER=codex JUDGE='--by claude --rubric correctness' > table && cat notes.md")
    assert (ran.status, ran.err, ran.out[:12]) == (0, "", "LOOPBACK-OK ")
    assert (len(vendors.claude.calls()), len(vendors.codex.calls())) == (2, 1)
    assert [line.split()[1:4] for line in (work / "table").read_text().splitlines()[2:5]] == [
        ["dispatch", "writer", "claude"], ["dispatch", "reviewer", "codex"], ["judge", "claude", "claude-opus-4-8"]]  # fmt: skip
