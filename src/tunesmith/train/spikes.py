"""Loss spikes: steps whose loss lies far above that of the steps before them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.train.watch import RowSeen

WINDOW = 64
"""Steps before that say what is usual; fewer at the beginning of a run."""
FEWEST = 16
"""Steps without which no spike is called."""
DEVIATIONS = 6.0
"""Scaled median deviations above the median. In some 1,500 steps of ordinary runs (the built-in
model, batches of 4 to 32 rows, sums and mixed instructions) the largest was 3.6; losses are skewed
to the right, most of all those of small batches, so the 3 of a normal distribution is too few."""
NAMED = 3
"""Rows of a spike that are named."""
_SCALE = 1.4826


@dataclass(frozen=True, slots=True)
class Spike:
    """A step that stands out."""

    loss: float
    usual: float
    """The median of the steps before, in nats a token."""
    deviations: float
    """How many scaled median deviations the loss lies above it."""


def find_spike(before: Sequence[float], loss: float) -> Spike | None:
    """Return the spike that a step with this loss is, going by the losses of the steps before it.

    The scale is the median absolute deviation of the window, which holds until half of its steps
    are spikes themselves.
    """
    window = [one for one in before[-WINDOW:] if math.isfinite(one)]
    if len(window) < FEWEST or not math.isfinite(loss):
        return None
    usual = statistics.median(window)
    spread = _SCALE * statistics.median(abs(one - usual) for one in window)
    if spread <= 0 or loss - usual <= DEVIATIONS * spread:
        return None
    return Spike(loss, usual, (loss - usual) / spread)


def worst_rows(seen: Sequence[RowSeen], usual: float) -> list[RowSeen]:
    """Return the rows that lifted a step's loss most above the usual one, the worst first."""
    lifted = [row for row in seen if row.loss > usual]
    return sorted(lifted, key=lambda row: -(row.loss - usual) * row.tokens)[:NAMED]
