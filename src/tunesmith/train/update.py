"""The update of a step, and what is known of the weights where memory runs out in it.

An optimiser takes most of its memory in its first update: two numbers a weight for AdamW.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from tunesmith.errors import OutOfMemoryError
from tunesmith.models.memory import free_bytes, give_back, is_out_of_memory

if TYPE_CHECKING:
    from tunesmith.train.loop import State


def update(state: State, accelerator: Any) -> None:
    """Make the optimiser's step; ``OutOfMemoryError`` where memory does not suffice for it.

    The error says whether weights and optimiser are still those of the step before: then nothing
    was changed, or what was only begun has been taken back.
    """
    optimizer = state.optimizer
    before = _versions(optimizer)
    known = set(optimizer.state)
    try:
        optimizer.step()
        return
    except (MemoryError, RuntimeError) as failure:
        if not is_out_of_memory(failure):
            raise
    optimizer.zero_grad(set_to_none=True)
    # Another library's kernels, a shard and a scaler that has counted the step leave no such mark.
    marked = type(optimizer).__module__.startswith("torch.optim") and state.scaler is None
    complete = marked and accelerator.num_processes == 1 and _versions(optimizer, known) == before
    for parameter in [one for one in optimizer.state if one not in known]:
        complete = complete and not optimizer.state.pop(parameter).get("step", 0)
    give_back(accelerator.device)
    weights = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    raise OutOfMemoryError(
        f"Memory ran out in the update of step {state.step + 1}: {type(optimizer).__name__} keeps "
        f"numbers for {weights:,} trained weights, and "
        f"{free_bytes(accelerator.device) / 1e9:,.2f} GB are free.",
        hint="--lora, --freeze-ratio 0.5, --optim adamw_8bit or --optim adafactor; for a run that "
        "goes on: --resume with --gradient-checkpointing and a smaller "
        "--per-device-train-batch-size with more --gradient-accumulation-steps",
        complete=complete,
    )


def _versions(optimizer: torch.optim.Optimizer, known: set[Any] | None = None) -> list[int]:
    """Return how often each tensor of the optimiser was changed in place.

    A fused kernel changes weights unseen, but every weight's count of steps is raised before.
    """
    return [tensor._version for tensor in _tensors(optimizer, known)]


def _tensors(optimizer: torch.optim.Optimizer, known: set[Any] | None) -> Iterator[torch.Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]
    for parameter, kept in optimizer.state.items():
        if known is None or parameter in known:
            yield from (value for value in kept.values() if isinstance(value, torch.Tensor))
