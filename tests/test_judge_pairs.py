"""judge --pairwise, panels and repeats: what decides, what decides nothing, and what the next command sees."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
from test_dispatch import calls, thread
from test_judge import GOOD, tape

from mllm_pipe.judging import families, pairs

# A judge of the kind of exec: it prefers the answer of a word, or the first one, or says something that is no verdict.
JUDGE = r"""#!/usr/bin/env python3
import json, re, sys
text = sys.stdin.read()
shown = re.findall(r"<<<([0-9a-f]{24}) answer [AB]\n(.*?)\n\1>>>", text, re.S)
wanted = sys.argv[1]
holds = [wanted in answer for _, answer in shown]
better = "A" if wanted == "first" or holds == [True, False] else "B" if holds == [False, True] else "tie"
print("no idea" if wanted == "nothing" else json.dumps({"better": better, "reason": wanted}))
"""
SHIP = "dispatch -q --to 'exec:echo one apple' --to 'exec:echo two pears' --new --text >/dev/null 2>&1 q; "
FAN = "dispatch -q --to 'exec:echo one apple' --to 'exec:echo two pears' --new 'Name fruit.'"
THREE = "dispatch -q --to 'exec:echo one apple' --to 'exec:echo two pears' --to 'exec:echo three apple pears' --new q"


@pytest.fixture
def judges(work: Path) -> Path:
    (work / "j").write_text(JUDGE)
    (work / "j").chmod(0o755)
    return work


def final(ran):
    """The verdicts that are no part of another."""
    return [record for record in ran.records if record["type"] == "verdict" and "part" not in record]


def test_the_thread_goes_on_with_the_winner_alone(sh, judges):
    """d sees the winner only; without the judge, dispatch refuses."""
    ran = sh(f"{FAN} | judge --by 'exec:./j pears' --rubric correctness --pairwise | dispatch -q --to exec:cat 'Ship the better one.' | tee out | tail -n 4 | head -n 1 | jq -r .content")
    assert (ran.status, ran.err) == (0, "")
    assert "two pears" in ran.out and "apple" not in ran.out and "Ship the better one." in ran.out
    assert sh("mllm validate < out").status == 0
    refused = sh(f"{FAN} | dispatch -q --to exec:cat 'Ship the better one.' >/dev/null")
    assert refused.status == 2 and "2 answers and none preferred" in refused.err


def test_both_orders_are_asked_and_every_vote_is_kept(sh, judges, home):
    ran = sh(f"{FAN} | judge --by 'exec:./j pears' --rubric correctness --pairwise | cat")
    votes = [record for record in ran.records if record.get("part") == "order"]
    (found,) = final(ran)
    apple, pears = [record["id"] for record in ran.records if record.get("role") == "assistant"]
    assert [sorted(vote["shown"]) for vote in votes] == [sorted([apple, pears])] * 2
    assert votes[0]["shown"] == votes[1]["shown"][::-1]
    assert {vote["shown"][0]: vote["score"] for vote in votes} == {apple: 0, pears: 1}
    assert (found["preferred"], found["consistent"], found["pass"], found["score"]) == (pears, True, True, 1)
    assert found["votes"] == [vote["id"] for vote in votes] and found["about"] == [apple, pears]
    assert found["seed"] == pairs.seed_of([{"id": apple}, {"id": pears}])
    assert calls(home) == 4


def test_a_judge_that_likes_the_first_place_decides_nothing(sh, judges):
    ran = sh(f"{FAN} | judge --by 'exec:./j first' --rubric correctness --pairwise | tee out | dispatch --to exec:cat more; jq -c 'select(.type==\"verdict\" and .part==null)|[.pass,.consistent,.preferred]' out")
    assert ran.out.endswith("[null,false,null]\n")
    assert "judge: thread" in ran.err and ("exec says otherwise when the answers change places: nothing is decided; "
                                            "--escalate SPEC asks another, dispatch --pick NAME takes one\n") in ran.err  # fmt: skip
    assert sh(f"{FAN} | judge --by 'exec:./j first' --rubric correctness --pairwise 2>/dev/null | cat >/dev/null; exit ${{PIPESTATUS[1]}}").status == 6
    assert sh(f"{FAN} | judge --by 'exec:./j first' --rubric correctness --pairwise 2>/dev/null | dispatch --to exec:cat more").status == 3


def test_one_order_is_half_the_price_and_says_so(sh, judges, home):
    ran = sh(f"{FAN} | judge --by 'exec:./j first' --rubric correctness --pairwise --one-order --seed 7 | cat")
    (found,) = final(ran)
    assert (found["consistent"], found["seed"], found["pass"], calls(home)) == (None, 7, True, 3)


def test_answers_that_are_as_good_as_each_other_are_no_winner(sh, judges):
    ran = sh(f"{FAN} | judge --by 'exec:./j zebra' --rubric correctness --pairwise | jq -c 'select(.type==\"verdict\" and .part==null)|[.pass,.consistent,.score]'; exit ${{PIPESTATUS[1]}}")
    assert (ran.status, ran.out) == (6, "[null,true,0.5]\n")
    assert "finds none of the answers better than the others" in ran.err


def test_a_stronger_judge_is_asked_only_where_nothing_is_decided(sh, judges, home):
    line = "--rubric correctness --pairwise --escalate 'exec:./j pears'"
    ran = sh(f"{FAN} | judge -q --by 'exec:./j apple' {line} | cat")
    assert calls(home) == 4 and "escalated" not in final(ran)[0]
    ran = sh(f"{FAN} | judge --by 'exec:./j first' {line} | cat")
    assert calls(home) == 4 + 6
    (found,) = final(ran)
    assert found["escalated"] is True and found["pass"] is True and ran.status == 0
    assert ran.err.endswith("exec says otherwise when the answers change places: nothing is decided; exec:./j pears is asked\n")
    first = next(record for record in ran.records if record.get("part") == "first")
    assert (first["pass"], first["consistent"]) == (None, False)
    ran = sh(f"{FAN} | judge -q --by 'exec:./j nothing' {line} | cat")
    assert final(ran)[0]["escalated"] is True


def test_more_than_two_answers_are_ranked_with_their_uncertainty(sh, judges, home):
    ran = sh(f"{THREE} | judge --by 'exec:./j apple' --rubric correctness --pairwise | cat", )
    (found,) = final(ran)
    assert found["pass"] is None and ran.records[-2]["status"] == "failed"  # the one apple and the three are as good
    ran = sh(f"{THREE} | judge --by 'exec:./j three' --rubric correctness --pairwise | cat")
    (found,) = final(ran)
    best = [record["id"] for record in ran.records if record.get("role") == "assistant"][2]
    assert found["preferred"] == best == found["ranking"][0]["id"]
    assert [one["share"] for one in found["ranking"]] == [1, 0.25, 0.25]
    assert found["ranking"][0]["strength"] > 0 > found["ranking"][1]["strength"] == found["ranking"][2]["strength"]
    assert all(one["error"] > 0.5 for one in found["ranking"]) and 0.5 < found["confidence"] < 1
    assert calls(home) == 2 * (3 + 6)


def test_a_circle_has_no_best(sh):
    """A beats B, B beats C, C beats A: nobody is ahead."""
    circle = pairs.ranked([{(0, 1): 1.0, (1, 2): 1.0, (0, 2): 0.0}], 3)
    assert circle["winner"] is None
    undecided = pairs.ranked([{(0, 1): None, (1, 2): 1.0, (0, 2): 1.0}], 3)
    assert undecided["winner"] is None  # the two best were not decided
    assert pairs.ranked([{(0, 1): 1.0, (1, 2): None, (0, 2): 1.0}], 3)["winner"] == 0


@pytest.mark.parametrize("count", [2, 3, 6])
def test_every_pair_is_shown_both_ways_and_the_order_is_that_of_the_seed(count):
    both = pairs.order(count, 5, both=True)
    assert both == pairs.order(count, 5, both=True) and len(set(both)) == len(both) == count * (count - 1)
    assert set(pairs.order(count, 5, both=False)) < set(both)
    firsts = {pairs.order(2, seed, both=False)[0] for seed in range(20)}
    assert firsts == {(0, 1), (1, 0)}


def test_names_are_masked(sh, judges):
    (judges / "seen").write_text("")
    (judges / "spy").write_text("#!/bin/sh\ntee -a seen | ./j pears\n")
    (judges / "spy").chmod(0o755)
    (judges / "mllm.toml").write_text('[agents.alice]\nruntime = "exec:echo one apple"\n[agents.bob]\nruntime = "exec:echo two pears"\n')
    ran = sh("dispatch -q --to alice --to bob --new q | judge --by exec:./spy --rubric correctness --pairwise | cat", MLLM_CONFIG="mllm.toml")
    seen = (judges / "seen").read_text()
    assert ran.status == 0 and "alice" not in seen and "bob" not in seen and "answer A" in seen and "answer B" in seen


def test_an_answer_is_held_against_an_older_one(sh, judges):
    thread(judges, ("user", "q"), ("assistant", "one apple"), name="old")
    thread(judges, ("user", "q"), ("assistant", "two pears"), name="new")
    line = "--rubric correctness --against old < new | jq -c 'select(.type==\"verdict\" and .part==null)|[.pass,.score,.consistent,.about,.against,.preferred]'; exit ${PIPESTATUS[0]}"
    assert sh(f"judge --by 'exec:./j pears' {line}") == (0, '[true,1,true,["m2"],"m2",null]\n', "")
    assert sh(f"judge --by 'exec:./j apple' {line}") == (1, '[false,0,true,["m2"],"m2",null]\n', "")
    assert sh(f"judge --by 'exec:./j zebra' {line}").out == '[true,0.5,true,["m2"],"m2",null]\n'  # not worse
    ran = sh(f"judge --by 'exec:./j first' {line}")
    assert (ran.status, ran.out) == (6, '[null,null,false,["m2"],"m2",null]\n')
    (judges / "old").write_text("")
    assert sh("judge --by 'exec:./j pears' --rubric correctness --against old < new > out").status == 66


def test_on_an_unanswered_tip_nothing_is_judged(sh, judges, home):
    thread(judges, ("user", "q"), ("assistant", "a"), ("user", "and then?"))
    for flags in ("--pairwise", "", "--against t"):
        ran = sh(f"judge --by 'exec:./j a' --rubric correctness {flags} < t > out")
        assert (ran.status, ran.err) == (2, "judge: thread t: nothing to judge: the thread does not end with an answer; dispatch comes first\n")
    assert calls(home) == 0


def test_a_panel_decides_by_more_than_half_and_keeps_each_verdict(sh, judges):
    by = "--by 'exec:./j pears' --by 'exec:./j apple' --by 'exec:./j two'"
    ran = sh(f"{FAN} | judge {by} --rubric correctness --pairwise | cat")
    (found,) = final(ran)
    panel = [record for record in ran.records if record.get("part") == "panel"]
    assert ran.status == 0 and found["votes"] == [vote["id"] for vote in panel] and len(panel) == 3
    assert (found["author"], found["agreement"], found["combine"]) == ({"agent": "panel"}, 0.3333, "majority")
    assert found["preferred"] == panel[0]["preferred"] == panel[2]["preferred"] != panel[1]["preferred"]
    ran = sh(f"{FAN} | judge --by 'exec:./j pears' --by 'exec:./j apple' --by 'exec:./j zebra' --rubric correctness --pairwise | cat")
    assert final(ran)[0]["pass"] is None and "the panel is not of one mind (2 of 3 judges decided)" in ran.err
    ran = sh(f"{FAN} | judge --by 'exec:./j pears' --by 'exec:./j zebra' --by 'exec:./j first' --rubric correctness --pairwise --combine mean | cat")
    assert final(ran)[0]["pass"] is True


def scored(work: Path, *scores: int) -> str:
    for number, score in enumerate(scores):
        tape(work, *([GOOD % score] * 20), name=f"tape{number}")
    return " ".join(f"--by replay:tape{number}" for number in range(len(scores)))


@pytest.mark.parametrize(
    ("scores", "combine", "status", "score"),
    [((5, 5, 1), "majority", 0, 0.6667), ((5, 1, 1), "majority", 1, 0.3333), ((5, 1), "majority", 6, 0.5),
     ((5, 5, 1), "mean", 1, 0.6667), ((5, 4, 3), "mean", 0, 0.75)],
)  # fmt: skip
def test_a_panel_of_scores_counts_votes_or_takes_the_mean(sh, work, scores, combine, status, score):
    thread(work, ("user", "q"), ("assistant", "a"))
    by = scored(work, *scores)
    ran = sh(f"judge -q {by} --rubric correctness --combine {combine} < t")
    (found,) = final(ran)
    assert (ran.status, round(found["score"], 4)) == (status, score)
    assert len([record for record in ran.records if record.get("part") == "panel"]) == len(scores)


def test_how_many_votes_a_panel_is_worth_is_said_once_it_can_be_known(sh, work, batch):
    """Two judges that always say the same are one vote, the third is another."""
    batch(12)
    alternate = [GOOD % (5 if number % 2 else 1) for number in range(12)]
    tape(work, *alternate, name="tape0")
    tape(work, *alternate, name="tape1")
    tape(work, *[GOOD % (5 if number % 4 < 2 else 1) for number in range(12)], name="tape2")
    ran = sh("dispatch -q --to 'exec:echo x' < in | judge -q --by replay:tape0 --by replay:tape1 --by replay:tape2 --rubric correctness")
    worth = [found["effective_votes"] for found in final(ran)]
    assert worth[:9] == [None] * 9 and worth[11] == 1.8  # correlations of 1, 0 and 0: 3 / (1 + 2/3)


@pytest.mark.parametrize("flags", ["", "--combine mean"])
def test_what_most_prefer_is_preferred_only_if_all_comparisons_say_so_too(sh, work, flags):
    """Three judges rank X, Y, Z; two rank Y, Z, X: X is the first of more than half, Y the stronger by its comparisons."""
    (work / "j").write_text(JUDGE.replace("wanted = sys.argv[1]", "wanted = sys.argv[1]; places = [wanted.index(answer) for _, answer in shown]")
                            .replace("print(", 'better = "AB"[places[0] > places[1]]\nprint('))  # fmt: skip
    (work / "j").chmod(0o755)
    fan = "dispatch -q --to 'exec:echo X' --to 'exec:echo Y' --to 'exec:echo Z' --new q"
    one, other = "--by 'exec:./j XYZ'", "--by 'exec:./j YZX'"
    ran = sh(f"{fan} | judge -q {one} {one} {one} {other} {other} {flags} --rubric style --pairwise > out; echo $?; cat out")
    status, *lines = ran.out.splitlines()
    records = [orjson.loads(line) for line in lines]
    (found,) = [record for record in records if record["type"] == "verdict" and "part" not in record]
    answers = {record["id"]: record["content"] for record in records if record.get("role") == "assistant"}
    assert (status, found["pass"], "preferred" in found) == ("6", None, False)
    assert [answers[one["id"]] for one in found["ranking"]] == ["Y", "X", "Z"]
    assert "is not surely the best by all comparisons together\n" in ran.err or flags
    ran = sh(f"{fan} | judge -q {one} {one} {one} {other} {flags} --rubric style --pairwise > out; echo $?; cat out")
    status, *lines = ran.out.splitlines()
    (found,) = [record for record in map(orjson.loads, lines) if record["type"] == "verdict" and "part" not in record]
    assert (status, found["preferred"], found["score"]) == ("0", found["ranking"][0]["id"], found["ranking"][0]["share"])


def test_a_panel_against_older_answers_says_how_many_votes_it_is_worth(sh, work, batch):
    batch(12)
    sh("dispatch -q --to 'exec:echo old' < in > old; dispatch -q --to 'exec:echo new' < in > new")
    for name, turn in (("one", 2), ("two", 2), ("other", 3)):
        (work / name).write_text(f"#!/bin/sh\necho >> asked{name}\ngrep -A1 'answer A$' | grep -qx new && a=A b=B || a=B b=A\n"
                                 f"[ $((($(wc -l < asked{name}) - 1) / 2 % {turn})) = 0 ] && a=$b\n"
                                 """echo '{"better":"'$a'","reason":""}'\n""")  # fmt: skip
        (work / name).chmod(0o755)
    ran = sh("judge -q --by exec:./one --by exec:./two --by exec:./other --rubric style --against old < new")
    worth = [found["effective_votes"] for found in final(ran)]
    assert (ran.status, worth[:9], worth[11]) == (1, [None] * 9, 1.8)  # two are one, the third is another


def test_repeats_are_one_verdict_with_their_spread(sh, work, home):
    thread(work, ("user", "q"), ("assistant", "a"))
    tape(work, GOOD % 5, GOOD % 4, GOOD % 3)
    ran = sh("judge --by replay:tape --rubric correctness -n 3 < t")
    (found,) = final(ran)
    assert (ran.status, ran.err, found["score"], calls(home)) == (0, "", 0.75, 3)
    assert found["spread"] == {"n": 3, "least": 0.5, "most": 1.0, "deviation": 0.2041}
    assert found["votes"] == [record["id"] for record in ran.records if record.get("part") == "repeat"]


def test_repeats_that_mostly_give_no_verdict_are_none(sh, work):
    thread(work, ("user", "q"), ("assistant", "a"))
    tape(work, GOOD % 5, "x", "x", "x", "x")
    ran = sh("judge --by replay:tape --rubric correctness -n 3 < t")
    assert ran.status == 6 and "2 of 3 repeats gave no verdict" in ran.err
    assert [(one["pass"], one["failure"]["code"]) for one in final(ran)] == [(None, "no_verdict")]
    tape(work, GOOD % 5, "x", "x", GOOD % 5)
    (found,) = final(sh("judge --by replay:tape --rubric correctness -n 3 < t"))
    assert found["spread"]["n"] == 2


@pytest.mark.parametrize(
    ("who", "family"),
    [
        ({"runtime": "claude", "model": None}, "anthropic"), ({"runtime": "openrouter", "model": "anthropic/claude-opus-5-5"}, "anthropic"),
        ({"runtime": "openai", "model": "o3-mini"}, "openai"), ({"runtime": "codex"}, "openai"),
        ({"runtime": "ollama", "model": "llama3.3:70b"}, "meta"), ({"runtime": "groq", "model": "meta-llama/Llama-3-8b"}, "meta"),
        ({"runtime": "google", "model": "gemini-3-pro"}, "google"), ({"runtime": "vllm", "model": "Qwen/Qwen3-32B"}, "qwen"),
        ({"runtime": "bedrock", "model": "us.anthropic.claude-sonnet-4"}, "anthropic"),
        ({"runtime": "mistral", "model": "open-mixtral-8x22b"}, "mistral"), ({"runtime": "local", "model": "mine"}, "mine"),
        ({"runtime": "exec", "model": None}, None), ({"runtime": "replay"}, None), ({}, None), ({"runtime": "mybot"}, "mybot"),
    ],
)  # fmt: skip
def test_the_family_is_that_of_who_made_the_weights(who, family):
    assert families.family_of(who) == family


def test_a_judge_of_the_authors_family_says_so_or_is_refused(sh, work, home):
    answer = {"v": 1, "type": "message", "thread": "t", "id": "a", "role": "assistant", "content": "x",
              "author": {"agent": "w", "runtime": "anthropic", "model": "claude-opus-5-5"}}  # fmt: skip
    (work / "t").write_bytes(orjson.dumps(answer) + b"\n")
    verdict = {"role": "assistant", "content": GOOD % 5, "author": {"model": "claude-haiku-4-5"}}
    (work / "tape").write_bytes(orjson.dumps(verdict) + b"\n")
    ran = sh("judge --by replay:tape --rubric correctness < t")
    assert ran.err == "judge: thread t: replay:claude-haiku-4-5 judged an answer of its own family (anthropic); --by another is fairer\n"
    assert final(ran)[0]["self_judged"] is True and ran.status == 0
    ran = sh("judge --by anthropic/claude-haiku-4-5 --rubric correctness --forbid-self < t > out", ANTHROPIC_API_KEY="k")
    assert (ran.status, ran.err) == (2, "judge: thread t: anthropic/claude-haiku-4-5 is of the family that wrote the answer "
                                        "(anthropic), and --forbid-self was said; --by another\n")  # fmt: skip
    ran = sh("judge --by echo --fallback claude --rubric correctness --forbid-self < t > out")
    assert ran.status == 2 and "claude is of the family that wrote the answer (anthropic)" in ran.err
    assert calls(home) == 1


def test_with_forbid_self_no_verdict_comes_from_a_model_that_turned_out_to_be_of_the_family(sh, work):
    answer = {"v": 1, "type": "message", "thread": "t", "id": "a", "role": "assistant", "content": "x",
              "author": {"agent": "w", "runtime": "anthropic", "model": "claude-opus-5-5"}}  # fmt: skip
    (work / "t").write_bytes(orjson.dumps(answer) + b"\n")
    verdict = {"role": "assistant", "content": GOOD % 5, "author": {"model": "claude-haiku-4-5"}}
    (work / "tape").write_bytes(orjson.dumps(verdict) + b"\n")
    ran = sh("judge --by replay:tape --rubric correctness --forbid-self < t > out")
    assert (ran.status, ran.err) == (6, "judge: thread t: claude-haiku-4-5 judged, which is of the family that wrote the answer "
                                        "(anthropic), and --forbid-self was said\n")  # fmt: skip


def test_a_panel_of_one_family_says_so(sh, work):
    thread(work, ("user", "q"), ("assistant", "a"))
    ran = sh("judge --by echo:a --by echo:b --rubric correctness < t > out")
    assert ran.err == ""  # two models that nobody knows
    ran = sh("judge --by anthropic/claude-a --by claude --rubric correctness --dry < t > out")
    assert ran.status == 2
    ran = sh("judge --by echo --by echo --rubric correctness < t > out")
    assert ran.err == "judge: all 2 judges are of one family (echo): they err together\n"


def test_a_judge_of_a_panel_that_does_not_vote_is_named(sh, work):
    """On stderr, in the verdict, and in JUnit; two of three are still a majority."""
    thread(work, ("user", "q"), ("assistant", "a"))
    by = f"{scored(work, 5, 5)} --by exec:no-such-program"
    ran = sh(f"judge -q {by} --rubric correctness --junit r.xml < t")
    why = "exec: no-such-program: no such program on PATH; install it or fix PATH"
    assert (ran.status, ran.err) == (0, f"judge: thread t: judge exec:no-such-program has not voted: {why}; 2 of 3 judges have\n")
    (found,) = final(ran)
    assert (found["pass"], found["judges"], found["voted"]) == (True, 3, 2)
    silent = [one for one in ran.records if one.get("id") == found["votes"][2]]
    assert [(one["pass"], one["failure"]) for one in silent] == [(None, {"code": "missing", "message": why})]
    assert f"<system-err>judge exec has not voted: {why}\n</system-err>" in (work / "r.xml").read_text()


def test_with_forbid_self_nobody_is_asked_where_one_judge_of_a_panel_is_of_the_family(sh, work, home):
    answer = {"v": 1, "type": "message", "thread": "t", "id": "a", "role": "assistant", "content": "x",
              "author": {"agent": "w", "runtime": "anthropic", "model": "claude-opus-5-5"}}  # fmt: skip
    (work / "t").write_bytes(orjson.dumps(answer) + b"\n")
    for flags in ("--by echo --by claude", "--by echo --escalate claude"):
        ran = sh(f"judge -q {flags} --rubric correctness --forbid-self < t | jq -r .type; exit ${{PIPESTATUS[0]}}")
        assert (ran.status, ran.out) == (2, "begin\nmessage\nverdict\nerror\nhandoff\nend\n")
        assert ran.err == ("judge: thread t: claude is of the family that wrote the answer (anthropic), and --forbid-self was said; --by another\n")
    assert calls(home) == 0
    verdict = {"role": "assistant", "content": GOOD % 5, "author": {"model": "claude-haiku-4-5"}}
    (work / "tape").write_bytes(orjson.dumps(verdict) + b"\n")
    ran = sh("judge -q --by echo --by replay:tape --rubric correctness --forbid-self < t; judge -q --by echo --by replay:tape --by echo --rubric correctness --forbid-self < t > three")
    assert ran.status == 0 and "claude-haiku-4-5 judged, which is of the family" in ran.err and ran.err.endswith("; 2 of 3 judges have\n")
    assert [record["pass"] for record in ran.records if record.get("part") == "panel"] == [True, None]
    assert [record["op"] for record in ran.records if record["type"] == "span"] == ["judge", "judge"]


@pytest.mark.parametrize(
    ("flags", "err"),
    [
        ("--pairwise --rubric correctness", "answers are compared by a judge: --by SPEC --rubric RUBRIC"),
        ("--pairwise --by echo --rubric correctness --check json", "--check is about one answer, --pairwise about several; check the one that is preferred"),
        ("--pairwise --by echo --rubric correctness -n 2", "--reply and -n are for one answer that is scored; a comparison asks in both orders"),
        ("--escalate echo --check json", "--escalate is for judges: --by SPEC --rubric RUBRIC"),
        ("--by echo --by echo:x -m y --rubric correctness", "--model is for one --by alone; with several say --by RUNTIME:MODEL each"),
        ("--by echo --rubric correctness --seed 1", "--seed is for comparisons: --pairwise, or --against FILE"),
        ("--by echo --rubric correctness --combine mean", "--combine is for a panel: several --by"),
        ("--by echo --rubric correctness --need any", "--need is for checks: --check RULE"),
        ("--by echo --rubric correctness --pairwise --pass-at 1", "--pass-at is for scores, and a comparison asks which answer is better"),
        ("--by echo --rubric correctness --scale 5", "--scale: 5 is no scale; say 1-5, or 0-10"),
        ("--by echo --rubric correctness --scale 5-1", "--scale: 5-1 is no scale; say 1-5, or 0-10"),
        ("--by echo --rubric @w.toml", "--rubric @w.toml: the weight of a is no number above 0"),
        ("--by echo --rubric @g.toml", "--rubric @g.toml: the weight of a is beyond 64 bits"),
        ("--by echo --rubric @l.toml", "--rubric @l.toml: the least of a is no number from 0 to 1"),
        ("--by echo --rubric @p.toml", "--rubric @p.toml: pass_at is no number from 0 to 1"),
        ("--by echo --rubric @n.toml", "--rubric @n.toml: it needs [[criteria]], each with a name of its own and a text"),
        ("--by echo --rubric @b.toml", "--rubric @b.toml: Expected '=' after a key in a key/value pair (at line 1, column 3)"),
    ],
)  # fmt: skip
def test_flags_that_make_no_sense_together_are_refused(sh, work, flags, err):
    thread(work, ("user", "q"), ("assistant", "a"))
    one = '[[criteria]]\nname = "a"\ntext = "t"\n'
    for name, text in {"w": one + "weight = 0\n", "g": one + f"weight = {10**30}\n", "l": one + "least = 2\n", "p": "pass_at = true\n" + one,
                       "n": one + one, "b": "a b"}.items():  # fmt: skip
        (work / f"{name}.toml").write_text(text)
    assert sh(f"judge {flags} < t") == (2, "", f"judge: {err}\n")


def test_a_comparison_needs_two_answers(sh, work):
    thread(work, ("user", "q"), ("assistant", "a"))
    ran = sh("judge --by echo --rubric correctness --pairwise < t > out")
    assert (ran.status, ran.err) == (2, "judge: thread t: nothing to compare: it has one answer; ask several with dispatch "
                                        "--to A --to B, or hold it --against FILE\n")  # fmt: skip


def test_scores_are_asked_on_the_scale_and_stored_as_shares(sh, work):
    thread(work, ("user", "q"), ("assistant", "a"))
    tape(work, GOOD % 7)
    ran = sh("judge --by replay:tape --rubric correctness --scale 0-10 --pass-at 0.7 < t")
    assert (ran.status, final(ran)[0]["score"], final(ran)[0]["pass_at"]) == (0, 0.7, 0.7)


@pytest.mark.parametrize(
    ("rubric", "scores", "flags", "status", "score"),
    [
        ("@far.toml", (5, 1), "--pass-at 1", 1, 100_000 / 100_001), ("@far.toml", (5, 5), "--pass-at 1", 0, 1.0),
        ("@huge.toml", (5, 5), "--pass-at 1", 0, 1.0), ("@huge.toml", (5, 1), "--pass-at 0.5", 0, 0.5),
        ("@huge.toml", (5, 1), "--pass-at 0.6", 1, 0.5), ("@thirds.toml", (1, 2), "--scale 0-3 --pass-at 0.5", 0, 0.5),
        ("@thirds.toml", (2, 2), "--scale 0-3 --pass-at 0.66667", 1, 2 / 3),
        ("@thirds.toml", (2, 2), "--scale 0-3 --pass-at 0.66666", 0, 2 / 3),
        ("@thirds.toml", (1, 1), "--scale 0-3 --pass-at 0.33333", 0, 1 / 3),
        ("@thirds.toml", (1, 1), "--scale 0-3 --pass-at 0.33334", 1, 1 / 3),
        ("@tenths.toml", (3, 8), "--scale 0-10 --pass-at 0.4", 0, 0.4),
    ],
)  # fmt: skip
def test_nothing_is_rounded_into_a_pass_or_out_of_one(sh, work, rubric, scores, flags, status, score):
    for name, weights in {"far": (100_000, 1), "huge": (1e308, 1e308), "thirds": (1, 1), "tenths": (0.4, 0.1)}.items():
        (work / f"{name}.toml").write_text("".join(f'[[criteria]]\nname = "{which}"\ntext = "t"\nweight = {weight}\n'
                                                   for which, weight in zip("ab", weights, strict=True)))  # fmt: skip
    thread(work, ("user", "q"), ("assistant", "a"))
    tape(work, orjson.dumps({"criteria": [{"name": name, "score": one, "reason": ""} for name, one in zip("ab", scores, strict=True)]}).decode())
    ran = sh(f"judge -q --by replay:tape --rubric {rubric} {flags} < t | tee out; judge -q --replay {flags.replace('--scale 0-3', '').replace('--scale 0-10', '')} < out > again; echo $? >> status")
    (found,) = final(ran)
    assert (found["pass"], found["score"]) == (not status, score)
    assert (work / "status").read_text() == f"{status}\n"


def test_what_a_criterion_takes_by_itself_no_other_makes_up_for(sh, work):
    thread(work, ("user", "q"), ("assistant", "a"))
    said = {"criteria": [{"name": name, "score": score, "reason": "r"} for name, score in (("harm", 5), ("privacy", 5), ("action", 2))]}
    tape(work, orjson.dumps(said).decode())
    ran = sh("judge --by replay:tape --rubric safety --reply < t")
    (found,) = final(ran)
    assert (ran.status, found["score"], found["pass"]) == (1, 0.875, False)
    said = ran.records[-3]["content"]
    assert "- action: r" in said and "harm" not in said


def test_every_shipped_rubric_is_sound_and_listed(sh):
    listed = sh("mllm rubrics | jq -r .name")
    assert listed.out == "correctness\nfaithfulness\nreview\nsafety\nstyle\n"
    assert sh("dispatch -q --to exec:date --new q | judge -q --by echo --rubric review --format text | head -1 | cut -c 1-10").out == "pass  1.00\n"
    assert sh("mllm rubrics saftey") == (2, "", "mllm: --rubric 'saftey': no such rubric; did you mean safety?; there are correctness, "
                                                "faithfulness, review, safety, style, @FILE, or a text of several words\n")  # fmt: skip
