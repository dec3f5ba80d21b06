"""Runs as one page for a browser: what ran when, what it cost, the thread, and what each call was sent. Pure.

The page is one file that needs no other: no script, no picture, no font, and a policy in its head that allows none, so
nothing in it can run or ask the network, whoever wrote the texts. They are escaped, and characters that could turn or
hide text are written out, as on a terminal. What opens and closes are <details>. It is light or dark as the reader's
system is.
"""

from __future__ import annotations

import os
from html import escape
from typing import Any

from mllm_pipe.envelope import Record
from mllm_pipe.runs import Fold
from mllm_pipe.sessions.page import all_shown, as_html, who
from mllm_pipe.terminal import safe
from mllm_pipe.thread import UNNAMED, view
from mllm_pipe.tracing import ledger, waterfall
from mllm_pipe.tracing.words import money, time, tokens

Json = dict[str, Any]
_STYLE = os.path.join(os.path.dirname(os.path.dirname(__file__)), "data", "page.css")
_SEEN = 12  # of what a call saw, this many messages: a page is to grow with its threads, not with their squares
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def _style() -> str:
    with open(_STYLE, encoding="utf-8") as file:
        return file.read()


def page(runs: list[Json], fold: Fold) -> str:
    """The runs, the oldest first. fold: what they were made of, with its texts."""
    title = f"run {runs[0]['id']}" if len(runs) == 1 else f"{len(runs)} runs"
    body = [_overview(runs)] if len(runs) > 1 else []
    pieces = _Pieces(fold)
    body += [_run(run, pieces) for run in runs]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{_text(title)}</title>\n<style>\n{_style()}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body or ['<p class="dim">No runs.</p>'])
        + "\n</main>\n</body>\n</html>\n"
    )


class _Pieces:
    """What the runs are made of, by where it is shown."""

    def __init__(self, fold: Fold) -> None:
        self.fold, self.made_of = fold, fold.made_of()
        self.said: dict[str, list[Record]] = {}  # messages and findings of each thread
        for one in sorted([*fold.messages.values(), *fold.findings.values()], key=lambda one: str(one.get("at", ""))):
            self.said.setdefault(one["thread"], []).append(one)


def _overview(runs: list[Json]) -> str:
    heads = ("run", "started", "status", "group", "calls", "time", "in", "cached", "out", "cost")
    rows = [[f'<a href="#{_anchor(run)}">{_text(run["id"])}</a>', _moment(run), _pill(run["status"]),
             _text(run["group"] or "-"), str(len(run["stages"])), time(run["duration_ms"]), *tokens(run["usage"]),
             _sum(run)]
            for run in reversed(runs)]  # fmt: skip
    return f"<header><h1>{len(runs)} runs</h1></header>\n" + _table(heads, rows, left=4)


def _run(run: Json, pieces: _Pieces) -> str:
    spans = [pieces.fold.spans[stage["run_id"]] for stage in run["stages"]]
    threads = list(dict.fromkeys(one["thread"] for one in [*run["stages"], *run["findings"]]))
    return "\n".join([
        f'<section class="run" id="{_anchor(run)}">', _head(run),
        "<h2>What ran when <small>a row opens on what the call saw and said</small></h2>", _waterfall(run, pieces),
        "<h2>Cost by model</h2>", _costs(spans),
        "<h2>Handed over</h2>", _handoffs(run),
        *(_thread(thread, pieces.said.get(thread, [])) for thread in threads), "</section>",
    ])  # fmt: skip


def _head(run: Json) -> str:
    used = run["usage"]
    prompt, cached, answer = tokens(used)
    facts = [("began", _moment(run)), ("took", time(run["duration_ms"])), ("calls", str(len(run["stages"]))),
             ("tokens in", prompt + (f" <small>{cached} cached</small>" if "cache_read_tokens" in used else "")),
             ("tokens out", answer), ("cost", _sum(run))]  # fmt: skip
    name = f"Group {_text(run['group'])}" if run["group"] else "Run"
    shown = "".join(f"<div><dt>{label}</dt><dd>{value}</dd></div>" for label, value in facts)
    return (f"<header><h1>{name} {_pill(run['status'])}</h1><code>{_text(run['id'])}</code></header>\n"
            f'<dl class="facts">{shown}</dl>')  # fmt: skip


# -- what ran when


def _waterfall(run: Json, pieces: _Pieces) -> str:
    """A row a call, which opens; a line for what belongs to it; above them the time."""
    first = waterfall.began(run)
    ticks = "".join(
        f'<span style="left:{share}%">{time(run["duration_ms"] * share / 100)}</span>' for share in (0, 25, 50, 75, 100)
    )
    out = ['<div class="fall">', f'<div class="row head"><span></span><span class="axis">{ticks}</span>'
           "<span>time</span><span>first</span><span>in / out</span><span>cost</span></div>"]  # fmt: skip
    for depth, one in _flat(waterfall.below(run), 0):
        indent = f'<span class="what" style="padding-left:{depth * 1.25:g}rem">'
        if isinstance(one, str):
            kind = one.split(" ", 1)[0].rstrip(":")
            out.append(f'<div class="row note {_text(kind)}">{indent}{_text(one)}</span></div>')
        else:
            out.append(f'<details><summary class="row">{indent}<b>{_text(waterfall.what(one))}</b> '
                       f"<small>{_text(waterfall.who(one))}</small></span>{_bar(one, run, first)}{_figures(one)}"
                       "</summary>"
                       f'<div class="inside">{_inside(one["run_id"], pieces)}</div></details>')  # fmt: skip
    return "\n".join([*out, "</div>"])


def _flat(nodes: list[waterfall.Node], depth: int) -> list[tuple[int, Json | str]]:
    return [row for one, below in nodes for row in [(depth, one), *_flat(below, depth + 1)]]


def _bar(stage: Json, run: Json, first: float) -> str:
    """The wait hatched, then the call: paler until its first token."""
    found = waterfall.placed(stage, run, first)
    if found is None:
        return '<span class="track"></span>'
    offset, length, waited = (100 * share for share in found)
    waited = min(waited, offset)
    silent = stage.get("first_token_ms")
    share = 0.0 if silent is None or not stage["duration_ms"] else min(100 * silent / stage["duration_ms"], 100.0)
    told = f"{time(stage['duration_ms'])}, {stage['status']}" + (
        f", waited {time(stage['wait_ms'])}" if stage.get("wait_ms") else ""
    )
    wait = f'<i class="wait" style="left:{offset - waited:.3f}%;width:{waited:.3f}%"></i>' if waited else ""
    kind = stage["status"] if stage["status"] != "ok" else stage["op"]
    return (f'<span class="track" title="{_text(told)}">{wait}<i class="bar {_text(kind)}" style="left:{offset:.3f}%;'
            f'width:{length:.3f}%"><i style="width:{share:.1f}%"></i></i></span>')  # fmt: skip


def _figures(stage: Json) -> str:
    used = stage.get("usage") or {}
    prompt, _, answer = tokens(used)
    cells = (time(stage["duration_ms"]), time(stage.get("first_token_ms")), f"{prompt} / {answer}" if used else "-",
             money(stage.get("cost_usd")))  # fmt: skip
    return "".join(f"<span>{cell}</span>" for cell in cells)


def _inside(run_id: str, pieces: _Pieces) -> str:
    """What a call was sent, as far as it is known, and what came of it."""
    fold, span = pieces.fold, pieces.fold.spans[run_id]
    thread, findings = span["thread"], pieces.made_of.get(("span", run_id), [])
    about = [ident for one in findings if one["type"] == "verdict" for ident in one["about"]]
    if about:
        sent = [_turn(who(fold.messages[thread, one]), fold.messages[thread, one]["content"])
                for one in about if (thread, one) in fold.messages]  # fmt: skip
        head = "It judged"
    else:
        line = fold.before(thread, span.get("input_id"))
        early = len(line[:-_SEEN])
        line = [one for place, one in enumerate(line) if place >= early or one["role"] == "system"]
        asked = view(line, span.get("agent", UNNAMED))
        system = "\n\n".join(filter(None, (asked["system"], span.get("system"))))
        sent = [_turn("system", system)] if system else []
        if early:
            sent.append(f'<p class="dim">{early} earlier messages, which stand in the thread below, and then:</p>')
        sent += [
            _turn("its own" if turn["role"] == "assistant" else turn["role"], turn["parts"]) for turn in asked["turns"]
        ]
        head = "It saw"
    made = [fold.messages[thread, one] for one in span.get("output_ids", []) if (thread, one) in fold.messages]
    unknown = '<p class="dim">It is not here: the journal keeps answers, and a thread its file: --thread FILE.</p>'
    out = [f"<div><h3>{head}</h3>", *(sent or [unknown]), "</div>", "<div><h3>It said</h3>"]
    out += [_turn(who(one), one["content"]) for one in made]
    out += [_finding(one) for one in findings]
    out += ['<p class="dim">Nothing that is kept.</p>'] if not made and not findings else []
    return "\n".join([*out, "</div>"])


def _finding(one: Record) -> str:
    """A verdict with its criteria, or another finding in a line."""
    reasons = [f"<li><b>{_text(each['name'])}</b> {_score(each.get('score'))} {_text(each.get('reason', ''))}</li>"
               for each in one.get("criteria", [])]  # fmt: skip
    rest = f"<ul>{''.join(reasons)}</ul>" if reasons else ""
    rest += f"<p>{_text(one['reason'])}</p>" if one.get("reason") else ""
    rest += _content(one.get("content", ""))
    return f'<div class="said {one["type"]}"><p><b>{_text(waterfall.said(one))}</b></p>{rest}</div>'


# -- sums, handoffs, the thread


def _costs(spans: list[Record]) -> str:
    """A row a model, with its share of what is known as a bar."""
    rows = ledger.by(spans, "model")
    if not rows:
        return '<p class="dim">No model was asked.</p>'
    whole = sum(row["cost_usd"] or 0.0 for row in rows)
    heads = ("model", "calls", "failed", "in", "cached", "out", "p50", "p95", "cost", "")
    cells = [[_text(row["key"] or "-"), str(row["calls"]), str(row["failed"]), *tokens(row["usage"]),
              time(row["p50_ms"]), time(row["p95_ms"]), money(row["cost_usd"], row["unpriced"]),
              f'<span class="share"><i style="width:{100 * (row["cost_usd"] or 0.0) / (whole or 1):.2f}%"></i></span>']
             for row in rows]  # fmt: skip
    return _table(heads, cells, left=1)


def _handoffs(run: Json) -> str:
    edges = run["handoffs"]
    if not edges:
        return '<p class="dim">Nothing was handed over.</p>'
    rows = [[_text(edge["from"]), "→", _text(edge["to"]), f"<code>{_text(edge['message_id'])}</code>",
             "-" if edge.get("bytes") is None else f"{edge['bytes']} bytes",
             f"<code>{_text((edge.get('sha256') or '-')[:12])}</code>", time(edge["wait_ms"])]
            for edge in edges]  # fmt: skip
    return _table(("from", "", "to", "message", "size", "sha256", "waited"), rows, left=4)


def _thread(thread: str, said: list[Record]) -> str:
    """What was said in a thread, in order, with the verdicts on it."""
    turns = [
        _turn(who(one), one["content"], one.get("at", "")) if one["type"] == "message" else _finding(one)
        for one in said
    ]
    return "\n".join(
        [f"<h2>The thread <code>{_text(thread)}</code></h2>", *(turns or ['<p class="dim">None of it is here.</p>'])]
    )


def _turn(name: str, content: str | list[Json], at: str = "") -> str:
    kind = "own" if name not in ("user", "system", "tool") else name
    moment = f"<time>{_text(at[11:19])}</time>" if at else ""
    return f'<div class="turn {kind}"><div class="by">{_text(name)} {moment}</div>{_content(content)}</div>'


def _content(content: str | list[Json]) -> str:
    return "".join(as_html(label, text) for label, text in all_shown(content))


# -- small things


def _table(heads: tuple[str, ...], rows: list[list[str]], left: int) -> str:
    """A table; all but the first `left` columns are figures. The cells are HTML."""

    def line(tag: str, cells: Any) -> str:
        return (
            "<tr>"
            + "".join(f"<{tag}{'' if place < left else ' class=n'}>{one}</{tag}>" for place, one in enumerate(cells))
            + "</tr>"
        )

    return (
        '<div class="wide"><table>'
        + "".join([line("th", heads), *(line("td", row) for row in rows)])
        + "</table></div>"
    )


def _anchor(run: Json) -> str:
    return "run-" + "".join(one if one.isalnum() and one.isascii() else f"_{ord(one):x}_" for one in run["id"])


def _moment(run: Json) -> str:
    """When a run began: 2026-11-24 06:00:00."""
    return _text((run["started_at"] or "-")[:19].replace("T", " "))


def _pill(status: str) -> str:
    return f'<span class="pill {status}">{status}</span>'


def _score(score: float | None) -> str:
    return "-" if score is None else f"{score:.2f}"


def _sum(run: Json) -> str:
    """The cost of a run; a sum with unknown parts is the least that it was."""
    known, unpriced = money(run["cost_usd"]), run["unpriced"]
    return f"{known} <small>+ {unpriced} unpriced</small>" if unpriced and run["cost_usd"] is not None else known


def _text(text: str) -> str:
    """A text on one line, as HTML."""
    return escape(safe(text).replace("\n", " "))
