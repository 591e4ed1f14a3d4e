"""The ``raft`` task: answer a question from documents (RAFT, arXiv 2403.10131).

Rows are those of ``tunesmith data raft``, or questions with answers; data sets of documents with
questions (SQuAD, PubMedQA, FairytaleQA, APIBench) are known by their layout. As it stands a row is
asked with its own documents; ``tunesmith eval`` puts others into the prompt (``--context``).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tunesmith.data.raft.answers import LABELS, abstains, behind_mark, is_label, short_answer
from tunesmith.data.raft.contexts import Dressed
from tunesmith.data.raft.items import Item, data_set, item_of, item_of_pair
from tunesmith.data.raft.prompt import ANSWER, BASED, instruction
from tunesmith.grading.overlap import squad_f1, squad_normalised
from tunesmith.tasks.base import telling
from tunesmith.tasks.files import FileTask
from tunesmith.types import Problem, Segment, Verdict

if TYPE_CHECKING:
    from tunesmith.data.raft.documents import Library
    from tunesmith.data.readers import Row

CONTEXT = "context"
"""Key of a problem's meta that names the condition it is asked under; absent in a row as it is."""


class RaftTask(FileTask):
    """Answer from documents; the score is the exact match with a right answer, SQuAD's."""

    name = "raft"
    summary = "questions answered from documents that are retrieved (--documents, --context)"
    problems_called = "questions about documents"
    wants = "rows of tunesmith data raft, or question, answer and document"
    prompts = ("plain", "quoted")
    uses = ("columns", "abstain_phrases")
    score_called = "right (exact match)"

    def __init__(self) -> None:
        self.items: dict[str, Item] = {}
        """Problem id → what is known of the question."""
        self.library: Library | None = None
        """The documents of a data set that brings its own."""
        self._source = ""

    @classmethod
    def reads(cls, fields: Mapping[str, Any]) -> bool:
        return {"question", "oracle_context"} <= fields.keys()

    def problem(self, row: Row) -> Problem:
        """Return the problem of a row, asked with the documents that the row shows."""
        return self._problem(item_of(row))

    def _numbered(self, source: str, split: str) -> Iterator[Problem]:
        seen: Counter[str] = Counter()
        for item in self._read_items(source, split):
            digest = hashlib.sha256(item.question.encode()).hexdigest()[:16]
            seen[digest] += 1
            again = f"-{seen[digest]}" if seen[digest] > 1 else ""
            problem = replace(self._problem(item), id=f"{self.name}-{digest}{again}")
            self.items[problem.id] = item
            yield problem

    def _read_items(self, source: str, split: str) -> Iterator[Item]:
        from tunesmith.data.columns import renamed
        from tunesmith.data.readers import read_rows

        if self._library_of(source) is not None:
            assert self.library is not None
            yield from map(item_of_pair, self.library.pairs)
            return
        for row in read_rows(source, split=split):
            yield item_of(renamed(row, self.settings.columns))

    def _of_source(self, source: str, split: str) -> list[Problem]:
        if self._library_of(source) is not None:
            return self.read(source)
        return super()._of_source(source, split)

    def _library_of(self, source: str) -> Library | None:
        """Return the data set that a source is, read once; None for rows."""
        if self._source != source:
            self._source, self.library = source, data_set(source)
        return self.library

    def dressed(self, problem: Problem, shown: Dressed, context: str, style: str) -> Problem:
        """Return a problem with other documents in its prompt; without any it is the question."""
        item = self.items[problem.id]
        strict = item.strict or context != "rows"
        text = item.question
        if shown.documents:
            text = instruction(item.question, shown.documents, style, strict=strict)
        meta = {
            **problem.meta,
            CONTEXT: context,
            "documents": list(shown.documents),
            "hits": list(shown.hits),
            "rank": shown.rank,
            "strict": strict and bool(shown.documents),
        }
        return replace(problem, prompt=(Segment("user", text),), meta=meta)

    def _problem(self, item: Item) -> Problem:
        prompt = (Segment("user", item.asked or item.question),)
        phrases = self.settings.abstain_phrases
        abstain = bool(item.output) and item.strict and abstains(item.output, phrases)
        meta = {
            "golds": list(item.golds),
            "solution": item.output or item.golds[0],
            "source": item.origin.source,
            "line": item.origin.line,
            **({} if item.origin.item is None else {"item": item.origin.item}),
            **({"abstain": True} if abstain else {}),
            **({"abstain_phrases": list(phrases)} if phrases else {}),
            **({"document": item.document} if item.document else {}),
        }
        return Problem(item.question, "raft", prompt, item.golds[0], meta)

    def messages(self, problem: Problem, style: str) -> tuple[Segment, ...]:
        """Return the question with its documents; the style is in their prompt already."""
        self.check_style(style)
        return problem.prompt

    def judge(self, problem: Problem, text: str) -> Verdict:
        """Return the exact match with a right answer; an abstention never is one.

        A row as it is (without ``--context``) has to be answered as it teaches: where its
        documents do not hold the answer, abstaining is right.
        """
        golds = golds_of(problem.meta)
        if not text.strip():
            return Verdict(0.0, None, "empty")
        said = short_answer(text, golds)
        if CONTEXT not in problem.meta and problem.meta.get("abstain"):
            given = abstains(text, phrases_of(problem.meta))
            return Verdict(float(given), said, "abstains" if given else "does not abstain")
        if is_exact(text, golds):
            return Verdict(1.0, said, "an exact match")
        if abstains(text, phrases_of(problem.meta)):
            return Verdict(0.0, said, "says that it is not told")
        return Verdict(0.0, said, f"F1 {best_f1(said, golds):.2f}")

    def judge_strictly(self, problem: Problem, text: str) -> Verdict:
        """Return ``judge``'s verdict: it is strict already."""
        return self.judge(problem, text)

    def hint(self, problem: Problem) -> str | None:
        """Tell the answer, unless the row teaches that there is none."""
        if problem.meta.get("abstain"):
            return None
        return telling(f"The answer is {problem.reference.rstrip('.')}.")

    def continuations(self, problem: Problem, style: str) -> list[str]:
        """Return yes, no and maybe in the form of an answer, where one of them is the answer."""
        lead = ANSWER if style == "quoted" else BASED
        labels = all(is_label(gold) for gold in golds_of(problem.meta))
        return [f"{lead}{label}" for label in LABELS] if labels else []

    def chance(self, problem: Problem) -> float | None:
        """Return a third for yes, no or maybe; nobody can say what else is guessed."""
        return 1 / len(LABELS) if self.continuations(problem, self.prompts[0]) else None


def phrases_of(meta: Mapping[str, Any]) -> list[str]:
    """Return the further phrases of abstaining that a problem's meta holds."""
    return [str(phrase) for phrase in meta.get("abstain_phrases", ())]


def golds_of(meta: Mapping[str, Any]) -> list[str]:
    """Return the right answers that a problem's meta holds."""
    return [str(gold) for gold in meta["golds"]]


def exact(said: str, golds: Sequence[str]) -> bool:
    """Say whether an answer equals a right one under SQuAD's normalisation.

    A right answer of signs alone, which it leaves nothing of, is compared as it stands.
    """
    ours = squad_normalised(said)
    return any(
        ours == squad_normalised(gold) if squad_normalised(gold) else said.strip() == gold.strip()
        for gold in golds
    )


def is_exact(text: str, golds: Sequence[str]) -> bool:
    """Say whether the short answer of a text is right, or all that stands behind its mark.

    A right answer may have several lines, or begin like a mark itself.
    """
    return any(exact(said, golds) for said in (short_answer(text, golds), behind_mark(text), text))


def best_f1(said: str, golds: Sequence[str]) -> float:
    """Return the largest F1 of words with a right answer (Rajpurkar et al. 2016)."""
    return max(squad_f1(said, gold) for gold in golds)
