"""Nothing is paid for twice: --resume takes the answers of a run from the journal, --cache those of all runs."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess

import orjson
import pytest
from conftest import environment
from loopback import serve
from loopback.play import Play

RUN = {"MLLM_PARENT_RUN_ID": "nightly"}


TO_FILE = " > out; cat out"


def echoed(number: int, text: str) -> tuple[int, dict[str, str], str]:
    return 200, {}, text.upper()


def entries(home, kind: str, *, killed: bool = False) -> list[dict]:
    """The lines of the journal that are of a kind; killed: its writers were, so some may have been cut."""
    lines = (home / ".local/state/mllm-pipe/journal.jsonl").read_bytes().splitlines()
    return [entry for entry in map(orjson.loads, (line for line in lines if not killed or whole(line))) if entry["type"] == kind]


def whole(line: bytes) -> bool:
    try:
        return bool(orjson.loads(line))
    except orjson.JSONDecodeError:
        return False


def answers(ran) -> dict[str, str]:
    return {record["thread"]: record["content"] for record in ran.records if record.get("role") == "assistant"}


def test_a_run_that_is_resumed_asks_for_the_rest_alone(sh, home, batch):
    batch(8)
    with Play(lambda number, text: (503, {}, "") if number > 5 else (200, {}, text)) as server:
        line = f"dispatch --max-retries 0 --to openai-chat:m --base-url {server.url} --resume nightly < in"
        ran = sh(line, **RUN)
        assert (ran.status, server.count) == (75, 8)
        first = answers(ran)
        server.play = echoed
        ran = sh(line, **RUN)
        assert (ran.status, ran.err, server.count) == (0, "", 11)
        assert answers(ran) == first | {f"t{n}": f"QUESTION {n}" for n in (5, 6, 7)}
        assert sh(f"{line} | cut -d, -f 2- | md5sum", **RUN).status == 0 and server.count == 11
    assert {span["parent_run_id"] for span in ran.records if span["type"] == "span"} == {"nightly"}


def test_what_is_resumed_is_the_record_that_was_made_then(sh, home, work):
    """Not a new one with another id: whoever has the first output already appends nothing twice."""
    line = "dispatch --to echo --resume nightly < t | thread-append f"
    (work / "t").write_text('{"v":1,"type":"message","thread":"a","id":"m","role":"user","content":"q"}\n')
    assert sh(f"{line} > /dev/null; cp f g; {line} > /dev/null; cmp f g", **RUN) == (0, "", "")


def test_a_run_is_found_by_the_beginning_of_its_id_and_goes_on_as_the_same_run(sh, home, batch):
    batch(3)
    with Play(echoed) as server:
        line = f"dispatch --to openai-chat:m --base-url {server.url}"
        assert sh(f"{line} < in > out").status == 0
        run = entries(home, "outcome")[0]["records"][0]["parent_run_id"]
        ran = sh(f"{line} --resume {run[:30]} < in")
        assert (ran.status, server.count) == (0, 3)
        handed = sh(f"{line} --resume {run} < in | cat").records
        assert {record["parent_run_id"] for record in handed if record["type"] == "handoff"} == {run}
        assert sh(f"{line} --resume {run} x < in > out").status == 0 and server.count == 6
        assert {intent["parent_run_id"] for intent in entries(home, "intent")} == {run}
        sh(f"{line} --new other > /dev/null")
        ran = sh(f"{line} --resume 0 < in")
        assert ran.status == 2 and ran.err.startswith("dispatch: --resume 0: 2 runs begin like that: ")


@pytest.mark.parametrize(("flags", "status", "why"), [
    ("--resume nosuch", 66, "--resume nosuch: the journal has no such run; trace --journal lists them"),
    ("--resume a --cache", 2, "--resume takes the answers of one run, --cache those of all; say one of them"),
    ("--cache-ttl soon", 2, "--cache-ttl soon: no duration; say 90s, 15m, 12h or 7d"),
])  # fmt: skip
def test_what_cannot_be_recalled_is_told_before_anything_is_sent(sh, flags, status, why):
    assert sh(f"dispatch {flags} --to echo --new q") == (status, "", f"dispatch: {why}\n")


@pytest.mark.parametrize("mode", ["off", "spans"])
def test_a_journal_without_answers_is_told(sh, mode):
    ran = sh("dispatch --cache --to echo --new q", MLLM_JOURNAL=mode)
    assert (ran.status, ran.out) == (2, "") and f"MLLM_JOURNAL={mode} keeps no answers" in ran.err


def test_what_was_asked_and_never_heard_is_not_asked_again_by_itself(sh, home, batch):
    """A server that takes the question and says nothing may have billed it."""
    batch(1)
    with serve("chat") as server:
        url = server.url("hang") + "/v1"
        line = f"dispatch --first-token 2 --to openai-chat:m --base-url {url} --resume nightly"
        assert sh(f"{line} < in > out", **RUN).status == 124
        ran = sh(f"{line} < in", **RUN)
        assert ran.status == 3 and server.came(1) == 1
        assert ran.err == ("dispatch: thread t0: openai-chat: this run has asked and not heard the answer, which may be "
                           "billed; unless another process is still at it, --retry-unknown asks again\n")  # fmt: skip
        error = next(record for record in ran.records if record["type"] == "error")
        assert (error["code"], error["billed"]) == ("unheard", "unknown")
        assert sh(f"{line} --retry-unknown --max-retries 0 < in > out", **RUN).status == 124 and server.came(2) == 2


def test_equal_questions_of_a_run_have_an_answer_each(sh, home, work):
    """A thousand times `name a colour` is a thousand answers, in a resumed run the same thousand."""
    lines = [f'{{"v":1,"type":"message","thread":"t{n}","id":"m","role":"user","content":"a colour"}}\n' for n in range(6)]
    (work / "in").write_text("".join(lines))
    with Play(lambda number, text: (200, {}, f"colour {number}")) as server:
        line = f"dispatch --to openai-chat:m --base-url {server.url} --resume nightly < in"
        said = answers(sh(line, **RUN))
        assert len(set(said.values())) == 6 and server.count == 6
        assert answers(sh(line, **RUN)) == said and server.count == 6


def test_a_resumed_pipeline_asks_only_for_what_it_had_not_come_to(sh, home, batch):
    batch(4)
    with Play(lambda number, text: (503, {}, "") if "again" in text else (200, {}, text)) as server:
        stage = f"dispatch --max-retries 0 --to openai-chat:m --base-url {server.url} --resume nightly"
        line = f"{stage} --as writer < in | {stage} --as reviewer again > out"
        assert sh(line, **RUN).status == 75 and server.count == 8
        server.play = echoed
        assert sh(line, **RUN).status == 0 and server.count == 12
        assert sh(line, **RUN).status == 0 and server.count == 12


def test_the_cache_answers_what_any_run_has_asked_and_it_costs_nothing(sh, home):
    with Play(echoed) as server:
        line = f"dispatch --to openai-chat:m --base-url {server.url} --cache --new q"
        first = sh(line + TO_FILE).records
        again = sh(line + TO_FILE).records
        assert server.count == 1
        span = again[-1]
        assert (span["cost_usd"], span["cost_source"], span["usage"]) == (0.0, "cache", None)
        assert span["cached_run_id"] == first[-1]["id"] and span["parent_run_id"] != first[-1]["parent_run_id"]
        assert again[1]["content"] == first[1]["content"] and again[1]["id"] != first[1]["id"]
        assert sh(line.replace("--new q", "--new other")).status == 0 and server.count == 2
        assert sh(line + " -o temperature 0.1").status == 0 and server.count == 3
        assert sh(line.replace("m --base", "n --base")).status == 0 and server.count == 4
        assert sh(line.replace("--cache", "")).status == 0 and server.count == 5
    journalled = entries(home, "outcome")
    assert [outcome["status"] for outcome in journalled].count("taken") == 1


def test_the_cache_keeps_no_failure_and_nothing_older_than_it_should(sh, home):
    with Play(lambda number, text: (400, {}, "") if number == 1 else (200, {}, "yes")) as server:
        line = f"dispatch --to openai-chat:m --base-url {server.url} --cache --new q"
        assert [sh(line).status for _ in range(3)] == [3, 0, 0] and server.count == 2
        journal = home / ".local/state/mllm-pipe/journal.jsonl"
        journal.write_text(re.sub(r'"at":"\d{4}-\d\d-\d\d', '"at":"2021-02-03', journal.read_text()))
        assert sh(line.replace("--cache", "--cache-ttl 7d")).status == 0 and server.count == 3
        assert sh(line.replace("--cache", "--cache-ttl 7d")).status == 0 and server.count == 3
        assert sh(line).status == 0 and server.count == 3


def test_what_was_cut_short_is_not_taken_from_the_cache(sh, home):
    with serve("chat") as server:
        line = f"dispatch --to openai-chat:m --base-url {server.url('length')}/v1 --cache --new q > out"
        assert [sh(line).status, sh(line).status] == [5, 5] and len(server.calls()) == 2


def test_a_judge_pays_once_for_a_verdict(sh, home):
    said = '{"criteria":[{"name":"correctness","score":5,"reason":"r"}]}'
    with Play(lambda number, text: (200, {}, said)) as server:
        judge = f"judge --by openai-chat:m --base-url {server.url} --rubric correctness --cache"
        line = f"dispatch --to echo --new q > t; {judge} < t"
        first, again = sh(line), sh(f"{judge} < t")
        assert (first.status, again.status, server.count) == (0, 0, 1), first.err
        verdicts = [next(r for r in ran.records if r["type"] == "verdict") for ran in (first, again)]
        assert verdicts[0]["criteria"] == verdicts[1]["criteria"]


def test_a_batch_that_is_killed_again_and_again_pays_for_nothing_twice(home, work, batch):
    """500 threads, 20 random kill -9, the same line each time."""
    batch(500)
    kills, jobs, seed = 20, 8, 20261124
    chance = random.Random(seed)
    with Play(echoed) as server:
        line = ["dispatch", "-j", str(jobs), "--to", "openai-chat:m", "--base-url", server.url, "--resume", "nightly",
                "--retry-unknown"]  # fmt: skip

        def start() -> subprocess.Popen:
            with open(work / "in", "rb") as given, open(work / "out", "wb") as taken:
                return subprocess.Popen(line, stdin=given, stdout=taken, cwd=work, env=environment(home, **RUN))

        for _ in range(kills):
            victim, until = start(), server.count + chance.randint(1, 45)
            while server.count < until and victim.poll() is None and server.count < 500:
                os.sched_yield()
            victim.send_signal(signal.SIGKILL)
            victim.wait()
        assert start().wait() == 0
        made = [orjson.loads(one) for one in (work / "out").read_bytes().splitlines()]
    said = {record["thread"]: record["content"] for record in made if record.get("role") == "assistant"}
    assert said == {f"t{n}": f"QUESTION {n}" for n in range(500)}, f"seed {seed}"
    assert 500 <= server.count <= 500 + kills * jobs, f"seed {seed}"
    asked, heard = entries(home, "intent", killed=True), entries(home, "outcome", killed=True)
    assert server.count <= len(asked) <= server.count + kills * jobs, "an intent stands before each call"
    assert len([one for one in heard if one["status"] == "ok"]) == len({one["key"] for one in heard}) == 500


def test_two_that_resume_a_run_at_once_pay_for_each_answer_once(sh, home, batch):
    """Who comes second to a question takes the answer, or says that it is not known yet; it does not ask."""
    batch(30)
    with Play(echoed) as server:
        line = f"dispatch -j 4 --to openai-chat:m --base-url {server.url} --resume nightly < in"
        sh(f"({line} > one) & ({line} > two); wait", **RUN)
        assert server.count == 30
        ran = sh(line, **RUN)
        assert (ran.status, ran.err, server.count) == (0, "", 30)
    assert answers(ran) == {f"t{n}": f"QUESTION {n}" for n in range(30)}


@pytest.mark.parametrize("jobs", [1, 4])
def test_where_the_journal_is_full_nothing_more_is_asked_and_no_answer_is_lost(sh, home, work, batch, jobs):
    """An intent is short and an answer long: the disk may have room for the one alone."""
    batch(40)
    with Play(lambda number, text: (200, {}, text + "!" * 900)) as server:
        line = f"dispatch -j {jobs} --to openai-chat:m --base-url {server.url} < in"
        ran = sh(f"(ulimit -f 12; exec {line}) | cat > out; exit ${{PIPESTATUS[0]}}")
        assert ran.status == 74 and "the answer goes on to stdout all the same" in ran.err
        assert 0 < server.count < 40
    got = {record["thread"] for record in map(orjson.loads, (work / "out").read_bytes().splitlines())
           if record.get("role") == "assistant"}  # fmt: skip
    kept = {outcome["records"][0]["thread"] for outcome in entries(home, "outcome") if outcome["status"] == "ok"}
    assert len(got | kept) >= server.count - (jobs - 1), "in flight when it ended: nowhere to write it down"
    assert len(got - kept) <= jobs


def test_an_answer_of_another_place_is_another_answer(sh, work):
    """Of another server by a variable, and of a program that worked elsewhere or was allowed more."""
    (work / "other").mkdir()
    with Play(lambda number, text: (200, {}, "one")) as one, Play(lambda number, text: (200, {}, "two")) as two:
        line = "dispatch --cache --to openai-chat/m --new q --text"
        said = [sh(line, OPENAI_BASE_URL=server.url, OPENAI_API_KEY="k").out for server in (one, two, one, two)]
        assert said == ["one\n", "two\n", "one\n", "two\n"] and (one.count, two.count) == (1, 1)
    line = "dispatch --cache --to 'exec:sh -c \"echo x >> $PWD/asked; echo a\"' --new q --text"
    assert [sh(f"{line} {more}").status for more in ("", "--cwd other", "--allow read", "--cwd other", "")] == [0] * 5
    assert (work / "asked").read_text() == "x\n" * 3


def test_what_another_process_waits_for_is_not_asked_again(sh, home, work):
    """Nobody has heard the answer, but it may come; when who waits for it is killed, it can be asked for again."""
    with serve("chat") as server:
        line = f"dispatch --timeout 600 --to openai-chat:m --base-url {server.url('hang')}/v1 --resume nightly --new q"
        again = f"{line.replace('600', '2')} --retry-unknown --max-retries 0 > out"
        with subprocess.Popen(line.split(), stdout=subprocess.DEVNULL, cwd=work, env=environment(home, **RUN)) as first:
            assert server.came(1) == 1
            ran = sh(again, **RUN)
            first.kill()
        assert (ran.status, sh(again, **RUN).status, server.came(2)) == (3, 124, 2)
    assert "this run has asked and not heard the answer, which may be billed" in ran.err


def test_a_line_of_the_journal_that_was_torn_is_no_answer(sh, home):
    """A writer was killed in the middle of an outcome, and another came after it."""
    line = "dispatch -q --to 'exec:sh -c \"echo x >> asked; wc -l < asked\"' --text --new --resume nightly q"
    assert sh(line, **RUN) == (0, "1\n", "")
    torn = "truncate -s -30 ~/.local/state/mllm-pipe/journal.jsonl; dispatch --to echo --new other > /dev/null 2>&1; "
    ran = sh(torn + line, **RUN)
    assert (ran.status, ran.out) == (3, "") and "this run has asked and not heard the answer" in ran.err
    assert sh(f"{line} --retry-unknown; {line}", **RUN) == (0, "2\n2\n", "")


@pytest.mark.parametrize(("made", "why"), [("mkdir", "it is no regular file"), ("mkfifo", "it is no regular file"),
                                           ("ln -s /dev/full", "it is no regular file")])  # fmt: skip
def test_a_journal_that_cannot_be_read_is_told(sh, home, made, why):
    path = home / ".local/state/mllm-pipe/journal.jsonl"
    path.parent.mkdir(parents=True)
    ran = sh(f"{made} '{path}'; dispatch --to echo --new q --text --resume nightly", **RUN)
    assert ran == (74, "", f"dispatch: {path} cannot be read: {why}\n")
