"""Duplicate rows: the same text again, or nearly the same, with the place of both.

Near duplicates are found by MinHash signatures in bands (Broder 1997; Leskovec, Rajaraman and
Ullman, «Mining of Massive Datasets», chapter 3); every candidate is then measured by the true
Jaccard similarity of the two rows' shingles, so bands decide only what is looked at. Of a row that
was kept, hashes stay in memory and no text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tunesmith.data.words import normalised, numbers, words
from tunesmith.errors import UsageError
from tunesmith.types import Example, Origin

THRESHOLD = 0.8
"""Jaccard similarity of shingles from which on two rows count as the same."""
SHINGLE = 2
"""Words of a shingle. One changed word changes this many of them: at 2, a text with one word in
twenty changed still has 0.8 in common with the original."""
SAME_ANSWER = 0.5
"""Similarity that the answers alone need: a long prompt must not outweigh another answer."""
PERMUTATIONS = 128
"""Length of a signature."""
RECALL = 0.99
"""Share of the pairs right at the threshold that the bands have to bring together."""
SEED = 1
_CHUNK = 4096
"""Shingles that are hashed at once; bounds the memory that one long document takes."""


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A row that repeats an earlier one."""

    origin: Origin
    kept: Origin
    """The earlier row, which stays."""
    kind: str
    """exact or near."""
    similarity: float
    """Jaccard similarity of the shingles; 1 for an exact one."""

    def reason(self) -> str:
        """Say in a few words what is repeated."""
        if self.kind == "exact":
            return f"the same text as {self.kept}"
        return f"similarity {self.similarity:.2f} to {self.kept}"


@dataclass(frozen=True, slots=True)
class _Kept:
    origin: Origin
    shingles: Any
    """Of the whole row; None where only exact duplicates are looked for."""
    answer: Any
    """Shingles of its answers."""


class DuplicateFinder:
    """Looks at one row after the other and says which repeat an earlier one.

    Two rows with different numbers are never near duplicates of each other, since most of them
    are two questions made from one pattern; ``ignore_numbers`` lifts that. Nor are two rows whose
    answers differ, such as two questions about one long passage. The result depends on the rows
    and their order alone.
    """

    def __init__(
        self,
        *,
        near: bool = True,
        threshold: float = THRESHOLD,
        shingle: int = SHINGLE,
        ignore_numbers: bool = False,
        seed: int = SEED,
    ) -> None:
        if not 0 < threshold <= 1:
            raise UsageError(
                f"A similarity of {threshold:g} is none.", expected="above 0, at most 1"
            )
        if shingle < 1:
            raise UsageError(f"A shingle of {shingle} words is none.", expected="at least 1")
        self._threshold, self._size, self._ignore_numbers = threshold, shingle, ignore_numbers
        self._exact: dict[bytes, int] = {}
        self._kept: list[_Kept] = []
        self._blank: Any = None
        if near:
            from datasketch import MinHash

            self._blank = MinHash(PERMUTATIONS, seed=seed, hashfunc=int)
            self._bands = _Bands(*bands(threshold))

    def check(self, example: Example) -> Duplicate | None:
        """Return what a row repeats; one that repeats nothing is remembered as kept."""
        text = _digest(f"{s.role}\0{normalised(s.text)}" for s in example.segments)
        first = self._exact.get(text)
        if first is not None:
            return Duplicate(example.origin, self._kept[first].origin, "exact", 1.0)
        row = _Kept(example.origin, None, None)
        if self._blank is not None:
            whole = " ".join(segment.text for segment in example.segments)
            answers = " ".join(s.text for s in example.segments if s.role == "assistant")
            shingles = shingle_hashes(words(whole), self._size)
            answer = shingle_hashes(words(answers) or (answers,), self._size)
            row = _Kept(example.origin, shingles, answer)
            signature = self._signature(shingles, whole)
            best = self._closest(signature, row)
            if best is not None:
                number, similarity = best
                return Duplicate(example.origin, self._kept[number].origin, "near", similarity)
            self._bands.add(len(self._kept), signature)
        self._exact[text] = len(self._kept)
        self._kept.append(row)
        return None

    def _signature(self, shingles: Any, text: str) -> Any:
        """Return the MinHash values of a row as an array of ``PERMUTATIONS`` 32-bit numbers."""
        import numpy

        signature = self._blank.copy()
        for start in range(0, len(shingles), _CHUNK):
            # The scheme of the signatures takes hashes of 32 bits.
            signature.update_batch((shingles[start : start + _CHUNK] & 0xFFFFFFFF).tolist())
        if self._ignore_numbers:
            return signature.hashvalues
        # Mixed into every value, so that rows with different numbers share no band and thousands
        # made from one pattern are not compared with each other.
        mark = numpy.frombuffer(_digest(numbers(text)), numpy.uint32)[0]
        return signature.hashvalues ^ mark

    def _closest(self, signature: Any, row: _Kept) -> tuple[int, float] | None:
        """Return the most similar kept row at or above the threshold, the earliest of equals."""
        best: tuple[int, float] | None = None
        for number in self._bands.candidates(signature):
            kept = self._kept[number]
            similarity = jaccard(row.shingles, kept.shingles)
            if similarity < self._threshold or jaccard(row.answer, kept.answer) < SAME_ANSWER:
                continue
            if best is None or similarity > best[1]:
                best = number, similarity
        return best


class _Bands:
    """Which kept rows share a band of their signature; one dictionary, so that memory stays low."""

    def __init__(self, number: int, rows: int) -> None:
        self._shape = number, rows
        self._table: dict[int, int | list[int]] = {}
        """Key of a band → the row that has it, or several."""

    def add(self, row: int, signature: Any) -> None:
        for key in self._keys(signature):
            held = self._table.get(key)
            if held is None:
                self._table[key] = row
            elif isinstance(held, list):
                held.append(row)
            else:
                self._table[key] = [held, row]

    def candidates(self, signature: Any) -> list[int]:
        """Return the rows that share a band, in order."""
        found: set[int] = set()
        for key in self._keys(signature):
            held = self._table.get(key)
            if isinstance(held, list):
                found.update(held)
            elif held is not None:
                found.add(held)
        return sorted(found)

    def _keys(self, signature: Any) -> list[int]:
        """Return a 64-bit hash of each band and its place."""
        import numpy

        number, rows = self._shape
        parts = signature[: number * rows].astype(numpy.uint64).reshape(number, rows)
        keys = numpy.arange(1, number + 1, dtype=numpy.uint64)
        for column in range(rows):
            keys = (keys ^ parts[:, column]) * numpy.uint64(_MULTIPLIER)
            keys ^= keys >> numpy.uint64(29)
        found: list[int] = keys.tolist()
        return found


def find_duplicates(examples: Iterable[Example], **settings: Any) -> list[Duplicate]:
    """Return every row that repeats an earlier one; settings are those of ``DuplicateFinder``."""
    finder = DuplicateFinder(**settings)
    return [found for found in map(finder.check, examples) if found is not None]


def groups(duplicates: Iterable[Duplicate]) -> dict[Origin, list[Duplicate]]:
    """Return the duplicates of each row that is kept."""
    found: dict[Origin, list[Duplicate]] = {}
    for duplicate in duplicates:
        found.setdefault(duplicate.kept, []).append(duplicate)
    return found


def bands(threshold: float, permutations: int = PERMUTATIONS) -> tuple[int, int]:
    """Return (bands, rows of a band): the longest rows that still find ``RECALL`` of the pairs.

    A pair of similarity s shares a band with probability 1 − (1 − s^rows)^bands.
    """
    for rows in range(permutations // 2, 1, -1):
        number = permutations // rows
        if 1 - (1 - threshold**rows) ** number >= RECALL:
            return number, rows
    return permutations, 1


def shingle_hashes(found: Sequence[str], size: int = SHINGLE) -> Any:
    """Return the sorted distinct 64-bit hashes of all runs of ``size`` words.

    The same run again counts as another one; a text shorter than a run is one shingle.
    """
    import numpy

    hashes = numpy.array([_word_hash(word) for word in found], dtype=numpy.uint64)
    size = min(size, len(hashes)) or 1
    mixed = numpy.zeros(len(hashes) - size + 1 if len(hashes) else 1, dtype=numpy.uint64)
    for place in range(size if len(hashes) else 0):
        mixed = mixed * numpy.uint64(_MULTIPLIER) + hashes[place : place + len(mixed)]
    # Told apart by how often they came before, so that texts of few different words differ too.
    mixed.sort()
    places = numpy.arange(len(mixed))
    fresh = numpy.concatenate(([True], mixed[1:] != mixed[:-1]))
    earlier = places - numpy.maximum.accumulate(numpy.where(fresh, places, 0))
    mixed = (mixed + earlier.astype(numpy.uint64)) * numpy.uint64(_MULTIPLIER)
    # The low bits of a product depend on the low bits of its factors alone: fold the high ones in.
    return numpy.unique(mixed ^ (mixed >> numpy.uint64(32)))


def jaccard(first: Any, second: Any) -> float:
    """Return the share of two sorted arrays of distinct hashes that both have."""
    import numpy

    both = len(numpy.intersect1d(first, second, assume_unique=True))
    return both / (len(first) + len(second) - both)


_MULTIPLIER = 0x9E3779B97F4A7C15


@lru_cache(maxsize=1 << 17)
def _word_hash(word: str) -> int:
    raw = word.encode("utf-8", errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little")


def _digest(parts: Iterable[str]) -> bytes:
    text = "\0".join(parts).encode("utf-8", errors="surrogatepass")
    return hashlib.blake2b(text, digest_size=16).digest()
