"""The memory of a run by arithmetic, and how many layers are computed again to make it fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunesmith.config.schema import FineTuningConfig
from tunesmith.workflows import console
from tunesmith.workflows.measured_plan import MeasuredPlan
from tunesmith.workflows.setup import Opened, loop_settings, plan_steps
from tunesmith.workflows.trial import as_trained

if TYPE_CHECKING:
    from tunesmith.train.batches import Plan
    from tunesmith.train.estimate import Memory
    from tunesmith.train.loop import Settings

PART = 0.9
"""Share of the free memory that a run is made to fit into."""


def training_memory(opened: Opened, plan: Plan, settings: Settings, accelerator: Any) -> Memory:
    """Add up the memory of the largest step; the model is trainable already."""
    from tunesmith.models.quantize import parameter_bytes
    from tunesmith.train import estimate
    from tunesmith.train.losses import lengths

    rows = opened.rows.rows
    shape, several = estimate.largest(
        rows, lengths(rows), plan, settings, accelerator.num_processes
    )
    model, dtype = opened.loaded.model, opened.loaded.dtype
    recomputing = opened.config.gradient_checkpointing != "no"
    return estimate.memory(
        estimate.on_meta(model, recompute=False, dtype=dtype),
        shape,
        several=several,
        recomputed=estimate.on_meta(model, dtype=dtype) if recomputing else None,
        optim=settings.optim,
        held=parameter_bytes(model),
    )


def settle_checkpointing(
    opened: Opened, accelerator: Any, measured: MeasuredPlan | None = None
) -> FineTuningConfig:
    """Return the settings with the number of layers that ``auto`` comes to, and say it.

    That is the smallest number with which the largest step fits into 90% of the free memory.
    """
    config = opened.config
    if config.gradient_checkpointing != "auto":
        return config
    measured = measured or MeasuredPlan(None)
    replayed = measured.get("gradient_checkpointing") is not None
    found = measured.take("gradient_checkpointing", lambda: _fewest(opened, accelerator))
    layers, of = found["layers"], found["of"]
    again = "none of the" if layers == 0 else f"{layers} of"
    console.say(
        f"Gradient checkpointing: {again} {of} layers are computed again; a step then takes "
        f"{found['bytes'] / 1e9:.2f} GB beside the weights, of {found['free'] / 1e9:.2f} GB free"
        + (" when this run began." if replayed else ".")
    )
    if found["bytes"] > PART * found["free"]:
        console.warn("that is more than 90% of it, and no further layer can be computed again")
    return config.model_copy(update={"gradient_checkpointing": layers or "no"})


def _fewest(opened: Opened, accelerator: Any) -> dict[str, int]:
    """Return the fewest layers, of how many, and the bytes that decided it."""
    from tunesmith.models.adapters import keep_activations, reached_layers, recompute_activations
    from tunesmith.models.memory import free_bytes

    free = free_bytes(accelerator.device)
    plan = plan_steps(opened.config, opened.rows, accelerator.num_processes, quiet=True)
    settings = loop_settings(opened.config, plan, opened.rows, opened.loaded, quiet=True)
    plain = opened.config.model_copy(update={"gradient_checkpointing": "no"})
    needed: dict[int, int] = {}

    def takes(layers: int) -> int:
        if layers not in needed:
            keep_activations(opened.loaded.model)
            if layers:
                recompute_activations(opened.loaded.model, layers)
            memory = training_memory(opened, plan, settings, accelerator)
            needed[layers] = memory.peak - memory.parameters
        return needed[layers]

    with as_trained(plain, opened.loaded) as model:
        of = len(reached_layers(model))
        low, high = 0, of
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if takes(middle) <= PART * free else (middle + 1, high)
        # Where nothing fits, the number with the least memory is still the best that can be done.
        best = low if takes(low) <= PART * free else min(range(of + 1), key=takes)
    return {"layers": best, "of": of, "bytes": takes(best), "free": free}
