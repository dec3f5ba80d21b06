"""How far a judge agrees with people: verdicts beside labels, with the chance, the baselines and the uncertainty shown.

A label is a verdict by a person: {"thread", and "pass", "score" or "preferred"}. `preferred` is the id of an answer or
the name of who wrote it; null says that none is better.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from typing import Any

import orjson

from mllm_pipe.errors import Usage
from mllm_pipe.files import lines
from mllm_pipe.judging import statistics
from mllm_pipe.judging.report import Row, summary

Label = dict[str, Any]  # "thread", and of "pass", "score", "preferred" what was said


def labels(path: str) -> dict[str, Label]:
    """The labels of a file, by thread. Missing if it cannot be read, Usage if a line of it is none, or says of a thread
    otherwise than an earlier one."""
    found: dict[str, Label] = {}
    for number, line in enumerate(lines(path, f"--labels {path}"), 1):
        if not line.strip():
            continue
        label = _label(line)
        if label is None:
            raise Usage(f'--labels {path}: line {number}: no {{"thread": TEXT, and "pass": true or false, "score": '
                        '0 to 1, or "preferred": ID, NAME or null}')  # fmt: skip
        if found.setdefault(label["thread"], label) != label:
            raise Usage(f"--labels {path}: line {number}: thread {label['thread']} has another label before")
    return found


def _label(line: bytes) -> Label | None:
    """A line as a label; None if it is none. A field that is null says nothing, but that none is preferred: it does if
    nothing else is asked for."""
    try:
        label = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    if type(label) is not dict or type(label.get("thread")) is not str:
        return None
    said = {name: label[name] for name in ("pass", "score", "preferred") if label.get(name) is not None}
    score = said.get("score", 0)
    if type(said.get("pass", True)) is not bool or type(said.get("preferred", "")) is not str:
        return None
    if type(score) not in (int, float) or not 0 <= score <= 1:
        return None
    if not said and label.keys() & {"pass", "score", "preferred"} == {"preferred"}:
        said = {"preferred": None}
    return {"thread": label["thread"]} | said if said else None


def agreement(rows: list[Row], known: dict[str, Label]) -> dict[str, Any]:
    """The figures of the rows that have a label that can be held against them. What cannot be known is None.

    agreement: of the decided ones, the share that says what people say; agreement_of_all takes the undecided for none.
    base_rate: the share of labels that pass (of comparisons, that prefer the first answer). kappa with a 95 %
    bootstrap interval. baselines: what no judge at all would reach. effective_votes: of a panel, by the correlation of
    its judges' errors. not_counted: labels that can be held against nothing, by why.
    """
    labelled = [(row, known[row["thread"]]) for row in rows if row["thread"] in known]
    unfit = Counter(why for row, label in labelled if (why := _unfit(row, label)))
    absent = len(known.keys() - {row["thread"] for row in rows})
    there = [(row, label) for row, label in labelled if not _unfit(row, label)]
    people = [_of_people(row, label) for row, label in there]
    judged = [_of_judge(row) for row, _ in there]
    decided = [(said, wanted) for said, wanted in zip(judged, people, strict=True) if said is not None]
    right = sum(said == wanted for said, wanted in decided)
    scores = [(row["score"], _score(label)) for row, label in there
              if row["score"] is not None and _score(label) is not None and not _compares(row)]  # fmt: skip
    interval = statistics.bootstrap(decided, statistics.kappa)
    sums = summary([row for row, _ in there])
    return {
        "labelled": len(there),
        "unlabelled": len(rows) - len(labelled),
        "not_counted": unfit | ({"of a thread that is not here": absent} if absent else {}),
        "decided": len(decided),
        "abstained": _rounded(1 - len(decided) / len(there)) if there else None,
        "agreement": _rounded(statistics.agreement(decided)),
        "agreement_of_all": _rounded(right / len(there)) if there else None,
        "base_rate": _rounded(sum(wanted in (True, _answer(0)) for wanted in people) / len(people)) if people else None,
        "kappa": _rounded(statistics.kappa(decided)),
        "kappa_interval": [_rounded(end) for end in interval] if interval else None,
        "spearman": _rounded(statistics.spearman(*zip(*scores, strict=True))) if scores else None,
        "swap_consistency": sums["swap_consistency"],
        "escalated": sums["escalated"],
        "baselines": _baselines(there, people),
        "judges": _judges(there, people),
        "effective_votes": _rounded(_worth(there, people)),
        "cost_per_1000_usd": sums["cost_per_1000_usd"],
        "unpriced": sums["unpriced"],
    }


def _compares(row: Row) -> bool | None:
    """True if the answers of a row were compared with each other; None if nothing was judged."""
    return _choosing(row["verdicts"][-1]) if row["verdicts"] else None


def _choosing(record: dict[str, Any]) -> bool:
    """True if a verdict prefers one of several answers, rather than pass one."""
    return "consistent" in record and "against" not in record


def _unfit(row: Row, label: Label) -> str | None:
    """Why a label cannot be held against a row; None if it can. A row of which nothing was judged is undecided."""
    compares = _compares(row)
    if compares is None:
        return None
    if not compares:
        return None if label.keys() & {"pass", "score"} else "that prefer, of one answer"
    if "preferred" not in label:
        return "that pass or score, of a comparison"
    wanted = label["preferred"]
    names = [answer["name"] for answer in row["answers"]]
    if wanted is None or wanted in [answer["id"] for answer in row["answers"]] or names.count(wanted) == 1:
        return None
    return "with a name that several answers have" if wanted in names else "that prefer what is no answer"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _place(row: Row, name: Any) -> Hashable:
    """The place of an answer, by its id or its writer's name; "tie" for none, the name itself if it is nobody's."""
    if name is None:
        return "tie"
    ids = [answer["id"] for answer in row["answers"]]
    names = [answer["name"] for answer in row["answers"]]
    return _answer(ids.index(name)) if name in ids else _answer(names.index(name)) if name in names else str(name)


def _answer(place: int) -> str:
    return f"answer {place + 1}"


def _of_people(row: Row, label: Label) -> Hashable:
    if _compares(row) or not label.keys() & {"pass", "score"}:
        return _place(row, label["preferred"])
    if "pass" in label:
        return bool(label["pass"])
    return bool(label["score"] >= row["verdicts"][-1].get("pass_at", 0.5)) if row["verdicts"] else label["score"] >= 0.5


def _of_judge(row: Row) -> Hashable:
    """The place of the answer preferred, "tie" if none is in both orders, or pass; None: undecided."""
    return _choice(row["verdicts"][-1], row) if _compares(row) else row["pass"]


def _choice(record: dict[str, Any], row: Row) -> Hashable:
    if "preferred" in record:
        return _place(row, record["preferred"])
    return "tie" if record.get("consistent") and record.get("score") == 0.5 else None


def _score(label: Label) -> float | None:
    return float(label["score"]) if "score" in label else float(label["pass"]) if "pass" in label else None


def _baselines(there: list[tuple[Row, Label]], people: list[Hashable]) -> dict[str, float | None]:
    """Agreement with people of always choosing the longer answer, the first, or what people say most often.

    Of one answer: `longer` passes those that are longer than the length that agrees best with people, as a judge would
    by a bar set on these very labels, so that it is never below `most_common`; and there is no first. A thread of which
    nothing was judged has no answer to be long, and is left out.
    """
    known = [(row, wanted) for (row, _), wanted in zip(there, people, strict=True) if row["answers"]]
    if not known:
        return {"longer": None, "first": None, "most_common": None}
    people, count = [wanted for _, wanted in known], len(known)
    lengths = [[answer["length"] for answer in row["answers"]] for row, _ in known]
    if all(_compares(row) for row, _ in known):
        longest = [[_answer(place) for place, one in enumerate(of_row) if one == max(of_row)] for of_row in lengths]
        longer = sum((wanted in places) / len(places) for places, wanted in zip(longest, people, strict=True)) / count
        first: float | None = sum(wanted == _answer(0) for wanted in people) / count
    else:
        longer = _best_cut([sum(of_row) for of_row in lengths], people) / count
        first = None
    most = Counter(people).most_common(1)[0][1] / count
    return {"longer": _rounded(longer), "first": _rounded(first), "most_common": _rounded(most)}


def _best_cut(lengths: list[int], people: list[Hashable]) -> int:
    """How many of these would be right at most, if those longer than some length passed."""
    right = most = people.count(True)  # all pass
    order = sorted(zip(lengths, people, strict=True), key=lambda one: one[0])
    for place, (length, wanted) in enumerate(order):
        right += -1 if wanted is True else 1
        if place + 1 == len(order) or order[place + 1][0] > length:
            most = max(most, right)
    return most


def _name(vote: dict[str, Any]) -> str:
    author = vote.get("author", {})
    return ":".join(filter(None, dict.fromkeys([author.get("runtime"), author.get("model")])))


def _votes(there: list[tuple[Row, Label]], people: list[Hashable]) -> dict[str, list[tuple[Hashable, Hashable]]]:
    """Of each judge of the panel: its vote (None: it decided nothing) and what people say, for all rows.

    Judges are told apart by their place, which they have whether they gave a verdict or none.
    """
    found: dict[int, list[tuple[Hashable, Hashable]]] = {}
    names: dict[int, str] = {}
    for (row, _), wanted in zip(there, people, strict=True):
        votes = [vote for vote in row["votes"] if vote.get("part") == "panel"]
        panels = [one for one in (*row["verdicts"], *row["votes"]) if "judges" in one]
        if len(votes) != sum(one["judges"] for one in panels):
            continue  # whose the votes are is not known
        for place, vote in enumerate(votes, 1):
            said = _choice(vote, row) if _choosing(vote) else vote["pass"]
            found.setdefault(place, []).append((said, wanted))
            names.setdefault(place, _name(vote))
    return {f"{place} {names[place]}": votes for place, votes in found.items()}


def _judges(there: list[tuple[Row, Label]], people: list[Hashable]) -> list[dict[str, Any]]:
    figures = []
    for name, votes in _votes(there, people).items():
        decided = [vote for vote in votes if vote[0] is not None]
        figures.append({"judge": name, "decided": len(decided), "agreement": _rounded(statistics.agreement(decided)),
                        "kappa": _rounded(statistics.kappa(decided))})  # fmt: skip
    return figures


def _worth(there: list[tuple[Row, Label]], people: list[Hashable]) -> float | None:
    """Effective votes of the panel by its judges' errors: 1 where one is wrong, 0.5 where it decided nothing."""
    errors = [[0.5 if said is None else float(said != wanted) for said, wanted in votes]
              for votes in _votes(there, people).values()]  # fmt: skip
    whole = [one for one in errors if len(one) == len(there)]
    return statistics.effective_votes(whole) if len(whole) > 1 else None


def text(found: dict[str, Any]) -> str:
    """The figures for a person."""

    def shown(value: Any) -> str:
        return "unknown" if value is None else f"{value:.3f}"

    interval = found["kappa_interval"]
    said = [
        ("labelled", f"{found['labelled']} ({found['decided']} decided, abstained {shown(found['abstained'])})"),
        ("agreement", f"{shown(found['agreement'])} of the decided, {shown(found['agreement_of_all'])} of all"),
        ("  no judge", f"longer {shown(found['baselines']['longer'])}, first {shown(found['baselines']['first'])}, "
                       f"most common {shown(found['baselines']['most_common'])}"),
        ("base rate", shown(found["base_rate"])),
        ("kappa", shown(found["kappa"]) + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")),
        ("spearman", shown(found["spearman"])),
        ("both orders", f"{shown(found['swap_consistency'])} say the same"),
        ("escalated", shown(found["escalated"])),
        ("cost / 1,000", "unknown" if found["cost_per_1000_usd"] is None else f"${found['cost_per_1000_usd']:.2f}"
                         + (f" and {found['unpriced']} calls unpriced" if found["unpriced"] else "")),
    ]  # fmt: skip
    if found["judges"]:
        said += [(f"  {one['judge']}", f"{shown(one['agreement'])} of {one['decided']}, kappa {shown(one['kappa'])}")
                 for one in found["judges"]]  # fmt: skip
        said.append(("votes", f"{shown(found['effective_votes'])} of {len(found['judges'])}, by their errors"))
    wide = max(len(name) for name, _ in said)
    return "".join(f"{name:{wide}}  {value}\n" for name, value in said)
