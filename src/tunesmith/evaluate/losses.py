"""Losses of two models on the same held-out rows, compared per byte."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tunesmith.errors import DataError
from tunesmith.evaluate.statistics import Interval, jackknife_ratio

ONE_DOCUMENT = "no interval, since all held-out rows are of one document"


@dataclass(frozen=True, slots=True)
class RowLoss:
    """The summed loss of one held-out row under one model."""

    row: str
    """Stable name of the row, the same for both models."""
    loss: float
    """Summed over the row's scored tokens, in nats."""
    bytes: int
    """UTF-8 bytes that those tokens spell: comparable across tokenizers."""
    cluster: str | None = None
    """Rows of one document share it: they are resampled together."""


@dataclass(frozen=True, slots=True)
class LossComparison:
    """Loss per byte of two models on the same rows, in nats; differences are second − first."""

    rows: int
    clusters: int
    bytes: int
    missing: int
    """Rows that only one side has; left out."""
    first: float
    second: float
    difference: float
    interval: Interval | None
    """95%, by a jackknife over the clusters; None with fewer than two."""

    @property
    def significant(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.interval is not None and 0.0 not in self.interval

    def sentence(self, first: str = "base", second: str = "tuned") -> str:
        """Say in words what the losses show."""
        figures = f"{self.first:.4f} to {self.second:.4f} nats per byte"
        ends = self.interval
        interval = f"95% interval {ends.low:+.4f} to {ends.high:+.4f}" if ends else ONE_DOCUMENT
        span = f"difference {self.difference:+.4f}, {interval}, {self.rows} rows"
        if not self.significant:
            return f"No clear difference in held-out loss, {first} to {second}: {figures} ({span})."
        word = "lower" if self.difference < 0 else "higher"
        return f"The held-out loss of {second} is {word} than {first}'s: {figures} ({span})."

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as JSON knows it."""
        return asdict(self) | {"sentence": self.sentence()}


def compare_losses(first: Sequence[RowLoss], second: Sequence[RowLoss]) -> LossComparison:
    """Compare two models' losses per byte (ratio of sums) on the rows that both have scored.

    Raises ``DataError`` when no row is shared or a shared row has different bytes.
    """
    ours, theirs = ({row.row: row for row in rows} for rows in (first, second))
    if len(ours) < len(first) or len(theirs) < len(second):
        raise DataError("Two held-out rows have the same name.", expected="a name for each row")
    shared = [row.row for row in first if row.row in theirs]
    clusters: dict[str, list[float]] = {}
    for key in shared:
        one, other = ours[key], theirs[key]
        if one.bytes != other.bytes:
            raise DataError(
                f"Row {key!r} has {one.bytes} bytes for one model and {other.bytes} for the other.",
                expected="the same text for both models",
            )
        sums = clusters.setdefault(one.cluster if one.cluster is not None else key, [0.0, 0.0, 0.0])
        sums[0] += one.loss
        sums[1] += other.loss
        sums[2] += one.bytes
    total = sum(int(sums[2]) for sums in clusters.values())
    if not total:
        raise DataError("The two models share no held-out row with text.")
    losses = [math.fsum(sums[side] for sums in clusters.values()) for side in (0, 1)]
    interval = None
    weighty = [sums for sums in clusters.values() if sums[2]]
    if len(weighty) >= 2:
        parts = [second_sum - first_sum for first_sum, second_sum, _ in weighty]
        interval = jackknife_ratio(parts, [size for _, _, size in weighty])
    return LossComparison(
        rows=len(shared),
        clusters=len(weighty),
        bytes=total,
        missing=len(ours.keys() ^ theirs.keys()),
        first=losses[0] / total,
        second=losses[1] / total,
        difference=(losses[1] - losses[0]) / total,
        interval=interval,
    )
