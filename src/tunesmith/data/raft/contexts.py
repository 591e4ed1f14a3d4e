"""What stands in the prompt of a question that is evaluated: retrieved passages, or a fixed mix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tunesmith.data.raft.answers import folded
from tunesmith.data.raft.chunks import Chunk
from tunesmith.data.raft.documents import Pair
from tunesmith.data.raft.items import Item
from tunesmith.data.raft.questions import Places, Question, occurrences
from tunesmith.data.raft.retrieval import Bm25
from tunesmith.data.raft.rows import MINED, Likeness, RaftSettings, draw, pick

PLACED = ("first", "middle", "last", "shuffled")
"""Words for the oracle's place; a number from 1 is another."""
WITH_PASSAGES = ("retrieved", "mixed", "distractors")
"""Contexts that a number of passages changes."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One way to show documents with a question."""

    context: str
    passages: int = 0
    """k; 0 where the context has no such number."""
    position: str = ""
    """The oracle's place in a mix."""

    @property
    def name(self) -> str:
        """Return what its set of attempts is called: retrieved-4, mixed-4-first, oracle."""
        parts = [self.context, str(self.passages or ""), self.position]
        return "-".join(part for part in parts if part)


@dataclass(frozen=True, slots=True)
class Dressed:
    """The documents that a question is shown with, and which of them answer it."""

    documents: tuple[str, ...]
    hits: tuple[int, ...]
    """Numbers, from 1, of the documents that hold the answer."""
    rank: int | None
    """Of the first hit among what BM25 finds for the question, from 1; None where it finds none."""
    wanted: int
    """Documents that there should have been."""


class Pool:
    """The chunks that documents are shown from, with BM25 over them."""

    def __init__(self, chunks: Sequence[Chunk], seed: int) -> None:
        self.chunks = chunks
        self._retriever = Bm25([chunk.text for chunk in chunks])
        self._places = Places(chunks)
        self._by_text = {folded(chunk.text): at for at, chunk in reversed([*enumerate(chunks)])}
        self._settings = RaftSettings(mined_share=1.0, seed=seed)
        self._likeness = Likeness()

    def oracle(self, item: Item) -> Chunk | None:
        """Return the chunk that answers: the row's own text, or where the answer stands."""
        if folded(item.oracle) in self._by_text:
            return self.chunks[self._by_text[folded(item.oracle)]]
        known = item.document if self._places.knows(item.document) else ""
        if item.span or known:
            pair = Pair(
                item.question,
                item.golds[0],
                item.origin,
                known,
                context=item.oracle,
                start=item.start if known else None,
                span=item.span,
            )
            place = self._places.find(pair)
            if place is not None:
                return self.chunks[place]
        if item.oracle:
            return Chunk("row", item.document, "", item.oracle, 0, len(item.oracle), "row")
        return None

    def dress(self, item: Item, oracle: Chunk | None, condition: Condition) -> Dressed:
        """Return the documents of a question under a condition; the same ones at every call.

        Contexts with the oracle want one (``oracle`` is not None there).
        """
        near = self._retriever.search(item.question, max(MINED, condition.passages))
        rank = next((n for n, at in enumerate(near, 1) if self._holds(at, item, oracle)), None)
        if condition.context == "none":
            return Dressed((), (), rank, 0)
        if condition.context == "rows":
            shown = [_loose(text, number) for number, text in enumerate(item.shown or ())]
        elif condition.context == "retrieved":
            shown = [self.chunks[at] for at in near[: condition.passages]]
        else:
            assert oracle is not None
            shown = self._mix(item, oracle, condition, near)
        hits = tuple(n for n, one in enumerate(shown, 1) if self._answers(one, item, oracle))
        wanted = condition.passages or len(shown)
        return Dressed(tuple(one.text for one in shown), hits, rank, wanted)

    def _mix(
        self, item: Item, oracle: Chunk, condition: Condition, near: Sequence[int]
    ) -> list[Chunk]:
        if condition.context == "oracle":
            return [oracle]
        asked = Question(item.question, item.golds[0], oracle.id, "given", item.span)
        beside = condition.passages - (condition.context == "mixed")
        settings = replace(self._settings, num_distractors=beside)
        shown, _ = pick(asked, oracle, self.chunks, near, beside, settings, self._likeness)
        if condition.context == "mixed":
            chance = draw(self._settings.seed, asked, "place")
            shown.insert(place_of(condition.position, len(shown) + 1, chance), oracle)
        return shown

    def _holds(self, at: int, item: Item, oracle: Chunk | None) -> bool:
        return self._answers(self.chunks[at], item, oracle)

    def _answers(self, chunk: Chunk, item: Item, oracle: Chunk | None) -> bool:
        """Say whether a chunk is a hit.

        It is one if it is the oracle or nearly duplicates it, or if it comes from the oracle's
        document (from any, where that is not known) and has an answer's words.
        """
        if oracle is not None:
            if folded(chunk.text) == folded(oracle.text) or self._likeness.alike(chunk, oracle):
                return True
            if oracle.document and chunk.document != oracle.document:
                return False
        return item.span and any(occurrences(chunk.text, gold) for gold in item.golds)


def place_of(position: str, count: int, chance: float) -> int:
    """Return the oracle's place, from 0, among ``count``; ``chance`` in [0, 1) shuffles.

    A number beyond the last place is the last one: there may be too few distractors. Of one place
    nothing need be said.
    """
    fixed = {"first": 0, "middle": (count - 1) // 2, "last": count - 1}
    if position == "shuffled":
        return int(chance * count)
    return fixed[position] if position in fixed else min(int(position or 1), count) - 1


def chunks_of_items(items: Sequence[Item]) -> list[Chunk]:
    """Return the distinct texts that rows show or name as oracle, each a chunk of its own."""
    chunks: dict[str, Chunk] = {}
    for item in items:
        if item.oracle:
            name = item.document or f"text {len(chunks) + 1}"
            number = f"{name}#{len(chunks)}"
            chunk = Chunk(number, name, "", item.oracle, 0, len(item.oracle), name)
            chunks.setdefault(folded(item.oracle), chunk)
    for text in (text for item in items for text in item.shown or ()):
        chunks.setdefault(folded(text), _loose(text, len(chunks)))
    return list(chunks.values())


def _loose(text: str, number: int) -> Chunk:
    """Return a text of an unknown document."""
    name = f"shown {number + 1}"
    return Chunk(f"{name}#0", name, "", text, 0, len(text), name)


def fewer(dressed: Dressed, *, keep_hits: bool) -> Dressed | None:
    """Return it without its last document, or without the last that does not answer.

    None where that would leave no document.
    """
    numbers = range(len(dressed.documents), 0, -1)
    out = next((n for n in numbers if not (keep_hits and n in dressed.hits)), None)
    if out is None or len(dressed.documents) == 1:
        return None
    kept = [n for n in range(1, len(dressed.documents) + 1) if n != out]
    return replace(
        dressed,
        documents=tuple(dressed.documents[n - 1] for n in kept),
        hits=tuple(at for at, n in enumerate(kept, 1) if n in dressed.hits),
    )
