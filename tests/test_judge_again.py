"""judge --replay and --baseline: a verdict that was recorded says what it said when it was made, and nothing else."""

from __future__ import annotations

import orjson
import pytest
from test_dispatch import thread
from test_judge import GOOD

CONTENT = """exec:echo '{"criteria":[{"name":"rubric","score":5,"reason":"r"}]}'"""
POOR = """exec:echo '{"criteria":[{"name":"rubric","score":1,"reason":"r"}]}'"""
ONE = '--rubric "a b" <t >judged 2>/dev/null; echo $?; judge -q --replay <judged >/dev/null; echo $?'


def live_and_replayed(sh, flags: str) -> str:
    """The statuses of a command, of its replay, and what a baseline of it was."""
    ran = sh(f"judge -q {flags} {ONE}; judge -q --replay --baseline judged --format json <judged 2>/dev/null | jq .baseline.passed_before", G=CONTENT, P=POOR)
    return ran.out.replace("\n", " ").strip()


@pytest.mark.parametrize(
    ("flags", "statuses"),
    [
        ('--by "$G" --by "$G" --by exec:false', "0 0 1"),
        ('--by "$G" --by "$G" --by exec:false --by exec:false', "6 6 0"),
        ('--by "$G" --by exec:false', "6 6 0"),
        ('--by "$G" --by "$P" --by exec:false', "6 6 0"),
        ('--by "$G" --by exec:cat', "6 6 0"),
        ("--by exec:false --by exec:false", "3 3 0"),
        ("--by exec:no-such-program --by exec:false", "69 69 0"),
        ('--combine mean --by "$G" --by exec:false', "6 6 0"),
        ('--combine mean --by "$G" --by "$P" --by exec:false', "1 1 0"),
        ("--check contains:hello --by exec:false", "3 3 0"),
        ("--check contains:hello --by exec:cat", "6 6 0"),
        ("--check contains:hello --by exec:no-such-program", "69 69 0"),
        ("--check contains:hello --check max-cost:1", "6 6 0"),
        ("--check exec:no-such-program --check contains:hello", "69 69 0"),
        ("--check contains:hello -n 3 --by exec:./mostly", "6 6 0"),
        ("--check contains:hello -n 3 --by exec:./rarely", "0 0 1"),
        ('--check contains:zzz --by "$G"', "1 1 0"),
        ('--by exec:cat --escalate "$G"', "0 0 1"),
        ('--by exec:cat --escalate exec:false', "3 3 0"),
    ],
)  # fmt: skip
def test_a_verdict_is_replayed_with_the_status_that_it_had(sh, work, flags, statuses):
    """`mostly` gives a verdict the first time and then none; `rarely` gives one but for the first two times (one try)."""
    thread(work, ("user", "q"), ("assistant", "hello"))
    good = CONTENT.removeprefix("exec:")
    for name, when in (("mostly", "-le 1"), ("rarely", "-gt 2")):
        (work / name).write_text(f"#!/bin/sh\necho >>asked{name}\n[ $(wc -l <asked{name}) {when} ] && {good} || echo none\n")
        (work / name).chmod(0o755)
    if "max-cost" in flags:  # of a call whose price nobody knows
        assert sh("thread-append --new --thread t q | dispatch -q --to 'exec:echo hello' >t").status == 0
    assert live_and_replayed(sh, flags) == statuses


def test_a_panel_is_combined_anew_from_all_who_were_asked(sh, work):
    thread(work, ("user", "q"), ("assistant", "hello"))
    sh(f'judge -q --by "$G" --by "$G" --by exec:false --by exec:false {ONE}', G=CONTENT)
    (found,) = [one for one in sh("cat judged").records if one["type"] == "verdict" and "part" not in one]
    assert (found["pass"], found["judges"], found["voted"], len(found["votes"])) == (None, 4, 2, 4)
    for flags in ("--pass-at 0.1", "--combine majority", "--combine mean"):
        assert sh(f"judge -q --replay {flags} <judged >out").status == 6
    sh("jq -c 'del(.judges)' judged >older")  # as it was once recorded, by who did not say how many were asked
    assert sh("judge -q --replay <older >out").status == 6
    ran = sh("judge -q --replay --pass-at 0.1 <older >out")
    assert ran.status == 6 and ran.err.endswith(" does not say how many judges were asked: it cannot be scored anew\n")
    sh("jq -c 'select(.failure == null)' judged >fewer")
    assert sh("judge -q --replay --pass-at 0.1 <fewer >out").status == 6


@pytest.mark.parametrize("flags", ["--check contains:one", '--by "$G" --rubric "a b"'])
def test_a_verdict_on_an_older_answer_says_nothing_of_the_newer(sh, work, flags):
    thread(work, ("user", "q"), ("assistant", "one"))
    assert sh(f"judge -q {flags} <t >judged; judge -q --replay <judged >out", G=CONTENT) == (0, "", "")
    sh("cp judged asked; thread-append asked 'And then?' >/dev/null")
    assert sh("judge -q --replay <asked >out") == (6, "", "judge: thread t: no verdict is recorded on the answer that the thread ends with\n")
    assert sh("dispatch -q --to 'exec:echo two' <asked >answered; judge -q --replay <answered >out").status == 6
    assert sh("judge -q --check max-chars:9 --baseline answered <answered >out") == (
        2, "", "judge: --baseline answered: it holds no verdict; save one with: judge ... > answered\n")  # fmt: skip
    assert sh('judge -q --by exec:false --rubric "a b" <answered >died; judge -q --replay <died >out').status == 3


def test_a_comparison_of_older_answers_says_nothing_of_the_newer(sh, work):
    (work / "j").write_text("""#!/bin/sh\ngrep -A9 'answer A$' | head -2 | grep -q pears && b=A || b=B\necho '{"better":"'$b'","reason":"r"}'\n""")
    (work / "j").chmod(0o755)
    ran = sh("dispatch -q --to 'exec:echo one apple' --to 'exec:echo two pears' --new 'Name fruit.' >fan; "
             "judge --by exec:./j --rubric style --pairwise <fan >judged; echo $?; judge -q --replay <judged >out; echo $?")  # fmt: skip
    assert (ran.out, ran.err) == ("0\n0\n", "")
    assert sh("dispatch -q --to 'exec:echo three' more <judged >later; judge -q --replay <later >out").status == 6


@pytest.mark.parametrize(
    ("line", "live", "replayed"),
    [
        ("judge -q --check contains:zzz <t | judge -q --check contains:hello", 1, 1),
        ("judge -q --check contains:hello <t | judge -q --check contains:zzz", 1, 1),
        ("judge -q --check contains:hello <t | judge -q --check contains:ell", 0, 0),
        ('judge -q --by "$P" --rubric "is it kind" <t | judge -q --by "$G" --rubric "is it short"', 1, 1),
        ('judge -q --by "$P" --rubric "a b" <t | judge -q --by "$G" --rubric "a b"', 1, 1),
    ],
)  # fmt: skip
def test_every_verdict_on_the_answer_counts(sh, work, line, live, replayed):
    thread(work, ("user", "q"), ("assistant", "hello"))
    ran = sh(f"{line} >judged; echo $?; judge -q --replay --min-pass-rate 1 <judged >out 2>/dev/null; echo $?", G=CONTENT, P=POOR)
    assert (ran.out, ran.err) == (f"{live}\n{replayed}\n", "")


def test_the_same_judge_asked_the_same_again_takes_back_what_it_said(sh, work):
    thread(work, ("user", "q"), ("assistant", "hello"))
    line = "judge -q --by exec:./j --rubric correctness"
    (work / "j").write_text("#!/bin/sh\n[ -e asked ] && s=5 || s=1; touch asked\n" f"echo '{GOOD}'\n".replace("%d", "'$s'"))
    (work / "j").chmod(0o755)
    assert sh(f"{line} <t >one; judge -q --replay <one >out").status == 1
    assert sh(f"{line} <one >two; judge -q --replay <two >out").status == 0
    assert sh("jq -r 'select(.type==\"verdict\").pass' two").out == "false\ntrue\n"
    (work / "j").write_text("#!/bin/sh\nexit 1\n")
    assert sh(f"{line} <two >three; judge -q --replay <three >out").status == 3


def test_a_replay_counts_the_calls_and_the_contradictions_of_all_who_were_asked(sh, work):
    """Judges before the one that was called in, first tries that were no verdict, and calls that failed."""
    (work / "in").write_bytes(b"".join(
        orjson.dumps({"v": 1, "type": "message", "thread": f"t{n}", "id": ident, "role": role, "content": text} | ({"reply_to": "q"} if text != "q" else {})) + b"\n"
        for n in range(3) for ident, role, text in (("q", "user", "q"), ("a", "assistant", "A"), ("b", "assistant", "BB"))))  # fmt: skip
    (work / "long").write_text("""#!/bin/sh\ngrep -A1 'answer A$' | grep -qx BB && b=A || b=B\necho '{"better":"'$b'","reason":"r"}'\n""")
    (work / "long").chmod(0o755)
    shown = "jq -c '.summary|[.swap_consistency,.escalated,.calls,.undecided]'"
    line = "--rubric style --pairwise --by echo --escalate exec:./long"
    assert sh(f"judge -q {line} --format json <in | {shown}").out == "[0.5,1,12,0]\n"
    assert sh(f"judge -q {line} <in >judged; judge -q --replay --format json <judged | {shown}").out == "[0.5,1,12,0]\n"
    (work / "j").write_text("#!/bin/sh\n[ -e asked ] && s=5 || s=1; touch asked\n" f"echo '{GOOD}'\n".replace("%d", "'${s#1}'"))
    (work / "j").chmod(0o755)
    thread(work, ("user", "q"), ("assistant", "hello"))
    line = "--rubric correctness --by exec:./j --by exec:false"
    assert sh(f"judge -q {line} --format json <t 2>/dev/null | {shown}; rm asked").out == "[null,0,3,1]\n"
    assert sh(f"judge -q {line} <t 2>/dev/null >judged; judge -q --replay --format json <judged 2>/dev/null | {shown}").out == "[null,0,3,1]\n"


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ('if .part=="panel" then del(.criteria) else . end', 6), ('if .part=="panel" then .criteria=[] else . end', 6),
        ('if .part=="panel" then .criteria[0].score=null else . end', 6), ('if .part=="panel" then .criteria[0].weight=0 else . end', 6),
        ('if .part=="panel" then del(.criteria[0].reason, .author) else . end', 0), ('if .judges then .votes=.votes[:1] else . end', 6),
        ('if .judges then .judges=1 else . end', 65), ('if .judges then .votes[0]="a" else . end', 6),
    ],
)  # fmt: skip
def test_a_verdict_that_others_have_written_is_scored_or_told(sh, work, change, status):
    thread(work, ("user", "q"), ("assistant", "hello"))
    sh(f'judge -q --by "$G" --by "$G" {ONE}; jq -c \'{change}\' judged >theirs', G=CONTENT)
    ran = sh("judge -q --replay --pass-at 0.5 <theirs >out")
    assert ran.status == status and "defect" not in ran.err


@pytest.mark.parametrize("change", ["del(.shown)", '.shown=["x","y"]', ".shown=.shown[:1]", "del(.score)"])
def test_a_comparison_that_others_have_written_is_scored_or_told(sh, work, change):
    by = "--by 'exec:cat A' --by 'exec:cat A'"
    (work / "A").write_text('{"better":"A","reason":""}\n')
    ran = sh(f"dispatch -q --to 'exec:echo one' --to 'exec:echo two' --new q | judge -q {by} --one-order --rubric style --pairwise >judged; echo $?; "
             f"jq -c 'if .part==\"order\" then {change} else . end' judged >theirs")  # fmt: skip
    assert ran.out == "0\n"
    ran = sh("judge -q --replay --combine mean <theirs >out")
    assert ran.status == 6 and "defect" not in ran.err
