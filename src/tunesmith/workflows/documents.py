"""Documents that a model answers from: found, shown, put into the prompt, and cited afterwards."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunesmith.config.schema_generate import DocumentOptions
from tunesmith.errors import UsageError
from tunesmith.workflows import console
from tunesmith.workflows.idle import Need
from tunesmith.workflows.raft import tell_reading
from tunesmith.workflows.terminal import one_line

if TYPE_CHECKING:
    from tunesmith.data.raft.passages import Citation, Passage

NEEDS: tuple[Need, ...] = tuple(
    (name, "--documents", lambda o: o.documents)
    for name in ("passages", "chunk_size", "answer_style")
)
"""Settings that say nothing without documents."""
_HEADING = re.compile(r"\A#+ [^\n]*\n+(?=\S)")
"""A heading says what the name of the document says already."""
LINE = 78
"""Letters of a line that names a passage."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A question as the model gets it, and the passages in it."""

    question: str
    text: str
    passages: tuple[Passage, ...]

    def citations(self, answer: str) -> list[Citation]:
        """Return what of an answer stands in which of the passages."""
        from tunesmith.data.raft.passages import cite

        return cite(answer, [passage.chunk.text for passage in self.passages])

    def fields(self) -> list[dict[str, Any]]:
        """Return the passages as fields of a row."""
        return [
            {"document": p.chunk.document, "part": p.part, "text": p.chunk.text}
            for p in self.passages
        ]


class Shelf:
    """The passages of the documents that the settings name."""

    def __init__(self, options: DocumentOptions) -> None:
        from tunesmith.data.raft.documents import FIELDS, TITLES, read_documents
        from tunesmith.data.raft.passages import Passages

        mine = {k: own for k, own in options.columns.items() if k in (*FIELDS, *TITLES)}
        library = read_documents(options.documents, mine, options.encoding)
        tell_reading(library)
        self._options = options
        self._passages = Passages(library.documents, options.chunk_size)
        console.say(f"Passages: {len(self._passages):,}.")

    def show(self, question: str, fits: Callable[[str], bool]) -> Shown:
        """Put the nearest passages in front of a question, as many as ``fits`` agrees to.

        ``UsageError`` where not even the nearest one fits.
        """
        from tunesmith.data.raft.prompt import instruction

        options = self._options
        found = self._passages.find(question, options.passages)
        for count in range(len(found), -1, -1):
            texts = [passage.chunk.text for passage in found[:count]]
            text = instruction(question, texts, options.answer_style)
            if fits(text):
                break
        if found and not count:
            raise UsageError(
                "Not even one passage fits into the model's context with this question.",
                hint=f"--chunk-size {max(10, options.chunk_size // 2)}",
            )
        if not found:
            console.warn("no passage shares a word with the question, so none is shown")
        elif count < len(found):
            console.say(f"Only {count} of {len(found)} passages fit into the model's context.")
        return Shown(question, text, tuple(found[:count]))


def check_columns(options: DocumentOptions, *more: str) -> None:
    """Refuse names in ``--columns`` that nothing reads; ``more`` are read besides documents'."""
    from tunesmith.data.raft.documents import FIELDS, TITLES

    known = ((*FIELDS, *TITLES) if options.documents else ()) + more
    unknown = [name for name in options.columns if name not in known]
    if unknown and not known:
        raise UsageError("--columns does nothing here: no file of rows is read.")
    if unknown:
        raise UsageError(
            f"--columns names {', '.join(map(repr, unknown))}, which nothing here reads.",
            expected=", ".join(dict.fromkeys(known)),
        )


def tell_passages(shown: Shown) -> None:
    """Name the passages that the model gets: number, source, place, first words."""
    for number, passage in enumerate(shown.passages, 1):
        words = _HEADING.sub("", passage.chunk.text)
        console.say(one_line(f"[{number}] {passage.place}: {words}", LINE))


def tell_citations(shown: Shown, citations: Sequence[Citation]) -> None:
    """Say which passages the answer's words stand in, and of which quotes none holds."""
    for citation in citations:
        words = one_line(citation.words, LINE - 30)
        where = ", ".join(
            f"[{number}] {shown.passages[number - 1].place}" for number in citation.passages
        )
        if citation.passages:
            console.say(f"{'Quoted' if citation.quoted else 'Found'}: «{words}» {where}")
        elif citation.quoted:
            console.warn(f"this quote stands in no passage: «{words}»")
        else:
            console.warn(f"these words stand in no passage as they are: «{words}»")


def citation_fields(citations: Sequence[Citation]) -> list[dict[str, Any]]:
    """Return citations as fields of a row; one without passages is unsupported."""
    return [{"words": c.words, "quoted": c.quoted, "passages": list(c.passages)} for c in citations]
