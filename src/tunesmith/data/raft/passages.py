"""Passages for a question, and what of an answer stands in them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.data.raft.chunks import Chunk, chunk_documents
from tunesmith.data.raft.documents import Document
from tunesmith.data.raft.prompt import ANSWER, BASED, BEGIN_QUOTE, END_QUOTE, NOT_TOLD
from tunesmith.data.raft.questions import occurrences
from tunesmith.data.raft.retrieval import Bm25

OVERLAP = 10
"""A chunk repeats at most this part of the one before it, as rows of ``data raft`` do."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A chunk, and which part of its document it is."""

    chunk: Chunk
    part: int
    """From 1."""
    parts: int

    @property
    def place(self) -> str:
        """Return where it comes from, for people."""
        parts = f", part {self.part} of {self.parts}" if self.parts > 1 else ""
        return f"{self.chunk.document}{parts}"


class Passages:
    """Finds the chunks of some documents that are nearest to a question."""

    def __init__(self, documents: Sequence[Document], words: int) -> None:
        chunks = chunk_documents(documents, words, words // OVERLAP)
        parts = Counter(chunk.document for chunk in chunks)
        seen: Counter[str] = Counter()
        self._all: list[Passage] = []
        for chunk in chunks:
            seen[chunk.document] += 1
            self._all.append(Passage(chunk, seen[chunk.document], parts[chunk.document]))
        self._retriever = Bm25([chunk.text for chunk in chunks])

    def __len__(self) -> int:
        return len(self._all)

    def find(self, question: str, most: int) -> list[Passage]:
        """Return up to ``most`` passages that share a word with the question, the nearest first."""
        return [self._all[at] for at in self._retriever.search(question, most)]


@dataclass(frozen=True, slots=True)
class Citation:
    """Words that an answer takes from the passages, or says that it does."""

    words: str
    passages: tuple[int, ...]
    """Numbers of the passages that they stand in, from 1; none where they stand in no passage."""
    quoted: bool = True
    """Whether the answer marks them as a quote; otherwise they are the answer itself."""


def cite(answer: str, texts: Sequence[str]) -> list[Citation]:
    """Look up every quote of an answer in the passages that were shown.

    A quote must stand there letter for letter, but for white space. An answer without quotes is
    looked up itself, as whole words; one that says that it is not told has nothing to look up.
    """
    quotes = list(dict.fromkeys(_quotes(answer)))
    if quotes:
        folded = [_folded(text) for text in texts]
        return [
            Citation(quote, tuple(n for n, text in enumerate(folded, 1) if quote and quote in text))
            for quote in quotes
        ]
    said = _claim(answer)
    if not said or said.casefold() == NOT_TOLD.rstrip("."):
        return []
    found = tuple(number for number, text in enumerate(texts, 1) if occurrences(text, said))
    return [Citation(said, found, quoted=False)]


_QUOTED = re.compile(
    re.escape(BEGIN_QUOTE)
    + rf"(.*?)(?:{re.escape(END_QUOTE)}|\Z)"
    + r"|«([^«»]+)»|“([^“”]+)”|„([^„“”]+)[“”]|\"([^\"]+)\"",
    re.DOTALL,
)
"""What an answer quotes: between its marks, or in quotation marks of a text."""


def _quotes(answer: str) -> list[str]:
    found = (match for match in _QUOTED.finditer(answer))
    return [_folded(next((part for part in m.groups() if part is not None), "")) for m in found]


def _claim(answer: str) -> str:
    """Return the short answer inside an answer of either style."""
    text = answer.rpartition(ANSWER.strip())[2]
    return _folded(text).removeprefix(BASED.strip()).strip().rstrip(".")


def _folded(text: str) -> str:
    return " ".join(text.split())
