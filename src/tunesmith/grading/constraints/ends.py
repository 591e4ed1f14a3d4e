"""Constraints on how a text begins and ends, on its commas, and on what it repeats or offers."""

from __future__ import annotations

import re

_COMMAS = frozenset(",，、،﹐､")
_QUOTATIONS = (('"', '"'), ("“", "”"))
_SIX = re.compile(r"(?<!\*)\*{6}(?!\*)")


def end_checker(text: str, end_phrase: str) -> bool:
    """Say whether a text ends with the phrase, whatever its case; a quotation mark may follow."""
    return text.strip().strip('"“”').rstrip().lower().endswith(end_phrase.strip().lower())


def quotation(text: str) -> bool:
    """Say whether a whole text, which is not empty, stands in double quotation marks."""
    bare = text.strip()
    return any(
        len(bare) > 2 and bare[0] == left and bare[-1] == right and bool(bare[1:-1].strip())
        for left, right in _QUOTATIONS
    )


def no_comma(text: str) -> bool:
    """Say whether a text has no comma of any script."""
    return not _COMMAS & set(text)


def repeat_prompt(text: str, prompt_to_repeat: str) -> bool:
    """Say whether a text begins with the request, word for word, whatever its case."""
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def two_responses(text: str) -> bool:
    """Say whether ``******`` divides a text into two answers that differ."""
    parts = [part.strip() for part in _SIX.split(text)]
    inner = [part for place, part in enumerate(parts) if part or 0 < place < len(parts) - 1]
    return len(inner) == 2 and all(inner) and inner[0] != inner[1]
