"""Problems that came out differently for two models, or wrong for both, drawn by a seeded rule."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from tunesmith.evaluate.metrics import problem_scores
from tunesmith.evaluate.records import ResultSet
from tunesmith.report.page import ExamplePair
from tunesmith.types import Attempt, Problem

SEED = 20260101
"""Decides which examples are drawn; it has nothing to do with the run's seed."""


def flips(before: ResultSet, after: ResultSet) -> tuple[list[ExamplePair], list[ExamplePair]]:
    """Return the shared problems that score higher (gained) and lower (lost) in ``after``.

    They come in an order drawn by seed, so that the first few are not the first of the file.
    """
    ours, theirs = problem_scores(before.attempts), problem_scores(after.attempts)
    sides = [(one, one.by_problem()) for one in (before, after)]
    gained: list[ExamplePair] = []
    lost: list[ExamplePair] = []
    for key in sorted(ours.keys() & theirs.keys(), key=_drawn):
        if ours[key] != theirs[key]:
            rising = theirs[key] > ours[key]
            (gained if rising else lost).append(_pair(sides, key, rising=rising))
    return gained, lost


def both_wrong(before: ResultSet, after: ResultSet) -> list[ExamplePair]:
    """Return the shared problems that score nothing in either set, in an order drawn by seed."""
    ours, theirs = problem_scores(before.attempts), problem_scores(after.attempts)
    sides = [(one, one.by_problem()) for one in (before, after)]
    shared = sorted(ours.keys() & theirs.keys(), key=_drawn)
    return [_pair(sides, key, rising=True) for key in shared if ours[key] == theirs[key] == 0]


def question_text(problem: Problem) -> str:
    """Return what the model was asked, as text."""
    return "\n".join(segment.text for segment in problem.prompt)


def _drawn(key: str) -> str:
    return hashlib.sha256(f"{SEED}:{key}".encode("utf-8", "surrogatepass")).hexdigest()


Side = tuple[ResultSet, Mapping[str, list[Attempt]]]
"""A set, and its attempts by problem."""


def _pair(sides: Sequence[Side], key: str, *, rising: bool) -> ExamplePair:
    (before, own), (after, other) = sides
    return ExamplePair(
        question_text(before.problems[key]),
        before.problems[key].reference,
        before.name,
        _telling(own[key], best=not rising),
        after.name,
        _telling(other[key], best=rising),
    )


def _telling(attempts: Sequence[Attempt], *, best: bool) -> str:
    """Return the text of the best or the worst of several attempts, whichever shows the change."""

    def score(attempt: Attempt) -> float:
        graded = attempt.verdict is not None and attempt.verdict.score is not None
        value = attempt.verdict.score if graded and attempt.verdict else 0.0
        return value or 0.0

    return (max if best else min)(attempts, key=score).text
