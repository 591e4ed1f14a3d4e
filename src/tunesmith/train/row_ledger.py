"""The ledger of rows: every row's loss each time it is trained, and what the course of it says.

Three things are read off it, none of which takes another pass over the rows:

- *never learnt*, *forgotten*: forgetting events (Toneva et al. 2019, arXiv:1812.05159), with
  «classified correctly» replaced by a probability of over a half a token, which makes the label
  the likeliest token.
- *suspect label*: rows that the others do not help to predict, in the manner of the small-loss
  criterion (Han et al. 2018, arXiv:1804.06872) and of the area under the margin over all passes
  (Pleiss et al. 2020, arXiv:2001.10528). A wrong answer is often wrong in few of its tokens, so
  the costliest token of the row stands for it, not the mean, which depends on the length.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tunesmith.train.watch import RowSeen

LEARNT = math.log(2)
"""Nats a token: below, a label has over half of the probability (the geometric mean), so no other
token is likelier."""
LOST = math.log(2)
"""A rise by so many nats a token halves the probability."""
DEVIATIONS = 3.5
"""Scaled median deviations beyond which a row is suspect: the cut-off of Iglewicz and Hoaglin
(1993, How to Detect and Handle Outliers) for the modified z-score, which this is."""
FEWEST_ROWS = 30
"""Under so many rows trained twice a median deviation says little, and none is called suspect."""
NEAR_ROWS = 16
"""So many rows, of the same step and where it is small of those beside it, say what loss is usual
at that time: enough for a median, and near enough while the loss falls fast."""
_SCALE = 1.4826
"""The standard deviation of a normal distribution over its median deviation."""
_COLUMNS = {"step": torch.int32, "row": torch.int32, "loss": torch.float32, "worst": torch.float32}


class RowLedger:
    """Loss and costliest token (nats) of every row each time it is trained, in order.

    A row's numbers are taken before the update of its own step.
    """

    def __init__(self) -> None:
        self._step, self._row = array("i"), array("i")
        self._loss, self._worst = array("f"), array("f")

    def __len__(self) -> int:
        return len(self._row)

    def add(self, step: int, seen: Sequence[RowSeen]) -> None:
        """Note the rows of one finished step."""
        for one in seen:
            self._step.append(step)
            self._row.append(one.row)
            self._loss.append(one.loss)
            self._worst.append(one.worst[0][1] if one.worst else 0.0)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the columns, for a file; each [rows trained]."""
        columns = (self._step, self._row, self._loss, self._worst)
        return {
            name: torch.tensor(column, dtype=dtype)
            for (name, dtype), column in zip(_COLUMNS.items(), columns, strict=True)
        }

    @classmethod
    def from_tensors(cls, kept: Mapping[str, torch.Tensor]) -> RowLedger:
        """Return the ledger that ``tensors`` made these of."""
        ledger = cls()
        ledger._step.extend(kept["step"].tolist())
        ledger._row.extend(kept["row"].tolist())
        ledger._loss.extend(kept["loss"].tolist())
        ledger._worst.extend(kept["worst"].tolist())
        return ledger

    def judge(self, rows: int) -> Verdict:
        """Say which of so many rows were never learnt, were forgotten, or have a suspect label."""
        step, row = np.array(self._step), np.array(self._row)
        loss, worst = np.array(self._loss, "f8"), np.array(self._worst, "f8")
        times = np.bincount(row, minlength=rows)
        courses: dict[int, list[float]] = {}
        for at, value in zip(self._row, self._loss, strict=True):
            courses.setdefault(at, []).append(value)
        several = {at: course for at, course in courses.items() if len(course) > 1}
        never = [at for at, course in several.items() if min(course) >= LEARNT]
        lost = [
            at
            for at, course in several.items()
            if min(course) < LEARNT and course[-1] >= min(course) + LOST
        ]
        deviations = _deviations(step, row, worst, rows)
        suspects = [int(at) for at in np.flatnonzero(deviations > DEVIATIONS)]
        return Verdict(
            rows,
            int(times.max()) if len(times) else 0,
            len(several),
            tuple(sorted(never, key=lambda at: (-courses[at][-1], at))),
            tuple(sorted(lost, key=lambda at: (min(courses[at]) - courses[at][-1], at))),
            tuple(sorted(suspects, key=lambda at: (-deviations[at], at))),
            {at: courses[at] for at in {*never, *lost, *suspects}},
            {at: round(float(deviations[at]), 2) for at in suspects},
            float(np.median(loss)) if len(loss) else 0.0,
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the courses of the losses say of the rows, which are named by their numbers."""

    rows: int
    passes: int
    """How often the row was trained that was trained most often."""
    judged: int
    """Rows that were trained more than once; only these can be learnt or forgotten."""
    never: tuple[int, ...]
    """Never below ``LEARNT``; the highest last loss first."""
    forgotten: tuple[int, ...]
    """Below ``LEARNT`` once and at least ``LOST`` higher at last; the largest rise first."""
    suspects: tuple[int, ...]
    """The most surprising first."""
    courses: dict[int, list[float]]
    """For each row named above its losses, in nats a token, in order."""
    deviations: dict[int, float]
    """For each suspect how many scaled median deviations it lies above the others."""
    usual: float
    """The median loss of all rows and passes."""


def _deviations(step: Any, row: Any, worst: Any, rows: int) -> Any:
    """Return by how many scaled median deviations each row's costliest token surprises.

    Taken from it, in every pass, is the median of the rows trained at about the same time; then
    the mean over the passes is compared with those of all rows. 0 for a row that was not trained
    twice: of planted labels one pass named as few as one right among four.
    """
    found = np.zeros(rows)
    times = np.bincount(row, minlength=rows)
    trained = times > 1
    if trained.sum() < FEWEST_ROWS:
        return found
    beyond = np.empty(len(step))
    steps, starts = np.unique(step, return_index=True)
    ends = np.append(starts[1:], len(step))
    each = len(step) / len(steps)
    near = max(0, math.ceil((NEAR_ROWS / each - 1) / 2))
    for number in range(len(steps)):
        first, last = starts[max(0, number - near)], ends[min(number + near, len(steps) - 1)]
        here = slice(starts[number], ends[number])
        beyond[here] = worst[here] - np.median(worst[first:last])
    mean = np.bincount(row, beyond, rows)[trained] / times[trained]
    middle = np.median(mean)
    spread = _SCALE * np.median(np.abs(mean - middle))
    if spread > 0:
        found[trained] = (mean - middle) / spread
    return found
