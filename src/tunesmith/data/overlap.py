"""Contamination: which test questions stand in the training rows, and where."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.types import Example, Problem

GRAM = 8
"""Words in a row that two texts must share."""
_WORD = re.compile(r"\w+(?:[.,]\d+)*")


@dataclass(frozen=True, slots=True)
class Overlap:
    """One training row that holds (part of) a test question."""

    problem_id: str
    origin: str
    kind: str
    """exact, or the shared words."""


def words(text: str) -> tuple[str, ...]:
    """Return the words of a text in lower case, numbers whole."""
    return tuple(_WORD.findall(text.casefold()))


def find_overlaps(examples: Sequence[Example], problems: Sequence[Problem]) -> list[Overlap]:
    """Return one overlap for each test question that occurs in training rows.

    A question shorter than ``GRAM`` words must occur whole, in order; a longer one counts with
    any ``GRAM`` of its words in a row.
    """
    wanted: dict[tuple[str, ...], list[str]] = {}
    sizes: set[int] = set()
    for problem in problems:
        asked = words(" ".join(segment.text for segment in problem.prompt))
        size = min(GRAM, len(asked))
        sizes.add(size)
        for start in range(len(asked) - size + 1):
            wanted.setdefault(asked[start : start + size], []).append(problem.id)
    found: dict[str, Overlap] = {}
    for example in examples:
        text = words(" ".join(segment.text for segment in example.segments))
        for size in sizes:
            for start in range(len(text) - size + 1):
                gram = text[start : start + size]
                for problem_id in wanted.get(gram, ()):
                    place = str(example.origin)
                    found.setdefault(problem_id, Overlap(problem_id, place, " ".join(gram)))
    return list(found.values())
