"""Constraints on lengths: words, sentences, paragraphs."""

from __future__ import annotations

import re

from tunesmith.grading.constraints.amounts import holds
from tunesmith.grading.constraints.sentences import count_words, sentences

_DIVIDER = re.compile(r"(?:\A|(?<=\s))\*{3}(?=\s|\Z)")
_EMPTY_LINE = re.compile(r"\n[ \t]*\n")
_QUOTES = "\"'“”‘’«»"
_WORD_END = re.compile(r"[\s.,?!:;\"'“”’»]")


def number_words(text: str, relation: str, num_words: int) -> bool:
    """Say whether a text has so many words."""
    return holds(count_words(text), relation, num_words)


def number_sentences(text: str, relation: str, num_sentences: int) -> bool:
    """Say whether a text has so many sentences."""
    return holds(len(sentences(text)), relation, num_sentences)


def number_paragraphs(text: str, num_paragraphs: int) -> bool:
    """Say whether ``***`` divides a text into so many paragraphs, exactly.

    A divider in front of the first one or behind the last divides nothing; an empty paragraph
    between two dividers is a fault.
    """
    parts = _DIVIDER.split(text)
    inner = [part for place, part in enumerate(parts) if part.strip() or 0 < place < len(parts) - 1]
    return all(part.strip() for part in inner) and len(inner) == num_paragraphs


def nth_paragraph_first_word(
    text: str, num_paragraphs: int, nth_paragraph: int, first_word: str
) -> bool:
    """Say whether empty lines divide a text into so many paragraphs, one beginning with a word.

    Quotation marks in front of the word, what is written behind it and its case do not count.
    """
    parts = [part.strip() for part in _EMPTY_LINE.split(text) if part.strip()]
    if len(parts) != num_paragraphs or nth_paragraph > len(parts):
        return False
    begun = _WORD_END.split(parts[nth_paragraph - 1].lstrip(_QUOTES), maxsplit=1)[0]
    return begun.lower() == first_word.strip().lower()
