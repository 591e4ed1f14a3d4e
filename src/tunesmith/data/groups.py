"""Prompts that are equal or nearly equal form one group, and a group stays on one side."""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Sequence

from tunesmith.data.mixture import rank
from tunesmith.data.words import normalised, words

PERMUTATIONS = 126
BANDS = (21, 6)
"""21 bands of 6 hashes: a pair with similarity 0.8 is looked at with probability 0.998."""


def grams(text: str, size: int = 3) -> set[tuple[str, ...]]:
    """Return the word n-grams of a text; of a shorter one all its words, as one."""
    found = words(text)
    if len(found) <= size:
        return {found} if found else set()
    return {found[at : at + size] for at in range(len(found) - size + 1)}


def similarity(one: str, other: str) -> float:
    """Return the Jaccard similarity of two texts' word 3-grams; 0 where both have no word."""
    ours, theirs = grams(one), grams(other)
    return len(ours & theirs) / len(ours | theirs) if ours or theirs else 0.0


def group(prompts: Sequence[str], threshold: float = 0.8) -> list[int]:
    """Return a group number for each prompt; equal and nearly equal prompts share one.

    Nearly equal is Jaccard similarity of word 3-grams >= ``threshold``, and what is nearly equal
    to the same prompt belongs together. Candidates come from MinHash and banding (Broder 1997);
    each is then compared exactly. Which prompts share a group does not depend on their order.
    """
    from datasketch import MinHash, MinHashLSH

    distinct: dict[str, int] = {}
    owner = [distinct.setdefault(normalised(prompt), len(distinct)) for prompt in prompts]
    parent = list(range(len(distinct)))
    index = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS, params=BANDS)
    base = MinHash(num_perm=PERMUTATIONS, seed=1, hashfunc=zlib.crc32)
    sketches: list[array[int]] = []
    for number, text in enumerate(distinct):
        # Hashes instead of words: three hundred thousand prompts have to fit into memory.
        shingles = sorted("\0".join(gram).encode() for gram in grams(text))
        sketches.append(array("I", sorted({zlib.crc32(shingle) for shingle in shingles})))
        if not shingles:
            continue
        sketch = base.copy()
        sketch.update_batch(shingles)
        for other in index.query(sketch):
            a, b = _root(parent, number), _root(parent, other)
            if a != b and _jaccard(sketches[number], sketches[other]) >= threshold:
                parent[max(a, b)] = min(a, b)
        index.insert(number, sketch, check_duplication=False)
    return [_root(parent, number) for number in owner]


def held_out(groups: Sequence[int], names: Sequence[str], wanted: int, seed: int) -> set[int]:
    """Return the positions of about ``wanted`` rows that make up whole groups.

    ``names`` identify the rows, so that their order changes nothing. Groups come in the order of a
    seeded hash; one that would overshoot is passed over. Something is held out, and something
    left, wherever there are two groups and ``wanted`` is not 0.
    """
    members: dict[int, list[int]] = {}
    for position, number in enumerate(groups):
        members.setdefault(number, []).append(position)
    if not wanted or len(members) < 2:
        return set()
    keyed = sorted(
        (rank(seed, "", min(names[p] for p in rows), "hold out"), rows) for rows in members.values()
    )
    chosen: set[int] = set()
    most = min(wanted, len(groups) - 1)
    for _, rows in keyed:
        if len(chosen) + len(rows) <= most:
            chosen.update(rows)
    if not chosen:
        chosen.update(sorted((rows for _, rows in keyed), key=len)[0])
    return chosen


def _root(parent: list[int], number: int) -> int:
    while parent[number] != number:
        parent[number] = parent[parent[number]]
        number = parent[number]
    return number


def _jaccard(one: array[int], other: array[int]) -> float:
    ours, theirs = set(one), set(other)
    return len(ours & theirs) / len(ours | theirs) if ours or theirs else 0.0
