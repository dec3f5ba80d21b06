"""A thread as a page for people: markdown, HTML or plain text. Pure. Nothing in it can leave its place.

Terminal codes are written out in every form; in HTML all is escaped; in markdown prose is a block quote, which whatever
it begins ends with, but for HTML, and what is no prose stands in a fence that is longer than any in it; in plain text a
line that would look like one of the page's own is moved in by a blank.
"""

from __future__ import annotations

import re
from html import escape
from typing import Any

import orjson

from mllm_pipe.runs import REDACTED
from mllm_pipe.runtimes._turns import has_twin
from mllm_pipe.terminal import one_line, safe
from mllm_pipe.thread import parts_of, speaker

Json = dict[str, Any]

FORMS = ("markdown", "html", "text")
STYLE = ("body{font:16px/1.5 sans-serif;max-width:50em;margin:2em auto;padding:0 1em}"
         "pre{white-space:pre-wrap;background:#8882;padding:.5em}")  # fmt: skip


def page(messages: list[Json], title: str, form: str) -> str:
    """The messages of a branch, oldest first, as one page."""
    blocks = [(who(one), all_shown(one["content"])) for one in messages]
    return {"markdown": _markdown, "html": _html, "text": _text}[form](safe(title), blocks)


Blocks = list[tuple[str, list[tuple[str, str]]]]


def who(one: Json) -> str:
    """Who speaks, and by which model."""
    author = one.get("author", {})
    name = speaker(one) if one["role"] == "assistant" else one["role"]
    by = author.get("model") or author.get("runtime")
    return safe(f"{name} ({by})" if by else name).replace("\n", " ")


def all_shown(content: str | list[Json]) -> list[tuple[str, str]]:
    """The parts of a content as `shown` gives them; of structured output what no text beside it says."""
    parts = parts_of(content)
    return [shown(part) for part in parts if part["type"] != "data" or not has_twin(part, parts)]


def shown(part: Json) -> tuple[str, str]:
    """(label, text) of a part; no label for prose."""
    kind = part["type"]
    if kind in ("text", "refusal"):
        return "", safe(part["text"])
    if kind == "reasoning":
        return "reasoning", safe(part.get("text") or "")
    if kind == "tool_call":
        given = part.get("arguments_raw")
        return f"calls {safe(part['name'])}", _json(part["arguments"]) if given is None else safe(given)
    if kind == "tool_result":
        texts = [text for _, text in all_shown(part["content"])]
        return "error" if part.get("is_error") else "result", "\n".join(texts)
    if kind == "file":
        return "file", safe(str(part.get("name") or part["media_type"]))
    if kind == REDACTED:
        return kind, safe(f"{part.get('bytes')} bytes, sha256 {part.get('sha256')}")
    if kind == "data":
        return kind, _json(part["value"])
    beside = {name: value for name, value in part.items() if name != "type"}
    return safe(kind), _json(beside.get("raw", beside)) if beside else ""


def _json(value: Any) -> str:
    return safe(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())


_OURS = re.compile(r"^(?===|  \[)", re.MULTILINE)  # how the lines begin that say who speaks, and what is no prose


def _text(title: str, blocks: Blocks) -> str:
    lines = [one_line(title)]
    for who, parts in blocks:
        lines += ["", f"== {who}"]
        for label, text in parts:
            beside = f"  [{one_line(label)}] "
            lines.append(beside + text.replace("\n", f"\n{beside}") if label else _OURS.sub(" ", text.rstrip("\n")))
    return "\n".join(lines) + "\n"


def _markdown(title: str, blocks: Blocks) -> str:
    lines = [f"# {_plain(title)}"]
    for who, parts in blocks:
        lines += ["", f"## {_plain(who)}"]
        for label, text in parts:
            if label:
                fence = "`" * (max([2, *map(len, re.findall("`+", text))]) + 1)
                lines += ["", f"*{_plain(label)}*", "", fence, text.rstrip("\n"), fence]
            else:
                lines += ["", *(f"> {line}" if line else ">" for line in text.rstrip("\n").split("\n"))]
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """A name as markdown shows it as it is."""
    return re.sub(r"([\\`*_\[\]<>#!|])", r"\\\1", text.replace("\n", " "))


def _html(title: str, blocks: Blocks) -> str:
    out = [f'<!doctype html>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n<style>{STYLE}</style>']
    for who, parts in blocks:
        out.append(f"<section>\n<h2>{escape(who)}</h2>")
        out += [as_html(label, text) for label, text in parts]
        out.append("</section>")
    return "\n".join(out) + "\n"


def as_html(label: str, text: str) -> str:
    """What `shown` gives of a part, in HTML: what is no prose opens when its label is clicked."""
    body = f"<pre>{escape(text)}</pre>"
    return f"<details><summary>{escape(label)}</summary>{body}</details>" if label else body
