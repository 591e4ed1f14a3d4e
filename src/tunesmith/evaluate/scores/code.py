"""Metrics of code against the code that the row has: as text, and as runs of names and signs.

Whether it parses is no matter of likeness, and belongs to a metric of its own: one that needs a
parser gets a function here and a row in ``table.py`` under «syntax validity».
"""

from __future__ import annotations

from tunesmith.evaluate.scores.base import Metric, Replies, Values
from tunesmith.grading import overlap
from tunesmith.grading.overlap import code_of, code_words, ngram_f1


def code_exact(replies: Replies) -> Values:
    """1 where the code is the reference's, space at ends of lines aside, else 0.

    Of a reply with a fenced block only the first block counts.
    """
    return [float(code_of(reply.text) == code_of(reply.reference)) for reply in replies]


def edit_similarity(replies: Replies) -> Values:
    """1 - Levenshtein distance / length of the longer code, in characters (Lu et al. 2021)."""
    return [
        overlap.edit_similarity(code_of(reply.text), code_of(reply.reference)) for reply in replies
    ]


def pattern_consistency(replies: Replies) -> Values:
    """F1 of the n-grams of names, numbers and signs shared with the reference, mean of n 1 to 4.

    The n-gram part of CodeBLEU (Ren et al. 2020) as an F1, so that length pays on neither side.
    """
    return [
        ngram_f1(code_words(code_of(reply.text)), code_words(code_of(reply.reference)))
        for reply in replies
    ]


ACCURACY = (
    Metric("code_exact", "exact", "higher", 0, 1, each=code_exact, paired=True),
    Metric("edit_similarity", "edit similarity", "higher", 0, 1, edit_similarity, paired=True),
)
PATTERN = (
    Metric("pattern_consistency", "shared n-grams", "higher", 0, 1, pattern_consistency,
           paired=True),
)  # fmt: skip
