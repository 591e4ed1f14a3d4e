"""Constraints on words and letters: there, not there, so many times."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tunesmith.grading.constraints.amounts import holds


def existence(text: str, keywords: Sequence[str]) -> bool:
    """Say whether all keywords occur, in any case, also inside longer words."""
    return all(_occurrences(text, keyword) for keyword in keywords)


def frequency(text: str, keyword: str, relation: str, frequency: int) -> bool:
    """Say whether a keyword occurs that often, in any case, also inside longer words."""
    return holds(_occurrences(text, keyword), relation, frequency)


def forbidden(text: str, forbidden_words: Sequence[str]) -> bool:
    """Say whether none of the words occurs as a word of its own, in any case."""
    return not any(
        re.search(rf"(?<!\w){re.escape(word.strip())}(?!\w)", text, re.IGNORECASE)
        for word in forbidden_words
    )


def letter_frequency(text: str, letter: str, let_relation: str, let_frequency: int) -> bool:
    """Say whether a letter or sign occurs that often, in any case."""
    return holds(text.lower().count(letter.lower()), let_relation, let_frequency)


def _occurrences(text: str, keyword: str) -> int:
    return len(re.findall(re.escape(keyword.strip()), text, re.IGNORECASE))
