"""What many attempts a problem say: pass@k, majority@k, yield by difficulty, distinct paths.

Rounds after the first ask only what is not solved often enough, so their attempts say nothing of
how often a problem is solved: pass@k, majority@k and difficulty are those of the first round, in
which every problem is asked equally often. Hinted attempts are counted apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tunesmith.data.select import Selection
from tunesmith.evaluate.metrics import summarise
from tunesmith.evaluate.statistics import pass_at_k
from tunesmith.evaluate.votes import ballot, choose, is_numeric
from tunesmith.grading.paths import equation_signature
from tunesmith.tasks.base import GradedTask
from tunesmith.types import Attempt, Problem

BUCKETS = (
    ("none of its attempts", 0.0),
    ("up to a quarter", 0.25),
    ("up to a half", 0.5),
    ("up to three quarters", 0.75),
    ("more than that", math.nextafter(1.0, 0.0)),
    ("all of them", 1.0),
)
"""Difficulty: what share of a problem's first attempts is verified, and the share it ends at."""


@dataclass(frozen=True, slots=True)
class Difficulty:
    """The problems of which some share of the first attempts is verified, and their yield."""

    solved: str
    """Which share, in words."""
    problems: int
    attempts: int
    """Of all rounds, hinted ones included."""
    verified: int
    """Of those attempts."""
    kept: int
    """Paths that became rows."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """The figures of one sampling run."""

    pass_at: Mapping[int, float]
    """k → mean unbiased pass@k by the strict verifier over the problems (Chen et al. 2021)."""
    majority_at: Mapping[int, float]
    """k → share of problems of which the most frequent answer of the first k attempts is right."""
    difficulty: tuple[Difficulty, ...]
    distinct_paths: float
    """Verified paths with different equations for a question, averaged over all questions."""
    answer_rate: float
    """Share of the attempts without a hint that hold an answer that can be read."""
    hinted: int
    hinted_verified: int


def powers(samples: int) -> list[int]:
    """Return 1, 2, 4, 8, … up to ``samples``, and ``samples`` itself."""
    return sorted({*(1 << n for n in range(samples.bit_length())), samples})


class Running:
    """Counts of the first round and of all that is verified, kept up to date by the attempt."""

    def __init__(self, samples: int) -> None:
        self.samples = samples
        """Attempts of the first round at each problem."""
        self.attempts = self.verified = 0
        self._solved: set[str] = set()
        self._tries: dict[str, list[int]] = {}
        self._sums = dict.fromkeys((1, samples), 0.0)
        self._counts = dict.fromkeys((1, samples), 0)

    def add(self, problem_id: str, index: int, verified: bool) -> None:
        """Count one attempt without a hint."""
        self.attempts += 1
        self.verified += verified
        if verified:
            self._solved.add(problem_id)
        if index >= self.samples:
            return
        tries = self._tries.setdefault(problem_id, [0, 0])
        for sign in (-1, 1):
            for k in self._sums:
                if tries[0] >= k:
                    self._sums[k] += sign * pass_at_k(tries[0], tries[1], k)
                    self._counts[k] += sign
            if sign < 0:
                tries[0] += 1
                tries[1] += verified

    @property
    def solved(self) -> int:
        """How many problems have a verified attempt."""
        return len(self._solved)

    def pass_at(self, k: int) -> float | None:
        """Return pass@k over the problems with k attempts so far, for k of 1 or ``samples``."""
        return self._sums[k] / self._counts[k] if self._counts[k] else None


def sampled(
    problems: Mapping[str, Problem],
    attempts: Sequence[Attempt],
    samples: int,
    task: GradedTask,
    chosen: Selection,
) -> Sampled:
    """Return the figures of a finished set; ``samples`` are those of the first round."""
    own = [attempt for attempt in attempts if not attempt.hinted]
    first: dict[str, list[Attempt]] = {problem_id: [] for problem_id in problems}
    for attempt in sorted(own, key=lambda a: a.index):
        if attempt.index < samples:
            first[attempt.problem_id].append(attempt)
    rights = {key: sum(a.verified for a in tries) for key, tries in first.items()}
    pass_at, majority_at = {}, {}
    for k in powers(samples):
        full = {key: tries for key, tries in first.items() if len(tries) >= k}
        if full:
            shares = [pass_at_k(len(tries), rights[key], k) for key, tries in full.items()]
            pass_at[k] = math.fsum(shares) / len(shares)
            votes = [_majority_right(problems[key], t[:k], task) for key, t in full.items()]
            majority_at[k] = sum(votes) / len(votes)
    paths = {(a.problem_id, equation_signature(a.text)) for a in own if a.verified}
    hinted = [attempt for attempt in attempts if attempt.hinted]
    shares_ = {key: rights[key] / len(tries) for key, tries in first.items() if tries}
    return Sampled(
        pass_at,
        majority_at,
        _by_difficulty(shares_, attempts, chosen),
        len(paths) / len(problems) if problems else 0.0,
        summarise(own).answer_rate,
        len(hinted),
        sum(attempt.verified for attempt in hinted),
    )


def _majority_right(problem: Problem, tries: Iterable[Attempt], task: GradedTask) -> bool:
    """Return whether the most frequent answer is right by the task's own rule."""
    verdicts = [task.grade(problem, attempt.text) for attempt in tries]
    numeric = is_numeric(problem)
    at = choose([None if v.answer is None else ballot(v.answer, numeric=numeric) for v in verdicts])
    return at is not None and verdicts[at].score == 1.0


def _by_difficulty(
    shares: Mapping[str, float], attempts: Sequence[Attempt], chosen: Selection
) -> tuple[Difficulty, ...]:
    def bucket(problem_id: str) -> int:
        share = shares.get(problem_id, 0.0)
        return next(at for at, (_, end) in enumerate(BUCKETS) if share <= end)

    rows = [[0, 0, 0, 0] for _ in BUCKETS]
    for problem_id in shares:
        rows[bucket(problem_id)][0] += 1
    for attempt in attempts:
        row = rows[bucket(attempt.problem_id)]
        row[1] += 1
        row[2] += attempt.verified
    for one in chosen.kept:
        rows[bucket(one.problem.id)][3] += 1
    return tuple(
        Difficulty(name, *row) for (name, _), row in zip(BUCKETS, rows, strict=True) if row[0]
    )
