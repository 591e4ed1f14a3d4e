"""Faults put into a model or optimiser at a chosen moment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

SAID = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes."
OUT_OF_MEMORY = {
    "cpu": lambda: RuntimeError(f"[enforce fail at alloc_cpu.cpp:118] {SAID}"),
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "python": MemoryError,
}


@contextmanager
def at_forward(model: Any, numbers: set[int], act: Any) -> Iterator[list[int]]:
    """Call ``act(output)`` at these forward passes, counted from 0; yields a list of one count."""
    count = [0]

    def hook(_: Any, __: Any, output: Any) -> Any:
        count[0] += 1
        return act(output) if count[0] - 1 in numbers else output

    handle = model.register_forward_hook(hook)
    try:
        yield count
    finally:
        handle.remove()


def nan_loss(output: Any) -> Any:
    output.logits = output.logits * float("nan")
    return output


def nan_gradient(output: Any) -> Any:
    """Leave the loss as it is, and let the gradients of the whole model be NaN."""
    output.logits.register_hook(lambda gradient: gradient * float("nan"))
    return output


def infinite_gradient(output: Any) -> Any:
    output.logits.register_hook(lambda gradient: gradient * float("inf"))
    return output


def no_memory(kind: str = "cpu", *, backward: bool = False) -> Any:
    def act(output: Any) -> Any:
        if not backward:
            raise OUT_OF_MEMORY[kind]()

        def fail(_: Any) -> None:
            raise OUT_OF_MEMORY[kind]()

        output.logits.register_hook(fail)
        return output

    return act


def break_weight(model: Any, steps: set[int]) -> Any:
    """Return an optimiser hook that makes a weight NaN after these updates, counted from 0."""
    count = [0]

    def hook(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if count[0] in steps:
            with torch.no_grad():
                optimizer.param_groups[0]["params"][0].view(-1)[3] = float("nan")
        count[0] += 1

    return hook
