"""What a step saw of its rows: the loss and the right tokens of each, without another pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tunesmith.train.losses import TokenLosses

WORST = 3
"""Costliest tokens of a row that are kept until the next step."""


@dataclass(frozen=True, slots=True)
class RowSeen:
    """One row in the step that trained it, before the step's update."""

    row: int
    loss: float
    """Nats a trained token, weighted as in training."""
    tokens: int
    """Trained tokens."""
    right: int
    """Those whose label was the model's likeliest token."""
    worst: tuple[tuple[int, float], ...]
    """(number among the row's trained tokens, nats) of the costliest ones, the worst first."""


class Watch:
    """Collects the token losses of one step's micro-batches; they stay on the device meanwhile."""

    def __init__(self) -> None:
        self._members: list[int] = []
        self._counts: list[int] = []
        self._parts: list[torch.Tensor] = []

    def add(self, members: Sequence[int], found: TokenLosses) -> None:
        """Note a micro-batch whose backward pass is done."""
        self._members += members
        self._counts += found.counts
        kept = torch.stack([found.losses.detach(), found.weights, found.hits.to(found.weights)])
        self._parts.append(kept.double().T.flatten())

    def finish(
        self, total: torch.Tensor, picked: Sequence[int], accelerator: Any
    ) -> tuple[float, tuple[RowSeen, ...]]:
        """Return the step's loss and its rows in the order of ``picked``.

        ``total`` is this process's share of the loss, float64. It comes to the CPU in one move
        with the token losses, so the step waits for the device once, as without a watch. With
        several processes, each of which has rows of its own, what is kept of a row is summed.
        """
        here = torch.cat([total[None], *self._parts]).cpu().numpy()
        found = self._rows(here[1:].reshape(-1, 3))
        loss = float(here[0])
        if accelerator.num_processes > 1:
            loss, found = _gathered(loss, found, picked, accelerator)
        return loss, tuple(found[row] for row in picked)

    def _rows(self, tokens: np.ndarray) -> dict[int, RowSeen]:
        """Cut [trained tokens, (loss, weight, hit)] into rows."""
        found, start = {}, 0
        for row, count in zip(self._members, self._counts, strict=True):
            losses, weights, hits = tokens[start : start + count].T
            start += count
            costly = losses.argsort()[::-1][:WORST]
            worst = tuple((int(at), float(losses[at])) for at in costly)
            mean = float((losses * weights).sum() / weights.sum()) if count else 0.0
            found[row] = RowSeen(row, mean, count, int(hits.sum()), worst)
        return found


def _gathered(
    loss: float, found: dict[int, RowSeen], picked: Sequence[int], accelerator: Any
) -> tuple[float, dict[int, RowSeen]]:
    """Sum what all processes have seen; a row is in one of them and zero in the others."""
    width = 3 + 2 * WORST
    table = np.zeros((len(picked), width))
    for line, row in zip(table, picked, strict=True):
        if row in found:
            seen = found[row]
            pairs = [number for pair in seen.worst for number in pair]
            values = [seen.loss, seen.tokens, seen.right, *pairs]
            line[: len(values)] = values
    flat = torch.tensor([loss, *table.flatten()], dtype=torch.float64, device=accelerator.device)
    summed = accelerator.reduce(flat, "sum").cpu().numpy()
    rows = {}
    for row, line in zip(picked, summed[1:].reshape(-1, width), strict=True):
        tokens = int(line[1])
        worst = [(int(at), float(nats)) for at, nats in line[3:].reshape(-1, 2)]
        rows[row] = RowSeen(row, float(line[0]), tokens, int(line[2]), tuple(worst[:tokens]))
    return float(summed[0]), rows
