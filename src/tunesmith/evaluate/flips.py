"""Paired permutation: the test and the interval of a mean difference, by item or by group.

Under the null two models are exchangeable on every item (or on every group of items that belong
together), so each difference is as likely to have the other sign. The test flips signs; the
interval holds the shifts that the test would not reject. Both are exact for differences that are
symmetric about their mean, for any number of items and however they are distributed otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tunesmith.evaluate.betting import betting_interval
from tunesmith.evaluate.statistics import Interval

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DRAWS = 10_000
"""Random flips beside the observed signs."""
_BLOCK = 4_000_000
"""Numbers held in memory at once."""


def sign_flip_test(differences: Sequence[float], *, seed: int = 0) -> float:
    """Return the two-sided p-value of a paired permutation test of mean zero.

    Items that come in groups are given as the sums of their groups. The observed signs count as a
    draw, so that the smallest p-value is 1 / (1 + draws) (Phipson & Smyth 2010).
    """
    import numpy as np

    values = np.asarray([d for d in differences if d], dtype=np.float64)
    return float(sign_flip_p(values[:, None], seed=seed)[0]) if len(values) else 1.0


def sign_flip_p(columns: NDArray[np.float64], *, seed: int = 0) -> NDArray[np.float64]:
    """Return the p-value of each column of differences, (items, sets) → (sets,)."""
    import numpy as np

    observed = np.abs(columns.sum(axis=0)) * (1 - 1e-12)
    extreme = np.zeros(columns.shape[1], dtype=np.int64)
    for chosen in _subsets(len(columns), columns.shape[1], seed):
        extreme += (np.abs((1 - 2 * chosen) @ columns) >= observed).sum(axis=0)
    found: NDArray[np.float64] = (1 + extreme) / (1 + DRAWS)
    return found


def flip_interval(
    differences: Sequence[float],
    sizes: Sequence[float] | None = None,
    *,
    bound: float = 1.0,
    seed: int = 0,
) -> Interval:
    """Return the 95% interval of ``sum(differences) / sum(sizes)`` that belongs to sign flips.

    ``differences`` are those of items, or the sums of groups with their ``sizes``. Its ends are
    order statistics of the means of random subsets (Hartigan 1969, «Using subsample values as
    typical values»): a shift is rejected exactly where flipping the shifted differences is. Fewer
    than 6 items or groups can reject nothing at 5%, so their interval is all of ``±bound``. Equal
    differences show no spread; theirs is an interval by betting.
    """
    import numpy as np

    if not differences:
        raise ValueError("no differences")
    column = np.asarray(differences, dtype=np.float64)[:, None]
    weights = np.ones(len(column)) if sizes is None else np.asarray(sizes, dtype=np.float64)
    means = column[:, 0] / weights
    if np.ptp(means) < 1e-12:
        return betting_interval(means.tolist(), low=-bound, high=bound, seed=seed)
    low, high = flip_ends(column, weights, bound=bound, seed=seed)
    return Interval(float(low[0]), float(high[0]))


def flip_ends(
    columns: NDArray[np.float64],
    sizes: NDArray[np.float64],
    *,
    bound: float = 1.0,
    seed: int = 0,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the two ends of each column's interval, (groups, sets) → (sets,) twice."""
    import numpy as np

    means = []
    for chosen in _subsets(len(columns), columns.shape[1], seed):
        size = chosen @ sizes
        means.append((columns.T @ chosen[size > 0].T) / size[size > 0])
    found = np.concatenate(means, axis=1)
    # Not rejected: (1 + subsets at or below the shift) / (1 + draws) > 2.5%. An empty subset is on
    # both sides of every shift.
    least = int(0.025 * (1 + DRAWS)) - (DRAWS - found.shape[1])
    if least < 1:
        whole = np.full(columns.shape[1], bound)
        return -whole, whole
    # The whole set is a subset that may be drawn seldom: the interval always holds its mean.
    centre = columns.sum(axis=0) / sizes.sum()
    ordered = np.partition(found, (least - 1, found.shape[1] - least), axis=1)
    low = np.clip(np.minimum(ordered[:, least - 1], centre), -bound, bound)
    return low, np.clip(np.maximum(ordered[:, -least], centre), -bound, bound)


def _subsets(items: int, sets: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Yield blocks of random subsets as zeros and ones, (draws, items); the same for a seed."""
    import numpy as np

    generator = np.random.default_rng(seed)
    block = max(1, min(DRAWS, _BLOCK // max(1, items, sets)))
    for start in range(0, DRAWS, block):
        draws = min(block, DRAWS - start)
        yield generator.integers(0, 2, size=(draws, items)).astype(np.float64)
