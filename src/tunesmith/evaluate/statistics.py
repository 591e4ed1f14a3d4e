"""The statistics that scores and comparisons are reported with.

All of them are exact or closed formulas, or resampling with a seed of its own, so that the same
answers give the same figures everywhere.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RESAMPLES = 10_000
_BLOCK = 4_000_000
"""Draws held in memory at once while resampling."""


@dataclass(frozen=True, slots=True)
class Interval:
    """The two ends of a confidence interval, in the unit of the estimate."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def wilson(successes: float, trials: int, confidence: float = 0.95) -> Interval:
    """Return Wilson's score interval for a proportion (Wilson 1927); (0, 1) without trials.

    ``successes`` may be a sum of scores in [0, 1]: such scores spread no more than right-or-wrong
    ones of the same mean, so the interval is then at least as wide as it has to be.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes in {trials} trials")
    if trials == 0:
        return Interval(0.0, 1.0)
    z2 = _z(confidence) ** 2
    share = successes / trials
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    spread = math.sqrt(z2 * share * (1 - share) / trials + (z2 / (2 * trials)) ** 2)
    half = spread / (1 + z2 / trials)
    # The ends are exact where rounding would leave 1e-17 or 0.9999.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == trials else min(1.0, centre + half)
    return Interval(low, high)


def mcnemar_exact(gained: int, lost: int) -> float:
    """Return the two-sided p-value of McNemar's exact test on the discordant pairs.

    Under the null each of the ``gained + lost`` pairs falls either way with probability 1/2
    (Edwards 1948; the binomial form of McNemar 1947).
    """
    if gained < 0 or lost < 0:
        raise ValueError(f"{gained} gained and {lost} lost pairs")
    pairs = gained + lost
    term = tail = 1
    for k in range(min(gained, lost)):
        term = term * (pairs - k) // (k + 1)
        tail += term
    return min(1.0, float(2 * tail / 2**pairs))


def paired_difference(both: int, gained: int, lost: int, neither: int) -> Interval:
    """Return the 95% interval for the difference of two paired proportions, second − first.

    Method 10 of Newcombe (1998, Statistics in Medicine 17:2635): the Wilson limits of the two
    proportions, joined with a continuity-corrected correlation. ``gained`` counts the items that
    only the second has right.
    """
    n = both + gained + lost + neither
    if n == 0:
        return Interval(-1.0, 1.0)
    second, first = (both + gained) / n, (both + lost) / n
    of_second, of_first = wilson(both + gained, n), wilson(both + lost, n)
    margins = (both + gained) * (lost + neither) * (both + lost) * (gained + neither)
    agreement = float(both * neither - gained * lost)
    if agreement > 0:
        agreement = max(0.0, agreement - n / 2)
    phi = agreement / math.sqrt(margins) if margins else 0.0
    difference = (gained - lost) / n

    def reach(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one * one - 2 * phi * one * other + other * other))

    low = difference - reach(second - of_second.low, of_first.high - first)
    high = difference + reach(first - of_first.low, of_second.high - second)
    return Interval(max(-1.0, low), min(1.0, high))


def mcnemar_power(n: int, discordance: float, difference: float, alpha: float = 0.05) -> float:
    """Return the exact power of McNemar's exact test.

    ``discordance`` is the share of pairs that differ, ``difference`` (0 to ``discordance``) the
    gain minus the loss as shares of all ``n`` pairs. The sum runs over all likely numbers of
    discordant pairs.
    """
    import numpy as np
    from scipy.stats import binom

    if not 0 <= difference <= discordance <= 1:
        raise ValueError(f"difference {difference} with discordance {discordance}")
    if n == 0 or discordance == 0:
        return 0.0
    low, high = binom.ppf([1e-9, 1 - 1e-9], n, discordance)
    pairs = np.arange(int(low), int(high) + 1)
    # The largest tail that still rejects: 2 P(X <= critical) <= alpha; −1 where none does.
    critical = binom.ppf(alpha / 2, pairs, 0.5)
    critical = np.where(binom.cdf(critical, pairs, 0.5) > alpha / 2, critical - 1, critical)
    towards = (discordance + difference) / (2 * discordance)
    rejects = binom.cdf(critical, pairs, towards) + binom.sf(pairs - critical - 1, pairs, towards)
    return float(np.sum(binom.pmf(pairs, n, discordance) * rejects))


def smallest_detectable(
    n: int, discordance: float, *, power: float = 0.8, alpha: float = 0.05
) -> float | None:
    """Return the smallest true difference that ``n`` pairs would show with this power.

    ``discordance`` is the expected share of pairs that differ; an effect larger than it needs at
    least as many. None when not even a difference of 1 would be shown.
    """

    def reaches(difference: float) -> bool:
        return mcnemar_power(n, max(discordance, difference), difference, alpha) >= power

    if not reaches(1.0):
        return None
    low, high = 0.0, 1.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return high


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return Holm's (1979) step-down adjusted p-values; None stays None and is not counted."""
    ranked = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(ranked):
        largest = max(largest, min(1.0, (len(ranked) - rank) * p))
        adjusted[i] = largest
    return adjusted


def bootstrap_mean(values: Sequence[float], *, bound: float = 1.0, seed: int = 0) -> Interval:
    """Return the 95% bootstrap-t interval of a mean within ±``bound`` (paired: of differences).

    Studentised (Efron & Tibshirani 1993, section 12.5): the percentile interval is too narrow for
    few values.
    """
    import numpy as np

    if not values:
        raise ValueError("no values")
    column = np.asarray(values, dtype=np.float64)[:, None]
    low, high = bootstrap_ends(column, bound=bound, seed=seed)
    return Interval(float(low[0]), float(high[0]))


def bootstrap_ends(
    columns: NDArray[np.float64], *, bound: float = 1.0, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the two ends of each column's bootstrap-t interval, (items, sets) → (sets,) twice.

    A draw of equal values has no spread to divide by; away from the mean it counts as far out.
    """
    import numpy as np

    n, sets = columns.shape
    mean, spread = columns.mean(axis=0), columns.std(axis=0)
    centred = columns - mean
    generator = np.random.default_rng(seed)
    block = max(1, min(RESAMPLES, _BLOCK // max(n, sets)))
    parts = []
    for start in range(0, RESAMPLES, block):
        draws = min(block, RESAMPLES - start)
        chosen = generator.integers(0, n, size=(draws, n)) + n * np.arange(draws)[:, None]
        drawn = np.bincount(chosen.ravel(), minlength=draws * n).reshape(draws, n) / n
        away = centred.T @ drawn.T
        variance = np.maximum(centred.T**2 @ drawn.T - away**2, 0.0)
        away[np.abs(away) < 1e-15] = 0.0
        with np.errstate(divide="ignore", invalid="ignore"):
            error = np.sqrt(np.where(variance < 1e-18, 0.0, variance))
            parts.append(np.where(away == 0, 0.0, away / error))
    cut = max(1, int(0.025 * RESAMPLES))
    ordered = np.partition(np.concatenate(parts, axis=1), (cut - 1, RESAMPLES - cut), axis=1)
    with np.errstate(invalid="ignore"):
        reach = [spread * ordered[:, at] for at in (-cut, cut - 1)]
        ends = [np.where(spread > 0, mean - one, mean) for one in reach]
    return np.clip(ends[0], -bound, bound), np.clip(ends[1], -bound, bound)


def ratio_error(
    parts: Sequence[float], sizes: Sequence[float] | None = None
) -> tuple[float, float] | None:
    """Return ``sum(parts)/sum(sizes)`` and its standard error by leaving out one item at a time.

    Items may be clusters, summed beforehand: the jackknife holds with few clusters of unequal
    sizes, where linearised errors are too small (MacKinnon, Nielsen & Webb 2023, CV3). None with
    fewer than two items.
    """
    weights = [1.0] * len(parts) if sizes is None else sizes
    total, size, n = math.fsum(parts), math.fsum(weights), len(parts)
    if n < 2 or any(size == one for one in weights):
        return None
    estimate = total / size
    left_out = [(total - p) / (size - w) for p, w in zip(parts, weights, strict=True)]
    squares = math.fsum((one - estimate) ** 2 for one in left_out)
    return estimate, math.sqrt((n - 1) / n * squares)


def jackknife_ratio(
    parts: Sequence[float], sizes: Sequence[float], low: float = -math.inf, high: float = math.inf
) -> Interval | None:
    """Return the 95% interval of ``sum(parts)/sum(sizes)`` within its range; None without two.

    The jackknife's error with Student's t, over items or over clusters that were summed.
    """
    from scipy.stats import t

    found = ratio_error(parts, sizes)
    if found is None:
        return None
    estimate, error = found
    reach = float(t.ppf(0.975, len(parts) - 1)) * error
    return Interval(max(low, estimate - reach), min(high, estimate + reach))


def jackknife(estimate: float, left_out: Sequence[float]) -> Interval:
    """Return the 95% interval of an estimate from its values without each group of the data.

    The grouped jackknife (Tukey 1958) with Student's t: the groups are of nearly equal size.
    """
    from scipy.stats import t

    groups = len(left_out)
    if groups < 2:
        raise ValueError(f"{groups} group")
    mean = math.fsum(left_out) / groups
    spread = math.sqrt((groups - 1) / groups * math.fsum((one - mean) ** 2 for one in left_out))
    reach = float(t.ppf(0.975, groups - 1)) * spread
    return Interval(estimate - reach, estimate + reach)


def pass_at_k(attempts: int, correct: int, k: int) -> float:
    """Return the unbiased estimate of pass@k from ``attempts`` (Chen et al. 2021, eq. 1)."""
    if not 0 <= correct <= attempts or not 1 <= k <= attempts:
        raise ValueError(f"pass@{k} of {correct} correct in {attempts} attempts")
    return 1 - math.comb(attempts - correct, k) / math.comb(attempts, k)


def majority(answers: Iterable[str | None]) -> str | None:
    """Return the most frequent answer, the earliest among equals; None if none was parsed."""
    counts = Counter(answer for answer in answers if answer is not None)
    return max(counts, key=counts.__getitem__) if counts else None
