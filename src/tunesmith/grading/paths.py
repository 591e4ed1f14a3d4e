"""Telling reasoning paths apart, as rejection-sampling fine-tuning does (arXiv 2308.01825)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from tunesmith.grading.arithmetic import equations, normalise

Preference = Literal["farthest", "short", "long"]
"""Which of several paths stay: the least alike in letters, the shortest or the longest."""


def equation_signature(text: str) -> tuple[str, ...]:
    """Return the ordered list of equations of a path; two paths that share it are the same one.

    A path without equations is told apart by its words instead, whatever their case, spacing and
    punctuation at their ends.
    """
    found = tuple(f"{normalise(e.left)}={normalise(e.right)}" for e in equations(text))
    bare = (word.strip(".,;:!?\"'()*") for word in text.casefold().split())
    return found or (" ".join(word for word in bare if word),)


def edit_distance(first: str, second: str) -> int:
    """Return the Levenshtein distance in characters.

    A column of the table is kept as the bits of two integers (Hyyrö 2003, after Myers 1999), so a
    step costs one operation on all of its rows.
    """
    if len(first) < len(second):
        first, second = second, first
    if not second:
        return len(first)
    places: dict[str, int] = {}
    for at, letter in enumerate(second):
        places[letter] = places.get(letter, 0) | 1 << at
    full, last = (1 << len(second)) - 1, 1 << (len(second) - 1)
    up, down, distance = full, 0, len(second)
    for letter in first:
        match = places.get(letter, 0)
        diagonal = ((((match & up) + up) ^ up) | match | down) & full
        right_up, right_down = down | (full & ~(diagonal | up)), up & diagonal
        distance += bool(right_up & last) - bool(right_down & last)
        right_up = right_up << 1 | 1
        up = (right_down << 1 | (full & ~(diagonal | right_up))) & full
        down = right_up & diagonal
    return distance


def choose_paths(
    texts: Sequence[str],
    k: int,
    prefer: Preference = "farthest",
    lengths: Sequence[int] | None = None,
) -> list[int]:
    """Return the positions of at most ``k`` distinct paths, in the order given.

    Of several texts with one signature the one farthest from the texts of all other signatures
    is kept (sum of edit distances); of more than ``k`` signatures, greedily the farthest ones.
    With ``short`` or ``long`` their ``lengths`` (the texts' own if not given) decide instead, and
    the earlier of two that are equally long.
    """
    groups: dict[tuple[str, ...], list[int]] = {}
    for position, text in enumerate(texts):
        groups.setdefault(equation_signature(text), []).append(position)
    members = list(groups.values())
    if prefer != "farthest":
        sizes = [len(text) for text in texts] if lengths is None else lengths
        sign = 1 if prefer == "short" else -1
        ranked = sorted(
            (min(group, key=lambda p: (sign * sizes[p], p)) for group in members),
            key=lambda p: (sign * sizes[p], p),
        )
        return sorted(ranked[:k])
    kept = [_farthest(texts, group, members) for group in members]
    return sorted(_spread(texts, kept, k))


def _farthest(texts: Sequence[str], group: list[int], members: list[list[int]]) -> int:
    """Return which text of one signature is farthest from those of all others."""
    if len(group) == 1:
        return group[0]
    others = [p for other in members if other is not group for p in other]
    return max(group, key=lambda p: (sum(edit_distance(texts[p], texts[o]) for o in others), -p))


def _spread(texts: Sequence[str], kept: list[int], k: int) -> list[int]:
    """Return ``k`` of the positions, beginning with the first, each the farthest from those."""
    if len(kept) <= k:
        return kept
    chosen = kept[:1] if k else []
    nearest: dict[int, int] = {}
    while len(chosen) < k:
        for p in kept:
            distance = edit_distance(texts[p], texts[chosen[-1]])
            nearest[p] = min(nearest.get(p, distance), distance)
        rest = [p for p in kept if p not in chosen]
        chosen.append(max(rest, key=lambda p: (nearest[p], -p)))
    return chosen
