"""Learning-rate schedules as functions of the step."""

from __future__ import annotations

import math

KINDS = ("linear", "cosine", "cosine_with_restarts", "constant")
RESTARTS = 3
"""Cosine waves of ``cosine_with_restarts``."""
LONGEST_WARMUP = 0.1
"""Share of a run that warm-up may take; more is cut."""


def warmup_steps(asked: int, ratio: float, total: int) -> tuple[int, bool]:
    """Return the warm-up in steps, and whether it was cut to a tenth of the run."""
    wanted = asked or math.ceil(ratio * total)
    most = math.floor(LONGEST_WARMUP * total)
    # A share that the user asked for by name is the user's.
    return (most, True) if asked and wanted > most else (min(wanted, total), False)


def factor(kind: str, step: int, total: int, warmup: int) -> float:
    """Return what the peak rate is multiplied by at a step, counted from 0."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, total - warmup)
    if kind == "constant":
        return 1.0
    if kind == "linear":
        return max(0.0, 1.0 - progress)
    if kind == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    if kind == "cosine_with_restarts":
        return 0.5 * (1 + math.cos(math.pi * (RESTARTS * min(progress, 1 - 1e-9) % 1.0)))
    raise ValueError(f"unknown schedule {kind!r}")
