"""What a stream of verdicts comes to: a row for each thread, their sums, what has changed since, and all as text."""

from __future__ import annotations

from typing import Any

from mllm_pipe.envelope import Record
from mllm_pipe.judging import statistics
from mllm_pipe.judging.judgement import Judged
from mllm_pipe.runs import cost_of
from mllm_pipe.stream import Thread
from mllm_pipe.terminal import one_line
from mllm_pipe.thread import speaker, text_of

Row = dict[str, Any]


def row_of(thread: Thread, judged: Judged) -> Row:
    """What came of a thread: {"thread", "pass", "score", "verdicts", "votes", "answers", "spans", "failure"}.

    pass is that of all its verdicts together: None if one is or if there is none, else whether all are true. answers:
    id, name and length in characters of those that were judged, in the order of the thread. votes: the verdicts that
    others were made of, or that came before a judge was called in; spans: the judges' calls, of this command or as they
    were recorded in the runs of the verdicts.
    """
    verdicts = judged.verdicts
    records = [*thread.records, *judged.made]
    passes = [record["pass"] for record in verdicts]
    about = {ident for record in verdicts for ident in record["about"]}
    votes = _below(verdicts, {record["id"]: record for record in records if record["type"] == "verdict"})
    runs = {record["parent_run_id"] for record in verdicts if "parent_run_id" in record}
    return {
        "thread": thread.id,
        "pass": None if judged.failure or not passes or None in passes else all(passes),
        "score": verdicts[-1].get("score") if verdicts else None,
        "verdicts": verdicts,
        "votes": votes,
        "answers": [{"id": record["id"], "name": speaker(record), "length": len(text_of(record["content"]))}
                    for record in thread.records if record["type"] == "message" and record["id"] in about],
        "spans": [record for record in judged.made if record["type"] == "span"] or
                 [record for record in thread.records if record["type"] == "span" and record["op"] == "judge"
                  and record.get("parent_run_id") in runs and record.get("input_id") in about],
        "failure": judged.failure,
    }  # fmt: skip


def _below(verdicts: list[Record], by_id: dict[str, Record]) -> list[Record]:
    """The verdicts that these were made of or escalated from, and those that they were made of."""
    idents = [[*record.get("votes", []), record.get("escalated_from")] for record in verdicts]
    votes = [by_id[ident] for of_one in idents for ident in of_one if ident in by_id]
    return [*votes, *_below(votes, by_id)] if votes else []


def summary(rows: list[Row]) -> dict[str, Any]:
    """The sums of all rows: counts, shares, and what the judge's calls cost (null if unknown; a floor if unpriced)."""
    passed, failed = (sum(row["pass"] is wanted for row in rows) for wanted in (True, False))
    spans = [span for row in rows for span in row["spans"]]
    cost = cost_of(spans)
    compared = [one for row in rows for one in (*row["verdicts"], *row["votes"])
                if one.get("consistent") is not None and one.get("author", {}).get("agent") != "panel"]  # fmt: skip
    return {
        "threads": len(rows),
        "passed": passed,
        "failed": failed,
        "undecided": len(rows) - passed - failed,
        "pass_rate": _share(passed, len(rows)),
        "mean_score": _mean([row["score"] for row in rows if row["score"] is not None]),
        "swap_consistency": _share(sum(one["consistent"] for one in compared), len(compared)),
        "escalated": _share(sum(any(one.get("escalated") for one in row["verdicts"]) for row in rows), len(rows)),
        "calls": len(spans),
        "cost_usd": cost,
        "unpriced": sum(span.get("cost_usd") is None for span in spans),
        "cost_per_1000_usd": None if cost is None else round(1000 * cost / len(rows), 6),
    }


def changes(rows: list[Row], before: dict[str, bool | None]) -> dict[str, Any]:
    """What has changed since an earlier run: threads that passed and do not any more, those that do now, and a p.

    before: by thread, what it was. The p is of the exact sign test (McNemar) of the changes; what was or is undecided
    counts as not passed. missing: threads of then that are not here now.
    """
    known, here = [row for row in rows if row["thread"] in before], {row["thread"] for row in rows}
    worse = [row["thread"] for row in known if before[row["thread"]] is True and row["pass"] is not True]
    better = [row["thread"] for row in known if before[row["thread"]] is not True and row["pass"] is True]
    return {
        "compared": len(known),
        "passed_before": sum(before[row["thread"]] is True for row in known),
        "passed_now": sum(row["pass"] is True for row in known),
        "regressions": worse,
        "improvements": better,
        "missing": [thread for thread in before if thread not in here],
        "p": statistics.sign_test(len(better), len(worse)),
    }


def _share(part: int, whole: int) -> float | None:
    """To four digits, but less than all is never shown as all, nor some as none."""
    if not whole or part in (0, whole):
        return part / whole if whole else None
    return min(max(round(part / whole, 4), 0.0001), 0.9999)


def _mean(values: list[float]) -> float | None:
    return round(sum(values) / len(values), 4) if values else None


# -- for a person


def lines(verdicts: list[Record]) -> str:
    """Verdicts, with what each criterion found."""
    return "".join(map(_line, verdicts))


def _line(record: Record) -> str:
    """A line for the verdict, and one for each finding: what others wrote cannot begin another."""
    word = {True: "pass", False: "fail", None: "none"}[record["pass"]]
    said = [f"{word}  {_number(record.get('score'))}  thread {record['thread']}"]
    if record.get("consistent") is not None:
        orders = "the same in both orders" if record["consistent"] else "the orders disagree"
        said.append(f"      {record.get('preferred', 'none preferred')}: {orders}")
    said += [f"      {one['share']:.2f}  {one['id']} ({one['strength']:+.2f} ± {one['error']:.2f})"
             for one in record.get("ranking", [])]  # fmt: skip
    said += [f"      {_number(one.get('score'))}  {one['name']}: {one.get('reason', '')}"
             for one in record.get("criteria", [])]  # fmt: skip
    return "".join(one_line(line) + "\n" for line in said)


def _number(score: float | None) -> str:
    return "-" if score is None else f"{score:.2f}"


def _passes(criterion: dict[str, Any], record: Record) -> bool | None:
    """Whether a criterion by itself passes; None where it cannot be known."""
    if "pass" in criterion or criterion.get("score") is None:
        return criterion.get("pass")
    least = criterion["least"] if "least" in criterion else record.get("pass_at", 1)
    return statistics.share(criterion["score"]) >= statistics.typed(least)


def table(rows: list[Row]) -> str:
    """How many threads passed, by rubric and criterion, and what that cost."""
    found: dict[tuple[str, str], list[tuple[Any, Any]]] = {}
    for row in rows:
        for record in row["verdicts"]:
            rubric = str(record.get("rubric", "-"))
            found.setdefault((rubric, ""), []).append((record["pass"], record.get("score")))
            for one in record.get("criteria", []):
                found.setdefault((rubric, one["name"]), []).append((_passes(one, record), one.get("score")))
    wide = max((len(name or rubric) + 2 * bool(name) for rubric, name in found), default=0)
    cells = [f"{'':{wide}}  pass  fail  none  score\n"]
    for (rubric, name), results in sorted(found.items()):
        counts = [sum(passes is wanted for passes, _ in results) for wanted in (True, False, None)]
        scores = [score for _, score in results if score is not None]
        cells.append(f"{('  ' + name) if name else rubric:{wide}}" + "".join(f"  {count:4}" for count in counts)
                     + f"  {_number(_mean(scores)):>5}\n")  # fmt: skip
    sums = summary(rows)
    cost = "unknown" if sums["cost_usd"] is None else f"${sums['cost_usd']:.6f}"
    more = f" and {sums['unpriced']} unpriced" if sums["unpriced"] and sums["cost_usd"] is not None else ""
    asked = f"{sums['calls']} calls cost {cost}{more}" if sums["calls"] else "no model was asked"
    return "".join(cells) + (
        f"{sums['passed']} of {sums['threads']} threads pass ({percent(sums)}), "
        f"{sums['undecided']} without a verdict; {asked}\n"
    )


def percent(sums: dict[str, Any]) -> str:
    """The share of threads that pass, for a person: 100.0% is all of them, and 0.0% none."""
    passed, count = sums["passed"], sums["threads"]
    if passed in (0, count):
        return "100.0%" if passed else "0.0%"
    return f"{min(max(100 * passed / count, 0.1), 99.9):.1f}%"


def changed(found: dict[str, Any]) -> str:
    """What has changed since the baseline, with the threads that got worse."""
    head = (
        f"since the baseline: {found['passed_before']} of {found['compared']} passed, now {found['passed_now']}; "
        f"{len(found['regressions'])} regressions, {len(found['improvements'])} improvements, p = {found['p']:g}\n"
    )
    gone = f"{len(found['missing'])} threads of the baseline are not here\n" if found["missing"] else ""
    return head + gone + "".join(f"  regression: thread {thread}\n" for thread in found["regressions"])
