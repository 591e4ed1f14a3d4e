"""Texts as words and numbers, the same way in every language, for filters and comparisons."""

from __future__ import annotations

import re
import unicodedata

_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
)
"""Scripts written without spaces (Thai, Lao, Burmese, Khmer, kana, Han): each sign is a word."""
_WORD = re.compile(rf"[{_UNSPACED}]|\d+(?:[.,]\d+)+|[^\W{_UNSPACED}]+(?:[.,]\d+)*")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")
CONTENT_LETTERS = 4
"""Shorter words are mostly articles, pronouns and prepositions."""


def words(text: str) -> tuple[str, ...]:
    """Return the words of a text in lower case, numbers whole."""
    return tuple(_WORD.findall(text.casefold()))


def numbers(text: str) -> tuple[str, ...]:
    """Return the numbers of a text in order, so that 1,080, 1080 and 1080.0 are the same."""
    return tuple(_plain(found) for found in _NUMBER.findall(text))


def content_words(text: str) -> frozenset[str]:
    """Return the distinct words that carry a text's topic: long enough, and no numbers."""
    return frozenset(word for word in words(text) if not word[0].isdecimal() and _is_content(word))


def normalised(text: str) -> str:
    """Return a text with case, spaces and forms of the same letter folded."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _is_content(word: str) -> bool:
    return len(word) >= CONTENT_LETTERS or (len(word) == 1 and not word.isascii())


def _plain(number: str) -> str:
    if _THOUSANDS.fullmatch(number):
        number = number.replace(",", "")
    whole, point, rest = number.partition(".")
    rest = rest.rstrip("0") if "," not in rest and "." not in rest else rest
    return (whole.lstrip("0") or "0") + (point + rest if rest else "")
