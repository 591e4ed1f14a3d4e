"""Intervals and tests of a mean of values with known ends that hold at every time, by betting.

Against each possible mean a gambler bets a little on every value. Where the mean is true the bets
are fair, so her capital passes 2/alpha with a chance of at most alpha/2 on either side, whenever
one looks (Ville 1939); where it does, the mean is no longer possible. The hedged capital process
with predictable plug-in bets of Waudby-Smith & Ramdas (2023, «Estimating means of bounded random
variables by betting», JRSS B 86:1, theorem 3 and section 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunesmith.evaluate.statistics import Interval

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ALPHA = 0.05
STEPS = 2000
"""Possible means are tried on a grid of this many steps; ends are rounded outwards to it."""
_LARGEST_BET = {False: 0.75, True: 0.5}
"""Largest share of the capital at stake; smaller where nobody knows when it ends."""
_BLOCK = 2_000_000


@dataclass(frozen=True, slots=True)
class Anytime:
    """What is known of a mean after some values; it holds whenever one stopped."""

    interval: Interval
    """95%, at all times at once."""
    p: float
    """Of mean zero, two-sided; below 5% at any time with a chance of at most 5%."""


def betting_interval(
    values: Sequence[float], *, low: float = 0.0, high: float = 1.0, seed: int = 0
) -> Interval:
    """Return the 95% interval of the mean of a fixed number of values in [low, high].

    It holds for every number of values and every distribution between the ends; percentile and t
    intervals do not. The values are bet on in a random order that the seed decides.
    """
    import numpy as np

    if not values:
        raise ValueError("no values")
    ordered = np.random.default_rng(seed).permutation(np.asarray(values, dtype=np.float64))
    found = _interval((ordered - low) / (high - low), low, high, anytime=False)
    return found or Interval(low, high)


def anytime(differences: Sequence[float]) -> Anytime:
    """Return what is known of the mean of differences in [-1, 1], taken in a random order.

    Nothing is known where no mean is possible any more: then the order was none of chance.
    """
    import numpy as np

    if not differences:
        return Anytime(Interval(-1.0, 1.0), 1.0)
    scaled = (np.asarray(differences, dtype=np.float64) + 1) / 2
    interval = _interval(scaled, -1.0, 1.0, anytime=True)
    if interval is None:
        return Anytime(Interval(-1.0, 1.0), 1.0)
    capital = log_capital(scaled[:, None], np.asarray([0.5]), anytime=True)[0]
    return Anytime(interval, min(1.0, 2 * float(np.exp(-capital))))


def _interval(
    scaled: NDArray[np.float64], low: float, high: float, *, anytime: bool
) -> Interval | None:
    """Return the means that are possible; None where there is none."""
    import numpy as np

    grid, limit = np.linspace(0.0, 1.0, STEPS + 1), np.log(2 / ALPHA)
    capital = log_capital(scaled[:, None], grid, anytime=anytime)
    possible = np.flatnonzero(capital < limit)
    if not len(possible):
        # What is possible may lie between two steps, beside the one that lost least.
        best = int(np.argmin(capital))
        near = np.linspace(grid[max(0, best - 1)], grid[min(STEPS, best + 1)], STEPS + 1)
        if log_capital(scaled[:, None], near, anytime=anytime).min() >= limit:
            return None
        possible = np.asarray([best])
    # The mean itself is never given up for the grid's sake.
    centre = float(scaled.mean()) * STEPS
    first, last = int(possible[0]), int(possible[-1])
    ends = max(0.0, min(first - 1, centre)), min(float(STEPS), max(last + 1, centre))
    return Interval(*(low + (high - low) * end / STEPS for end in ends))


def log_capital(
    values: NDArray[np.float64], means: NDArray[np.float64], *, anytime: bool
) -> NDArray[np.float64]:
    """Return the log of the largest capital that bets against each mean have reached.

    ``values`` in [0, 1] are (items, sets), ``means`` (sets or 1 or, with one set, any number). The
    larger of the two gamblers' capitals is returned, one of whom bets on more, the other on less.
    """
    import numpy as np

    bets = _bets(values, anytime=anytime)
    most = _LARGEST_BET[anytime]
    width = max(values.shape[1], len(means))
    up, down, top = np.zeros(width), np.zeros(width), np.zeros(width)
    above = most / np.maximum(means, 1e-300)
    below = most / np.maximum(1 - means, 1e-300)
    block = max(1, _BLOCK // width)
    for start in range(0, len(values), block):
        here, stake = values[start : start + block] - means, bets[start : start + block]
        rising = up + np.cumsum(np.log1p(np.minimum(stake, above) * here), axis=0)
        falling = down + np.cumsum(np.log1p(-np.minimum(stake, below) * here), axis=0)
        top = np.maximum(top, np.maximum(rising.max(axis=0), falling.max(axis=0)))
        up, down = rising[-1], falling[-1]
    return top


def _bets(values: NDArray[np.float64], *, anytime: bool) -> NDArray[np.float64]:
    """Return the stake on each value, which depends on those before it alone."""
    import numpy as np

    times = np.arange(1, len(values) + 1)[:, None]
    means = (0.5 + np.cumsum(values, axis=0)) / (times + 1)
    variances = (0.25 + np.cumsum((values - means) ** 2, axis=0)) / (times + 1)
    before = np.concatenate([np.full((1, values.shape[1]), 0.25), variances[:-1]])
    horizon = times * np.log(times + 1) if anytime else np.full_like(times, len(values))
    found: NDArray[np.float64] = np.sqrt(2 * np.log(2 / ALPHA) / (before * horizon))
    return found
