"""How many problems, or groups of them, show a difference of a given size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

from tunesmith.evaluate.statistics import mcnemar_power, ratio_error

FEWEST = 6
"""Items or groups: fewer can show nothing at 5% by flipping signs."""
EXACT = 50_000
"""Up to so many problems the power is computed, beyond it approximated."""


def needed_pairs(
    discordance: float, difference: float, *, power: float = 0.8, alpha: float = 0.05
) -> int | None:
    """Return how many problems show this difference by McNemar's exact test with this power.

    ``discordance`` is the share of problems that differ. The exact power goes up and down a little
    from one number to the next; a number is returned from which a search by halves goes down. None
    for no difference at all.
    """
    if difference <= 0:
        return None
    discordance = max(discordance, difference)
    # Connor 1987; the exact test is a little more cautious.
    z, beyond = NormalDist().inv_cdf(1 - alpha / 2), NormalDist().inv_cdf(power)
    spread = math.sqrt(max(0.0, discordance - difference**2))
    high = math.ceil(((z * math.sqrt(discordance) + beyond * spread) / difference) ** 2)
    if high > EXACT:
        return high
    low = high // 2
    while mcnemar_power(high, discordance, difference, alpha) < power:
        low, high = high, high + max(8, high // 4)
    while high - low > 1:
        middle = (low + high) // 2
        enough = mcnemar_power(middle, discordance, difference, alpha) >= power
        low, high = (low, middle) if enough else (middle, high)
    return high


def needed_sums(
    sums: Sequence[float], sizes: Sequence[float] | None = None, *, power: float = 0.8
) -> int | None:
    """Return how many items or groups with the spread of these show a mean like theirs.

    By the normal approximation at the 5% level. None without a spread or a difference.
    """
    found = ratio_error(sums, sizes)
    if found is None or not found[1] or not found[0]:
        return None
    wanted = math.ceil(len(sums) * (_reach(power) * found[1] / abs(found[0])) ** 2)
    return max(FEWEST, wanted)


def detectable_sum(
    sums: Sequence[float], sizes: Sequence[float] | None = None, *, power: float = 0.8
) -> float | None:
    """Return the smallest mean difference that so many groups with this spread would show."""
    found = ratio_error(sums, sizes)
    return None if found is None or len(sums) < FEWEST else _reach(power) * found[1]


def _reach(power: float) -> float:
    return NormalDist().inv_cdf(0.975) + NormalDist().inv_cdf(power)
