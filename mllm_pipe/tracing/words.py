"""How times, tokens, money and names are written for a person, and how they are laid out in columns."""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from unicodedata import combining, east_asian_width

from mllm_pipe.terminal import safe


def time(milliseconds: float | None) -> str:
    """A duration: 340ms, 1.25s, 3m12s, 2h05m."""
    if milliseconds is None:
        return "-"
    if milliseconds < 1000:
        return f"{milliseconds:.0f}ms"
    seconds = milliseconds / 1000
    if seconds < 60:
        return f"{seconds:.2f}s"
    minutes = int(seconds) // 60
    return f"{minutes}m{int(seconds) % 60:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def tokens(usage: dict[str, int]) -> list[str]:
    """Of the prompt, of it from a cache, of the answer."""
    return [str(usage.get(name, "-")) for name in ("input_tokens", "cache_read_tokens", "output_tokens")]


def money(cost: float | None, unpriced: int = 0) -> str:
    """US dollars; what is unknown is never 0, and a sum with unknown parts says that it is a floor."""
    if cost is None:
        return "unknown"
    return f"${cost:.6f}" + (f" + {unpriced} unpriced" if unpriced else "")


def cell(text: object) -> str:
    """A text that stands on one line and drives no terminal, whoever wrote it."""
    return re.sub(r"[\t\n\r]", " ", safe(str(text)))


def width(text: str) -> int:
    """How many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    return sum(0 if combining(one) else 2 if east_asian_width(one) in "WF" else 1 for one in text)


def fit(text: str, columns: int, *, right: bool = False) -> str:
    """The text in exactly so many columns: filled up with blanks, or cut with an ellipsis."""
    if (have := width(text)) > columns:
        text = text[:columns]
        while text and width(text) > columns - 1:
            text = text[:-1]
        text += "…" if columns else ""
        have = width(text)
    blanks = " " * (columns - have)
    return blanks + text if right else text + blanks


def columns(rows: Sequence[Sequence[str]], right: Container[int]) -> list[str]:
    """Rows as lines, each column as wide as its widest cell. right: numbers of the columns that stand to the right."""
    rows = [[cell(one) for one in row] for row in rows]
    widths = [max(width(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(fit(one, wide, right=column in right)
                      for column, (one, wide) in enumerate(zip(row, widths, strict=True))).rstrip()
            for row in rows]  # fmt: skip
