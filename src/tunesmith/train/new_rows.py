"""The first steps after a vocabulary has grown: only the new rows are trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from tunesmith.models.vocabulary import tables


@dataclass(frozen=True, slots=True)
class NewRows:
    """Which rows are new, and for how many steps nothing else is trained."""

    first: int
    count: int
    steps: int


def keep_new_rows(model: Any, new: NewRows) -> None:
    """Drop every gradient but those of the new rows; what has none is not touched by a step."""
    model = getattr(model, "module", model)
    own = {id(table) for table in tables(model)}
    for parameter in model.parameters():
        if parameter.grad is None:
            continue
        if id(parameter) in own:
            parameter.grad[: new.first] = 0
            parameter.grad[new.first + new.count :] = 0
        else:
            parameter.grad = None


@contextmanager
def without_decay(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Let no weight decay: it would move the old rows of a table along with the new ones."""
    kept = [group["weight_decay"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    try:
        yield
    finally:
        for group, decay in zip(optimizer.param_groups, kept, strict=True):
            group["weight_decay"] = decay
