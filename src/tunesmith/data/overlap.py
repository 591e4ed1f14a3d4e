"""Contamination: which test questions stand in the training rows, how, and where on both sides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tunesmith.data.words import content_words, numbers, words
from tunesmith.types import Example, Problem

GRAM = 8
"""Words in a row that two texts must share."""
BOILERPLATE = 5
"""Words in a row that more test questions than this have in common identify none of them."""
NUMBERS = 3
"""Numbers that a question must have before they can identify it."""
CONTENT_SHARE = 0.5
"""Share of a question's content words that must come with its numbers."""
KINDS = {
    "exact": "word for word",
    "words": "by a run of words",
    "numbers": "by their numbers and half of their content words",
}
"""Kind of overlap → what it says of a question, the strongest kind first."""
_RANK = {kind: rank for rank, kind in enumerate(KINDS)}


@dataclass(frozen=True, slots=True)
class Question:
    """A test question as overlaps see it."""

    id: str
    text: str
    place: str
    """File and line, or the task that made it."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """One training row that holds (part of) a test question."""

    problem_id: str
    origin: str
    """The place of the training row."""
    kind: str
    """One of ``KINDS``."""
    shared: str
    """The words or numbers that both have."""
    place: str
    """The place of the test question."""


class OverlapIndex:
    """Test questions, ready to be looked for in any number of training rows."""

    def __init__(self, questions: Iterable[Question], gram: int = GRAM) -> None:
        self.questions, self._gram = list(questions), gram
        self._words = [words(question.text) for question in self.questions]
        self._content = [content_words(question.text) for question in self.questions]
        self._grams: dict[tuple[str, ...], list[int]] = {}
        self._anchors: dict[tuple[str, ...], list[tuple[int, int]]] = {}
        self._numbers: dict[tuple[str, ...], list[int]] = {}
        for number, asked in enumerate(self._words):
            for run in set(_grams(asked, min(gram, len(asked)))):
                self._grams.setdefault(run, []).append(number)
            found = numbers(self.questions[number].text)
            if len(found) >= NUMBERS:
                self._numbers.setdefault(tuple(sorted(found)), []).append(number)
        for number, asked in enumerate(self._words):
            # The whole question is looked for where its rarest words are, so that a sentence
            # which opens every question costs nothing.
            grams = _grams(asked, min(gram, len(asked)))
            if grams:
                at = min(range(len(grams)), key=lambda i: len(self._grams[grams[i]]))
                self._anchors.setdefault(grams[at], []).append((number, at))
        self._sizes = sorted({len(gram) for gram in self._grams})

    def match(self, example: Example) -> list[Overlap]:
        """Return one overlap for each test question that a row holds, the strongest kind first."""
        found: dict[int, tuple[str, str]] = {}
        text = words(" ".join(segment.text for segment in example.segments))
        for size in self._sizes:
            for start in range(len(text) - size + 1):
                gram = text[start : start + size]
                if gram in self._grams:
                    self._by_words(text, start, gram, found)
        for segment in example.segments:
            if segment.role in (None, "user"):
                self._by_numbers(segment.text, found)
        ranked = sorted(found, key=lambda number: (_RANK[found[number][0]], number))
        return [self._overlap(number, example, *found[number]) for number in ranked]

    def _by_words(
        self,
        text: tuple[str, ...],
        start: int,
        gram: tuple[str, ...],
        found: dict[int, tuple[str, str]],
    ) -> None:
        for number, offset in self._anchors.get(gram, ()):
            asked = self._words[number]
            begin = start - offset
            if begin < 0 or text[begin : begin + len(asked)] != asked:
                continue
            # A single word is a question only where nothing else is said.
            if len(asked) > 1 or len(text) <= 1 + len(asked):
                found[number] = ("exact", " ".join(asked))
        numbers_of_gram = self._grams[gram]
        if len(numbers_of_gram) > BOILERPLATE:
            return
        for number in numbers_of_gram:
            if len(self._words[number]) > self._gram:
                found.setdefault(number, ("words", " ".join(gram)))

    def _by_numbers(self, text: str, found: dict[int, tuple[str, str]]) -> None:
        held = numbers(text)
        candidates = self._numbers.get(tuple(sorted(held)), ())
        topic = content_words(text) if candidates else frozenset()
        for number in candidates:
            content = self._content[number]
            if len(content & topic) >= CONTENT_SHARE * len(content):
                found.setdefault(number, ("numbers", ", ".join(held)))

    def _overlap(self, number: int, example: Example, kind: str, shared: str) -> Overlap:
        question = self.questions[number]
        return Overlap(question.id, str(example.origin), kind, shared, question.place)


def question_of(example: Example) -> Question:
    """Return a test row as a question: what is asked, without system message and answers."""
    asked = " ".join(s.text for s in example.segments if s.role not in ("system", "assistant"))
    place = str(example.origin)
    return Question(place, asked, place)


def find_overlaps(examples: Sequence[Example], problems: Sequence[Problem]) -> list[Overlap]:
    """Return one overlap for each test question that occurs in training rows.

    A question of at most ``GRAM`` words must occur whole, in order; a longer one counts with any
    ``GRAM`` of its words in a row, unless more than ``BOILERPLATE`` questions have them; one with
    ``NUMBERS`` numbers also by the same numbers and half of its content words. The strongest
    kind is reported, and the first row that has it.
    """
    index = OverlapIndex(
        Question(p.id, " ".join(segment.text for segment in p.prompt), _place(p)) for p in problems
    )
    found: dict[str, Overlap] = {}
    for example in examples:
        for overlap in index.match(example):
            known = found.get(overlap.problem_id)
            if known is None or _RANK[overlap.kind] < _RANK[known.kind]:
                found[overlap.problem_id] = overlap
    return list(found.values())


def count_kinds(overlaps: Iterable[Overlap]) -> Mapping[str, int]:
    """Return how many overlaps there are of each kind that occurs."""
    counts = Counter(overlap.kind for overlap in overlaps)
    return {kind: counts[kind] for kind in KINDS if counts[kind]}


def _grams(text: tuple[str, ...], size: int) -> list[tuple[str, ...]]:
    return [text[at : at + size] for at in range(len(text) - size + 1)] if size else []


def _place(problem: Problem) -> str:
    source, line = problem.meta.get("source"), problem.meta.get("line")
    if source is None:
        return f"{problem.task} ({problem.id})"
    return f"{source}:{line}" if line is not None else str(source)
