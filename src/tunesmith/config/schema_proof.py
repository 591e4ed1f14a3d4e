"""Settings of what an evaluation is held against: another set, and the rows of training."""

from __future__ import annotations

from pydantic import Field

from tunesmith.config.options import Options


class ProofOptions(Options):
    """Proof"""

    compare_with: str | None = None
    """Stored results of the same questions to compare with at the end."""
    stop_when_clear: bool = False
    """Ask in random order, and stop as soon as the difference to --compare-with is clear: its
    interval, which holds at every time, leaves out zero. Such a set gets no p-value of a fixed
    number."""
    clear_width: float | None = Field(default=None, gt=0, le=2)
    """With --stop-when-clear, stop as well once that interval is narrower than this (0.1: from 5
    points below to 5 points above)."""
    contamination: list[str] = Field(default_factory=list)
    """Files of training rows, or folders of runs; questions that overlap with a row are named with
    the place of both, and the score is also given without them."""
