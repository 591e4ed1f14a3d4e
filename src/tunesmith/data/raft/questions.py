"""Questions for RAFT: from templates, from pairs that a user brings, or from a model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tunesmith.data.columns import renamed
from tunesmith.data.raft.chunks import Chunk
from tunesmith.data.raft.documents import Pair
from tunesmith.data.raft.retrieval import Bm25, terms
from tunesmith.data.raft.sentences import sentences
from tunesmith.data.raft.templates import ask
from tunesmith.data.readers import read_rows
from tunesmith.errors import DataError

QUOTE_WORDS = 60
"""A longer sentence is quoted by the line."""
PER_SENTENCE = 2
"""Questions that templates ask of one sentence, at most."""
ANSWER_WORDS = 12
"""An answer from a model that is longer is no short answer."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its answer and the chunk that holds it."""

    text: str
    answer: str
    chunk: str
    kind: str
    """A template's name, ``given`` or ``model``."""
    span: bool = True
    """Whether the answer is words of the chunk."""
    reason: str = ""


@dataclass(slots=True)
class Asked:
    """Questions that may be used, and the others by reason."""

    questions: list[Question] = field(default_factory=list)
    discards: Counter[str] = field(default_factory=Counter)
    named: list[str] = field(default_factory=list)
    """Pairs that no chunk holds, by their place."""


class QuestionMaker(Protocol):
    """Whatever can write questions about texts."""

    def replies(self, prompts: Sequence[str]) -> list[str]:
        """Return one reply for each prompt, in order."""


def occurrences(text: str, answer: str) -> int:
    """Count the places where an answer stands in a text: whole words, spaces and case folded."""
    pattern = r"\s+".join(re.escape(word) for word in answer.split())
    if not pattern:
        return 0
    before = r"(?<!\w)" if re.match(r"\w", answer.strip()) else ""
    after = r"(?!\w)" if re.search(r"\w$", answer.strip()) else ""
    # «2,000» does not stand in «12,000», nor «4» in «4.5».
    if re.match(r"\d", answer.strip()):
        before = r"(?<![\w])(?<!\d[.,])"
    if re.search(r"\d$", answer.strip()):
        after = r"(?!\w)(?![.,]\d)"
    return len(re.findall(before + pattern + after, text, re.IGNORECASE))


def evidence(chunk: Chunk, answer: str) -> str:
    """Return the sentence of a chunk that holds the answer; nothing if no single one does."""
    return next((piece for piece in quotable(chunk.text) if occurrences(piece, answer)), "")


def quotable(text: str) -> list[str]:
    """Return the sentences of a text; a long one that goes over several lines, such as code or a
    table, line by line.
    """
    pieces = []
    for sentence in sentences(text):
        long = len(sentence.split()) > QUOTE_WORDS
        lines = [line.strip() for line in sentence.split("\n")] if long else [sentence]
        pieces += [line for line in lines if line]
    return pieces


def key(question: str) -> str:
    """Return what makes two questions the same: their words."""
    return " ".join(terms(question))


def from_templates(chunks: Sequence[Chunk], most: int) -> Asked:
    """Ask up to ``most`` questions of each chunk, offline; answers occur once in their chunk."""
    asked = Asked()
    before: set[tuple[str, str]] = set()
    for chunk in chunks:
        taken = 0
        sources: Counter[str] = Counter()
        for found in ask(chunk.text):
            if occurrences(chunk.text, found.answer) != 1:
                asked.discards["the answer stands in its chunk more than once"] += 1
            elif (key(found.question), found.answer) in before:
                # Chunks overlap, so that a sentence may come twice.
                asked.discards["the same question again"] += 1
            elif taken == most:
                asked.discards[f"more than {most} questions of a chunk"] += 1
            elif sources[found.sentence] == PER_SENTENCE:
                asked.discards["more than two questions of a sentence"] += 1
            else:
                taken += 1
                before.add((key(found.question), found.answer))
                sources[found.sentence] += 1
                question = Question(found.question, found.answer, chunk.id, found.kind)
                asked.questions.append(question)
    return _distinct(asked)


class Places:
    """Finds the chunk that answers a pair: in its document, or else the nearest of all (BM25)."""

    def __init__(self, chunks: Sequence[Chunk]) -> None:
        self._chunks = chunks
        self._inside: dict[str, list[int]] = {}
        for number, chunk in enumerate(chunks):
            self._inside.setdefault(chunk.document, []).append(number)
        self._whole: Bm25 | None = None
        self._local: dict[str, Bm25] = {}

    def knows(self, document: str) -> bool:
        """Say whether a document has any chunk."""
        return document in self._inside

    def find(self, pair: Pair) -> int | None:
        """Return the number of the chunk; None where no chunk holds the answer.

        An answer that need not be the document's words is placed by nearness inside its document.
        """
        chunks, inside = self._chunks, self._inside.get(pair.document)
        if inside is None:
            self._whole = self._whole or Bm25([chunk.text for chunk in chunks])
            nearest = self._whole.search(f"{pair.question} {pair.context}", len(chunks))
            return _holding(pair, nearest or range(len(chunks)), chunks)
        if pair.document not in self._local:
            self._local[pair.document] = Bm25([chunks[at].text for at in inside])
        order = self._local[pair.document].search(f"{pair.question} {pair.answer}", len(inside))
        ranked = [inside[at] for at in order]
        ranked += [at for at in inside if at not in ranked]
        place = _holding(pair, ranked, chunks)
        return ranked[0] if place is None and not pair.span else place


def from_pairs(pairs: Iterable[Pair], chunks: Sequence[Chunk]) -> Asked:
    """Give each pair the chunk that holds its answer and is nearest to its question (BM25).

    A pair that knows its document looks only there. One whose answer is in no chunk is counted
    and named, unless its answer need not be the document's words.
    """
    asked = Asked()
    places = Places(chunks)
    for pair in pairs:
        if not pair.question or not pair.answer:
            asked.discards["the question or the answer is empty"] += 1
            continue
        if pair.document and not places.knows(pair.document):
            asked.discards["the document of the question was left out"] += 1
            continue
        place = places.find(pair)
        if place is None:
            asked.discards["no chunk holds the answer"] += 1
            asked.named.append(f"{pair.origin}: {pair.answer[:60]!r}")
            continue
        chunk = chunks[place]
        span = occurrences(chunk.text, pair.answer) > 0 and not _verdict(pair.answer)
        asked.questions.append(
            Question(pair.question, pair.answer, chunk.id, "given", span, pair.reason)
        )
    return _distinct(asked)


def _verdict(answer: str) -> bool:
    """Say whether an answer judges instead of naming something."""
    return answer.casefold().strip(" .") in ("yes", "no", "maybe", "true", "false")


def _holding(pair: Pair, ranked: Iterable[int], chunks: Sequence[Chunk]) -> int | None:
    for at in ranked:
        chunk = chunks[at]
        if pair.start is not None:
            if chunk.start <= pair.start and pair.start + len(pair.answer) <= chunk.end:
                return at
        elif occurrences(chunk.text, pair.answer):
            return at
    return None


def read_pairs(
    path: str, columns: Mapping[str, str] | None = None, encoding: str | None = None
) -> list[Pair]:
    """Read a file of questions with answers, and a context where one stands beside them."""
    found = []
    for raw in read_rows(path, encoding=encoding):
        row = renamed(raw, columns or {})
        values = [row.fields.get(name) for name in ("question", "answer", "context")]
        question, answer, context = values
        if not isinstance(question, str) or not isinstance(answer, str):
            raise DataError(
                f"{row.origin}: no text in 'question' and 'answer'; the fields are "
                f"{', '.join(map(str, row.fields))}.",
                expected="rows of question, answer and perhaps context",
                hint="--columns question=YOUR_FIELD,answer=YOUR_FIELD",
            )
        held = context if isinstance(context, str) else ""
        found.append(Pair(question.strip(), answer.strip(), row.origin, context=held))
    return found


PROMPT = """\
Here is a text:

{text}

Write {most} short questions that this text answers. Each must make sense without the text, so name
what it is about. Each answer must be copied from the text and be at most {words} words long.
Write nothing but lines of this form:
Q: the question
A: the answer"""
_LINES = re.compile(r"^\W*Q\d*[:.)]\s*(?P<q>.+?)\W*\n+\W*A\d*[:.)]\s*(?P<a>.+?)\s*$", re.MULTILINE)


def from_model(chunks: Sequence[Chunk], maker: QuestionMaker, most: int) -> Asked:
    """Let a model write questions of each chunk; kept are those that the chunk answers.

    An answer that is not words of the chunk, or stands in it twice, is discarded and counted.
    """
    asked = Asked()
    prompts = [PROMPT.format(text=c.text, most=most, words=ANSWER_WORDS) for c in chunks]
    for chunk, reply in zip(chunks, maker.replies(prompts), strict=True):
        found = list(_LINES.finditer(reply))
        if not found:
            asked.discards["a reply without a line of Q: and A:"] += 1
        for number, match in enumerate(found):
            question, answer = match["q"].strip() + "?", match["a"].strip().strip("\"'“”")
            answer = answer.rstrip(".") if not occurrences(chunk.text, answer) else answer
            times = occurrences(chunk.text, answer)
            if number >= most:
                asked.discards[f"more than {most} questions of a chunk"] += 1
            elif times != 1:
                why = "is not in its chunk" if not times else "stands in its chunk more than once"
                asked.discards[f"the answer {why}"] += 1
            elif len(answer.split()) > ANSWER_WORDS:
                asked.discards["the answer is too long"] += 1
            elif occurrences(question, answer):
                asked.discards["the question tells its answer"] += 1
            else:
                asked.questions.append(Question(question, answer, chunk.id, "model"))
    return _distinct(asked)


def _distinct(asked: Asked) -> Asked:
    """Keep each question once; one with two different answers goes altogether."""
    answers: dict[str, set[str]] = {}
    for question in asked.questions:
        answers.setdefault(key(question.text), set()).add(key(question.answer) or question.answer)
    kept: dict[str, Question] = {}
    for question in asked.questions:
        name = key(question.text)
        if len(answers[name]) > 1:
            asked.discards["one question, several answers"] += 1
        elif name in kept:
            asked.discards["the same question again"] += 1
        else:
            kept[name] = question
    asked.questions = list(kept.values())
    return asked
