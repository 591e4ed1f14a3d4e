"""A small general suite, before and after a training: what a model has lost besides its task.

Texts are scored by their likelihood, questions by which of their options is likeliest for each
byte of it. Base and tuned model see the same rows; the differences get the same statistics as any
other comparison.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tunesmith.data.readers import read_rows
from tunesmith.errors import DataError
from tunesmith.evaluate.compare import Comparison, Pair
from tunesmith.evaluate.losses import LossComparison
from tunesmith.evaluate.records import Header, ResultSet
from tunesmith.grading.marked import LETTERS
from tunesmith.tasks.choice import ChoiceTask
from tunesmith.types import Attempt, Example, Origin, Problem, Segment, StopReason, Verdict

SUITE = Path(__file__).parent.parent / "assets" / "general.jsonl"
NAME = "general"
KIND = "kind"
"""Field of a question that says of which kind it is."""


@dataclass(frozen=True, slots=True)
class Suite:
    """What is asked: texts, and questions with options."""

    source: str
    texts: Sequence[Example]
    questions: Sequence[Problem]

    def options(self, problem: Problem) -> list[Example]:
        """Return a row for each option: the question, and the option as the answer to it."""
        place = problem.meta
        origin = Origin(str(place["source"]), place["line"], place.get("item"))
        return [
            Example((*problem.prompt, Segment("assistant", str(option), 1.0)), origin)
            for option in problem.meta["options"]
        ]


def read_suite(source: str | Path | None = None) -> Suite:
    """Read a suite: rows with ``text``, and questions in the layouts of the task ``choice``.

    Without a source it is the built-in one. ``DataError`` names a row that is neither, and a file
    without any.
    """
    task, texts, questions = ChoiceTask(), [], []
    place = str(SUITE if source is None else source)
    for number, row in enumerate(read_rows(place)):
        text = row.fields.get("text")
        if isinstance(text, str) and text.strip() and not ChoiceTask.reads(row.fields):
            texts.append(Example((Segment(None, text, 1.0),), row.origin))
            continue
        made = task.problem(row)
        kind = row.fields.get(KIND)
        asked = Segment("user", str(made.meta["question"]))
        meta = {**made.meta, "source": row.origin.source, "line": row.origin.line}
        meta |= {} if row.origin.item is None else {"item": row.origin.item}
        meta |= {KIND: kind} if isinstance(kind, str) else {}
        questions.append(replace(made, id=f"{NAME}-{number:05}", prompt=(asked,), meta=meta))
    if not texts and not questions:
        raise DataError(
            f"{place!r} holds neither a text nor a question.",
            expected='rows such as {"text": "…"} or {"question": "…", "choices": […], '
            '"answer": "B"}',
        )
    return Suite(place, texts, questions)


def answered(
    questions: Sequence[Problem], scores: Mapping[str, Sequence[float]], name: str, model: str
) -> ResultSet:
    """Return a set in which each question is answered by its likeliest option.

    ``scores`` holds the log-probability of each option in nats, by question; a question without
    is left out, and one with a score that is not finite is ungraded.
    """
    attempts = []
    kept = [problem for problem in questions if problem.id in scores]
    for problem in kept:
        options = [str(option) for option in problem.meta["options"]]
        values = [
            score / max(1, len(option.encode()))
            for score, option in zip(scores[problem.id], options, strict=True)
        ]
        best = max(range(len(values)), key=values.__getitem__)
        right = best == LETTERS.index(problem.reference)
        listed = ", ".join(f"{value:.3f}" for value in values)
        known = all(map(math.isfinite, values))
        verdict = Verdict(
            float(right) if known else None, options[best], f"nats a byte by option: {listed}"
        )
        attempts.append(Attempt(problem.id, 0, 0, options[best], (), StopReason.SCORED, verdict))
    header = Header(name, NAME, "suite", "options", model, 0, planned=len(attempts))
    return ResultSet(header, tuple(attempts), {problem.id: problem for problem in kept})


def sentence(loss: LossComparison | None, comparison: Comparison | None) -> str:
    """Say whether something was lost; empty where nothing was measured."""
    pair = comparison.pairs[0] if comparison and comparison.pairs[0].n else None
    parts, lower, higher = [], False, False
    if loss is not None:
        ends = loss.interval
        span = f", 95% interval {ends.low:+.4f} to {ends.high:+.4f}" if ends else ""
        parts.append(
            f"{loss.first:.4f} to {loss.second:.4f} nats per byte of {loss.rows} general texts "
            f"({loss.difference:+.4f}{span})"
        )
        lower |= loss.significant and loss.difference > 0
        higher |= loss.significant and loss.difference < 0
    if pair is not None:
        parts.append(_shares(pair))
        lower |= pair.significant and pair.difference < 0
        higher |= pair.significant and pair.difference > 0
    if not parts:
        return ""
    said = (
        "General ability is lower than before"
        if lower
        else "No loss of general ability"
        if higher
        else "No clear loss of general ability"
    )
    return f"{said}: {'; '.join(parts)}."


def _shares(pair: Pair) -> str:
    reach = (
        f"; this many reliably show {100 * pair.detectable:.1f} points or more"
        if pair.detectable is not None and not pair.significant
        else ""
    )
    return (
        f"{100 * pair.first_accuracy:.1f}% to {100 * pair.second_accuracy:.1f}% of {pair.n} short "
        f"questions right ({100 * pair.difference:+.1f} points, 95% interval "
        f"{100 * pair.interval.low:+.1f} to {100 * pair.interval.high:+.1f}{reach})"
    )


def by_kind(first: ResultSet, second: ResultSet) -> dict[str, list[int]]:
    """Return, for each kind of question, how many each set has right, and of how many."""
    found: dict[str, list[int]] = {}
    for side, one in enumerate((first, second)):
        for attempt in one.attempts:
            kind = str(one.problems[attempt.problem_id].meta.get(KIND, ""))
            counts = found.setdefault(kind, [0, 0, 0])
            counts[side] += bool(attempt.verdict and attempt.verdict.score == 1)
            counts[2] += side == 0
    return {kind: counts for kind, counts in found.items() if kind}
