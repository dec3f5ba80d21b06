"""route --fit and --eval: a router from one's own log, what it chooses, and how good it is said to be."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import orjson
import pytest
from conftest import DATA
from test_dispatch import thread

from mllm_pipe.routing import evaluation, learned
from mllm_pipe.routing.features import words_of

AGENTS = '[agents.cheap]\nruntime = "exec:echo cheap here"\n[agents.big]\nruntime = "exec:echo big here"\n'
ROUTER = '[routers.r]\nchildren = ["cheap", "big"]\ndefault = "cheap"\nrules = [{ learned = "router.json"%s }]\n'


@pytest.fixture
def sh(sh, work: Path):
    """The shell, with mllm.toml of the directory in force."""
    (work / "mllm.toml").touch()
    return lambda line, **more: sh(line, **{"MLLM_CONFIG": "mllm.toml"} | more)


def log(work: Path, rows: list[dict]) -> None:
    (work / "log").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))


def outcomes(count: int = 200) -> list[dict]:
    """Prompts of which those about integrals are too hard for the weak one, two times in three."""
    dice = random.Random(7)
    filler = ["the", "a", "please", "of", "tell", "me", "some", "thing", "now", "about"]
    rows = []
    for _ in range(count):
        hard = dice.random() < 0.4
        words = dice.choices(filler, k=8) + [dice.choice(["integral", "topology"] if hard else ["weather", "recipe"])]
        dice.shuffle(words)
        rows.append({"prompt": " ".join(words), "weak": not hard or dice.random() < 0.33, "strong": True})
    return rows


def targets(count: int = 120) -> list[dict]:
    dice = random.Random(3)
    words = {"cheap": ["hello", "thanks", "bye"], "big": ["theorem", "proof", "lemma"]}
    names = [dice.choice(["cheap", "big"]) for _ in range(count)]
    return [{"prompt": f"{dice.choice(words[name])} number {dice.randint(1, 9)}", "target": name} for name in names]


def test_a_learned_rule_sends_what_is_too_hard_to_the_strong_one(sh, work):
    log(work, outcomes())
    ran = sh("route --fit log -o router.json --strong-share 0.4 --format text")
    assert (ran.status, ran.err) == (0, "")
    lines = ran.out.splitlines()
    assert lines[:2] == ["200 rows", "classes: strong"] and lines[5].startswith("strong share: 0.4")
    scores = {line.split()[0]: float(line.split()[1]) for line in lines[8:]}
    assert list(scores) == ["this", "random", "length", "oracle"]
    assert scores["random"] == 0.5 and abs(scores["length"] - 0.5) < 0.15 and 0.75 < scores["this"] <= scores["oracle"]
    (work / "mllm.toml").write_text(AGENTS + ROUTER % ', target = "big"')
    thread(work, ("user", "please tell me some thing about the integral now"))
    ran = sh("route < t | tee mid | dispatch --text")
    assert ran == (0, "big here\n", "")
    route = next(record for record in sh("cat mid").records if record["type"] == "route")
    assert (route["by"], route["reason"][:17]) == ("learned", "rule 1: strong at")
    thread(work, ("user", "please tell me some thing about the weather now"))
    assert sh("route < t | dispatch --text").out == "cheap here\n"
    assert "strong at 0." in sh("route --explain < t").records[0]["rules"][0]["why"]


def test_a_learned_rule_without_a_target_tells_targets_apart(sh, work):
    log(work, targets())
    ran = sh("route --fit log -o router.json")
    assert ran.records[0]["accuracy"] == 1.0 and ran.records[0]["classes"] == ["big", "cheap"]
    (work / "mllm.toml").write_text(AGENTS + ROUTER % "")
    thread(work, ("user", "a proof of the lemma"))
    assert sh("route < t | dispatch --text").out == "big here\n"
    (work / "mllm.toml").write_text(AGENTS + ROUTER % ", above = 1")
    assert sh("route < t | dispatch --text").out == "cheap here\n"
    (work / "mllm.toml").write_text(AGENTS + ROUTER.replace(', "big"', "") % "")
    ran = sh("route < t --format text")
    assert (ran.status, ran.out) == (0, "cheap  default  thread t  no rule matches\n")


def test_what_is_written_without_blanks_is_learned_by_its_letters(sh, work):
    words = {"cheap": ["你好", "谢谢"], "big": ["证明定理", "求积分"]}
    dice = random.Random(5)
    names = [dice.choice(["cheap", "big"]) for _ in range(80)]
    log(work, [{"prompt": f"请{dice.choice(words[name])}吧{dice.choice('一二三四')}", "target": name} for name in names])
    assert sh("route --fit log -o router.json").records[0]["accuracy"] == 1.0


def test_the_verdicts_of_a_thread_file_are_a_log(sh, work):
    lines = []
    for number, row in enumerate(outcomes(80)):
        base = {"v": 1, "thread": f"t{number}"}
        lines.append(base | {"type": "message", "id": "q", "role": "user", "content": row["prompt"]})
        for agent, right in (("cheap", row["weak"]), ("big", row["strong"])):
            lines.append(base | {"type": "message", "id": agent, "role": "assistant", "content": "x", "author": {"agent": agent}, "reply_to": "q"})
            lines.append(base | {"type": "verdict", "id": f"v{agent}", "about": [agent], "pass": right})
    log(work, lines)
    report = sh("route --fit log -o router.json --strong-share 0.4").records[0]
    assert (report["rows"], report["agents"], report["classes"]) == (80, ["cheap", "big"], ["strong"])
    assert report["scores"]["this"]["apgr"] > 0.7


def test_eval_says_accuracy_precision_recall_confusion_shares_and_cost(sh, work, home):
    (work / "mllm.toml").write_text(AGENTS + '[routers.r]\nchildren = ["cheap", "big"]\nmodels = { router = "echo" }\n'
                                    'rules = [{ keywords = "proof", target = "big" }]\n')  # fmt: skip
    log(work, [{"prompt": "a proof", "target": "big"}, {"prompt": "hello", "target": "cheap"}, {"prompt": "lemma", "target": "big"},
               {"prompt": "waterproof", "target": "cheap"}])  # fmt: skip
    ran = sh("route r --eval log --format text")
    assert ran == (0, (
        "4 rows through router r\n"
        "by: model 0.750, rule 0.250\n"
        "calls: 3, $0.000000\n"
        "accuracy: 0.750\n"
        "target  precision  recall  rows\n"
        "big         1.000   0.500     2\n"
        "cheap       0.667   1.000     2\n"
        "wanted \\ found  big  cheap\n"
        "big               1      1\n"
        "cheap             0      2\n"), "")  # fmt: skip
    assert sh("route r --eval log").records[0]["confusion"] == {"big": {"big": 1, "cheap": 1}, "cheap": {"cheap": 2}}


@pytest.mark.parametrize("default", ["", 'default = "cheap"\n'])
def test_eval_tells_a_call_that_fails_with_a_default_as_without(sh, work, default):
    (work / "mllm.toml").write_text(f'{AGENTS}[routers.r]\nchildren = ["cheap", "big"]\nmodels = {{ router = "exec:false" }}\n{default}'
                                    'rules = [{ keywords = "proof", target = "big" }]\n')  # fmt: skip
    log(work, [{"prompt": "a proof", "target": "big"}, {"prompt": "hello", "target": "cheap"}])
    assert sh("route r --eval log --format text") == (3, (
        "2 rows through router r\n"
        "by: failed 0.500, rule 0.500\n"
        "calls: 1, $0.000000 + 1 unpriced\n"
        "accuracy: 0.500\n"
        "target  precision  recall  rows\n"
        "big         1.000   1.000     1\n"
        "cheap           -   0.000     1\n"
        "none        0.000       -     0\n"
        "wanted \\ found  big  cheap  none\n"
        "big               1      0     0\n"
        "cheap             0      0     1\n"), "route: thread row 2: exec: false: exit status 1\n")  # fmt: skip


def test_eval_of_outcomes_says_what_was_gained_beside_random_length_and_oracle(sh, work):
    log(work, outcomes())
    (work / "r.toml").write_text('default = "cheap"\nrules = [{ keywords = ["integral", "topology"], target = "big" }]\n')
    report = sh("route --rules r.toml --eval log").records[0]
    assert (report["strong"], report["by"].keys(), report["best_single"]) == ("big", {"rule", "default"}, "strong")
    assert report["pgr"] == 1.0 and 0.35 < report["strong_share"] < 0.5
    assert report["scores"]["random"] == {"apgr": 0.5, "cpt50": 0.5, "cpt80": 0.8}
    assert 0.5 < report["scores"]["this"]["apgr"] < report["scores"]["oracle"]["apgr"]


@pytest.mark.parametrize(("name", "apgr", "cpt50", "cpt80"), [("mmlu", 0.586, 0.359, 0.691), ("gsm8k", 0.598, 0.366, 0.668)])
def test_prompt_length_scores_on_routellms_data_as_measured_elsewhere(name, apgr, cpt50, cpt80):
    with gzip.open(DATA / "routellm" / f"{name}.jsonl.gz") as file:
        rows = [orjson.loads(line) for line in file]
    weak, strong = [[row[name] for row in rows] for name in ("weak", "strong")]
    found = evaluation.of_order([row["prompt"] for row in rows], weak, weak, strong)["scores"]
    assert found["random"]["apgr"] == pytest.approx(0.5, abs=1e-4)
    assert [round(found["length"][key], 3) for key in ("apgr", "cpt50", "cpt80")] == [apgr, cpt50, cpt80]
    assert found["oracle"]["apgr"] == pytest.approx({"mmlu": 1.285, "gsm8k": 1.121}[name], abs=1e-3)


def test_without_numpy_a_fit_says_what_is_missing_and_a_decision_needs_none(sh, work):
    log(work, outcomes())
    sh("route --fit log -o router.json >/dev/null")
    (work / "no").mkdir()
    (work / "no/numpy.py").write_text("raise ModuleNotFoundError(\"No module named 'numpy'\", name='numpy')\n")
    assert sh("route --fit log -o x", PYTHONPATH="no") == (
        2, "", "route: --fit needs numpy, deciding does not; in the checkout: pip install '.[learn]'\n")  # fmt: skip
    (work / "mllm.toml").write_text(AGENTS + ROUTER % ', target = "big"')
    thread(work, ("user", "please tell me some thing about the integral now"))
    assert sh("route --format text < t", PYTHONPATH="no").out.startswith("big  learned  thread t  rule 1: strong at 0.")


def test_a_fit_is_the_optimum_and_the_same_each_time(sh, work):
    fitting = pytest.importorskip("mllm_pipe.routing.fitting")
    rows = outcomes(60)
    matrix, wanted = fitting.Matrix([row["prompt"] for row in rows]), fitting.np.array([float(row["weak"]) for row in rows])
    weights = fitting.logistic(matrix, wanted, 1e-2)
    residuals = 1 / (1 + fitting.np.exp(-matrix.times(weights))) - wanted
    gradient = matrix.transposed_times(residuals / len(rows)) + 1e-2 * fitting.np.append(weights[:-1], 0.0)
    assert fitting.np.abs(gradient).max() < 1e-5
    log(work, rows)
    assert sh("route --fit log -o a >/dev/null; route --fit log -o b >/dev/null; cmp a b").status == 0


@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        ("route --fit log", 2, "say route --fit LOG -o FILE, and perhaps --strong-share"),
        ("route -o x", 2, "-o and --strong-share go with --fit LOG"),
        ("route --fit none -o x", 66, "none: No such file or directory"),
        ("route --fit log -o x", 2, "2 rows with a label; --fit needs at least 20"),
        ("route --fit bad -o x", 65, "bad: line 1: no row: it has neither a target nor weak and strong, each true, false or 0 to 1"),
        ("route --rules r.toml --eval log", 2, "log: 'a' is no child of router r; there are b"),
        ("route --rules l.toml --eval log", 2, "log: no whole learned router; route --fit LOG -o FILE makes one anew"),
        ("route --rules m.toml --eval log", 2, "m.toml:1: rules.0.above goes with learned"),
        ("route --rules r.toml --eval log --explain", 2, "--eval asks for what --explain does not send: say one of them"),
        ("route --fit loose -o x", 65, "loose: thread t: message a replies to gone, which is no message before it"),
        ("cp log same; ln same link; route --fit same -o link", 2, "-o link is the log itself, which would be lost"),
        ("for i in {1..30}; do cat log; done > many; route --fit many -o x", 2, "2 different prompts; --fit needs at least 5"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(sh, work, line, status, said):
    log(work, [{"prompt": "x", "target": "a"}, {"prompt": "y", "target": "b"}])
    (work / "bad").write_text('{"prompt": "x", "weak": 2, "strong": true}\n')
    (work / "r.toml").write_text('rules = [{ keywords = "x", target = "b" }]\n')
    (work / "l.toml").write_text('rules = [{ learned = "broken", target = "a" }]\n')
    (work / "m.toml").write_text('rules = [{ keywords = "x", above = 0.5, target = "a" }]\n')
    (work / "broken").write_text('{"kind": "mllm-pipe router", "version": 1, "classes": ["strong"]}')
    (work / "loose").write_text(
        '{"v":1,"type":"message","thread":"t","id":"q","role":"user","content":"?"}\n'
        '{"v":1,"type":"message","thread":"t","id":"a","role":"assistant","content":"!","reply_to":"gone"}\n'
        '{"v":1,"type":"verdict","thread":"t","id":"v","about":["a"],"pass":true}\n')
    said = said.replace("log: no whole", "broken: no whole")
    assert sh(line) == (status, "", f"route: {said}\n")


@pytest.mark.parametrize("change", [
    '.classes = {"big": 1, "cheap": 2}', '.classes = ["big", "big"]', ".classes = [1, 2]", ".classes = []", ".threshold = 7",
    ".structure[0][1] = 0", '.bias[0] = "x"', ".weights[0] |= .[:-40]", ".weights |= .[:1]",
])  # fmt: skip
def test_a_learned_router_that_is_not_as_it_was_made_decides_nothing(sh, work, change):
    log(work, targets())
    assert sh(f"route --fit log -o whole >/dev/null; jq '{change}' whole > router.json").err == ""
    (work / "mllm.toml").write_text(AGENTS + ROUTER % "")
    thread(work, ("user", "a proof of the lemma"))
    said = "router.json: no whole learned router; route --fit LOG -o FILE makes one anew"
    assert sh("route < t") == (2, "", f"route: {said}\n")


def test_weights_that_are_no_numbers_are_never_sure(sh, work):
    log(work, targets())
    sh("route --fit log -o router.json >/dev/null")
    model = orjson.loads((work / "router.json").read_bytes())
    weights = [learned.numbers(one) for one in model["weights"]]
    for bucket in words_of("lemma"):
        weights[0][bucket] = weights[1][bucket] = float("nan")
    (work / "router.json").write_bytes(orjson.dumps(model | {"weights": list(map(learned.packed, weights))}))
    (work / "mllm.toml").write_text(AGENTS + ROUTER % "")
    thread(work, ("user", "a proof of the lemma"))
    assert sh("route --format text < t") == (0, "cheap  default  thread t  no rule matches\n", "")
    thread(work, ("user", "a proof"))
    assert sh("route --format text < t").out.startswith("big  learned ")


def test_a_rule_of_targets_has_no_target_of_its_own(sh, work):
    log(work, targets())
    sh("route --fit log -o router.json >/dev/null")
    (work / "mllm.toml").write_text(AGENTS + ROUTER % ', target = "big"')
    thread(work, ("user", "hello"))
    said = "routers.r.rules.0 has a target, and router.json tells targets apart: the one that it finds is where the thread goes"
    assert sh("route < t") == (2, "", f"route: mllm.toml:8: {said}\n")


def test_a_prompt_that_comes_often_is_not_measured_on_itself(sh, work):
    """Forty words that nobody can tell a target from, each five times: who has seen them all knows them all."""
    dice = random.Random(1)
    words = ["".join(dice.choices("abcdefgh", k=8)) for _ in range(40)]
    rows = [{"prompt": word, "target": "cheap" if place % 2 else "big"} for place, word in enumerate(words)]
    log(work, dice.sample(rows * 5, 200))
    assert sh("route --fit log -o router.json").records[0]["accuracy"] < 0.7


def test_where_the_strong_one_is_no_better_no_share_of_a_gap_is_told(sh, work):
    (work / "r.toml").write_text('default = "weak"\nrules = [{ keywords = "hard", target = "strong" }]\n')
    rows = [{"prompt": "hard", "weak": True, "strong": False}, {"prompt": "easy", "weak": True, "strong": True}]
    log(work, rows)
    assert sh("route --rules r.toml --eval log --format text") == (0, (
        "2 rows through router r\n"
        "by: default 0.500, rule 0.500\n"
        "accuracy: 0.500\n"
        "strong share: 0.500, gap recovered: -\n"
        "weak alone: 1.000, strong alone: 0.500, best single: weak\n"), "")  # fmt: skip


def test_a_router_is_written_whole_or_not_at_all(sh, work):
    log(work, targets())
    ran = sh("trap '' XFSZ; ulimit -f 1; route --fit log -o new; echo $?; ls")
    assert ran == (0, "74\nlog\nmllm.toml\n", "route: new: File too large\n")
    (work / "router.json").write_text("the old one")
    (work / "link").symlink_to("router.json")
    ran = sh("trap '' XFSZ; ulimit -f 1; route --fit log -o link; cat router.json; ls")
    assert ran == (0, "the old onelink\nlog\nmllm.toml\nrouter.json\n", "route: link: File too large; it is as it was\n")
    ran = sh("route --fit log -o link > /dev/null; jq .version link; ls")
    assert ran == (0, "1\nlink\nlog\nmllm.toml\nrouter.json\n", "")


def test_a_stream_that_was_saved_is_a_log_as_a_thread_file_is(sh, work):
    line = "for i in {1..9}; do thread-append --new \"hello $i\"; done | grep message | dispatch -q --to exec:date --as cheap"
    ran = sh(f"{line} | judge -q --check contains:20 | tee saved | cat > /dev/null; route --fit saved -o x")
    assert ran == (2, "", "route: 9 rows with a label; --fit needs at least 20\n")


@pytest.mark.parametrize(("share", "found"), [("0", "0.000"), ("1", "1.000")])
def test_none_or_all_are_also_none_or_all_of_what_is_beyond_the_log(sh, work, share, found):
    log(work, outcomes())
    ran = sh(f"route --fit log -o router.json --strong-share {share} --format text")
    assert [ran.out.splitlines()[place].partition(",")[0] for place in (2, 5)] == [f"threshold: {1 - int(share)}.000", f"strong share: {found}"]
