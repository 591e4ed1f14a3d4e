"""Constraints on capital and small letters."""

from __future__ import annotations

import re

from tunesmith.grading.constraints.amounts import holds
from tunesmith.grading.constraints.language import is_language

_TOKEN = re.compile(r"\w+(?:[-'’.&/]\w+)*")


def english_capital(text: str) -> bool:
    """Say whether a text is English and has capital letters only."""
    # The detector knows words with their letters' case, and most English ones in small letters.
    return text.isupper() and (is_language(text, "en") or is_language(text.lower(), "en"))


def english_lowercase(text: str) -> bool:
    """Say whether a text is English and has small letters only."""
    return text.islower() and is_language(text, "en")


def capital_word_frequency(text: str, capital_relation: str, capital_frequency: int) -> bool:
    """Say whether so many words are all capitals; hyphens and apostrophes do not divide a word."""
    capitals = sum(word.isupper() for word in _TOKEN.findall(text))
    return holds(capitals, capital_relation, capital_frequency)
