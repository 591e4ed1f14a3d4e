"""Is a RAFT set what it claims to be, and what is in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tunesmith.data.raft.prompt import QUOTES
from tunesmith.data.raft.questions import key, occurrences
from tunesmith.data.raft.rows import Likeness, RaftRow, RaftSettings, may_distract


def check_rows(splits: Mapping[str, Sequence[RaftRow]]) -> Counter[str]:
    """Return every fault of a whole set by reason; none is what a set must have.

    Looks at the texts themselves, not at how they were made: the answer in its oracle, clean
    distractors, quotes from what is shown, one answer a question, no document on two sides.
    """
    faults: Counter[str] = Counter()
    likeness = Likeness()
    answers: dict[str, str] = {}
    sides: dict[str, str] = {}
    for split, rows in splits.items():
        for row in rows:
            faults.update(_faults(row, likeness))
            name = key(row.question.text)
            if name in answers:
                same = answers[name] == row.question.answer
                faults["a question twice" if same else "a question with two answers"] += 1
            answers[name] = row.question.answer
            for chunk in (row.oracle, *row.shown):
                if sides.setdefault(chunk.group, split) != split:
                    faults["a document on both sides of the split"] += 1
    return faults


def _faults(row: RaftRow, likeness: Likeness) -> Iterator[str]:
    asked, oracle = row.question, row.oracle
    if asked.span and not occurrences(oracle.text, asked.answer):
        yield "the answer is not in its oracle"
    if (row.position is None) != (row.mode != "oracle"):
        yield "the mode and the oracle's place disagree"
    if row.position is not None and row.shown[row.position] != oracle:
        yield "the oracle is not where it should be"
    if not row.shown:
        yield "no document is shown"
    for chunk in row.distractors:
        if not may_distract(chunk, asked, oracle, likeness):
            yield "a distractor answers too, or nearly duplicates the oracle"
    if len({chunk.id for chunk in row.shown}) < len(row.shown):
        yield "a document is shown twice"
    if any(chunk.text not in row.instruction for chunk in row.shown):
        yield "a document is missing in the instruction"
    quotes = QUOTES.findall(row.output)
    if any(not quote or all(quote not in chunk.text for chunk in row.shown) for quote in quotes):
        yield "a quote is not in what is shown"
    if asked.span and row.mode == "abstain" and occurrences(row.output, asked.answer):
        yield "a row that abstains gives the answer"


def statistics(
    splits: Mapping[str, Sequence[RaftRow]], settings: RaftSettings
) -> dict[str, dict[str, Any]]:
    """Return what is in each split: shares wanted and had, the oracle's places, lengths."""
    return {split: _statistics(rows, settings) for split, rows in splits.items() if rows}


def _statistics(rows: Sequence[RaftRow], settings: RaftSettings) -> dict[str, Any]:
    distracted = [row for row in rows if row.distractors]
    without = [row for row in rows if row.position is None]
    all_distractors = sum(len(row.distractors) for row in rows)
    full = [row for row in rows if row.position is not None and row.distractors]
    lengths = sorted(len(row.instruction.split()) for row in rows)
    answers = sorted(len(row.question.answer.split()) for row in rows)
    top = settings.num_distractors + 1
    used = settings.num_distractors > 0
    probability = settings.distractor_probability if used else 0.0
    return {
        "rows": len(rows),
        "documents": len({row.oracle.document for row in rows}),
        "kinds of questions": dict(Counter(row.question.kind for row in rows).most_common()),
        "answers that are words of the document": _share(
            rows, [r for r in rows if r.question.span]
        ),
        "shares": {
            "with distractors": (probability, _share(rows, distracted)),
            "oracle shown": (
                max(settings.oracle_share, 1 - probability),
                _share(rows, [row for row in rows if row.position is not None]),
            ),
            "abstaining, of those without": (
                settings.abstain_share,
                _share(without, [row for row in without if row.mode == "abstain"]),
            ),
            "mined, of distractors": (
                settings.mined_share,
                sum(row.mined for row in rows) / all_distractors if all_distractors else None,
            ),
        },
        "places of the oracle, with distractors": {
            str(place + 1): count
            for place, count in sorted(Counter(row.position or 0 for row in full).items())
        },
        "words of an instruction": {"median": lengths[len(lengths) // 2], "most": lengths[-1]},
        "words of an answer": {"median": answers[len(answers) // 2], "most": answers[-1]},
        "retriever finds the oracle first": _share(rows, [row for row in rows if row.rank == 0]),
        f"retriever finds the oracle among {top}": _share(
            rows, [row for row in rows if row.rank is not None and row.rank < top]
        ),
    }


def _share(rows: Sequence[RaftRow], part: Sequence[RaftRow]) -> float | None:
    """Return the share of a part; None where there is nothing to have a share of."""
    return len(part) / len(rows) if rows else None
