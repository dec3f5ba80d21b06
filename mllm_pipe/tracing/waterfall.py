"""A run as a tree with bars: what ran when, what it waited for, what it cost, and what came of it.

    run ID  ok  TIME  105ms  $0.000120
    ├─ dispatch writer  openai:gpt-5-nano  ok  ▕██████      ▏         25ms  $0.000120
    └─ judge            echo               ok  ▕      ·█████▏  +3ms  40ms  unknown
       └─ verdict  pass 0.75 by correctness

Answers of one fan-out stand under a line of their own; threads do where a run has several. A wait between a handoff
and the start of the call is drawn as dots, and named (+3ms).
"""

from __future__ import annotations

from typing import Any

from mllm_pipe.envelope import seconds_of
from mllm_pipe.tracing.words import cell, fit, money, time, width

Run = dict[str, Any]
Node = tuple[dict[str, Any] | str, list["Node"]]
_BAR = 12  # fewest columns that a bar is drawn in
_EIGHTHS = "▏▎▍▌▋▊▉█"


def tree(run: Run, columns: int) -> str:
    """The run as lines no wider than `columns`, as long as that leaves room for anything."""
    flat = list(_flat(below(run), ""))
    spans = [one for _, one in flat if isinstance(one, dict)]
    figures = [[cell(who(one)), one["status"], _waited(one), time(one["duration_ms"]), money(one.get("cost_usd"))]
               for one in spans]  # fmt: skip
    lefts = [width(prefix + cell(what(one))) for prefix, one in flat if isinstance(one, dict)]
    widths = [max(map(width, column)) for column in zip(*figures, strict=True)] if figures else [0] * 5
    left = max(lefts, default=0)
    fixed = sum(widths[1:]) + 2 * 5
    bar = max(_BAR, columns - left - widths[0] - fixed - 4) if columns - fixed - 4 - _BAR >= 24 else 0
    bar = min(bar, 60)
    room = columns - fixed - (bar + 4 if bar else 0)
    if left + widths[0] > room:  # names give way, both in part
        left = max(min(left, room - min(widths[0], room // 3)), 8)
        widths[0] = max(room - left, 0)
    lines, first = _head(run, columns), began(run)
    for prefix, one in flat:
        if isinstance(one, str):
            lines.append(fit(prefix + cell(one), columns).rstrip())
            continue
        picture = "  ▕" + _drawn(one, run, first, bar) + "▏" if bar else ""
        told = [one["status"], _waited(one), time(one["duration_ms"]), money(one.get("cost_usd"))]
        status, *right = [fit(text, wide, right=place > 0)
                          for place, (text, wide) in enumerate(zip(told, widths[1:], strict=True))]  # fmt: skip
        names = [fit(prefix + cell(what(one)), left), fit(cell(who(one)), widths[0]), status]
        lines.append(("  ".join(names) + picture + "  " + "  ".join(right)).rstrip())
    return "\n".join(lines) + "\n"


def _head(run: Run, columns: int) -> list[str]:
    """What the run is and what it came to, on one line if that has room for both."""
    used = run["usage"]
    counted = f"{used.get('input_tokens', '-')} in  {used.get('output_tokens', '-')} out" if used else ""
    group = f"group {run['group']}" if run["group"] else ""
    name = (f"run {run['id']}", run["status"], group, run["started_at"] or "")
    sums = (time(run["duration_ms"]), counted, money(run["cost_usd"], run["unpriced"]) if run["stages"] else "")
    pieces = ["  ".join(cell(piece) for piece in part if piece) for part in (name, sums)]
    if sum(map(width, pieces)) + 2 <= columns:
        return ["  ".join(pieces)]
    return [fit(piece, columns).rstrip() for piece in (pieces[0], f"│  {pieces[1]}")]


def _waited(stage: dict[str, Any]) -> str:
    """How long what it worked on had been there before it began."""
    return f"+{time(stage['wait_ms'])}" if stage.get("wait_ms") else ""


def below(run: Run) -> list[Node]:
    """The tree below a run: threads if there are several, fan-outs, spans, and what belongs to each."""
    of_thread: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {}
    for place, ones in enumerate((run["stages"], run["findings"])):
        for one in ones:
            of_thread.setdefault(one["thread"], ([], []))[place].append(one)
    branches = []
    for thread, (stages, findings) in of_thread.items():
        # Routes first: one may be of the same millisecond as the call that it led to.
        routes, others = ([one for one in findings if (one["type"] == "route") is first] for first in (True, False))
        items: list[tuple[str, Node]] = [(route.get("at", ""), (said(route), [])) for route in routes]
        done: set[str] = set()
        for stage in stages:
            if stage["run_id"] in done:
                continue
            together = _fanned(stage, stages)
            done |= {one["run_id"] for one in together}
            nodes: list[Node] = [(one, _under(one)) for one in together]
            node = (f"fan-out of {len(together)}", nodes) if len(together) > 1 else nodes[0]
            items.append((stage["started_at"], node))
        items += [(finding.get("at", ""), (said(finding), [])) for finding in others]
        items.sort(key=lambda item: item[0])
        branches.append((thread, [node for _, node in items]))
    if len(branches) == 1:
        return branches[0][1]
    return [(f"thread {thread}", nodes) for thread, nodes in branches]


def _fanned(stage: dict[str, Any], stages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The answers of one fan-out: calls on the same message by the same stage that ran, in part, at the same time."""
    if "input_id" not in stage or stage["op"] != "dispatch":
        return [stage]
    same = [one for one in stages if one["op"] == "dispatch" and one.get("input_id") == stage["input_id"]
            and one.get("stage") == stage.get("stage")]  # fmt: skip
    return same if len({(one.get("runtime"), one.get("agent"), one.get("model")) for one in same}) > 1 else [stage]


def _under(stage: dict[str, Any]) -> list[Node]:
    nodes: list[Node] = []
    for number, attempt in enumerate(stage.get("attempts", []), 1):
        waited = f" after {time(attempt['wait_ms'])}" if attempt.get("wait_ms") else ""
        why = f" {attempt['code']}" if attempt.get("code") else ""
        name = ":".join(filter(None, [attempt["runtime"], attempt.get("model")]))
        took = f"  {time(attempt['duration_ms'])}" if "duration_ms" in attempt else ""
        nodes.append((f"attempt {number}  {name}{waited}  {attempt['status']}{why}{took}", []))
    for loss in stage.get("losses", []):
        why = f": {loss['why']}" if loss.get("why") else ""
        nodes.append((f"loss  {loss['what']} {loss['action']}{why}", []))
    return nodes + [(said(finding), []) for finding in stage.get("findings", [])]


def said(finding: dict[str, Any]) -> str:
    """A verdict, route, summary or error in a line."""
    kind = finding["type"]
    if kind == "verdict":
        word = {True: "pass", False: "fail", None: "none"}[finding["pass"]]
        score = f" {finding['score']:.2f}" if finding.get("score") is not None else ""
        marks = [f" by {finding['rubric']}"] if finding.get("rubric") else []
        marks += [", prefers one answer"] if "preferred" in finding else []
        marks += [", not consistent"] if finding.get("consistent") is False else []
        marks += [", of its own model"] if finding.get("self_judged") else []
        return f"verdict  {word}{score}{''.join(marks)}"
    if kind == "route":
        return f"route  {finding['router']} -> {finding['target'] or 'nobody'} ({finding['by']})"
    if kind == "summary":
        return f"summary  of {len(finding['covers'])} messages"
    return f"error  {finding['code']}: {finding['message']}"


def _flat(nodes: list[Node], indent: str) -> list[tuple[str, dict[str, Any] | str]]:
    lines: list[tuple[str, dict[str, Any] | str]] = []
    for number, (one, below) in enumerate(nodes, 1):
        last = number == len(nodes)
        lines.append((indent + ("└─ " if last else "├─ "), one))
        lines += _flat(below, indent + ("   " if last else "│  "))
    return lines


def what(stage: dict[str, Any]) -> str:
    what = stage["op"] if stage.get("agent") in (None, "assistant") else f"{stage['op']} {stage['agent']}"
    return f"{stage['stage']}: {what}" if "stage" in stage else what


def who(stage: dict[str, Any]) -> str:
    runtime, model = stage.get("runtime", ""), stage.get("model")
    return f"{runtime}:{model}" if model and model != runtime else runtime


def placed(stage: dict[str, Any], run: Run, began: float) -> tuple[float, float, float] | None:
    """Where in the run's time a call ran: how far from the beginning, how long, and how long what it worked on had
    waited; each as a share of the whole. None if nobody knows when it began. began: seconds of the epoch."""
    whole = run["duration_ms"] or 1.0
    start = seconds_of(stage["started_at"])
    if start is None:
        return None
    offset = min(max((start - began) * 1000 / whole, 0.0), 1.0)
    return offset, min(stage["duration_ms"] / whole, 1.0 - offset), min((stage.get("wait_ms") or 0.0) / whole, 1.0)


def began(run: Run) -> float:
    """When the first call of a run began, in seconds of the epoch; 0.0 if it has none."""
    starts = [start for stage in run["stages"] if (start := seconds_of(stage["started_at"])) is not None]
    return min(starts, default=0.0)


def _drawn(stage: dict[str, Any], run: Run, first: float, columns: int) -> str:
    """The bar of a call: where in the run's time it ran, to an eighth of a column; never less than that."""
    found = placed(stage, run, first)
    if found is None:
        return " " * columns
    offset, length, waited = found[0] * columns, found[1] * columns, round(found[2] * columns)
    before = min(int(offset), columns - 1)
    cells, eighths = divmod(round(max(length, 0.125) * 8), 8)
    bar = ("█" * cells + (_EIGHTHS[eighths - 1] if eighths else ""))[: columns - before]
    return " " * max(before - waited, 0) + "·" * min(waited, before) + fit(bar, columns - before)
