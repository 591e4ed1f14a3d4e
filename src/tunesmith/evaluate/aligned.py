"""Held-out rows of one text in two tokenizers, cut to the bytes that both of them score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tunesmith.data.prepare import Prepared
from tunesmith.evaluate.losses import RowLoss
from tunesmith.types import Encoded

Spell = Callable[[int], bytes]
Scored = tuple[int, int, bytes]
"""A scored token: its row among those of the document, its place, and what it spells."""


def aligned(
    first: Prepared, second: Prepared, spells: tuple[Spell, Spell]
) -> tuple[Prepared, Prepared]:
    """Return both with weights only on what both score, document by document.

    The first token of a text is never scored, and it is not equally long in both. So the side that
    scores more bytes leaves out its first token, until both score the same. A document of which
    they still do not (its windows were cut inside a letter, or an old turn fitted on one side only)
    is left out of both.
    """
    sides = (_documents(first), _documents(second))
    kept: tuple[Prepared, Prepared] = (Prepared(), Prepared())
    rows: tuple[list[Encoded], list[Encoded]] = ([], [])
    numbers: tuple[list[int], list[int]] = ([], [])
    for document in sides[0]:
        if document not in sides[1]:
            continue
        both = [side[document] for side in sides]
        ends = _common_end(*(_scored(own, s) for own, s in zip(both, spells, strict=True)))
        if ends is None:
            continue
        for side, (own, left_out) in enumerate(zip(both, ends, strict=True)):
            cut = [row for row in _without(own, left_out) if any(row.weights)]
            rows[side].extend(cut)
            numbers[side].extend([document] * len(cut))
    for side, prepared in enumerate(kept):
        prepared.rows, prepared.documents = rows[side], numbers[side]
        prepared.examples = len(set(numbers[side]))
    return kept


def document_losses(
    sums: Sequence[tuple[float, float]], held: Prepared, spell: Spell
) -> list[RowLoss]:
    """Add up the losses of rows, ``sums`` as ``row_losses`` gives them, by their documents."""
    found: dict[int, tuple[float, int]] = {}
    for row, document, (loss, _) in zip(held.rows, held.documents, sums, strict=True):
        size = sum(len(spell(i)) for i, w in zip(row.ids, row.weights, strict=True) if w)
        before = found.get(document, (0.0, 0))
        found[document] = (before[0] + loss, before[1] + size)
    return [RowLoss(str(number), *both) for number, both in found.items()]


def _documents(prepared: Prepared) -> Mapping[int, list[Encoded]]:
    found: dict[int, list[Encoded]] = {}
    for row, document in zip(prepared.rows, prepared.documents, strict=True):
        found.setdefault(document, []).append(row)
    return found


def _scored(rows: Sequence[Encoded], spell: Spell) -> list[Scored]:
    return [
        (number, at, spell(row.ids[at]))
        for number, row in enumerate(rows)
        for at, weight in enumerate(row.weights)
        if weight
    ]


def _common_end(
    one: Sequence[Scored], other: Sequence[Scored]
) -> tuple[Sequence[Scored], Sequence[Scored]] | None:
    """Return the first tokens that each side has to leave out; None where nothing is common."""
    starts, left = [0, 0], [sum(len(s) for *_, s in side) for side in (one, other)]
    while left[0] != left[1]:
        longer = int(left[1] > left[0])
        left[longer] -= len((one, other)[longer][starts[longer]][2])
        starts[longer] += 1
    ends = [
        b"".join(s for *_, s in side[at:]) for side, at in zip((one, other), starts, strict=True)
    ]
    if not ends[0] or ends[0] != ends[1]:
        return None
    return one[: starts[0]], other[: starts[1]]


def _without(rows: Sequence[Encoded], left_out: Sequence[Scored]) -> list[Encoded]:
    gone: Any = {(number, at) for number, at, _ in left_out}
    return [
        replace(
            row, weights=tuple(0.0 if (n, at) in gone else w for at, w in enumerate(row.weights))
        )
        for n, row in enumerate(rows)
    ]
