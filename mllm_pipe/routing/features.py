"""What a learned router sees of a text: hashed words and pairs of words, and how the text is built.

Pure Python, and a function of the text alone, so that a fitted router sees next year what it was fitted on.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from zlib import crc32

BUCKETS = 1 << 17
MOST_CHARS = 20_000  # of a text; what comes after is not looked at
# Where words are written without blanks (Thai, Lao, Burmese, Khmer, Kana, Han), each letter counts as one.
_SPACELESS = "\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff\u3041-\u30ff\u3400-\u9fff"
_WORD = re.compile(rf"[{_SPACELESS}]|[^\W{_SPACELESS}]+")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_SENTENCE = re.compile(r"[.!?\u3002\uff01\uff1f]+(?:\s|$)")
_SIGN = re.compile(r"[=+*/^<>\\_|{}\[\]]")
STRUCTURE = (
    "characters", "words", "numbers", "share of numbers", "digits", "lines", "sentences", "words a sentence",
    "letters a word", "questions", "signs", "share of signs", "different words", "capitals", "longest line",
)  # fmt: skip


def words_of(text: str) -> dict[int, float]:
    """{bucket: 1 + ln(count)} of the words and pairs of words, by the CRC-32 of their UTF-8 (RFC 1952)."""
    words = _WORD.findall(text[:MOST_CHARS].lower())
    counts = Counter([crc32(word.encode()) & (BUCKETS - 1) for word in words])
    counts.update([crc32(f"{one} {next_one}".encode()) & (BUCKETS - 1)
                   for one, next_one in zip(words, words[1:], strict=False)])  # fmt: skip
    return {bucket: 1.0 if count == 1 else 1.0 + math.log(count) for bucket, count in counts.items()}


def structure_of(text: str) -> list[float]:
    """The numbers that STRUCTURE names."""
    size = len(text)
    text = text[:MOST_CHARS]
    words = _WORD.findall(text)
    lines = text.split("\n")
    count, sentences = max(1, len(words)), len(_SENTENCE.findall(text))
    numbers, signs = len(_NUMBER.findall(text)), len(_SIGN.findall(text))
    looked_at = max(1, len(text))
    log = math.log1p
    return [
        log(size), log(len(words)), log(numbers), numbers / count, sum([c.isdigit() for c in text]) / looked_at,
        log(len(lines)), log(sentences), log(len(words) / max(1, sentences)), sum(map(len, words)) / count,
        log(text.count("?")), log(signs), signs / looked_at, len({word.lower() for word in words}) / count,
        sum([c.isupper() for c in text]) / looked_at, log(max(map(len, lines))),
    ]  # fmt: skip
