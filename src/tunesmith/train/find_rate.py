"""The learning rate found by a sweep: train a little at rates that rise exponentially, and look.

The idea is Smith's range test (arXiv 1506.01186), swept exponentially. The curve is read by two
rules. Half the rate at which the loss is lowest is the first; a tenth of the rate at which the
loss diverged is the second, and caps the first, because a whole run at its peak rate is less
forgiving than one step of a sweep. The rate of the steepest fall, which the range test is mostly
read by, is far too low for fine-tuning: the form of the answers is learned there, before what they
say (``bench/LOG.md`` has the loss that each rule costs). With LoRA the curve starts flat: B is
zero, so the first updates hardly reach the output. No rule looks at where the curve begins.

Some batches are harder than others, and with small ones that hides the curve. So the untrained
model's loss on the same rows is taken from each step's loss, and its mean put back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tunesmith.errors import DivergedError
from tunesmith.train.batches import Plan
from tunesmith.train.loop import Settings, State, fit
from tunesmith.train.losses import row_losses
from tunesmith.train.snapshot import untouched
from tunesmith.types import Encoded

SMOOTHING = 0.9
"""Weight of the past in the smoothed loss."""
DIVERGED = 4.0
"""A loss above so many times the best smoothed one has diverged."""
CAP = 0.1
"""Share of the rate at divergence that a suggestion does not exceed."""
BELOW = 0.5
"""Share of the rate of the lowest loss that is suggested."""
WINDOW = 0.1
"""Half the width, as a share of the sweep, of the lines whose slopes are compared."""
CLEAR = 5.0
"""Standard errors by which the loss must have fallen; a sweep compares some dozen windows."""
WORTH = 0.01
"""Nats a token by which it must have fallen: below that there is nothing left to learn."""
FEWEST = 8
"""Steps below which no curve is read."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """The losses of a sweep."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    """Nats a trained token, of the step before whose update the rate applied."""
    untrained: tuple[float, ...]
    """The loss of the untrained model on the same rows."""
    diverged: float | None
    """Rate at which the sweep stopped, if the loss ran away."""
    rows: int
    """Rows that the steps saw, repeated ones counted again."""

    @property
    def level(self) -> tuple[float, ...]:
        """Return the losses as if every step had rows of the same difficulty."""
        if not self.untrained:
            return ()
        mean = sum(self.untrained) / len(self.untrained)
        pairs = zip(self.losses, self.untrained, strict=True)
        return tuple(loss - base + mean for loss, base in pairs)

    @property
    def smoothed(self) -> tuple[float, ...]:
        """Return the exponential mean of ``level``, corrected for its start."""
        return smooth(self.level)


@dataclass(frozen=True, slots=True)
class Reading:
    """What a sweep says."""

    suggestion: float | None
    """None is inconclusive."""
    steepest: float | None
    """Rate where the loss falls fastest; shown, and not what is suggested."""
    lowest: float | None
    """Rate where the loss is lowest."""
    cap: float | None
    """A tenth of the rate at divergence."""
    drop: float
    """Nats a token between the level of the start and the lowest one."""
    noise: float
    """Standard deviation of a step's loss around the curve."""
    clarity: float
    """The drop in standard errors."""
    reason: str


def rates(start: float, end: float, steps: int) -> tuple[float, ...]:
    """Return rates at equal distances in their logarithm."""
    return tuple(start * (end / start) ** (at / max(1, steps - 1)) for at in range(steps))


def smooth(losses: Sequence[float], past: float = SMOOTHING) -> tuple[float, ...]:
    """Return the exponential mean; divided by the weight so far, the start is not pulled to 0."""
    mean, found = 0.0, []
    for number, loss in enumerate(losses, 1):
        mean = past * mean + (1 - past) * loss
        found.append(mean / (1 - past**number))
    return tuple(found)


def sweep(
    state: State,
    rows: Sequence[Encoded],
    plan: Plan,
    settings: Settings,
    accelerator: Any,
    swept: Sequence[float],
    *,
    should_stop: Callable[[], bool] = lambda: False,
    seen: Callable[[float, float], None] | None = None,
) -> Sweep:
    """Take the plan's first steps at these rates, stop at divergence, and put all back as it was.

    ``seen`` is told the rate and the loss of each step.
    """
    used: list[float] = []
    losses: list[float] = []
    taken: list[tuple[int, ...]] = []
    diverged, best = None, math.inf
    with untouched(state):
        short = replace(plan, total_steps=state.step + len(swept))
        first = state.step
        steps = fit(
            state,
            rows,
            short,
            settings,
            accelerator,
            rate_at=lambda step: swept[step - first],
            should_stop=should_stop,
        )
        try:
            for done in steps:
                used.append(done.learning_rate)
                losses.append(done.loss)
                taken.append(done.rows)
                if seen is not None:
                    seen(done.learning_rate, done.loss)
                if done.loss > DIVERGED * best:
                    diverged = done.learning_rate
                    break
                best = min(best, smooth(losses)[-1])
        except DivergedError:
            # The update that broke it was made one step before the loss that showed it.
            diverged = used[-1] if used else swept[0]
    with untouched(state):
        untrained = _untrained(state, rows, taken, settings, accelerator)
    return Sweep(tuple(used), tuple(losses), untrained, diverged, sum(map(len, taken)))


def _untrained(
    state: State,
    rows: Sequence[Encoded],
    taken: Sequence[Sequence[int]],
    settings: Settings,
    accelerator: Any,
) -> tuple[float, ...]:
    """Return the losses that the model as it is has on the rows of each step."""
    places = sorted({at for members in taken for at in members})
    picked = [rows[at] for at in places]
    model = accelerator.unwrap_model(state.model)
    given = (accelerator.device, settings.capacity, settings.attention)
    sums = row_losses(model, picked, *given) if picked else []
    known = dict(zip(places, sums, strict=True))
    return tuple(
        sum(known[at][0] for at in members) / sum(known[at][1] for at in members)
        for members in taken
    )


def read(found: Sweep) -> Reading:
    """Read a sweep's curve: a suggestion, or why there is none."""
    cap = None if found.diverged is None else CAP * found.diverged
    losses = np.array(found.level[:-1] if found.diverged is not None else found.level)
    if len(losses) < FEWEST:
        return _nothing(cap, f"only {len(losses)} steps before the loss diverged; begin lower")
    half = max(3, round(WINDOW * len(losses)))
    if len(losses) <= 2 * half + 1:
        half = (len(losses) - 2) // 2
    log = np.log10(np.array(found.rates[: len(losses)]))
    middles = range(half, len(losses) - half)
    parts = [(slice(at - half, at + half + 1), log[at]) for at in middles]
    lines = [_line(log[part], losses[part], middle) for part, middle in parts]
    levels = np.array([level for level, _, _ in lines])
    # The median of the windows' residuals is not moved by the few that lie on the way up.
    noise = float(np.median([spread for _, _, spread in lines]))
    lowest = int(np.argmin(levels))
    drop = float(levels[0] - levels[lowest])
    # Both levels are means of a window's losses, give or take its line.
    clarity = drop / max(noise * math.sqrt(2 / (2 * half + 1)), 1e-12)
    if drop < WORTH or clarity < CLEAR:
        return Reading(None, None, None, cap, drop, noise, clarity, _why(drop, clarity, found))
    slopes = [slope for _, slope, _ in lines[: lowest + 1]]
    steepest = float(10 ** log[middles[int(np.argmin(slopes))]])
    least = float(10 ** log[middles[lowest]])
    rate = BELOW * least
    reason = f"half the rate of the lowest loss, {least:.2g}"
    if cap is not None and cap < rate:
        rate, reason = cap, f"a tenth of the rate at divergence, which is below {reason}"
    elif lowest == len(levels) - 1 and cap is None:
        reason += ", where the sweep ends and the loss still falls: a higher --lr-end may say more"
    return Reading(rate, steepest, least, cap, drop, noise, clarity, reason)


def _nothing(cap: float | None, reason: str) -> Reading:
    return Reading(None, None, None, cap, 0.0, 0.0, 0.0, reason)


def _why(drop: float, clarity: float, found: Sweep) -> str:
    if drop >= WORTH:
        return (
            f"the loss fell by {drop:.3f} nats a token, {clarity:.1f} standard errors of its "
            f"noise where {CLEAR:g} are wanted: more rows a step or more steps make it clearer"
        )
    if found.diverged is None:
        return (
            f"the loss did not fall (by {max(0.0, drop):.3f} nats a token) up to "
            f"{found.rates[-1]:.2g}: end at a higher rate, or the model knows these rows already"
        )
    return (
        f"the loss did not fall before it diverged at {found.diverged:.2g}: begin lower, or "
        "there is nothing to learn from these rows"
    )


def _line(x: Any, y: Any, at: float) -> tuple[float, float, float]:
    """Fit a line; return its value at ``at``, its slope and the spread of what is left."""
    slope, level = np.polyfit(x - at, y, 1)
    left = y - (level + slope * (x - at))
    return float(level), float(slope), float(np.sqrt((left**2).sum() / max(1, len(x) - 2)))
