"""How many steps fit into a given time, and by which method: arithmetic on measured seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WORTH = 1.25
"""So many times the steps must fit for another method to be taken than the one asked for."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Measured seconds of what a run does besides its steps."""

    held_out: float
    """A held-out loss on the way, with the saving of the model that may follow it."""
    checkpoint: float
    end: float
    """After the last step: held-out losses, checkpoint, final model, answers and report."""


@dataclass(frozen=True, slots=True)
class Rhythm:
    """How often a run stops to look and to save, in steps."""

    held_out: int | None
    """None is never."""
    checkpoint: int


@dataclass(frozen=True, slots=True)
class Method:
    """A way to train, and the seconds of one of its steps."""

    name: str
    changes: Mapping[str, Any]
    """Settings that make it out of those asked for."""
    a_step: float


def seconds_of(steps: int, a_step: float, costs: Costs, rhythm: Rhythm) -> float:
    """Return what a run of so many steps takes from its first step to its end."""
    looks = (steps - 1) // rhythm.held_out if rhythm.held_out else 0
    saves = (steps - 1) // rhythm.checkpoint
    return steps * a_step + looks * costs.held_out + saves * costs.checkpoint + costs.end


def most_steps(seconds: float, a_step: float, costs: Costs, rhythm: Rhythm) -> int:
    """Return the most steps that end within so many seconds; 0 if not even one does."""
    low, high = 0, max(1, int(seconds / a_step) + 1)
    while low < high:
        middle = (low + high + 1) // 2
        if seconds_of(middle, a_step, costs, rhythm) <= seconds:
            low = middle
        else:
            high = middle - 1
    return low


def is_enough(steps: int, wanted: int, an_epoch: int) -> bool:
    """Say whether so many steps are what was wanted, or at least see every row once."""
    return steps >= min(wanted, an_epoch)


def choose(
    methods: Sequence[Method], seconds: float, costs: Costs, rhythm: Rhythm, wanted: int
) -> tuple[Method, int]:
    """Return the method to take and its steps, at most ``wanted``.

    The first method is the one asked for. A later one is taken only if it makes clearly more steps.
    """
    fits = [
        (method, min(wanted, most_steps(seconds, method.a_step, costs, rhythm)))
        for method in methods
    ]
    best, steps = max(fits, key=lambda fit: fit[1])
    return (best, steps) if steps > WORTH * fits[0][1] else fits[0]
