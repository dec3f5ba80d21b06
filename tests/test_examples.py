"""Each recipe of tests/examples does what its head says it does, offline."""

from __future__ import annotations

import re
from pathlib import Path

import orjson
import pytest
from conftest import masked
from loopback.play import Play
from test_trace_tree import told

EXAMPLES = Path(__file__).parent / "examples"
WRITER = "grep -q APPROVED && echo second draft || echo first draft"
REVIEWER = "grep -q second && echo APPROVED. || echo No."
TREE = {"COLUMNS": "100"}


@pytest.fixture
def desk(work: Path) -> None:
    """./writer learns from what it is told, ./reviewer approves of its second draft."""
    for name, line in {"writer": WRITER, "reviewer": REVIEWER}.items():
        (work / name).write_text(f"#!/bin/sh\n{line}\n")
        (work / name).chmod(0o755)


def test_gate_mk_builds_what_has_passed_and_nothing_else(sh, work):
    (work / "commits.txt").write_text("fix: quotes in fields\nchore: newer linters\nfix: an empty last line\n")
    make = f"make -f {EXAMPLES}/gate.mk"
    ran = sh(make)
    assert (ran.status, ran.err) == (0, "")
    assert (work / "notes.md").read_text() == "- Mended: quotes in fields.\n- Mended: an empty last line.\n"
    assert [line.split()[:3] for line in ran.out.splitlines()[2:4]] == [["1", "dispatch", "writer"], ["2", "dispatch", "reviewer"]]
    assert sh(make) == (0, "make: 'notes.md' is up to date.\n", "")


@pytest.mark.parametrize("variable, status, kept", [
    ("JUDGE='--check contains:nothing'", 1, "user assistant span user assistant span verdict"),
    ("WRITER=exec:false", 3, "user span error"),
])  # fmt: skip
def test_gate_mk_fails_the_build_and_keeps_what_was_said(sh, work, variable, status, kept):
    (work / "commits.txt").write_text("fix: quotes in fields\n")
    ran = sh(f"make -f {EXAMPLES}/gate.mk {variable} 2>&1 | tail -n 1; test ! -e notes.md")
    assert (ran.status, re.sub(r"\[.*\]", "", ran.out)) == (0, f"make: ***  Error {status}\n")
    assert sh("jq -r '.role // .type' notes.jsonl | xargs") == (0, f"{kept}\n", "")
    assert sh(f"make -s -f {EXAMPLES}/gate.mk >/dev/null && sort -u notes.md | head -n 1") == (0, "- Mended: quotes in fields.\n", "")
    assert sh("jq -r .thread notes.jsonl | sort -u | wc -l").out.strip() == "1", "a further build is a further turn"


def test_nightly_sh_asks_each_question_once_a_night_and_says_what_it_took(sh, work):
    (work / "questions.txt").write_text("Where is Oslo?\nWhere is Lima?\nWhere is Oslo?\n")
    nightly = f"NIGHT=2026-11-25 MOST=1 MLLM_CONFIG={EXAMPLES}/nightly.toml sh {EXAMPLES}/nightly.sh"
    assert sh(f"{nightly} && {nightly}") == (0, "", "")
    records = list(map(orjson.loads, (work / "2026-11-25.jsonl").read_bytes().splitlines()))
    said = [record["content"] for record in records if record.get("role") == "assistant"]
    assert said == ["Where is Oslo?", "Where is Lima?"]
    spans = [record for record in records if record["type"] == "span"]
    assert {(span["parent_run_id"], span["group"], span["stage"], span["agent"]) for span in spans} == {
        ("nightly-2026-11-25", "nightly", "1", "clerk")}  # fmt: skip
    assert (work / "2026-11-25.csv").read_text().splitlines()[1].startswith("clerk,2,0,")
    assert sorted(path.name for path in work.iterdir()) == ["2026-11-25.csv", "2026-11-25.jsonl", "questions.txt"]


def test_nightly_sh_is_started_again_when_the_server_is_back_and_pays_for_the_rest_alone(sh, work):
    (work / "questions.txt").write_text("".join(f"Question {number}?\n" for number in range(6)))
    with Play(lambda number, text: (503, {}, "") if "3" in text or "5" in text else (200, {}, text)) as server:
        (work / "n.toml").write_text((EXAMPLES / "nightly.toml").read_text()
                                     .replace('"echo:small"', f'"api"\n[runtimes.api]\nkind = "openai-chat"\nmodel = "m"\nbase_url = "{server.url}"\n[agents.other]\nruntime = "api"')
                                     .replace("--skip-answered", "--skip-answered --max-retries 0"))  # fmt: skip
        nightly = f"NIGHT=1 MLLM_CONFIG=n.toml sh {EXAMPLES}/nightly.sh"
        ran = sh(nightly)
        assert (ran.status, server.count) == (75, 6), ran.err
        server.play = lambda number, text: (200, {}, "x" * 99 if "3" in text else text)
        assert (sh(nightly).status, server.count) == (1, 8)


def test_review_loop_sh_goes_round_until_it_passes(sh, desk):
    ran = sh(f'sh {EXAMPLES}/review-loop.sh haiku.jsonl "Write a haiku." && trace --format tree < haiku.jsonl', **TREE)
    assert (ran.status, ran.err) == (0, "")
    assert re.sub("review-[0-9T-]+", "RUN", told(ran.out)) == """\
run RUN  ok  TIME  T  unknown
├─ dispatch writer  exec  ok  BAR  T  unknown
├─ dispatch reviewer  exec  ok  BAR  T  unknown
├─ verdict  fail 0.00 by check
├─ dispatch writer  exec  ok  BAR  T  unknown
├─ dispatch reviewer  exec  ok  BAR  T  unknown
└─ verdict  pass 1.00 by check
"""
    told_it = sh("jq -r 'select(.author.agent == \"check\" and .role == \"user\").content' haiku.jsonl").out
    assert masked(re.sub("[0-9a-f]{24}", "MARK", told_it)) == (
        "The answer did not pass. What was found stands between the marks; it is about the answer, and asks for nothing else:\n"
        "<<<MARK from the judge\n- regex:APPROVED: nothing matches\nMARK>>>\nAnswer again, whole, with this mended.\n")  # fmt: skip


@pytest.mark.parametrize("variable, status", [("ROUNDS=1", 1), ("WRITER=exec:false", 3), ("JUDGE='--check nosuch:x'", 2)])
def test_review_loop_sh_says_how_it_ended(sh, desk, variable, status):
    assert sh(f'{variable} sh {EXAMPLES}/review-loop.sh t.jsonl "Write." 2>/dev/null').status == status


def test_review_loop_toml_is_the_same_as_a_group(sh, desk):
    ran = sh(f'group -q {EXAMPLES}/review-loop.toml "Write a haiku." | thread-append haiku.jsonl | trace --format tree', **TREE)
    assert (ran.status, ran.err) == (0, "")
    assert told(ran.out) == """\
run ID  ok  group review-loop  TIME  T  unknown
├─ 1.1: dispatch writer  exec  ok  BAR  T  unknown
├─ 1.2: dispatch reviewer  exec  ok  BAR  T  unknown
├─ verdict  fail 0.00 by check
├─ 2.1: dispatch writer  exec  ok  BAR  T  unknown
├─ 2.2: dispatch reviewer  exec  ok  BAR  T  unknown
└─ verdict  pass 1.00 by check
"""
    printed = sh(f'sh -c "$(group --print {EXAMPLES}/review-loop.toml Write.)" 2>/dev/null | jq -r \'select(.role).content\'')
    assert (printed.status, printed.out.splitlines()[-1]) == (0, "APPROVED.")


def test_support_sh_sends_each_question_to_whom_it_is_for_and_there_it_stays(sh, work):
    questions = ["acme\tI shall leave!", "home\tWhere is my invoice?", "home\tYou are no good."]
    (work / "inbox.tsv").write_text("".join(f"{line}\n" for line in questions))
    here = {"MLLM_CONFIG": f"{EXAMPLES}/support.toml"}
    assert sh(f"sh {EXAMPLES}/support.sh < inbox.tsv", **here) == (
        0, "manager\trule:gold\tmeta.tenant is \"acme\", keyword leave\nbilling\trule:money\tkeyword invoice\nmanager\tmodel\tit is a complaint\n", "")  # fmt: skip
    (run,) = sh("trace --group desk").records
    assert sorted((stage["stage"], stage["slot"], stage["agent"]) for stage in run["stages"]) == [
        ("1", "router", "support"), ("2", "response", "billing"), ("2", "response", "manager"), ("2", "response", "manager")]  # fmt: skip
    asked = sh("jq -r 'select(.target == \"billing\").thread' desk.jsonl").out.strip()
    ran = sh(f"thread-append desk.jsonl --thread {asked} 'It crashes.' | group -q desk | jq -r 'select(.role == \"assistant\").author.agent'", **here)
    assert ran == (0, "billing\nbilling\n", "")
    (work / "inbox.tsv").write_text("home\tHello.\n")
    broken = (EXAMPLES / "support.toml").read_text().replace("exec:echo I will", "exec:false I will")
    (work / "broken.toml").write_text(broken)
    assert sh(f"sh {EXAMPLES}/support.sh < inbox.tsv 2>/dev/null", MLLM_CONFIG="broken.toml").status == 3


def test_every_recipe_says_how_it_is_run_and_stands_in_the_list() -> None:
    listed = (EXAMPLES / "README.md").read_text()
    for path in EXAMPLES.iterdir():
        if path.suffix != ".md":
            assert f"`{path.name}`" in listed, path.name
            assert path.suffix == ".toml" or path.name == "demo.sh" or re.search(r"(?m)^#     .*", path.read_text()), path.name


HOUSE = Path(__file__).parent.parent / "Makefile"


@pytest.mark.parametrize(("before", "line", "ran"), [
    ("", "", "python3 -m venv .venv"),
    ("$NEW", "", ".venv/bin/python -m venv .venv"),  # not the python3 of the PATH, which is another one
    ("$NEW; touch .venv/ready", "", ""),
    ("$NEW; touch .venv/ready", "PYTHON=$PWD/.venv/bin/python", ""),
    ("$NEW; touch .venv/ready", "PYTHON=python3", "python3 -m venv --clear .venv"),
    ("$NEW; touch .venv/ready; export PYTHON=python3", "", "python3 -m venv --clear .venv"),
    ("$NEW; ln -sf /nowhere .venv/bin/python", "", "python3 -m venv .venv"),
])  # fmt: skip
def test_make_keeps_the_python_of_the_venv_unless_another_is_said(sh, work, before, line, ran):
    (work / "python3").write_text("#!/bin/sh\necho /other 3.99\n")
    (work / "python3").chmod(0o755)
    made = before.replace("$NEW", "python -m venv --without-pip .venv")
    found = sh(f"{made or ':'}; cp {HOUSE} .; touch -d yesterday pyproject.toml; PATH=$PWD:$PATH make -n setup {line} | grep -o '.* -m venv .*' | tr -s ' '")
    assert (found.out.replace(str(work), ".").strip(), found.err) == (ran, "")
