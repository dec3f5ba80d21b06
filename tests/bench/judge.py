"""LLMBar through judge, with no model: what six judges really answered to 419 pairs, in both orders, is replayed through
our question, our reading, our swap, panel, escalation and agreement, by the commands that a user has.

    python tests/bench/judge.py             every figure beside the one that the data's users have published or measured
    python tests/bench/judge.py --pairs     and each pair that our code leaves undecided for another cause than a swap

Each completion is put on a tape under the question that judge asks; "Output (a)" becomes the form that judge reads,
anything else stays as it came, and is refused as it would be from a model.
"""

from __future__ import annotations

import argparse
import gzip
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import orjson

from mllm_pipe.judging import pairs, rubrics, statistics, verdict

HERE = Path(__file__).resolve().parent
DATA = HERE.parent / "data" / "llmbar"
BIN = Path(sys.executable).parent
RUBRIC = "Which output executes the instruction more closely and precisely?"
FORM = {"Output (a)": b'{"better":"A","reason":""}', "Output (b)": b'{"better":"B","reason":""}'}
FIVE = ("GPT-4", "ChatGPT", "PaLM2", "LLaMA2", "Falcon")

# share consistent, accuracy of those, in percent: what the data gives by a plain count
WANTED = {"GPT-4": (92.8, 87.1), "PaLM2": (71.6, 78.3), "ChatGPT": (65.9, 34.8), "LLaMA2": (74.9, 42.4), "Falcon": (41.5, 65.5)}
WANTED_NATURAL = {"GPT-4": (95.0, 97.9), "PaLM2": (78.0, 93.6), "ChatGPT": (71.0, 94.4)}


def rows(name: str) -> list[dict[str, Any]]:
    with gzip.open(DATA / f"{name}.jsonl.gz") as file:
        return [orjson.loads(line) for line in file]


def messages(pair: dict[str, Any]) -> list[dict[str, Any]]:
    """The question and its two answers, siblings, as records."""
    common = {"v": 1, "type": "message", "thread": pair["id"]}
    asked = common | {"id": "q", "role": "user", "content": pair["input"]}
    return [asked, *(common | {"id": f"a{n}", "role": "assistant", "content": pair[f"output_{n}"], "reply_to": "q"}
                     for n in (1, 2))]  # fmt: skip


def tape(of_pairs: list[dict[str, Any]], said: dict[str, dict[str, Any]], model: str) -> bytes:
    """What replay needs: each question that judge asks, and what the model answered to it; twice if it is refused."""
    rubric, lines = rubrics.find(RUBRIC), []
    for pair in of_pairs:
        asked, one, other = messages(pair)
        for order, first, second in (("first", one, other), ("swapped", other, one)):
            text = said[pair["id"]][order]
            answer = FORM.get(text.strip(), text.encode() or b" ").decode()
            request = pairs.question([asked], first, second, rubric)
            turns = [("user", request["turns"][0]["parts"][0]["text"]), ("assistant", answer)]
            try:
                pairs.read([{"type": "text", "text": answer}])
            except verdict.Invalid as why:
                again = verdict.repair(request, [{"type": "text", "text": answer}], str(why))["turns"][2]["parts"][0]
                turns += [("user", again["text"]), ("assistant", answer)]
            for number, (role, content) in enumerate(turns):
                record = {"v": 1, "type": "message", "thread": f"{pair['id']} {order}", "id": str(number), "role": role,
                          "content": content}  # fmt: skip
                author = {"author": {"agent": "assistant", "model": model}} if role == "assistant" else {}
                lines.append(orjson.dumps(record | author))
    return b"\n".join(lines) + b"\n"


def judge(work: Path, stream: str, *flags: str) -> dict[str, Any]:
    """What `judge --format json` says of a stream, and the stream itself, whose verdicts are then scored by --replay."""
    env = os.environ | {"MLLM_JOURNAL": "off", "HOME": str(work)}
    line = [str(BIN / "judge"), "-q", "--rubric", RUBRIC, "--pairwise", *flags]
    with open(work / stream, "rb") as given, open(work / "judged", "wb") as out:
        subprocess.run(line, stdin=given, stdout=out, stderr=subprocess.DEVNULL, env=env, cwd=work, check=False)
    again = [str(BIN / "judge"), "-q", "--replay", "--labels", "labels", "--format", "json"]
    with open(work / "judged", "rb") as given:
        said = subprocess.run(again, stdin=given, capture_output=True, env=env, cwd=work, check=False)
    found: dict[str, Any] = orjson.loads(said.stdout)["agreement"]
    return found | {"records": [orjson.loads(record) for record in (work / "judged").read_bytes().splitlines()]}


def percent(share: float | None) -> float:
    return round(100 * (share or 0), 1)


def line(what: str, ours: float, wanted: float) -> bool:
    same = abs(ours - wanted) < 0.051
    print(f"{'  ' if same else '! '}{what:62} {ours:7.2f} {wanted:7.2f}", flush=True)
    return same


def single_votes(records: list[dict[str, Any]], label_of: dict[str, int]) -> float | None:
    """Effective votes by the errors of the votes in which output 1 was shown first: one vote a judge and pair."""
    errors: dict[str, list[float]] = {}
    for record in records:
        if record["type"] == "verdict" and record.get("part") == "order" and record["shown"] == ["a1", "a2"]:
            right = {1: 1.0, 2: 0.0}[label_of[record["thread"]]]
            errors.setdefault(record["author"]["model"], []).append(float(record["score"] != right))
    return statistics.effective_votes(list(errors.values()))


def undecided(records: list[dict[str, Any]]) -> list[str]:
    """Pairs without a verdict of both orders, for another cause than a swap: an answer that was refused."""
    return [f"{record['thread']}: {record['message']}" for record in records
            if record["type"] == "error" and "change places" not in record["message"]]  # fmt: skip


def main() -> int:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--pairs", action="store_true")
    show_pairs = arguments.parse_args().pairs
    all_pairs = rows("pairs")
    said: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows("completions.vanilla"):
        said.setdefault(row["judge"], {})[row["id"]] = row
    natural = [pair for pair in all_pairs if pair["subset"] == "Natural"]
    label_of = {pair["id"]: pair["label"] for pair in all_pairs}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for name, some in (("all", all_pairs), ("natural", natural)):
            (work / name).write_bytes(b"".join(orjson.dumps(one) + b"\n" for pair in some for one in messages(pair)))
        (work / "labels").write_bytes(b"".join(orjson.dumps({"thread": pair["id"], "preferred": f"a{pair['label']}"})
                                               + b"\n" for pair in all_pairs))  # fmt: skip
        for model in FIVE:
            (work / model).write_bytes(tape(all_pairs, said[model], model))
        print(f"  {'':62} {'ours':>7} {'wanted':>7}")
        same, refused = [], []
        for stream, wanted in (("all", WANTED), ("natural", WANTED_NATURAL)):
            for model, (consistent, right) in wanted.items():
                found = judge(work, stream, "--by", f"replay:{model}")
                same.append(line(f"{model}, {stream}: the same in both orders, %", percent(found["swap_consistency"]), consistent))
                same.append(line(f"{model}, {stream}: right where it is, %", percent(found["agreement"]), right))
                if stream == "all":
                    refused += [f"{model}: {one}" for one in undecided(found["records"])]
        found = judge(work, "natural", "--by", "replay:PaLM2", "--escalate", "replay:GPT-4")
        same.append(line("PaLM2, GPT-4 where it decides nothing, natural: right, %", percent(found["agreement_of_all"]), 92.0))
        same.append(line("  GPT-4 was asked, %", percent(found["escalated"]), 22.0))
        for stream, wanted in (("all", 2.18), ("natural", 2.48)):
            found = judge(work, stream, *(flag for model in FIVE for flag in ("--by", f"replay:{model}")))
            votes = single_votes(found["records"], label_of)
            same.append(line(f"panel of five, {stream}: effective votes, one order", round(votes or 0, 2), wanted))
            print(f"    by what each decides in both orders: {found['effective_votes']:.2f}; the majority is right on "
                  f"{percent(found['agreement'])}% of the {found['decided']} that it decides")  # fmt: skip
        three = [flag for model in ("ChatGPT", "PaLM2", "LLaMA2") for flag in ("--by", f"replay:{model}")]
        found = judge(work, "natural", *three, "--combine", "mean")
        same.append(line("ChatGPT, PaLM2, LLaMA2, natural, mean: right, %", percent(found["agreement_of_all"]), 85.0))
        same.append(line("  undecided, %", percent(found["abstained"]), 7.0))
    print(f"  {len(refused)} pairs undecided because an answer held to no form (empty, or a refusal)")
    if show_pairs:
        print("".join(f"    {one}\n" for one in refused), end="")
    print(f"{sum(same)} of {len(same)} figures are the same")
    return 0 if all(same) else 1


if __name__ == "__main__":
    sys.exit(main())
