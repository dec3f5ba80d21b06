"""The main job through real pipes: with the real claude and codex against loopback servers, and offline."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import orjson
import pytest
from conftest import DATA
from loopback import serve

PROGRAMS = os.environ.get("MLLM_TEST_PROGRAMS", "")
FOUND = {name: shutil.which(name, path=PROGRAMS + os.pathsep + os.environ["PATH"]) for name in ("claude", "codex")}
needs_programs = pytest.mark.skipif(not all(FOUND.values()), reason="claude and codex are not installed: .ci/run does it")


@pytest.fixture
def vendors(sh):
    """`sh` with claude and codex installed and pointed at loopback servers; .claude and .codex are what those heard."""
    with serve("anthropic") as anthropic, serve("responses") as responses:
        path = os.pathsep.join({str(Path(found).parent) for found in FOUND.values() if found})

        def run(line: str, **more: str):
            return sh(
                f'export PATH="{path}:$PATH"; {line}',
                ANTHROPIC_BASE_URL=anthropic.url("ok"), ANTHROPIC_API_KEY="sk-ant-canary-1",
                OPENAI_BASE_URL=responses.url("ok") + "/v1", OPENAI_API_KEY="sk-canary-2", **more,
            )  # fmt: skip

        run.claude, run.codex = anthropic, responses
        yield run


@needs_programs
@pytest.mark.parametrize(("writer", "judge"), [("codex", "claude"), ("claude", "codex")])
def test_a_thread_goes_through_one_program_and_is_judged_by_the_other(vendors, work, writer, judge):
    shutil.copy(DATA / "thread.jsonl", work)
    line = f"cat thread.jsonl | dispatch --to {writer} | judge --by {judge} --rubric correctness"
    ran = vendors(f"{line} | tee stream | trace")
    assert (ran.status, ran.err) == (0, "")
    (run,) = ran.records
    first, second = run["stages"]
    assert (first["op"], first["runtime"], second["op"], second["runtime"]) == ("dispatch", writer, "judge", judge)
    assert run["status"] == "ok"
    for name in ("input_tokens", "output_tokens"):
        assert run["usage"][name] == first["usage"][name] + second["usage"][name] > 0
    assert run["cost_usd"] == next(stage["cost_usd"] for stage in run["stages"] if stage["runtime"] == "claude")
    assert run["unpriced"] == 1, "codex names no price"
    spans = [orjson.loads(record) for record in (work / "stream").read_bytes().splitlines() if b'"span"' in record]
    assert {span["parent_run_id"] for span in spans} == {run["id"]}
    assert run["handoffs"][1] | {"wait_ms": 0} == {
        "from": writer, "to": judge, "thread": "demo", "message_id": spans[0]["output_ids"][0], "wait_ms": 0}  # fmt: skip
    assert len(vendors.claude.calls()) == len(vendors.codex.calls()) == 1
    assert "canary" not in ran.out + (work / "stream").read_text()


def said(call: dict) -> list[tuple[str, str]]:
    """(role, text) of the turns that a vendor's server received, of either dialect."""
    body = call["body"]
    turns = []
    for item in body.get("messages", body.get("input", [])):
        content = item.get("content")
        text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content or [])
        turns.append((item.get("role", item.get("type")), text))
    return turns


@needs_programs
def test_the_second_program_gets_every_turn_as_a_turn_and_the_file_each_record_once(vendors, work):
    line = ('thread-append t.jsonl "plan it" | dispatch --to claude | dispatch --to codex "now code it" '
            "| thread-append t.jsonl >/dev/null")  # fmt: skip
    for round_ in (1, 2):
        assert vendors(line) == (0, "", "")
        records = [orjson.loads(record) for record in (work / "t.jsonl").read_bytes().splitlines()]
        assert len({record["id"] for record in records}) == len(records) == 6 * round_
        told = [(role, text) for role, text in said(vendors.codex.calls()[-1]) if role in ("user", "assistant")]
        messages = [(record["role"], record["content"]) for record in records if record["type"] == "message"]
        assert told == messages[:-1], "every turn before the answer, as a turn"
    assert len(vendors.claude.calls()) == len(vendors.codex.calls()) == 2


@needs_programs
def test_four_pipes_at_once_share_nothing(vendors, work):
    line = "dispatch --to claude --new q$i | dispatch --to codex more | thread-append t$i.jsonl >/dev/null"
    assert vendors(f"for i in 1 2 3 4; do {line} & done; wait") == (0, "", "")
    for i in range(1, 5):
        records = [orjson.loads(record) for record in (work / f"t{i}.jsonl").read_bytes().splitlines()]
        assert [record.get("role") for record in records] == ["user", "assistant", None, "user", "assistant", None]


@needs_programs
@pytest.mark.parametrize(
    ("scenario", "status", "code"),
    [("401", 77, "auth"), ("429", 75, "rate_limit"), ("500", 75, None), ("cut", 3, None), ("empty", 3, "empty")],
)
@pytest.mark.parametrize("program", ["claude", "codex"])
def test_a_vendors_failure_is_ours_with_the_right_status(sh, work, program, scenario, status, code):
    dialect, url, key = (
        ("anthropic", "ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY") if program == "claude"
        else ("responses", "OPENAI_BASE_URL", "OPENAI_API_KEY")
    )  # fmt: skip
    with serve(dialect) as server:
        base = server.url(scenario) + ("/v1" if program == "codex" else "")
        path = Path(FOUND[program]).parent
        ran = sh(f'PATH="{path}:$PATH" dispatch --to {program} --new q --timeout 300 | cat; exit ${{PIPESTATUS[0]}}',
                 **{url: base, key: "sk-canary-3"})  # fmt: skip
    assert ran.status == status, ran.err
    assert ran.kinds() == "begin user span error failed end"
    assert code in (None, ran.records[3]["code"])
    assert ran.err.count("\n") == 1 and "canary" not in ran.out + ran.err


def test_offline_the_same_line_runs_on_the_embedded_runtime(sh, work):
    shutil.copy(DATA / "thread.jsonl", work)
    ran = sh("cat thread.jsonl | dispatch --to echo | judge --by echo --rubric correctness -q | trace")
    assert (ran.status, ran.err) == (0, "")
    assert [stage["op"] for stage in ran.records[0]["stages"]] == ["dispatch", "judge"]
