"""ROUGE-L on words (Lin 2004), and its extension to two sets of texts in any order."""

from __future__ import annotations

from collections.abc import Sequence


def rouge_l(first: Sequence[str], second: Sequence[str]) -> float:
    """Return the F1 of the longest common subsequence of two word sequences, in [0, 1].

    Two empty sequences are equal; an empty one has nothing in common with any other.
    """
    if not first or not second:
        return float(not first and not second)
    return 2 * common_subsequence(first, second) / (len(first) + len(second))


def common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest sequence of words that both have in the same order."""
    row = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for place, other in enumerate(second, 1):
            above = row[place]
            row[place] = diagonal + 1 if word == other else max(above, row[place - 1])
            diagonal = above
    return row[-1]


def set_rouge_l(found: Sequence[Sequence[str]], wanted: Sequence[Sequence[str]]) -> float:
    """Return the F1 of two sets of texts under the best one-to-one assignment of their ROUGE-L.

    Each text counts with the similarity to its partner; one without a partner counts 0, so that
    too many texts cost precision and too few cost recall. Two empty sets are equal.
    """
    if not found or not wanted:
        return float(not found and not wanted)
    from scipy.optimize import linear_sum_assignment

    scores = [[rouge_l(one, other) for other in wanted] for one in found]
    rows, columns = linear_sum_assignment(scores, maximize=True)
    matched = sum(scores[row][column] for row, column in zip(rows, columns, strict=True))
    return float(2 * matched / (len(found) + len(wanted)))
