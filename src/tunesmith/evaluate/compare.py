"""Paired comparison of result sets on the problems they share, and of losses on the same rows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tunesmith.errors import DataError, UsageError
from tunesmith.evaluate.metrics import MAX_UNGRADED, SEED, Summary, problem_scores, summarise
from tunesmith.evaluate.records import ResultSet
from tunesmith.evaluate.statistics import (
    Interval,
    bootstrap_mean,
    bootstrap_ratio_difference,
    detectable_mean,
    holm,
    mcnemar_exact,
    paired_difference,
    sign_flip_test,
    smallest_detectable,
)

ALPHA = 0.05
ONE_DOCUMENT = "no interval, since all held-out rows are of one document"
NAMED = 5
"""How many missing problems are named; all of them are counted."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two sets on the problems that both have and both have graded; differences are second − first.

    All shares are of ``n``; every interval is a 95% one.
    """

    first: str
    second: str
    n: int
    ungraded: int
    """Shared problems that one side could not grade; left out."""
    missing: Mapping[str, int]
    """How many problems of the other set each side lacks, by the name of the side."""
    missing_ids: Mapping[str, Sequence[str]]
    """The first few of them."""
    first_accuracy: float
    second_accuracy: float
    gained: int
    """Problems on which the second scores higher: wrong before, right now."""
    lost: int
    """Problems on which the second scores lower."""
    difference: float
    interval: Interval
    interval_method: str
    test: str
    p: float | None
    """Two-sided; None when too much is ungraded."""
    p_holm: float | None
    """Adjusted for all pairs of the comparison."""
    detectable: float | None
    """Smallest true difference that ``n`` pairs show with 80% power at the 5% level."""

    @property
    def significant(self) -> bool:
        """Whether the adjusted p-value is below 5%."""
        return self.p_holm is not None and self.p_holm < ALPHA

    def sentence(self) -> str:
        """Say in words what the pair shows and how sure that is."""
        if self.n == 0:
            return f"{self.first} and {self.second} share no graded problem."
        change = f"{abs(self.difference) * 100:.1f} points"
        span = f"95% interval {self.interval.low * 100:+.1f} to {self.interval.high * 100:+.1f}"
        flips = f"{self.gained} problems gained, {self.lost} lost, of {self.n}"
        if self.p is None:
            return (
                f"{self.second} scores {self.difference * 100:+.1f} points against {self.first} "
                f"({span}; {flips}), but more than {MAX_UNGRADED:.0%} is ungraded: no p-value."
            )
        p = format_p(self.p_holm if self.p_holm is not None else self.p)
        if self.significant:
            word = "above" if self.difference > 0 else "below"
            return f"{self.second} scores {change} {word} {self.first} ({span}; {flips}; {p})."
        reach = (
            f"this many problems reliably show {self.detectable * 100:.1f} points or more"
            if self.detectable is not None
            else "too few problems to show any difference reliably"
        )
        return (
            f"No clear difference between {self.first} and {self.second}: "
            f"{self.difference * 100:+.1f} points ({span}; {flips}; {p}); {reach}."
        )


@dataclass(frozen=True, slots=True)
class Comparison:
    """All sets with their summaries, and every pair of them in the order given."""

    task: str
    summaries: Mapping[str, Summary]
    pairs: Sequence[Pair]

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as JSON knows it; sentences are added for readers."""
        return {
            "task": self.task,
            "summaries": {name: summary.to_json() for name, summary in self.summaries.items()},
            "pairs": [asdict(pair) | {"sentence": pair.sentence()} for pair in self.pairs],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Comparison:
        """Read what ``to_json`` returned."""
        pairs = []
        for stored in values["pairs"]:
            fields = {key: value for key, value in stored.items() if key != "sentence"}
            pairs.append(Pair(**{**fields, "interval": Interval(**fields["interval"])}))
        summaries = {name: Summary.from_json(s) for name, s in values["summaries"].items()}
        return cls(values["task"], summaries, pairs)


def compare(sets: Sequence[ResultSet]) -> Comparison:
    """Compare every pair of sets on the problems that both hold.

    Right-or-wrong single attempts get the exact McNemar test and Newcombe's paired interval;
    several attempts a problem or partial scores get a sign-flip permutation test and a bootstrap
    of the problems' mean differences. P-values are adjusted by Holm over all pairs.
    Raises ``UsageError`` for fewer than two sets, equal names, different tasks, no shared problem
    or an unfinished set, and ``DataError`` where a shared problem has two gold answers.
    """
    names = [result.name for result in sets]
    if len(sets) < 2:
        raise UsageError(f"{len(sets)} set of attempts was given.", expected="at least two")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(
            f"Several sets are called {twice[0]!r}.", expected="a name of its own for each set"
        )
    tasks = sorted({result.header.task for result in sets})
    if len(tasks) > 1:
        raise UsageError(
            f"The sets belong to different tasks: {', '.join(tasks)}.",
            expected="attempts at the same problems",
        )
    for result in sets:
        # The attempts that finish first are the short ones: half a set is a biased set.
        if result.missing:
            raise UsageError(
                f"{result.name!r} is not finished: {result.missing} of {result.header.planned} "
                "attempts are missing.",
                expected="complete sets",
                hint="run the same tunesmith eval again; it makes only what is missing",
            )
    sets = [result.first_round() for result in sets]
    pairs = [_pair(first, second) for first, second in itertools.combinations(sets, 2)]
    adjusted = holm([pair.p for pair in pairs])
    pairs = [replace(pair, p_holm=p) for pair, p in zip(pairs, adjusted, strict=True)]
    return Comparison(tasks[0], {r.name: summarise(r.attempts) for r in sets}, pairs)


def _pair(first: ResultSet, second: ResultSet) -> Pair:
    shared = sorted(first.problems.keys() & second.problems.keys())
    if not shared:
        raise UsageError(
            f"{first.name!r} and {second.name!r} share no problem.",
            expected="sets of the same task, split and seed",
            hint="run tunesmith eval for both with the same --split, --seed and --max-problems",
        )
    _check_references(first, second, shared)
    absent = {
        first.name: sorted(second.problems.keys() - first.problems.keys()),
        second.name: sorted(first.problems.keys() - second.problems.keys()),
    }
    ours, theirs = problem_scores(first.attempts), problem_scores(second.attempts)
    graded = [key for key in shared if key in ours and key in theirs]
    scores = [(ours[key], theirs[key]) for key in graded]
    share_ungraded = max(_ungraded_share(result, shared) for result in (first, second))
    pair = Pair(
        first=first.name,
        second=second.name,
        n=len(scores),
        ungraded=len(shared) - len(scores),
        missing={name: len(ids) for name, ids in absent.items()},
        missing_ids={name: ids[:NAMED] for name, ids in absent.items()},
        first_accuracy=_mean([a for a, _ in scores]),
        second_accuracy=_mean([b for _, b in scores]),
        gained=sum(b > a for a, b in scores),
        lost=sum(b < a for a, b in scores),
        difference=_mean([b - a for a, b in scores]),
        interval=Interval(-1.0, 1.0),
        interval_method="none",
        test="none",
        p=None,
        p_holm=None,
        detectable=None,
    )
    if not scores:
        return pair
    single = all(
        result.header.samples == 1 or len(result.attempts) == len(result.problems)
        for result in (first, second)
    )
    if single and all(score in (0, 1) for both in scores for score in both):
        tested = _tested_binary(pair, scores)
    else:
        tested = _tested_scores(pair, [b - a for a, b in scores])
    return replace(tested, p=None) if share_ungraded > MAX_UNGRADED else tested


def _check_references(first: ResultSet, second: ResultSet, shared: Sequence[str]) -> None:
    for key in shared:
        if first.problems[key].reference != second.problems[key].reference:
            raise DataError(
                f"Problem {key!r} has the gold answer {first.problems[key].reference!r} in "
                f"{first.name!r} and {second.problems[key].reference!r} in {second.name!r}.",
                expected="the same data on both sides",
            )


def _tested_binary(pair: Pair, scores: Sequence[tuple[float, float]]) -> Pair:
    both = sum(a == b == 1 for a, b in scores)
    neither = pair.n - both - pair.gained - pair.lost
    return replace(
        pair,
        interval=paired_difference(both, pair.gained, pair.lost, neither),
        interval_method="Newcombe's paired interval (method 10)",
        test="exact McNemar test",
        p=mcnemar_exact(pair.gained, pair.lost),
        detectable=smallest_detectable(pair.n, (pair.gained + pair.lost) / pair.n),
    )


def _tested_scores(pair: Pair, differences: Sequence[float]) -> Pair:
    return replace(
        pair,
        interval=bootstrap_mean(differences, seed=SEED),
        interval_method="paired bootstrap over problems",
        test="paired sign-flip permutation test",
        p=sign_flip_test(differences, seed=SEED),
        detectable=detectable_mean(differences),
    )


def _ungraded_share(result: ResultSet, shared: Sequence[str]) -> float:
    wanted = set(shared)
    here = [attempt for attempt in result.attempts if attempt.problem_id in wanted]
    ungraded = sum(a.verdict is None or a.verdict.score is None for a in here)
    return ungraded / len(here) if here else 0.0


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def format_p(p: float) -> str:
    """Return ``p = 0.034`` or ``p < 0.0001``."""
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.4f}" if p < 0.01 else f"p = {p:.3f}"


@dataclass(frozen=True, slots=True)
class RowLoss:
    """The summed loss of one held-out row under one model."""

    row: str
    """Stable name of the row, the same for both models."""
    loss: float
    """Summed over the row's scored tokens, in nats."""
    bytes: int
    """UTF-8 bytes that those tokens spell: comparable across tokenizers."""
    cluster: str | None = None
    """Rows of one document share it: they are resampled together."""


@dataclass(frozen=True, slots=True)
class LossComparison:
    """Loss per byte of two models on the same rows, in nats; differences are second − first."""

    rows: int
    clusters: int
    bytes: int
    missing: int
    """Rows that only one side has; left out."""
    first: float
    second: float
    difference: float
    interval: Interval | None
    """95%, by a paired bootstrap over the clusters; None with fewer than two."""

    @property
    def significant(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.interval is not None and 0.0 not in self.interval

    def sentence(self, first: str = "base", second: str = "tuned") -> str:
        """Say in words what the losses show."""
        figures = f"{self.first:.4f} to {self.second:.4f} nats per byte"
        ends = self.interval
        interval = f"95% interval {ends.low:+.4f} to {ends.high:+.4f}" if ends else ONE_DOCUMENT
        span = f"difference {self.difference:+.4f}, {interval}, {self.rows} rows"
        if not self.significant:
            return f"No clear difference in held-out loss, {first} to {second}: {figures} ({span})."
        word = "lower" if self.difference < 0 else "higher"
        return f"The held-out loss of {second} is {word} than {first}'s: {figures} ({span})."

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as JSON knows it."""
        return asdict(self) | {"sentence": self.sentence()}


def compare_losses(first: Sequence[RowLoss], second: Sequence[RowLoss]) -> LossComparison:
    """Compare two models' losses per byte (ratio of sums) on the rows that both have scored.

    Raises ``DataError`` when no row is shared or a shared row has different bytes.
    """
    ours, theirs = ({row.row: row for row in rows} for rows in (first, second))
    if len(ours) < len(first) or len(theirs) < len(second):
        raise DataError("Two held-out rows have the same name.", expected="a name for each row")
    shared = [row.row for row in first if row.row in theirs]
    clusters: dict[str, list[float]] = {}
    for key in shared:
        one, other = ours[key], theirs[key]
        if one.bytes != other.bytes:
            raise DataError(
                f"Row {key!r} has {one.bytes} bytes for one model and {other.bytes} for the other.",
                expected="the same text for both models",
            )
        sums = clusters.setdefault(one.cluster if one.cluster is not None else key, [0.0, 0.0, 0.0])
        sums[0] += one.loss
        sums[1] += other.loss
        sums[2] += one.bytes
    total = sum(int(sums[2]) for sums in clusters.values())
    if not total:
        raise DataError("The two models share no held-out row with text.")
    losses = [math.fsum(sums[side] for sums in clusters.values()) for side in (0, 1)]
    interval = None
    weighty = [sums for sums in clusters.values() if sums[2]]
    if len(weighty) >= 2:
        columns = [list(column) for column in zip(*weighty, strict=True)]
        interval = bootstrap_ratio_difference(*columns, seed=SEED)
    return LossComparison(
        rows=len(shared),
        clusters=len(weighty),
        bytes=total,
        missing=len(ours.keys() ^ theirs.keys()),
        first=losses[0] / total,
        second=losses[1] / total,
        difference=(losses[1] - losses[0]) / total,
        interval=interval,
    )
