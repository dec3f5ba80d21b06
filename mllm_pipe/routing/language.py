"""The language that a text seems to be in: by its script, and where several share one, by the small words they use.

Good for telling apart the languages below in a sentence or more; short, mixed or other texts are None, not a guess.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from functools import cache

import orjson

LEAST = 3  # small words or telling letters, of which a text has to have so many more than of the next language
_LOOKED_AT = 4000  # characters

# The script alone decides. In this order: Japanese has Han too.
_SCRIPTS = [
    ("ja", "\u3041-\u309f\u30a1-\u30fa"), ("ko", "\uac00-\ud7af\u1100-\u11ff"), ("zh", "\u4e00-\u9fff\u3400-\u4dbf"),
    ("th", "\u0e01-\u0e5b"), ("el", "\u0370-\u03ff"), ("he", "\u0590-\u05ff"), ("hy", "\u0531-\u058f"),
    ("ka", "\u10a0-\u10ff"), ("ta", "\u0b80-\u0bff"), ("te", "\u0c00-\u0c7f"), ("bn", "\u0980-\u09ff"),
    ("km", "\u1780-\u17ff"), ("my", "\u1000-\u109f"), ("lo", "\u0e81-\u0eff"), ("am", "\u1200-\u137f"),
    ("", "\u0600-\u06ff"), ("", "\u0900-\u097f"), ("", "\u0400-\u04ff"),
]  # fmt: skip
_OF_SCRIPT = [(code, re.compile(f"[{ranges}]")) for code, ranges in _SCRIPTS]
_LATIN = re.compile("[A-Za-z\u00c0-\u024f\u1e00-\u1eff]")
_WORD = re.compile(r"[^\s\d.,;:!?\"'’()\[\]{}<>«»„“”।،؟/_-]+")  # marks are part of words: \w does not have them


@cache
def _told_by() -> tuple[dict[str, frozenset[str]], dict[str, str]]:
    """({code: its small words}, {letter: the one language that has it}) of the languages that share a script.

    The words are frequent in a language, and rare or absent in its neighbours.
    """
    with open(os.path.join(os.path.dirname(__file__), "..", "data", "languages.json"), "rb") as file:
        known = orjson.loads(file.read())
    words = {code: frozenset(entry["words"].split()) for code, entry in known.items()}
    return words, {letter: code for code, entry in known.items() for letter in entry.get("letters", "")}


def language_of(text: str) -> str | None:
    """The code of ISO 639 of the language, None if that is unsure."""
    text = text[:_LOOKED_AT]
    counts = [(len(letters.findall(text)), code) for code, letters in _OF_SCRIPT]
    latin = len(_LATIN.findall(text))
    most, code = max(counts, key=lambda count: count[0])
    if most > latin and code:
        # one kana in ten tells Japanese from Chinese
        return "ja" if code == "zh" and counts[0][0] * 10 > most else code
    small_words, letters = _told_by()
    words = _WORD.findall(text.lower())
    scores = Counter({code: sum([word in small for word in words]) for code, small in small_words.items()})
    for letter, count in Counter(text.lower()).items():
        if letter in letters:
            scores[letters[letter]] += count
    (first, best), (_, next_best) = scores.most_common(2)
    return first if best >= LEAST and best - next_best >= max(1, best // 8) else None
