"""The memory of a run by arithmetic, and how many layers are computed again to make it fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunesmith.workflows.setup import Opened

if TYPE_CHECKING:
    from tunesmith.train.batches import Plan
    from tunesmith.train.estimate import Memory
    from tunesmith.train.loop import Settings


def training_memory(opened: Opened, plan: Plan, settings: Settings, accelerator: Any) -> Memory:
    """Add up the memory of the largest step; the model is trainable already."""
    from tunesmith.train import estimate
    from tunesmith.train.losses import lengths

    rows = opened.rows.rows
    shape, several, _ = estimate.largest(
        rows, lengths(rows), plan, settings, accelerator.num_processes
    )
    model = opened.loaded.model
    recomputing = opened.config.gradient_checkpointing
    return estimate.memory(
        estimate.on_meta(model, recompute=False),
        shape,
        several=several,
        recomputed=estimate.on_meta(model, recompute=True) if recomputing else None,
        optim=settings.optim,
    )
