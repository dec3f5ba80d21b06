"""A group that was killed goes on where it was, whichever of its stages died, and pays for nothing twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
from conftest import environment
from loopback import MARKER
from loopback.play import Play
from programs import carrying
from test_recall import whole

STAGES = ("writer", "reviewer", "judge")
PASS, FAIL = (f'{{"criteria":[{{"name":"correctness","score":{score},"reason":"r"}}]}}' for score in (5, 1))


class Desk(Play):
    """A server that knows which stage asks, counts its questions, and does something when it asks for the first time."""

    def __init__(self) -> None:
        super().__init__(self._answer)
        self.asked: Counter[str] = Counter()
        self.first = dict[str, Callable[[], None]]()
        self.verdicts = [PASS]  # of the judge, in turn; the last one again and again

    def _answer(self, number: int, text: str) -> tuple[int, dict[str, str], str]:
        who = "judge" if MARKER in text else "reviewer" if text.endswith("Review it.") else "writer"
        self.asked[who] += 1
        if act := self.first.pop(who, None):
            act()
        if who == "judge":
            return 200, {}, self.verdicts.pop(0) if len(self.verdicts) > 1 else self.verdicts[0]
        return 200, {}, f"answer {self.asked[who]} of the {who}"


    def stages(self, more: str = "") -> list[str]:
        """The three that ask it, as command lines."""
        who = f"openai-chat:m --base-url {self.url} {more}"
        return [f"dispatch --to {who} --as writer", f"dispatch --to {who} --as reviewer 'Review it.'",
                f"judge --by openai-chat:m --base-url {self.url} --rubric correctness"]  # fmt: skip


@pytest.fixture
def desk():
    """A server that three stages ask."""
    with Desk() as server:
        yield server


@pytest.fixture
def group(work: Path):
    """Writes the group g.toml."""

    def write(stages: list[str], more: str = "") -> None:
        (work / "g.toml").write_text(f"stages = {orjson.dumps(stages).decode()}\n{more}")

    return write


def kill(home: Path, stage: int | None) -> None:
    """Kill -9 the process that is this stage of the group in this home; None: the group's own, and see its stages go."""
    until, victims = time.monotonic() + 60, set[int]()
    while len(victims) != 1:  # what is known of one that is about to become another program is missing, or of before
        assert time.monotonic() < until, f"{victims} are not one"
        in_home, stages = set(carrying(f"HOME={home}\0")), set(carrying("MLLM_STAGE="))
        victims = in_home & set(carrying(f"MLLM_STAGE={stage}\0")) if stage else in_home & set(carrying("bin/group\0")) - stages
    os.kill(victims.pop(), signal.SIGKILL)
    if stage is None:
        gone(home)


def gone(home: Path) -> None:
    """Wait until no stage of a group in this home is left."""
    until = time.monotonic() + 60
    while left := set(carrying(f"HOME={home}\0")) & set(carrying("MLLM_STAGE=")):
        assert time.monotonic() < until, f"{left} outlive the group"


def outcomes(home: Path) -> Counter[str]:
    """How often the journal has a whole answer for each key."""
    lines = (home / ".local/state/mllm-pipe/journal.jsonl").read_bytes().splitlines()
    entries = map(orjson.loads, filter(whole, lines))  # who was killed may have cut one
    return Counter(one["key"] for one in entries if one["type"] == "outcome" and one["status"] == "ok")


def run_of(home: Path) -> str:
    """The one run of the journal."""
    lines = (home / ".local/state/mllm-pipe/journal.jsonl").read_bytes().splitlines()
    (run,) = {one["parent_run_id"] for one in map(orjson.loads, lines) if one["type"] == "intent"}
    return run


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("victim", ["the stage", "the group"])
def test_killed_while_a_stage_waits_for_its_answer_it_goes_on_and_asks_the_others_once(sh, home, desk, group, victim, number):
    """What was asked and never heard may be billed: it is asked again when told to, and only then."""
    group(desk.stages())
    stage = STAGES[number - 1]
    desk.first[stage] = lambda: kill(home, number if victim == "the stage" else None)
    ran = sh("group -q g.toml Write. > out")
    assert ran.status == 137
    assert desk.asked == Counter(STAGES[:number])
    run = run_of(home)
    ran = sh(f"group -q g.toml Write. --resume {run} > out")
    assert (ran.status, desk.asked) == (3, Counter(STAGES[:number]))
    assert "this run has asked and not heard the answer, which may be billed; unless another process is still at it" in ran.err
    ran = sh(f"group -q g.toml Write. --resume {run} --retry-unknown | tee out | trace")
    assert (ran.status, ran.err) == (0, "")
    assert desk.asked == Counter([*STAGES, stage])
    assert list(outcomes(home).values()) == [1, 1, 1]
    assert ran.records[0]["id"] == run


GATE = """#!/bin/sh
cat > seen.$$
grep -qs "$1" seen.$$ && [ ! -e "killed $1" ] && { touch "killed $1"; kill -9 $PPID; exit; }
cat seen.$$
"""


@pytest.fixture
def gate(work: Path) -> None:
    """./gate PATTERN is a filter that kills -9 the group the first time that a line of its stream has the pattern."""
    (work / "gate").write_text(GATE)
    (work / "gate").chmod(0o755)


def test_killed_after_each_stage_in_turn_it_asks_each_once(sh, home, desk, group, gate):
    first, second, third = desk.stages()
    group([first, "./gate answer.*writer", second, "./gate answer.*reviewer", third, "./gate verdict"])
    assert sh("group -q g.toml Write. > out").status == 137
    run = run_of(home)
    line = f"group -q g.toml Write. --resume {run}"
    assert [sh(f"{line} > out").status for _ in range(3)] == [137, 137, 0]
    assert desk.asked == Counter(STAGES)
    ran = sh(f"{line} | trace")
    assert (ran.status, desk.asked) == (0, Counter(STAGES))
    assert [(stage["stage"], stage["status"]) for stage in ran.records[0]["stages"]] == [("1", "ok"), ("3", "ok"), ("5", "ok")]


def test_a_loop_that_was_killed_in_a_round_goes_on_in_that_round(sh, home, desk, group, gate):
    first, _, third = desk.stages()
    desk.verdicts = [FAIL, FAIL, PASS]
    group([first, "./gate answer.2.of"], f"until = '{third}'\nmax_rounds = 5\n")
    assert sh("group -q g.toml Write. > out").status == 137
    assert desk.asked == Counter({"writer": 2, "judge": 1})
    ran = sh(f"group -q g.toml Write. --resume {run_of(home)} | tee out | trace")
    assert (ran.status, ran.err) == (0, "")
    assert desk.asked == Counter({"writer": 3, "judge": 3})
    assert [stage["stage"] for stage in ran.records[0]["stages"]] == ["1.1", "1.3", "2.1", "2.3", "3.1", "3.3"]
    said = sh("jq -r 'select(.role == \"assistant\").content' out").out
    assert said == "".join(f"answer {number} of the writer\n" for number in (1, 2, 3))


def test_a_batch_through_a_group_that_is_killed_again_and_again_has_one_paid_answer_a_question(work, home, desk, group, batch):
    """24 threads through three stages, 6 kill -9 at random moments, the same line each time."""
    batch(24)
    kills, jobs, seed = 6, 4, 20261125
    chance = random.Random(seed)
    group(desk.stages(f"-j {jobs}"))
    line = ["group", "-q", "g.toml", "--resume", "nightly", "--retry-unknown"]

    def start() -> subprocess.Popen[bytes]:
        with open(work / "in", "rb") as given, open(work / "out", "wb") as taken:
            return subprocess.Popen(line, stdin=given, stdout=taken, stderr=subprocess.PIPE, cwd=work,
                                    env=environment(home, MLLM_PARENT_RUN_ID="nightly"))  # fmt: skip

    for _ in range(kills):
        with start() as victim:
            until = desk.count + chance.randint(1, 25)
            while desk.count < until and victim.poll() is None:
                os.sched_yield()
            victim.kill()
    gone(home)
    with start() as last:
        assert (last.communicate()[1], last.returncode) == (b"", 0)
    made = [orjson.loads(one) for one in (work / "out").read_bytes().splitlines()]
    for kind, count in (("assistant", 48), ("verdict", 24)):
        assert len([one for one in made if kind in (one.get("role"), one["type"])]) == count, f"seed {seed}"
    assert list(outcomes(home).values()) == [1] * 72
    assert 72 <= desk.count <= 72 + kills * 2 * jobs + kills, f"seed {seed}"
