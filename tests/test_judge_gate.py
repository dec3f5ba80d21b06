"""judge in CI: pass rates, baselines, JUnit, the table, and how far a judge agrees with people."""

from __future__ import annotations

import xml.etree.ElementTree
from pathlib import Path

import orjson
import pytest
from test_dispatch import calls, thread
from test_judge import GOOD, tape

junitparser = pytest.importorskip("junitparser")


def threads(work: Path, *answers: str, name: str = "in") -> None:
    """A file of threads t0, t1, ... with these answers."""
    common = {"v": 1, "type": "message"}
    lines = []
    for number, answer in enumerate(answers):
        of_thread = common | {"thread": f"t{number}"}
        lines += [of_thread | {"id": "q", "role": "user", "content": "q"}, of_thread | {"id": "a", "role": "assistant", "content": answer}]
    (work / name).write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))


def jsonl(work: Path, name: str, *rows: dict) -> None:
    (work / name).write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))


@pytest.mark.parametrize(("rate", "status"), [("0.6", 0), ("0.66", 0), ("0.67", 1), ("1", 1), ("0", 0)])
def test_a_rate_decides_for_all_threads_together(sh, work, rate, status):
    threads(work, "abc", "abc", "xyz")
    ran = sh(f"judge --check contains:b --min-pass-rate {rate} < in > out")
    said = f"judge: 2 of 3 threads pass (66.7%); --min-pass-rate asks for {100 * float(rate):g}%\n"
    assert (ran.status, ran.err) == (status, said if status else "")


@pytest.mark.parametrize(("answers", "rate", "status", "said"), [
    (["abc"] * 20_000 + ["xyz"], "1", 1, "20000 of 20001 threads pass (99.9%); --min-pass-rate asks for 100%"),
    (["abc", "abc", "xyz"], "0.66667", 1, "2 of 3 threads pass (66.7%); --min-pass-rate asks for 66.667%"),
    (["abc", "abc", "xyz"], "0.66666", 0, ""), (["xyz"] * 20_000 + ["abc"], "0.00005", 1,
     "1 of 20001 threads pass (0.1%); --min-pass-rate asks for 0.005%"), (["abc"] * 29 + ["xyz"] * 71, "0.29", 0, ""),
])  # fmt: skip
def test_a_rate_is_compared_as_it_was_typed_and_shown_rounded(sh, work, answers, rate, status, said):
    threads(work, *answers)
    ran = sh(f"judge -q --check contains:b --min-pass-rate {rate} < in > out")
    assert (ran.status, ran.err) == (status, said and f"judge: {said}\n")


def test_almost_all_is_not_shown_as_all(sh, work):
    threads(work, *["abc"] * 20_000, "xyz")
    assert sh("judge -q --check contains:b --format json < in | jq .summary.pass_rate").out == "0.9999\n"
    assert sh("judge --check contains:b --format text < in | tail -n 1").out.startswith("20000 of 20001 threads pass (99.9%), ")


def test_what_a_check_cannot_know_is_no_number_in_the_table(sh, work):
    sh("for n in 1 2; do thread-append --new --thread t$n q | dispatch -q --to 'exec:echo hello' >> in; done")
    ran = sh("judge --check max-cost:1 --min-pass-rate 0.5 --junit r.xml --format text < in 2>err; echo $?; tail -n 1 err")
    assert ran.out.endswith(
        "              pass  fail  none  score\ncheck            0     0     2      -\n  max-cost:1     0     0     2      -\n"
        "0 of 2 threads pass (0.0%), 2 without a verdict; no model was asked\n"
        "6\njudge: 0 of 2 threads pass (0.0%); --min-pass-rate asks for 50%\n")  # fmt: skip
    (suite,) = list(junitparser.JUnitXml.fromfile(str(work / "r.xml")))
    assert (suite.tests, suite.errors) == (2, 2)


def test_a_missed_rate_is_heard_at_the_end_of_the_pipe(sh, work):
    threads(work, "abc", "abc", "xyz")
    line = "judge -q --check contains:b --min-pass-rate"
    assert sh(f"{line} 0.5 < in | thread-append s | trace > /dev/null").status == 0
    assert sh(f"{line} 0.9 < in 2>/dev/null | thread-append s2 | trace > /dev/null").status == 1
    assert sh(f"{line} 0.9 < in 2>/dev/null | thread-append - | tail -n 1").out == '{"v":1,"type":"end","threads":3,"status":"no"}\n'
    assert sh(f"{line} 0.9 --advise < in 2>/dev/null > out").status == 0


def test_no_verdict_is_no_pass_and_stays_status_6(sh, work):
    threads(work, "a", "b", "c", "d")
    tape(work, GOOD % 5, GOOD % 5, GOOD % 5, "x", "x")
    ran = sh("judge -q --by replay:tape --rubric correctness --min-pass-rate 0.7 --format json < in | jq -c '[.summary|.passed,.undecided,.pass_rate]'; exit ${PIPESTATUS[0]}")
    assert (ran.status, ran.out) == (6, "[3,1,0.75]\n")


def test_a_table_ends_what_a_terminal_gets(sh, work):
    threads(work, "abc", "xyz")
    ran = sh("judge --check contains:b --check 'regex:^x' --need any --format text < in")
    assert ran == (0, (
        "pass  0.50  thread t0\n      1.00  contains:b: it is there\n      0.00  regex:^x: nothing matches\n"
        "pass  0.50  thread t1\n      0.00  contains:b: it is not there\n      1.00  regex:^x: it matches\n"
        "\n"
        "              pass  fail  none  score\n"
        "check            2     0     0   0.50\n"
        "  contains:b     1     1     0   0.50\n"
        "  regex:^x       1     1     0   0.50\n"
        "2 of 2 threads pass (100.0%), 0 without a verdict; no model was asked\n"
    ), "")  # fmt: skip


def test_junit_is_what_its_readers_read(sh, work):
    threads(work, "good", 'bad & <worse> "x" \x00\x1b[2K \ud7ff \ufffe', "none")
    reason = orjson.dumps({"criteria": [{"name": "correctness", "score": 1, "reason": ']]> & <b> \x00\x08 "q" \ufffe'}]}).decode()
    tape(work, GOOD % 5, reason, "no idea", "no idea")
    ran = sh("judge -q --by replay:tape --rubric correctness --junit report.xml < in > out")
    assert ran.status == 3 or ran.status == 6
    suites = junitparser.JUnitXml.fromfile(str(work / "report.xml"))
    (suite,) = list(suites)
    assert (suite.name, suite.tests, suite.failures, suite.errors, suite.skipped) == ("judge", 3, 1, 1, 0)
    cases = list(suite)
    assert [case.name for case in cases] == ["t0", "t1", "t2"]
    assert [[type(result).__name__ for result in case.result] for case in cases] == [[], ["Failure"], ["Error"]]
    assert cases[1].result[0].message == "score 0" and ']]> & <b> \\u0000\\u0008 "q" \ufffd' in cases[1].result[0].text
    assert cases[2].result[0].type == "no_verdict" and "no valid verdict, twice" in cases[2].result[0].message
    assert xml.etree.ElementTree.parse(work / "report.xml").getroot().tag == "testsuites"


@pytest.mark.parametrize(("where", "status", "err"), [("none/r.xml", 2, "--junit none/r.xml: there is no such directory"),
                                                      ("/dev/full", 74, "--junit /dev/full: No space left on device")])  # fmt: skip
def test_a_junit_file_that_cannot_be_written_is_told(sh, work, where, status, err):
    threads(work, "abc")
    ran = sh(f"judge --check contains:b --junit {where} < in > out")
    assert (ran.status, ran.err) == (status, f"judge: {err}\n")


@pytest.mark.parametrize(("line", "name"), [
    ("judge --check contains:b --junit in < in", "stdin"), ("judge --check contains:b --junit ./link < in", "stdin"),
    ("judge --check contains:b --junit out --format json < in > out", "stdout"),
])  # fmt: skip
def test_a_junit_file_takes_the_place_of_no_other(sh, work, line, name):
    threads(work, "abc")
    (work / "link").symlink_to("in")
    before = (work / "in").read_bytes()
    file = line.split("--junit ")[1].split()[0]
    assert sh(line) == (2, "", f"judge: --junit {file} is also {name}, which would be lost\n")
    assert (work / "in").read_bytes() == before


def test_what_got_worse_since_the_baseline_is_listed(sh, work):
    threads(work, "abc", "abc", "xyz", "abc")
    assert sh("judge -q --check contains:b < in > old").status == 1
    threads(work, "xyz", "abc", "abc", "abc", "abc")
    ran = sh("judge --check contains:b --baseline old < in > out")
    assert ran == (1, "", (
        "judge:               pass  fail  none  score\n"
        "judge: check            4     1     0   0.80\n"
        "judge:   contains:b     4     1     0   0.80\n"
        "judge: 4 of 5 threads pass (80.0%), 0 without a verdict; no model was asked\n"
        "judge: since the baseline: 3 of 4 passed, now 3; 1 regressions, 1 improvements, p = 1\n"
        "judge:   regression: thread t0\n"
    ))  # fmt: skip
    found = orjson.loads(sh("judge -q --check contains:b --baseline old --format json < in").out)["baseline"]
    assert found == {"compared": 4, "passed_before": 3, "passed_now": 3, "regressions": ["t0"], "improvements": ["t2"], "missing": [], "p": 1.0}
    threads(work, "abc")
    ran = sh("judge --check contains:b --baseline old < in 2>&1 > out | tail -n 2")
    assert ran.out == (
        "judge: since the baseline: 1 of 1 passed, now 1; 0 regressions, 0 improvements, p = 1\n"
        "judge: 3 threads of the baseline are not here\n"
    )


def test_a_thread_that_failed_before_has_not_passed(sh, work):
    threads(work, "good", "bad", "good")
    line = "dispatch -q --to 'exec:sh -c \"! grep -q bad && echo fine\"' again < in 2>/dev/null | judge -q --check max-chars:9 --junit r.xml"
    ran = sh(f"{line} --format json --min-pass-rate 0.9 | jq -c '.summary|[.threads,.passed,.undecided,.pass_rate]'; exit ${{PIPESTATUS[1]}}")
    assert (ran.status, ran.out) == (3, "[3,2,1,0.6667]\n")
    (suite,) = list(junitparser.JUnitXml.fromfile(str(work / "r.xml")))
    assert [[type(result).__name__ for result in case.result] for case in suite] == [[], ["Error"], []]
    assert list(suite)[1].result[0].message == "it had failed before it was to be judged"


def test_a_loss_that_is_no_chance_is_a_no_whatever_the_rate(sh, work):
    threads(work, *["abc"] * 20)
    sh("judge -q --check contains:b < in > old")
    threads(work, *["abc"] * 13, *["xyz"] * 7)
    ran = sh("judge -q --check contains:b --baseline old --min-pass-rate 0.5 < in > out")
    assert (ran.status, ran.err) == (1, "judge: 7 regressions since the baseline are no chance (p = 0.015625)\n")
    threads(work, *["abc"] * 17, *["xyz"] * 3)
    assert sh("judge -q --check contains:b --baseline old --min-pass-rate 0.5 < in > out") == (0, "", "")


def test_agreement_with_people_is_shown_beside_chance_and_the_baselines(sh, work):
    """Two readers of fifty proposals, of which judge is the second: 20 yes and yes, 5, 10, 15: kappa 0.4."""
    answers = ["yes"] * 20 + ["no no"] * 5 + ["yes"] * 10 + ["no no"] * 15
    threads(work, *answers)
    jsonl(work, "labels", *({"thread": f"t{n}", "pass": n < 25} for n in range(50)))
    ran = sh("judge -q --check starts:yes --labels labels --format json < in; exit 0")
    found = orjson.loads(ran.out)["agreement"]
    assert found["labelled"] == found["decided"] == 50
    assert (found["agreement"], found["kappa"], found["base_rate"]) == (0.7, 0.4, 0.5)
    assert found["kappa_interval"][0] < 0.4 < found["kappa_interval"][1]
    assert found["spearman"] == pytest.approx(0.408248)
    assert found["baselines"] == {"longer": 0.5, "first": None, "most_common": 0.5}
    text = sh("judge --check starts:yes --labels labels --format text < in | tail -n 9").out
    assert text.startswith("labelled      50 (50 decided, abstained 0.000)\nagreement     0.700 of the decided, 0.700 of all\n"
                           "  no judge    longer 0.500, first unknown, most common 0.500\n")  # fmt: skip


def test_recorded_verdicts_are_scored_again_for_nothing(sh, work, home):
    threads(work, "a", "b", "c")
    tape(work, GOOD % 5, GOOD % 4, GOOD % 2)
    assert sh("judge -q --by replay:tape --rubric correctness < in > judged").status == 1
    assert calls(home) == 3
    jsonl(work, "labels", {"thread": "t0", "pass": True}, {"thread": "t1", "pass": False}, {"thread": "t2", "pass": False}, {"thread": "zz", "pass": True})
    shown = "jq -c '[.agreement|.labelled,.decided,.agreement,.cost_per_1000_usd]'"
    assert sh(f"judge --replay --labels labels --format json < judged | {shown}").out == "[3,3,0.666667,0]\n"
    assert sh(f"judge --replay --pass-at 0.8 --labels labels --format json < judged | {shown}").out == "[3,3,1,0]\n"
    assert sh("judge --replay --pass-at 0.25 < judged | cmp - judged").status == 1  # a pipe has control records too
    assert sh("judge --replay --pass-at 0.25 < judged > again; cmp again judged").status == 0
    assert [sh(f"judge -q --replay --pass-at {bar} < judged > out").status for bar in ("0.25", "0.3")] == [0, 1]
    assert calls(home) == 3


def test_replay_of_what_was_never_judged_is_no_verdict(sh, work):
    threads(work, "a")
    assert sh("judge --replay < in > out") == (6, "", "judge: thread t0: no verdict is recorded on the answer that the thread ends with\n")
    assert sh("judge --replay --by echo < in > out").status == 2


def test_a_panel_is_combined_again(sh, work, home):
    thread(work, ("user", "q"), ("assistant", "a"))
    for number, score in enumerate((5, 5, 1)):
        tape(work, GOOD % score, name=f"tape{number}")
    assert sh("judge -q --by replay:tape0 --by replay:tape1 --by replay:tape2 --rubric correctness < t > judged").status == 0
    assert sh("judge --replay < judged > out").status == 0
    assert sh("judge --replay --combine mean < judged > out").status == 1
    assert sh("judge --replay --combine mean --pass-at 0.6 < judged > out").status == 0
    assert calls(home) == 3


def test_comparisons_are_held_against_people_with_position_and_length(sh, work):
    jsonl(work, "in", *({"v": 1, "type": "message", "thread": f"t{n}", "id": ident, "role": role, "content": text,
                         **({"reply_to": "q", "author": {"agent": ident * 2}} if role == "assistant" else {})}
                        for n in range(4) for ident, role, text in
                        (("q", "user", "q"), ("a", "assistant", "short"), ("b", "assistant", "a longer one"))))  # fmt: skip
    better = '{"better":"%s","reason":""}'
    one_order = "--one-order --seed 0"
    shown_first = sh(f"judge -q --by echo --rubric correctness --pairwise {one_order} < in > out; jq -r 'select(.part)|.shown[0]' out").out.split()[0]
    says = {shown_first: "A", "b" if shown_first == "a" else "a": "B"}
    tape(work, *(better % says[want] for want in "aabb"))
    jsonl(work, "labels", {"thread": "t0", "preferred": "a"}, {"thread": "t1", "preferred": "aa"}, {"thread": "t2", "preferred": "b"}, {"thread": "t3", "preferred": "a"})
    ran = sh(f"judge -q --by replay:tape --rubric correctness --pairwise {one_order} --labels labels --format json < in")
    found = orjson.loads(ran.out)["agreement"]
    assert (ran.status, found["agreement"], found["base_rate"], found["kappa"]) == (0, 0.75, 0.75, 0.5)
    assert found["baselines"] == {"longer": 0.25, "first": 0.75, "most_common": 0.75}
    assert found["swap_consistency"] is None


FRUIT = {"a": "short", "b": "a longer one"}


def fruit(work: Path, count: int) -> None:
    """A file of so many threads with two answers each, a by aa and b by bb; and `long`, a judge that prefers b."""
    jsonl(work, "in", *({"v": 1, "type": "message", "thread": f"t{n}", "id": ident, "role": role, "content": text,
                         **({"reply_to": "q", "author": {"agent": ident * 2}} if role == "assistant" else {})}
                        for n in range(count) for ident, role, text in
                        (("q", "user", f"q{n}"), *((name, "assistant", text) for name, text in FRUIT.items()))))  # fmt: skip
    (work / "long").write_text("#!/bin/sh\ncat >heard.$$; grep -q q3 heard.$$ && [ -e broken ] && exit 1\n"
                               "grep -A1 'answer A$' heard.$$ | grep -q longer && b=A || b=B\n"
                               """echo '{"better":"'$b'","reason":"r"}'\n""")  # fmt: skip
    (work / "long").chmod(0o755)


AGREEMENT = "--format json < in 2>/dev/null | jq -c '[.agreement|.labelled,.decided,.agreement,.agreement_of_all]+[.agreement.baselines|.longer,.first]'"


def test_a_thread_whose_judge_failed_has_answers_all_the_same(sh, work):
    fruit(work, 4)
    jsonl(work, "labels", *({"thread": f"t{n}", "preferred": "b" if n else "aa"} for n in range(4)))
    line = f"judge -q --by exec:./long --rubric style --pairwise --labels labels {AGREEMENT}"
    assert sh(line).out == "[4,4,0.75,0.75,0.75,0.25]\n"
    (work / "broken").touch()
    assert sh(line).out == "[4,3,0.666667,0.5,0.75,0.25]\n"
    (work / "more").write_bytes(b'{"v":1,"type":"message","thread":"t9","id":"q","role":"user","content":"q"}\n')
    sh("cat more >>in; echo '{\"thread\":\"t9\",\"preferred\":\"b\"}' >>labels")  # nothing of it is judged
    assert sh(line).out == "[5,3,0.666667,0.4,0.75,0.25]\n"


def test_the_figures_of_a_judge_are_its_own_where_another_failed(sh, work):
    fruit(work, 4)
    jsonl(work, "labels", *({"thread": f"t{n}", "preferred": "b"} for n in range(4)))
    (work / "broken").touch()
    (work / "short").write_text((work / "long").read_text().replace("-e broken", "-e never").replace("b=A || b=B", "b=B || b=A"))
    (work / "short").chmod(0o755)
    by = "--by exec:./long --by exec:./short --by exec:./short"
    ran = sh(f"judge -q {by} --rubric style --pairwise --labels labels --format json < in 2>/dev/null | jq -c '.agreement.judges[]|[.judge,.decided,.agreement]'")
    assert ran.out == '["1 exec",3,1]\n["2 exec",4,0]\n["3 exec",4,0]\n'


@pytest.mark.parametrize(("lengths", "good", "longer"), [((1, 2, 3, 4), (3, 4), 1), ((1, 2), (2,), 1), ((1, 2, 3, 4), (1, 2, 3), 0.75),
                                                         ((2, 2, 2), (2,), 1), ((1, 5, 3), (1,), 0.666667)])  # fmt: skip
def test_the_longer_answer_passes_by_the_bar_that_agrees_best(sh, work, lengths, good, longer):
    threads(work, *("x" * length for length in lengths))
    jsonl(work, "labels", *({"thread": f"t{n}", "pass": length in good} for n, length in enumerate(lengths)))
    assert sh("judge -q --check contains:x --labels labels --format json < in | jq .agreement.baselines.longer").out == f"{longer}\n"


def test_labels_that_can_be_held_against_nothing_are_not_counted_and_said(sh, work):
    fruit(work, 5)
    text = (work / "in").read_text().splitlines(keepends=True)
    (work / "in").write_text("".join(line.replace('"bb"', '"aa"') if '"t1"' in line else line for line in text))
    jsonl(work, "labels", {"thread": "t0", "preferred": "cc"}, {"thread": "t1", "preferred": "aa"}, {"thread": "t2", "pass": True},
          {"thread": "t3", "preferred": "b"}, {"thread": "t9", "preferred": "b"}, {"thread": "t3", "preferred": "b"})  # fmt: skip
    ran = sh("judge --by exec:./long --rubric style --pairwise --labels labels --format json < in 2>err | jq -c '.agreement|[.labelled,.agreement,.not_counted]'; grep 'not counted' err")
    assert ran.out == (
        '[1,1,{"that prefer what is no answer":1,"with a name that several answers have":1,"that pass or score, of a comparison":1,"of a thread that is not here":1}]\n'
        "judge: --labels: 4 labels are not counted: 1 of a thread that is not here, 1 that pass or score, of a comparison, 1 that prefer what is no answer, "
        "1 with a name that several answers have\n")  # fmt: skip
    threads(work, "abc", "xyz")
    jsonl(work, "labels", {"thread": "t0", "preferred": "a"}, {"thread": "t1", "pass": False, "preferred": None, "score": None})
    shown = "jq -c '.agreement|[.labelled,.agreement,.not_counted]'"
    assert sh(f"judge -q --check contains:b --labels labels --format json < in | {shown}").out == '[1,1,{"that prefer, of one answer":1}]\n'


@pytest.mark.parametrize(("label", "figures"), [('"pass":true,"score":null', "[1,1,1]"), ('"pass":null,"score":0.9', "[1,1,1]"),
                                                ('"pass":true,"preferred":null', "[1,1,1]")])  # fmt: skip
def test_a_field_of_a_label_that_is_null_says_nothing(sh, work, label, figures):
    threads(work, "abc")
    (work / "labels").write_text(f'{{"thread":"t0",{label}}}\n')
    assert sh("judge -q --check contains:b --labels labels --format json < in | jq -c '[.agreement|.labelled,.decided,.agreement]'").out == f"{figures}\n"


def test_a_thread_has_one_label(sh, work):
    threads(work, "a")
    (work / "labels").write_text('{"thread":"t0","pass":true}\n{"thread":"t0","pass":true,"by":"me"}\n{"thread":"t0","pass":false}\n')
    assert sh("judge --check json --labels labels < in") == (2, "", "judge: --labels labels: line 3: thread t0 has another label before\n")


@pytest.mark.parametrize("line", ['{"thread":"t","pass":null}', '{"thread":"t","pass":null,"preferred":null}', '{"thread":"t","pass":"no"}',
                                  '{"thread":"t","pass":true,"score":"high"}', '{"thread":"t","score":true}', '{"thread":"t","pass":true,"preferred":7}',
                                  "[]", '{"thread":"t"}', '{"thread":"t","score":2}', '{"thread":"t","pass":1}', '{"thread":"t","preferred":3}', "x"])
def test_a_label_that_is_none_is_refused(sh, work, line):
    threads(work, "a")
    (work / "labels").write_text(f'{{"thread":"t0","pass":true}}\n{line}\n')
    assert sh("judge --check json --labels labels < in > out") == (2, "", (
        'judge: --labels labels: line 2: no {"thread": TEXT, and "pass": true or false, "score": 0 to 1, or "preferred": '
        "ID, NAME or null}\n"))  # fmt: skip


@pytest.mark.parametrize(("flags", "err", "status"), [("--labels none", "--labels none: No such file or directory", 66),
                                                      ("--baseline none", "--baseline none: No such file or directory", 66),
                                                      ("--baseline in", "--baseline in: it holds no verdict; save one with: judge ... > in", 2)])  # fmt: skip
def test_files_that_are_not_there_are_told_before_anything_is_asked(sh, work, flags, err, status):
    threads(work, "a")
    assert sh(f"judge --check json {flags} < in > out") == (status, "", f"judge: {err}\n")
