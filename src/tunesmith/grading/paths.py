"""Telling reasoning paths apart, as rejection-sampling fine-tuning does (arXiv 2308.01825)."""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.grading.arithmetic import equations, normalise


def equation_signature(text: str) -> tuple[str, ...]:
    """Return the ordered list of equations of a path; two paths that share it are the same one.

    A path without equations is told apart by its words instead.
    """
    found = tuple(f"{normalise(e.left)}={normalise(e.right)}" for e in equations(text))
    return found or (" ".join(text.split()),)


def edit_distance(first: str, second: str) -> int:
    """Return the Levenshtein distance in characters."""
    if len(first) < len(second):
        first, second = second, first
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def choose_paths(texts: Sequence[str], k: int) -> list[int]:
    """Return the positions of at most ``k`` distinct paths, in the order given.

    Of several texts with one signature the one farthest from the texts of all other signatures
    is kept (sum of edit distances); of more than ``k`` signatures, greedily the farthest ones.
    """
    groups: dict[tuple[str, ...], list[int]] = {}
    for position, text in enumerate(texts):
        groups.setdefault(equation_signature(text), []).append(position)
    members = list(groups.values())
    kept = []
    for group in members:
        others = [p for other in members if other is not group for p in other]
        kept.append(max(group, key=lambda p: (_distance(texts, p, others), -p)))
    if len(kept) > k:
        chosen = [kept[0]] if k else []
        while len(chosen) < k:
            rest = [p for p in kept if p not in chosen]
            chosen.append(
                max(
                    rest, key=lambda p: (min(edit_distance(texts[p], texts[c]) for c in chosen), -p)
                )
            )
        kept = chosen
    return sorted(kept)


def _distance(texts: Sequence[str], position: int, others: Sequence[int]) -> int:
    return sum(edit_distance(texts[position], texts[other]) for other in set(others))
