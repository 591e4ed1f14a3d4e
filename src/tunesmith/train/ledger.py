"""Which rows were trained and which skipped: checked against the plan at the end."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from tunesmith.errors import TrainingError
from tunesmith.train.batches import Plan


@dataclass(slots=True)
class Ledger:
    """The rows of every step in order: their numbers, and a running hash over them."""

    count: int = 0
    """Rows trained."""
    digest: str = ""
    skipped: tuple[int, ...] = ()
    """Steps, counted from 0, that made no update."""
    skipped_rows: int = 0

    def add(self, rows: Sequence[int]) -> None:
        """Note the rows of one finished step."""
        self._hash(rows, "")
        self.count += len(rows)

    def skip(self, step: int, rows: Sequence[int]) -> None:
        """Note a step, counted from 0, that made no update."""
        self._hash(rows, "!")
        self.skipped += (step,)
        self.skipped_rows += len(rows)

    def _hash(self, rows: Sequence[int], mark: str) -> None:
        text = f"{self.digest}|{','.join(map(str, rows))}{mark}"
        self.digest = hashlib.sha256(text.encode()).hexdigest()

    @classmethod
    def planned(cls, plan: Plan, steps: int, skipped: Sequence[int] = ()) -> Self:
        """Return what a ledger must say after so many steps, of which these were skipped."""
        ledger, left_out = cls(), frozenset(skipped)
        for step in range(steps):
            rows = plan.step_rows(step)
            if step in left_out:
                ledger.skip(step, rows)
            else:
                ledger.add(rows)
        return ledger

    def check(self, plan: Plan, steps: int) -> None:
        """Raise ``TrainingError`` unless trained and skipped rows are those of so many steps."""
        planned = self.planned(plan, steps, self.skipped)
        if self != planned:
            raise TrainingError(
                f"The ledger does not add up: {self.count} rows were trained and "
                f"{self.skipped_rows} skipped, not the {planned.count + planned.skipped_rows} "
                "planned ones in the planned order."
            )

    def to_json(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {
            "count": self.count,
            "digest": self.digest,
            "skipped": list(self.skipped),
            "skipped_rows": self.skipped_rows,
        }

    @classmethod
    def from_json(cls, kept: dict[str, Any]) -> Self:
        """Return what a checkpoint has kept; older ones know of no skipped steps."""
        skipped = tuple(int(step) for step in kept.get("skipped", ()))
        return cls(
            int(kept["count"]), str(kept["digest"]), skipped, int(kept.get("skipped_rows", 0))
        )
