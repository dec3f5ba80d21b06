"""Routers on RouteLLM's data, in domain, five folds: random, longer prompts first, ours, oracle; then a forest of rules.

    python tests/bench/route.py [gsm8k] [mmlu] [rules] [nested]

Each prompt is scored by a router that was fitted to the other four folds; APGR, CPT50 and CPT80 are of all these scores
together. How strongly weights are held down is chosen of four by the log loss on the same folds; `nested` chooses it, on
gsm8k, on folds within the four, so that nothing at all of a prompt is seen. `rules` times 50 rules over 100,000 messages: alone, as the command, beside grep -f and,
over a tenth of them, beside a plain loop over `re`; in turn, medians of three.
"""

from __future__ import annotations

import gzip
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import orjson

from mllm_pipe.routing import evaluation, fitting, learned
from mllm_pipe.routing.router import find_router
from mllm_pipe.routing.subject import Subject

HERE = Path(__file__).resolve().parent
DATA = HERE.parent / "data" / "routellm"
MESSAGES = 100_000


def cross_validated(name: str, nested: bool = False) -> None:
    """Print the table of one data set."""
    with gzip.open(DATA / f"{name}.jsonl.gz") as file:
        rows = [orjson.loads(line) for line in file]
    texts = [row["prompt"] for row in rows]
    weak, strong = ([float(row[which]) for row in rows] for which in ("weak", "strong"))
    labels = [(1.0 + s - w) / 2 for w, s in zip(weak, strong, strict=True)]
    started = time.process_time()
    model, unseen = fitting.fit(texts, {"strong": labels}, 0.3)
    scores = [row[0] for row in unseen]
    took, threshold = time.process_time() - started, model["threshold"]
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "router.json")
        Path(path).write_bytes(orjson.dumps(model))
        began = time.perf_counter()
        learned.load(path)
        loading = time.perf_counter() - began
    if nested:
        place = list(range(len(rows)))
        random.Random(5).shuffle(place)
        for fold in range(5):
            seen = [one for number, one in enumerate(place) if number % 5 != fold]
            model, _ = fitting.fit([texts[one] for one in seen], {"strong": [labels[one] for one in seen]}, 0.3)
            with tempfile.TemporaryDirectory() as folder:
                path = os.path.join(folder, "router.json")
                Path(path).write_bytes(orjson.dumps(model))
                router = learned.load(path)
            for one in place[fold::5]:
                scores[one] = learned.probabilities(router.model, texts[one])[0]
    print(f"{name}{' (nested)' * nested}: {len(rows)} prompts, weak {sum(weak) / len(rows):.4f}, strong "
          f"{sum(strong) / len(rows):.4f}; to fit took {took:.0f} s of a processor, to load {loading * 1000:.0f} ms")  # fmt: skip
    table = evaluation.beside(texts, weak, strong)
    table = {"random": table["random"], "length": table["length"], "learned": evaluation.of_scores(scores, weak, strong),
             "oracle": table["oracle"]}  # fmt: skip
    print(f"{'':8} {'APGR':>7} {'CPT50':>7} {'CPT80':>7}")
    for router_name, found in table.items():
        print(f"{router_name:8} {found['apgr']:7.3f} {found['cpt50']:7.3f} {found['cpt80']:7.3f}")
    error = evaluation.calibration(scores, labels)
    share = sum(score >= threshold for score in scores) / len(scores)
    print(f"calibration error {error:.3f}; --strong-share 0.3 chose the strong one for {share:.3f} of the prompts\n", flush=True)


WORDS = [f"{first}{second}{third}" for first in ("re", "con", "pro", "in", "ex", "sub", "trans", "de")
         for second in ("fer", "port", "tract", "vert", "mit", "ject", "scribe", "tain")
         for third in ("", "ed", "ing", "ion", "or", "able", "ance", "al")]  # fmt: skip


def rules() -> None:
    """Print how many messages of 25 words a second go through 50 rules of 4 keywords; every fourth meets one."""
    dice = random.Random(1)
    words = dice.sample(WORDS, 200)
    others = [word for word in WORDS if word not in words]
    texts = [" ".join(dice.choices(others, k=25) + dice.choices(words, k=number % 4 == 0)) + "."
             for number in range(MESSAGES)]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("rules.toml").write_text('default = "other"\n' + "".join(
            f'[[rules]]\nname = "r{n}"\nkeywords = {orjson.dumps(words[4 * n:4 * n + 4]).decode()}\ntarget = "a{n % 5}"\n'
            for n in range(50)))  # fmt: skip
        Path("words").write_text("".join(f"{word}\n" for word in words))
        with open("stream", "wb") as stream, open("plain", "w") as plain:
            for number, text in enumerate(texts):
                record = {"v": 1, "type": "message", "thread": f"t{number}", "id": f"m{number}", "role": "user", "content": text}
                stream.write(orjson.dumps(record) + b"\n")
                plain.write(text + "\n")
        Path("loop.py").write_text(LOOP)
        ours = find_router(None, "rules.toml")["rules"]
        subjects = [Subject([{"role": "user", "content": text}]) for text in texts]

        def alone() -> float:
            started = time.perf_counter()
            for subject in subjects:
                ours.first(subject)
            return time.perf_counter() - started

        def line(text: str) -> float:
            started = time.perf_counter()
            subprocess.run(["sh", "-c", text], check=True, stdout=subprocess.DEVNULL)
            return time.perf_counter() - started

        command = f"{Path(sys.executable).parent / 'route'} --rules rules.toml < stream"
        loop = f"head -n {MESSAGES // 10} plain | {sys.executable} loop.py"
        timed = {
            "50 rules, in the process": (MESSAGES, alone),
            "route --rules, as a command": (MESSAGES, lambda: line(command)),
            "grep -Fwif 200 words (which lines)": (MESSAGES, lambda: line("grep -Fwif words plain | cat")),
            "a loop over 50 compiled re (which rule)": (MESSAGES // 10, lambda: line(loop)),
        }
        taken = {name: [] for name in timed}
        for _ in range(3):
            for name, (count, run) in timed.items():
                taken[name].append(count / run())
        for name, rates in taken.items():
            print(f"{statistics.median(rates):10,.0f} messages/s  {name}", flush=True)
        os.chdir(HERE)


LOOP = """import re, sys, tomllib
rules = tomllib.load(open("rules.toml", "rb"))["rules"]
tests = [(re.compile(r"\\b(?:" + "|".join(map(re.escape, rule["keywords"])) + r")\\b", re.I), rule["target"]) for rule in rules]
for line in sys.stdin:
    print(next((target for test, target in tests if test.search(line)), "other"))
"""

if __name__ == "__main__":
    for wanted in sys.argv[1:] or ["gsm8k", "mmlu", "rules"]:
        if wanted == "rules":
            rules()
        else:
            cross_validated("gsm8k" if wanted == "nested" else wanted, wanted == "nested")
