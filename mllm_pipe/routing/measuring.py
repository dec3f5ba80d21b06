"""Measuring a router on a log, and making a learned one of it: what --eval and --fit do, and how they tell it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import orjson

from mllm_pipe.envelope import Record, line_of
from mllm_pipe.errors import Usage, WriteFailed
from mllm_pipe.routing import evaluation, labels, learned
from mllm_pipe.routing.deciding import Decision
from mllm_pipe.routing.evaluation import Report
from mllm_pipe.routing.router import Router
from mllm_pipe.stream import Thread
from mllm_pipe.terminal import one_line

Decide = Callable[[Iterable[Decision]], Iterable[Decision]]  # lets them be decided, in order


def measured(router: Router, path: str, run: str, decide: Decide) -> Report:
    """How the router does on the log in a file, as an object; its model is asked where no rule matches.

    Usage if the log is not about the router's children. A row that fails counts as one without a route.
    """
    log = labels.read(path)
    children = router["children"]
    if stray := [row.target for row in log.rows if log.of_targets and row.target not in children]:
        raise Usage(f"{path}: {stray[0]!r} is no child of router {router['name']}; there are {', '.join(children)}")
    strong = None if log.of_targets else _strong(router, log)
    decisions = list(decide([Decision(_thread(row, place, run)) for place, row in enumerate(log.rows)]))
    none: Record = {"target": None, "by": "failed", "confidence": None}
    routes = [decision.route or none for decision in decisions]
    ways = Counter([route["by"].partition(":")[0] for route in routes])
    spans = [record for decision in decisions for record in decision.made if record["type"] == "span"]
    report: Report = {
        "router": router["name"], "rows": len(routes),
        "by": {way: round(count / len(routes), 4) for way, count in sorted(ways.items())},
        "calls": len(spans), "cost_usd": round(sum([span["cost_usd"] or 0.0 for span in spans]), 9),
        "unpriced": sum([span["cost_usd"] is None for span in spans]),
    }  # fmt: skip
    if log.of_targets:
        wanted = [str(row.target) for row in log.rows]
        return report | evaluation.of_targets(wanted, [route["target"] for route in routes])
    weak, right = [row.weak for row in log.rows], [row.strong for row in log.rows]
    texts = [row.text for row in log.rows]
    report |= {"strong": strong} | evaluation.of_outcomes([route["target"] == strong for route in routes], weak, right)
    scores = [_score(router, route, text, strong) for route, text in zip(routes, texts, strict=True)]
    return report | evaluation.of_order(texts, scores, weak, right)


def _strong(router: Router, log: labels.Log) -> str:
    """Which child is the strong one: of the log, of the learned rule, or of two the one that is not the default."""
    if log.agents and log.agents[1] in router["children"]:
        return log.agents[1]
    of_rule = [rule.target for rule in router["rules"].rules if rule.learned and rule.target]
    others = [child for child in router["children"] if child != router["default"]]
    if of_rule or len(others) == 1:
        return str((of_rule or others)[0])
    raise Usage("a log of weak and strong is for a router of two children, of which the default is the weak one")


def _score(router: Router, route: Record, text: str, strong: str | None) -> float:
    """How much the router is for the strong one, 0 to 1."""
    by = route["by"]
    if by.startswith("rule:"):
        return float(route["target"] == strong)
    models = [rule.learned.model for rule in router["rules"].rules if rule.learned]
    if models and learned.is_binary(models[0]):
        return learned.probabilities(models[0], text)[0]
    if by == "model":
        return float(route["confidence"] if route["target"] == strong else 1 - route["confidence"])
    return float(route["target"] == strong)


def _thread(row: labels.Row, place: int, run: str) -> Thread:
    thread = Thread(row.messages[0]["thread"] if len(row.messages) > 1 else f"row {place + 1}")
    thread.run = run
    for message in row.messages:
        thread.add(message, line_of(message)[:-1])
    return thread


def made(log_path: str, out_path: str, strong_share: float | None) -> Report:
    """Fit a learned router to the log in a file and write it; what came of it, measured on rows that it did not see.

    Usage if there is too little to learn, Missing and BadRecord as the log, WriteFailed if it cannot be written.
    """
    log = labels.read(log_path)
    if os.path.exists(out_path) and os.path.samefile(log_path, out_path):
        raise Usage(f"-o {out_path} is the log itself, which would be lost")
    from mllm_pipe.routing import fitting

    texts = [row.text for row in log.rows]
    if log.of_targets:
        if strong_share is not None:
            raise Usage("--strong-share is for a log of weak and strong")
        names = sorted({str(row.target) for row in log.rows})
        wanted = {name: [float(row.target == name) for row in log.rows] for name in names}
    else:
        wanted = {"strong": [(1.0 + row.strong - row.weak) / 2 for row in log.rows]}
    model, unseen = fitting.fit(texts, wanted, strong_share)
    report: Report = {"rows": len(texts), "classes": model["classes"], "threshold": model["threshold"]}
    if log.of_targets:
        best = [model["classes"][max(range(len(row)), key=row.__getitem__)] for row in unseen]
        report |= evaluation.of_targets([str(row.target) for row in log.rows], best)
    else:
        scores = [row[0] for row in unseen]
        weak, strong = [row.weak for row in log.rows], [row.strong for row in log.rows]
        report |= {"agents": log.agents} if log.agents else {}
        report["calibration_error"] = evaluation.calibration(scores, wanted["strong"])
        report |= evaluation.of_outcomes([score >= model["threshold"] for score in scores], weak, strong)
        report |= evaluation.of_order(texts, scores, weak, strong)
    model["fitted"] = report
    _write(out_path, orjson.dumps(model, option=orjson.OPT_APPEND_NEWLINE))
    return report


def _write(path: str, data: bytes) -> None:
    """Write a file, and leave none behind that is cut; one that is there is replaced whole or not at all, for routers
    may be started at any time."""
    old = os.path.realpath(path) if os.path.isfile(path) else None
    into = f"{old}.{os.getpid()}" if old else path
    ours = bool(old) or not os.path.exists(path)
    try:
        with open(into, "wb") as file:
            file.write(data)
        if old:
            os.replace(into, old)
    except OSError as error:
        if ours and os.path.exists(into):
            os.unlink(os.path.realpath(into))
        raise WriteFailed(f"{path}: {error.strerror}{'; it is as it was' if old else ''}") from None


def text_of(report: Report) -> str:
    """A report for a person."""
    lines = [f"{report['rows']} rows" + (f" through router {report['router']}" if "router" in report else "")]
    for name in ("by", "classes", "agents", "threshold", "calibration_error"):
        if name in report:
            lines.append(f"{name.replace('_', ' ')}: {_words(report[name])}")
    if report.get("calls"):
        cost = f"${report['cost_usd']:.6f}" + (f" + {report['unpriced']} unpriced" if report["unpriced"] else "")
        lines.append(f"calls: {report['calls']}, {cost}")
    lines.append(f"accuracy: {_number(report['accuracy'])}")
    if "strong_share" in report:
        lines.append(f"strong share: {_number(report['strong_share'])}, gap recovered: {_number(report['pgr'])}")
        alone = ", ".join([f"{one} alone: {_number(report[f'{one}_accuracy'])}" for one in ("weak", "strong")])
        lines.append(f"{alone}, best single: {report['best_single']}")
    if scores := report.get("scores"):
        keys = ("apgr", "cpt50", "cpt80")
        cells = {name: [one[key] for key in keys] for name, one in scores.items()}
        lines += _table(["", "APGR", "CPT50", "CPT80"], cells)
    if targets := report.get("targets"):
        keys = ("precision", "recall", "count")
        cells = {name: [one[key] for key in keys] for name, one in targets.items()}
        lines += _table(["target", "precision", "recall", "rows"], cells)
        counts = {name: [found.get(other, 0) for other in targets] for name, found in report["confusion"].items()}
        lines += _table(["wanted \\ found", *targets], counts)
    return "".join([f"{one_line(line)}\n" for line in lines])


def _table(head: list[str], rows: dict[str, list[Any]]) -> list[str]:
    cells = [head, *[[name, *map(_number, values)] for name, values in rows.items()]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in cells
    ]  # fmt: skip


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join([f"{name} {_number(one)}" for name, one in value.items()])
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else _number(value)


def _number(value: float | None) -> str:
    return "-" if value is None else str(value) if isinstance(value, int) else f"{value:.3f}"
