"""The effect of one way of training against another, over seeds and problems at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from tunesmith.errors import UsageError
from tunesmith.evaluate.compare import format_p, matched
from tunesmith.evaluate.grouped import ROW, groups_of
from tunesmith.evaluate.metrics import MAX_UNGRADED, problem_scores
from tunesmith.evaluate.records import STOP_RULE, ResultSet
from tunesmith.evaluate.statistics import Interval

ALPHA = 0.05


@dataclass(frozen=True, slots=True)
class SeedEffect:
    """Mean difference of two ways of training, second − first, as a share of the problems."""

    first: str
    second: str
    seeds: int
    n: int
    """Problems that all runs have graded."""
    by_seed: Sequence[float]
    """The difference under each seed."""
    difference: float
    interval: Interval | None
    """95%, over seeds and problems; None with one seed, since seeds were not varied."""
    df: float | None
    """Degrees of freedom of the t distribution, by Satterthwaite."""
    p: float | None
    groups: int | None = None
    """Groups of problems that were counted in place of problems, where they come in any."""
    grouped_by: str | None = None
    method: str = "two-way t over seeds and problems (min F', Clark 1973)"
    first_by_seed: Sequence[float] = ()
    """The first side's score under each seed, a single baseline's as often."""
    second_by_seed: Sequence[float] = ()

    @property
    def significant(self) -> bool:
        """Whether the p-value is below 5%."""
        return self.p is not None and self.p < ALPHA

    def sentence(self) -> str:
        """Say in words what the runs show over seeds."""
        change = f"{self.difference * 100:+.1f} points"
        if self.interval is None or self.p is None:
            counted = self.n if self.groups is None else self.groups
            why = f"more than {MAX_UNGRADED:.0%} is ungraded: no p-value"
            if self.seeds < 2:
                why = "seeds were not varied, so nothing is said of other seeds"
            elif counted < 2:
                why = "one problem, or one group of them, says nothing of others"
            return f"{self.second} against {self.first}: {change} on {self.n} problems; {why}."
        ends = f"95% interval {self.interval.low * 100:+.1f} to {self.interval.high * 100:+.1f}"
        spread = ", ".join(f"{100 * one:+.1f}" for one in self.by_seed)
        verdict = "" if self.significant else "no clear difference, "
        return (
            f"{self.second} against {self.first} over {self.seeds} seeds: {verdict}{change} "
            f"({ends} over seeds and {self.n} problems{self._grouped()}; {format_p(self.p)}; by "
            f"seed {spread})."
        )

    def _grouped(self) -> str:
        if self.groups is None:
            return ""
        by = "rows" if self.grouped_by == ROW else f"groups by {self.grouped_by}"
        return f" in {self.groups} {by}"

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON knows it."""
        return asdict(self) | {"sentence": self.sentence()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SeedEffect:
        """Read what ``to_json`` returned."""
        ends = values["interval"]
        known = {one.name: values[one.name] for one in fields(cls) if one.name in values}
        found = cls(**{**known, "interval": Interval(**ends) if ends else None})
        shares = [found.difference, *found.by_seed, *found.first_by_seed, *found.second_by_seed]
        if not all(isinstance(one, int | float) and math.isfinite(one) for one in shares):
            raise ValueError("a difference or score is no number")
        if {len(found.first_by_seed), len(found.second_by_seed)} - {0, len(found.by_seed)}:
            raise ValueError("not every seed has a score")
        return found


def seed_effect(
    first: Sequence[ResultSet], second: Sequence[ResultSet], cluster_by: str | None = None
) -> SeedEffect:
    """Compare runs of two ways of training, paired by their place: seed by seed.

    One run on the first side, such as an untuned model, is paired with every run of the second.
    Problems that come in groups count as groups, as in ``compare``. Raises ``UsageError`` for sides
    of other lengths and for sets that were stopped when clear, and what ``compare`` raises for sets
    that cannot be compared. Rounds that asked only what was not solved before do not count.
    """
    stopped = [one.name for one in (*first, *second) if STOP_RULE in one.header.details]
    if stopped:
        raise UsageError(
            f"{stopped[0]!r} was stopped when clear, so a test for a fixed number does not hold.",
            expected="runs that asked every question, for an effect over seeds",
            hint="tunesmith eval without --stop-when-clear",
        )
    if not second or len(first) not in (1, len(second)):
        raise UsageError(
            f"{len(first)} runs are compared with {len(second)} by seed.",
            expected="as many runs on both sides, in the same order of seeds, or one baseline",
            hint="tunesmith compare A-1 A-2 A-3 --seeds B-1 B-2 B-3",
        )
    baselines = list(first) * (len(second) if len(first) == 1 else 1)
    pairs = [
        (one.first_round(), other.first_round())
        for one, other in zip(baselines, second, strict=True)
    ]
    shared = matched([*first, *second])
    scored: list[tuple[Mapping[str, float], Mapping[str, float]]] = []
    trusted = True
    for one, other in pairs:
        ours, theirs = problem_scores(one.attempts), problem_scores(other.attempts)
        both = [key for key in shared if key in ours and key in theirs]
        trusted = trusted and len(both) >= (1 - MAX_UNGRADED) * len(shared)
        scored.append((ours, theirs))
    common = [key for key in shared if all(key in one for both in scored for one in both)]
    if not common:
        raise UsageError("No problem is graded in all runs.", expected="sets of the same problems")
    sides = [[[one[key] for key in common] for one in side] for side in zip(*scored, strict=True)]
    table = [[b - a for a, b in zip(*rows, strict=True)] for rows in zip(*sides, strict=True)]
    groups = groups_of({key: first[0].problems[key] for key in common}, cluster_by)
    counted = table
    if groups is not None:
        sums = [groups.sums(row)[0] for row in table]
        # Scaled so that the mean over groups is that over problems.
        counted = [[one * len(row) / len(common) for one in row] for row in sums]
    difference, interval, df, p = two_way(counted)
    return SeedEffect(
        first[0].name,
        second[0].name,
        len(pairs),
        len(common),
        _means(table),
        difference,
        interval,
        df,
        p if trusted else None,
        groups=None if groups is None else len(counted[0]),
        grouped_by=None if groups is None else groups.by,
        first_by_seed=_means(sides[0]),
        second_by_seed=_means(sides[1]),
    )


def _means(table: Sequence[Sequence[float]]) -> list[float]:
    return [math.fsum(row) / len(row) for row in table]


def two_way(
    table: Sequence[Sequence[float]],
) -> tuple[float, Interval | None, float | None, float | None]:
    """Return mean, 95% interval, degrees of freedom and p of a table of (seeds, problems).

    Seeds and problems are both drawn from many, so both spread the mean. Its variance is that of
    the seeds' means over the seeds plus that of the problems' means over the problems; what both
    hold of the residual is counted twice, which errs on the safe side (Clark 1973, min F'; Owen
    2007, «The pigeonhole bootstrap»). The degrees of freedom are Satterthwaite's.
    """
    import numpy as np
    from scipy.stats import t

    values = np.asarray(table, dtype=np.float64)
    seeds, problems = values.shape
    mean = float(values.mean())
    if seeds < 2 or problems < 2:
        return mean, None, None, None
    of_seeds = float(values.mean(axis=1).var(ddof=1)) / seeds
    of_problems = float(values.mean(axis=0).var(ddof=1)) / problems
    variance = of_seeds + of_problems
    if variance == 0:
        # Nothing varies, so only the signs of the seeds' differences tell anything.
        return mean, Interval(-1.0, 1.0), None, 1.0 if mean == 0 else 2.0 ** (1 - seeds)
    df = variance**2 / (of_seeds**2 / (seeds - 1) + of_problems**2 / (problems - 1))
    reach = float(t.ppf(0.975, df)) * math.sqrt(variance)
    ends = Interval(max(-1.0, mean - reach), min(1.0, mean + reach))
    return mean, ends, df, float(2 * t.sf(abs(mean) / math.sqrt(variance), df))
