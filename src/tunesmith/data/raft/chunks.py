"""Documents into chunks of whole sentences, with overlap and ids that stay."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tunesmith.data.raft.documents import Document
from tunesmith.data.raft.sentences import Span, sentence_spans

Measure = Callable[[str], int]
"""Length of a text in the unit of the limit: words, or tokens of a model."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document: ``document.text[start:end]``, nothing changed."""

    id: str
    """The document's id and the number of the chunk in it."""
    document: str
    title: str
    text: str
    start: int
    end: int
    group: str
    """Documents of one group stay on one side of a split."""


def count_words(text: str) -> int:
    """Return the number of words, as white space separates them."""
    return len(text.split())


def chunk_document(
    document: Document, limit: int, overlap: int = 0, measure: Measure = count_words
) -> list[Chunk]:
    """Cut a document into chunks of at most ``limit`` words (or whatever ``measure`` counts).

    Chunks hold whole sentences; one that alone is longer than the limit is cut between words,
    and a word between letters. Each chunk begins with the last whole sentences of the one before
    it, at most ``overlap`` long. Every sentence lies in at least one chunk.
    """
    text = document.text
    pieces = [
        piece for span in sentence_spans(text) for piece in _fitting(text, span, limit, measure)
    ]
    chunks: list[Chunk] = []
    first = 0
    while pieces:
        last = first
        while last + 1 < len(pieces) and _length(text, pieces, first, last + 1, measure) <= limit:
            last += 1
        start, end = pieces[first][0], pieces[last][1]
        name = f"{document.id}#{len(chunks)}"
        chunks.append(
            Chunk(name, document.id, document.title, text[start:end], start, end, document.side)
        )
        if last + 1 == len(pieces):
            break
        begin = last + 1
        while (
            begin - 1 > first
            and _length(text, pieces, begin - 1, last, measure) <= overlap
            and _length(text, pieces, begin - 1, last + 1, measure) <= limit
        ):
            begin -= 1
        first = begin
    return chunks


def chunk_documents(
    documents: Iterable[Document], limit: int, overlap: int = 0, measure: Measure = count_words
) -> list[Chunk]:
    """Return the chunks of all documents, in order."""
    return [
        chunk
        for document in documents
        for chunk in chunk_document(document, limit, overlap, measure)
    ]


def _length(text: str, pieces: list[Span], first: int, last: int, measure: Measure) -> int:
    return measure(text[pieces[first][0] : pieces[last][1]])


def _fitting(text: str, span: Span, limit: int, measure: Measure) -> list[Span]:
    """Return a sentence as it is, or cut where it is longer than the limit."""
    if measure(text[span[0] : span[1]]) <= limit:
        return [span]
    words = [(span[0] + m.start(), span[0] + m.end()) for m in _WORD.finditer(text[slice(*span)])]
    found: list[Span] = []
    for word in words:
        for piece in _letters(text, word, limit, measure):
            if found and measure(text[found[-1][0] : piece[1]]) <= limit:
                found[-1] = (found[-1][0], piece[1])
            else:
                found.append(piece)
    return found


def _letters(text: str, span: Span, limit: int, measure: Measure) -> list[Span]:
    """Return a word as it is, or halved until each part fits."""
    start, end = span
    if end - start == 1 or measure(text[start:end]) <= limit:
        return [span]
    middle = (start + end) // 2
    left = _letters(text, (start, middle), limit, measure)
    return [*left, *_letters(text, (middle, end), limit, measure)]


_WORD = re.compile(r"\S+")
