"""trace: a run has one status, one group and one name, however it is asked for; and what would be passed over is refused."""

from __future__ import annotations

import time

import pytest
from conftest import at_noon
from traces import BEGAN, Story, keep

VOTE = r"""#!/bin/sh
cat >/dev/null; echo '{"criteria":[{"name":"correctness","reason":"r","score":'$1'}]}'
"""
EVERYWHERE = """trace | jq -r .status; trace --sql 'select status from runs' | jq -r .status; trace --thread t | jq -r .status"""


def panel(work) -> None:
    (work / "vote").write_text(VOTE)
    (work / "vote").chmod(0o755)


def test_a_verdict_that_is_one_part_of_another_says_no_nowhere(sh, work):
    panel(work)
    judges = " ".join(f"--by 'exec:./vote {score}'" for score in (5, 5, 1))
    ran = sh(f"thread-append t q | dispatch -q --to echo | judge {judges} --rubric correctness 2>&1 | thread-append t >/dev/null; {EVERYWHERE}; "
             "trace --journal --status no; trace --export --redact < t | trace --all | jq -r .status; "
             "trace --sql 'select part, pass from verdicts order by pass'")  # fmt: skip
    assert (ran.status, ran.out.splitlines()[:4], ran.err) == (0, ["ok"] * 4, "")
    assert ran.out.splitlines()[4:] == ['{"part":"panel","pass":0}', *['{"part":"panel","pass":1}'] * 2]


def test_a_run_without_a_route_says_no_everywhere(sh, work):
    (work / "m.toml").write_text("[agents]\na = { description = 'x', runtime = 'echo' }\nb = { description = 'y', runtime = 'echo' }\n"
                                 "[routers.r]\nchildren = ['a', 'b']\nmodels = { router = 'exec:cat unsure' }\n")  # fmt: skip
    (work / "unsure").write_text('{"target":"a","confidence":0.1,"reason":"who knows"}')
    ran = sh(f"thread-append t q | MLLM_CONFIG=m.toml route r 2>/dev/null | thread-append t >/dev/null; echo $?; {EVERYWHERE}; "
             "trace --journal --status no | jq -r .status; trace --journal --status ok | jq -r .status")  # fmt: skip
    assert ran.out == "1\nno\nno\nno\nno\n"


def test_a_cut_answer_has_the_status_of_its_call_everywhere(sh):
    ran = sh(f"thread-append t q | dispatch -q --to 'exec:sh -c \"printf hal; sleep 9\"' --timeout 1 2>/dev/null | thread-append t >/dev/null; {EVERYWHERE}; "
             "trace --all < t | jq -r '.status, .stages[0].status'; trace --journal --status error | wc -l")  # fmt: skip
    assert ran.out.split() == ["unknown"] * 5 + ["0"]


def test_all_that_was_compared_is_a_handoff_in_sql_too(sh, home):
    story = Story()
    question = story.ask("q")
    one, other = (story.call(question, 0, 5, text, agent=text) for text in ("a", "b"))
    verdict = story.verdict(20, [one, other], True, preferred=one)
    story.call(other, 10, 5, op="judge", slot="evaluator", output_ids=[verdict])
    keep(home, story.journal())
    ran = sh("trace --handoffs | jq -c 'select(.to_agent == null) | [.from_agent, .message_id]'; "
             "trace --sql \"select from_agent, message_id from handoffs where to_run_id like '%7' or to_agent is null\" | jq -c '[.[]]'")  # fmt: skip
    assert ran.out == f'["a","{one}"]\n["b","{other}"]\n' * 2


@pytest.mark.parametrize("flags, why", [
    ("--journal --thread nosuch --prune 90d", "--prune is not narrowed by --thread"),
    ("--sql 'select 1' --since today -n 3", "--sql is not narrowed by --since, -n; say where ... in it"),
    ("run-1 --sql 'select 1'", "--sql is not narrowed by RUN; say where ... in it"),
    ("-n 1 --by runtime", "-n is how many runs of the journal are listed; it goes with no --by, RUN, FILE or stream"),
    ("-n 1 < s", "-n is how many runs of the journal are listed; it goes with no --by, RUN, FILE or stream"),
    ("--sql 'select 1' < s", "--sql asks the journal, and there is a stream on stdin; say --journal, or < /dev/null"),
    ("--prune 90d < s", "--prune asks the journal, and there is a stream on stdin; say --journal, or < /dev/null"),
])  # fmt: skip
def test_what_would_be_passed_over_is_refused(sh, home, work, flags, why):
    story = Story()
    story.call(story.ask("q"), 0, 5)
    journal = keep(home, story.journal())
    (work / "s").write_bytes(story.stream())
    before = journal.read_bytes()
    assert sh(f"trace {flags}") == (2, "", f"trace: {why}\n")
    assert journal.read_bytes() == before
    assert sh(": | trace --sql 'select 1'").status == 2
    assert sh("trace --journal --sql 'select 1 as one' < s") == (0, '{"one":1}\n', "")


def test_the_sums_of_a_run_are_those_of_one(sh, home):
    stories = [Story(f"run-{number}") for number in (1, 2)]
    for story in stories:
        story.call("q", 0, 5)
    keep(home, b"".join(story.journal() for story in stories))
    assert sh("trace run --by runtime") == (2, "", "trace: run run: 2 runs begin like that: run-1, run-2\n")
    assert sh("trace nope --by runtime") == (66, "", "trace: run nope: there is none of that name; trace --journal lists the newest\n")
    assert [row["calls"] for row in sh("trace run-2 --by runtime").records] == [1]


def test_no_column_is_lost_for_its_name(sh, home):
    story = Story()
    story.call("q", 0, 5)
    keep(home, story.journal())
    assert sh("trace --sql 'select s.id, r.id, 1 as id, s.thread from spans s, runs r'") == (
        0, '{"id":"run-1-span-2","id:1":"run-1","id:2":1,"thread":"t"}\n', "")  # fmt: skip


def test_a_table_is_for_people_in_a_pipe_too(sh, work):
    ran = sh(r"thread-append --new q | dispatch -q --to echo --as $'ev\x1b[31mil' > s; trace --format table < s; trace --format tree < s; "
             "trace --format table --handoffs < s; trace --format csv --handoffs < s | grep -c $'\\x1b'")  # fmt: skip
    assert ran.out.count("\\u001b[31mil") == 4
    assert "\x1b" not in ran.out and ran.out.endswith("\n1\n"), "data are as they are"


@pytest.mark.parametrize("word, hours", [("today", 0), ("yesterday", -24)])
def test_a_day_begins_at_its_own_midnight_when_the_clock_changes(sh, home, word, hours):
    """A zone where it is about noon, and where the clock went an hour forward at six today."""
    now = time.time()
    east = 12 - time.gmtime(now).tm_hour
    local = time.gmtime(now + east * 3600)
    zone = f"AAA{-east}BBB,{local.tm_yday - 1}/6,{(local.tm_yday + 100) % 365}/6"
    midnight = now - (local.tm_hour * 3600 + local.tm_min * 60 + local.tm_sec) + hours * 3600
    stories = [Story(name) for name in ("before", "after")]
    for story, seconds in zip(stories, (-60, 60), strict=True):
        story.call("q", (midnight + seconds - BEGAN) * 1000, 5)
    keep(home, b"".join(story.journal() for story in stories))
    assert sh(f"trace --since {word} | jq -r .id", TZ=zone).out == "after\n"
    assert sh(f"trace --until {word} | jq -r .id", TZ=zone).out == "before\n"


def test_a_group_in_a_group_is_found_by_either_name_and_is_the_outer_ones_run(sh, work):
    (work / "m.toml").write_text("[groups.alpha]\nstages = ['dispatch --to echo --as a']\n"
                                 "[groups.zeta]\nstages = ['group -q alpha', 'dispatch --to echo --as b Again.']\n")  # fmt: skip
    ran = sh("export MLLM_CONFIG=m.toml; group -q zeta Hi > s; for of in zeta alpha nobody; do trace --group $of | jq -r .group; "
             "trace --all --group $of < s | jq -r .group; trace --group $of --by group | jq -c '[.key, .calls]'; done; "
             "trace --by group | jq -c '[.key, .calls]'; trace --by group < s | jq -c '[.key, .calls]'; trace --since today --by group | jq -c '[.key, .calls]'; "
             "trace --sql 'select \"group\" from runs'; trace --sql 'select \"group\" from spans order by id'; jq -r 'select(.type == \"span\").group' s", TZ=at_noon())  # fmt: skip
    assert (ran.status, ran.err) == (0, "")
    assert ran.out == ('zeta\nzeta\n["zeta",2]\nzeta\nzeta\n["zeta",1]\n' + '["zeta",2]\n' * 3 + '{"group":"zeta"}\n'
                       '{"group":"zeta/alpha"}\n{"group":"zeta"}\nzeta/alpha\nzeta\n')  # fmt: skip


def test_a_group_that_is_one_of_its_own_stages_is_refused(sh, work):
    (work / "m.toml").write_text("[groups.self]\nstages = ['group -q self']\n[groups.a]\nstages = ['group -q b']\n[groups.b]\nstages = ['group -q a']\n")
    ran = sh("export MLLM_CONFIG=m.toml; group -q self Hi; echo $?; group -q a Hi; echo $?")
    assert ran.out == "2\n2\n"
    whys = [line for line in ran.err.splitlines() if "own stages" in line]
    assert whys == ["group: group self is one of its own stages: self/self would never end; take it out of them",
                    "group: group a is one of its own stages: a/b/a would never end; take it out of them"]  # fmt: skip


def test_the_name_of_a_file_that_is_not_there_is_no_thread(sh, home):
    story = Story("run-1", "of/a-project")
    story.call("q", 0, 5)
    keep(home, story.journal())
    for name in ("./typo.jsonl", "typo.jsonl", "no/such"):
        assert sh(f"trace --journal --thread {name}") == (
            66, "", f"trace: --thread {name}: there is no such file, and no thread of that name has such a run\n")  # fmt: skip
    assert sh("trace --thread nosuch") == (0, "", "")
    assert sh("trace --thread of/a-project | jq -r .id") == (0, "run-1\n", "")
    assert sh("trace --thread of/another --by runtime").status == 66
