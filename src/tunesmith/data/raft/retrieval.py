"""Finding the texts that are nearest to a question: BM25, or sentence embeddings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol

from tunesmith.errors import UsageError

_WORD = re.compile(r"\w+")


class Retriever(Protocol):
    """Whatever ranks a fixed list of texts by their nearness to a query."""

    def search(self, query: str, k: int) -> list[int]:
        """Return the numbers of up to ``k`` texts, the nearest first.

        Equal scores keep the order of the texts, so that the result is the same everywhere.
        """


class Bm25:
    """Lucene's BM25 over the words of the texts; needs no model."""

    def __init__(self, texts: Sequence[str]) -> None:
        import bm25s

        self._size = len(texts)
        words = [terms(text) for text in texts]
        self._known = {word for text in words for word in text}
        self._index: Any = None
        if self._known:
            self._index = bm25s.BM25(backend="numpy", csc_backend="numpy")
            self._index.index(words, show_progress=False)

    def search(self, query: str, k: int) -> list[int]:
        """Return the best ``k`` texts that share a word with the query."""
        import numpy

        asked = [word for word in terms(query) if word in self._known]
        if not asked:
            return []
        scores = self._index.get_scores(asked)[: self._size]
        order = numpy.argsort(-scores, kind="stable")[:k]
        return [int(at) for at in order if scores[at] > 0]


class Embeddings:
    """Cosine of sentence embeddings, by a model of sentence-transformers."""

    def __init__(self, texts: Sequence[str], model: str) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise UsageError(
                "--retriever embeddings needs the package sentence-transformers.",
                expected="the extra «embeddings» installed",
                hint="pip install 'tunesmith[embeddings]', or --retriever bm25",
            ) from None
        self._model: Any = SentenceTransformer(model)
        self._vectors = self._encode(list(texts))

    def search(self, query: str, k: int) -> list[int]:
        """Return the ``k`` texts with the largest cosine."""
        import numpy

        scores = self._vectors @ self._encode([query])[0]
        return [int(at) for at in numpy.argsort(-scores, kind="stable")[:k]]

    def _encode(self, texts: list[str]) -> Any:
        return self._model.encode(texts, normalize_embeddings=True, show_progress_bar=False)


def terms(text: str) -> list[str]:
    """Return the words that BM25 counts: lower case, letters and digits."""
    return _WORD.findall(text.casefold())
