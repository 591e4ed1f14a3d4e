"""What is reported of one set of attempts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tunesmith.evaluate.betting import betting_interval
from tunesmith.evaluate.following import Following
from tunesmith.evaluate.statistics import Interval, wilson
from tunesmith.types import Attempt

MAX_UNGRADED = 0.01
"""Above this share of ungraded attempts no p-value is given: what is missing may not be random."""
SHOWN = 200
"""Letters of a grader's failure that are shown."""
SEED = 20260101
"""Seed of the resampling behind intervals; it has nothing to do with the run's seed."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Counts and shares of one set; every interval is a 95% one."""

    problems: int
    n: int
    """Attempts."""
    graded: int
    ungraded: int
    """Attempts that no grader has judged or whose grader failed; in no share below."""
    correct: int
    accuracy: float
    """Mean score of the graded attempts, averaged by problem; 0 when there are none."""
    accuracy_interval: Interval
    interval_method: str
    answered: int
    """Graded attempts from which an answer could be read."""
    answer_rate: float
    answer_interval: Interval
    mean_tokens: float | None
    """None where nobody counted them, as with answers of a server."""
    stops: Mapping[str, int]
    """How many attempts ended for which reason."""
    chance: float | None = None
    """The score that guessing brings, where it is known of every problem."""
    thinking_tokens: float | None = None
    """Mean tokens of thinking of an attempt; None where no attempt thinks, or nobody counted."""
    unclosed: float | None = None
    """Share of attempts whose thinking is never closed, so that they have no answer."""
    following: Following | None = None
    """How far constraints are met, where the questions have any."""

    @property
    def trusted(self) -> bool:
        """Whether so few attempts are ungraded that a p-value may be given."""
        return self.n > 0 and self.ungraded <= MAX_UNGRADED * self.n

    def to_json(self) -> dict[str, Any]:
        """Return the summary as JSON knows it."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Summary:
        """Read what ``to_json`` returned."""
        ends = {key: Interval(**values[key]) for key in ("accuracy_interval", "answer_interval")}
        met = values.get("following")
        following = None if met is None else Following.from_json(met)
        return cls(**{**values, **ends, "following": following})


def summarise(attempts: Sequence[Attempt]) -> Summary:
    """Return the summary of a set; what was made with a hint is left out of it.

    With one right-or-wrong attempt at each problem the interval is Wilson's. Several attempts at
    one problem are no independent trials, and partial scores no successes: then the interval is
    one for the problems' mean scores that holds however they are distributed.
    """
    attempts = [attempt for attempt in attempts if not attempt.hinted]
    scores = problem_scores(attempts)
    graded = [(a, a.verdict) for a in attempts if a.verdict and a.verdict.score is not None]
    correct = sum(verdict.score == 1 for _, verdict in graded)
    answered = sum(verdict.answer is not None for _, verdict in graded)
    single = len(scores) == len(graded) and all(v.score in (0, 1) for _, v in graded)
    if single:
        method, interval = "Wilson", wilson(correct, len(graded))
    else:
        method = "betting over problems"
        interval = betting_interval([*scores.values()], seed=SEED)
    return Summary(
        problems=len({attempt.problem_id for attempt in attempts}),
        n=len(attempts),
        graded=len(graded),
        ungraded=len(attempts) - len(graded),
        correct=correct,
        accuracy=math.fsum(scores.values()) / len(scores) if scores else 0.0,
        accuracy_interval=interval,
        interval_method=method,
        answered=answered,
        answer_rate=answered / len(graded) if graded else 0.0,
        answer_interval=wilson(answered, len(graded)),
        mean_tokens=_mean_tokens(attempts),
        stops=dict(sorted(Counter(attempt.stop.value for attempt in attempts).items())),
    )


def ungraded_sentence(attempts: Sequence[Attempt]) -> str:
    """Say of how many attempts the grader failed, and why; nothing where it failed of none."""
    reasons = Counter(
        one.verdict.reason for one in attempts if one.verdict and one.verdict.score is None
    )
    if not reasons:
        return ""
    (why, number), *others = reasons.most_common()
    said = f"{reasons.total()} of {len(attempts)} attempts could not be graded: {why[:SHOWN]}"
    return said + (f" ({number} of them; {len(others)} more reasons)" if others else "")


def _mean_tokens(attempts: Sequence[Attempt]) -> float | None:
    total = sum(len(attempt.tokens) for attempt in attempts)
    if not total and any(attempt.text for attempt in attempts):
        return None
    return total / len(attempts) if attempts else 0.0


def problem_scores(attempts: Iterable[Attempt]) -> dict[str, float]:
    """Return each problem's mean score over its graded attempts; problems without any are out.

    What was made with a hint is no score.
    """
    grouped: dict[str, list[float]] = {}
    for attempt in attempts:
        if attempt.hinted:
            continue
        if attempt.verdict is not None and attempt.verdict.score is not None:
            grouped.setdefault(attempt.problem_id, []).append(attempt.verdict.score)
    return {key: math.fsum(values) / len(values) for key, values in grouped.items()}
