"""How alike two texts are: by characters (Levenshtein) and by words (ROUGE-L). Both in [0, 1], 1 for equal texts.

Whole columns of the table are kept as the bits of one integer, so that texts of some thousand characters take
milliseconds; `tick` is called now and then, and may raise to end what takes too long.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from typing import Any

EVERY = 256  # steps between two ticks
MEMORY = 64 << 20  # bytes, of all rows of bits

_WORD = re.compile(r"[^\W_]+")


def ratio(one: str, other: str, tick: Callable[[], Any]) -> float:
    """1 - distance / length of the longer one."""
    longest = max(len(one), len(other))
    return 1 - distance(one, other, tick) / longest if longest else 1.0


def distance(one: str, other: str, tick: Callable[[], Any]) -> int:
    """The Levenshtein distance, in characters.

    Bit-parallel, as in G. Myers, "A fast bit-vector algorithm for approximate string matching", J. ACM 46 (1999), in
    the form of H. Hyyrö, "Explaining and extending the bit-parallel algorithm of Myers" (2001), figure 3.
    """
    text, pattern = sorted((one, other), key=len)
    row = _rows(pattern, text, tick)
    last, mask = 1 << (len(pattern) - 1) if pattern else 0, (1 << len(pattern)) - 1
    rises, falls, found = mask, 0, len(pattern)
    for number, character in enumerate(text):
        if not number % EVERY:
            tick()
        equal = row(character)
        vertical = equal | falls
        horizontal = (((equal & rises) + rises) ^ rises) | equal
        up, down = falls | ~(horizontal | rises), rises & horizontal
        if up & last:
            found += 1
        elif down & last:
            found -= 1
        up, down = up << 1 | 1, down << 1
        rises, falls = (down | ~(vertical | up)) & mask, up & vertical & mask
    return found


def rouge_l(one: str, reference: str, tick: Callable[[], Any]) -> float:
    """ROUGE-L as F1 (C.-Y. Lin, "ROUGE", 2004, §3.1, with beta 1): the longest common subsequence of words.

    Words are runs of letters and digits, case folded and not stemmed. 0 if either text has none.
    """
    words, wanted = (_WORD.findall(text.casefold()) for text in (one, reference))
    common = common_length(words, wanted, tick)
    return 2 * common / (len(words) + len(wanted)) if common else 0.0


def common_length(one: Sequence[Hashable], other: Sequence[Hashable], tick: Callable[[], Any]) -> int:
    """Length of the longest common subsequence.

    Bit-parallel, as in H. Hyyrö, "Bit-parallel LCS-length computation revisited" (AWOCA 2004), figure 5.
    """
    row, mask = _rows(other, one, tick), (1 << len(other)) - 1
    rest = mask
    for number, item in enumerate(one):
        if not number % EVERY:
            tick()
        matched = rest & row(item)
        rest = ((rest + matched) | (rest - matched)) & mask
    return len(other) - rest.bit_count()


def _rows(items: Sequence[Hashable], asked: Sequence[Hashable], tick: Callable[[], Any]) -> Callable[[Hashable], int]:
    """Of each item that is asked for, the places where it stands, as bits; no more of them are kept than fit MEMORY."""
    found: dict[Hashable, list[int]] = {item: [] for item in asked}
    for place, item in enumerate(items):
        if not place % (256 * EVERY):
            tick()
        if item in found:
            found[item].append(place)
    return lru_cache(MEMORY // (len(items) // 8 + 64) + 1)(lambda item: _bits(found[item]))


def _bits(places: list[int]) -> int:
    row = bytearray(places[-1] // 8 + 1 if places else 0)
    for place in places:
        row[place >> 3] |= 1 << (place & 7)
    return int.from_bytes(row, "little")
