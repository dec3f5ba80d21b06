"""Keywords as whole words, with case folded, in any script.

Text and keyword are folded alike: NFKC and full case folding (Unicode 3.13, D145), so that Straße is STRASSE and an
accent is the same whether it is composed or not; what nobody sees (soft hyphens, joiners, variation selectors) is taken
out, and blanks are one blank.

A keyword is there where it does not begin or end within a word. Words are those of UAX #29 as far as that needs no
dictionary: letters, digits and _ go on, as do marks; Han, Hiragana, Thai, Lao, Khmer and Burmese are written without
blanks, so there every letter may end a word, but never between a letter and its marks; Katakana is a word of its own.
"""

from __future__ import annotations

import re
from functools import cache

# Classes of characters, which are compiled only if a text is not ASCII: that takes as long as a start-up can spare.
_UNSEEN = "\u00ad\u034f\u200c\u200d\u2060\ufe00-\ufe0f\ufeff"
# Written without blanks between words: Thai, Lao, Burmese, Khmer, Hiragana, Bopomofo, Han with its extensions.
_SPACELESS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\uaa60-\uaa7f\u3005-\u3007\u3021-\u3029\u3041-\u309f\u3105-\u312f"
    "\u31a0-\u31bf\u31c0-\u31e3\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_KATAKANA = "\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"
# Latin, Greek, Cyrillic and the signs around them, when folded: there, words are runs of \w and nothing else.
_BEYOND_PLAIN = "^\x00-\u02ff\u0370-\u0482\u048a-\u052f\u2010-\u205e\u20a0-\u20bf\u2190-\u23ff\u2500-\u27bf"
_WORD = re.compile(r"\w+")
# Of ASCII: lower case, and a blank for all that is in no word.
_ASCII_WORDS = bytes(ord(chr(byte).lower()) if chr(byte).isalnum() or byte == 95 else 32 for byte in range(128)) * 2


@cache
def _one_of(characters: str) -> re.Pattern[str]:
    return re.compile(f"[{characters}]")


def folded(text: str) -> str:
    """The text as it is compared."""
    if text.isascii():
        text = text.lower()
    else:
        from unicodedata import normalize

        text = _one_of(_UNSEEN).sub("", normalize("NFKC", normalize("NFKC", text).casefold()))
    return " ".join(text.split())


def found(keyword: str, text: str) -> bool:
    """True if a keyword is in a text, both folded, as a whole word or several."""
    place = text.find(keyword)
    while place >= 0:
        end = place + len(keyword)
        if (place == 0 or not _joined(text[place - 1], keyword[0])) and (
            end == len(text) or not _joined(keyword[-1], text[end])
        ):
            return True
        place = text.find(keyword, place + 1)
    return False


def _joined(left: str, right: str) -> bool:
    """True if no word ends between two characters."""
    if not right.isalnum() and right != "_":
        return _is_mark(right) and (left.isalnum() or _is_mark(left))
    if not left.isalnum() and left != "_" and not _is_mark(left):
        return False
    if _one_of(_SPACELESS).match(left) or _one_of(_SPACELESS).match(right):
        return False
    return bool(_one_of(_KATAKANA).match(left)) == bool(_one_of(_KATAKANA).match(right))


def _is_mark(character: str) -> bool:
    from unicodedata import category

    return category(character)[0] == "M"


class Keywords:
    """Many lists of keywords, looked for in one go: which of the lists have one that is in a text.

    Where words are runs of letters, a text is a set of words, and only keywords of which it has the first are looked
    at; so fifty lists cost hardly more than one.
    """

    __slots__ = ("lists", "words", "of_word", "of_bytes", "without")

    def __init__(self, lists: list[list[str]]) -> None:
        """lists: of folded keywords. A list is known by its place."""
        self.lists = lists
        self.words: dict[str, list[int]] = {}  # keywords that are one word and nothing else
        self.of_word: dict[str, list[tuple[int, str]]] = {}  # the others, by the first word that is in them
        self.without: list[tuple[int, str]] = []  # what has no word in it
        for place, keywords in enumerate(lists):
            for keyword in keywords:
                word = _WORD.search(keyword)
                if not word:
                    self.without.append((place, keyword))
                elif not keyword.isascii() and _one_of(_BEYOND_PLAIN).search(keyword):
                    continue  # it is in no plain text
                elif word[0] == keyword:
                    self.words.setdefault(keyword, []).append(place)
                else:
                    self.of_word.setdefault(word[0], []).append((place, keyword))
        self.of_bytes = {word.encode(): word for word in (*self.words, *self.of_word) if word.isascii()}

    def hits(self, text: str) -> dict[int, str]:
        """The places of the lists that have a keyword in the text, each with that keyword."""
        if text.isascii():
            there = self.of_bytes.keys() & text.encode().translate(_ASCII_WORDS).split()
            words = [self.of_bytes[word] for word in sorted(there)] if there else []
        else:
            text = folded(text)
            if _one_of(_BEYOND_PLAIN).search(text):
                return {place: keyword for place, keywords in enumerate(self.lists) for keyword in keywords
                        if found(keyword, text)}  # fmt: skip
            all_words = set(_WORD.findall(text))
            words = sorted((self.words.keys() & all_words) | (self.of_word.keys() & all_words))
        hits = {place: word for word in words for place in self.words.get(word, ())}
        asked = [*[one for word in words for one in self.of_word.get(word, ())], *self.without]
        if asked:
            text = folded(text)
            hits |= {place: keyword for place, keyword in asked if found(keyword, text)}
        return hits
