"""Rows that begin alike: which of them are computed together. No tensors.

Whatever is found here, every row's loss and gradient are what they are alone (dropout aside: rows
that share a prefix share its draw, which leaves each row's expectation as it was).
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tunesmith.models.packs import Group
from tunesmith.train.batches import Prompts, pack
from tunesmith.types import Encoded

Rows = Mapping[int, Encoded] | Sequence[Encoded]
"""Rows by their numbers."""
SHORTEST = 32
"""Tokens that rows must share: for fewer, attention in more parts costs what they save."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """Rows that are computed together, by their numbers, and the tokens that all begin with."""

    prefix: int
    rows: tuple[int, ...]
    lengths: tuple[int, ...]
    """Tokens of each row, the prefix included."""

    @property
    def group(self) -> Group:
        """Return how they lie in a sequence."""
        rests = (length - self.prefix for length in self.lengths)
        return Group(self.prefix, tuple(rest for rest in rests if rest))


def alone(rows: Sequence[int], sizes: Sequence[int]) -> list[Bundle]:
    """Return each row by itself."""
    return [Bundle(sizes[row], (row,), (sizes[row],)) for row in rows]


def bundles(
    picked: Sequence[int],
    rows: Rows,
    capacity: int,
    *,
    at_least: int = 1,
) -> list[Bundle]:
    """Put rows of a step together so that as few tokens as possible are computed.

    A bundle has at most ``capacity`` places, or ``at_least`` rows if these take more. Only token
    ids decide, not what is trained of them. Bundles stand in the order of their first rows, and
    so do the rows of each.
    """
    # Rows that share most lie side by side once they are sorted, so a bundle is a run of them.
    known = {row: rows[row].ids for row in picked}
    order = sorted(range(len(picked)), key=lambda at: (known[picked[at]], at))
    ids = [known[picked[at]] for at in order]
    common = [0, *(_common(one, other) for one, other in pairwise(ids))]
    saved, begins, prefixes = [0], [0], [0]
    for end in range(1, len(ids) + 1):
        best, begin, prefix = saved[end - 1], end - 1, len(ids[end - 1])
        shared, total = prefix, prefix
        for first in range(end - 2, -1, -1):
            shared = min(shared, common[first + 1])
            total += len(ids[first])
            more = (end - first - 1) * shared
            if shared < SHORTEST or (total - more > capacity and end - first > at_least):
                break
            if saved[first] + more > best:
                best, begin, prefix = saved[first] + more, first, shared
        saved.append(best)
        begins.append(begin)
        prefixes.append(prefix)
    found, end = [], len(ids)
    while end:
        members = sorted(order[begins[end] : end])
        found.append((members, prefixes[end]))
        end = begins[end]
    made = []
    for members, prefix in sorted(found):
        numbers = tuple(picked[at] for at in members)
        made.append(Bundle(prefix, numbers, tuple(len(known[row]) for row in numbers)))
    return made


def packs(found: Sequence[Bundle], capacity: int) -> list[list[Bundle]]:
    """Pack bundles into as few sequences of at most ``capacity`` places as best fit finds."""
    places = [bundle.group.tokens for bundle in found]
    return [[found[at] for at in members] for members in pack(range(len(found)), places, capacity)]


def prompts_of(rows: Sequence[Encoded]) -> Prompts:
    """Find the rows that have one prompt: equal tokens before the first trained one.

    Where fewer than ``SHORTEST`` tokens come before it, a row is taken to have its own.
    """
    known: dict[bytes | int, list[int]] = {}
    for number in range(len(rows)):
        row = rows[number]
        prompt = next((at for at, weight in enumerate(row.weights) if weight), len(row.ids))
        key: bytes | int = number
        if prompt >= SHORTEST:
            content = array("q", row.ids[:prompt]).tobytes()
            key = hashlib.blake2b(content, digest_size=16).digest()
        known.setdefault(key, []).append(number)
    return Prompts(tuple(tuple(members) for members in known.values()))


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two rows begin with in common."""
    for at, (mine, its) in enumerate(zip(one, other, strict=False)):
        if mine != its:
            return at
    return min(len(one), len(other))
