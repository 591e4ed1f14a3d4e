"""A model trained for a look, and then put back as if nothing had happened."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from tunesmith.train.loop import State


@contextmanager
def untouched(state: State) -> Iterator[None]:
    """Restore weights, buffers, optimiser, ledger, mode and random states at the end, to the bit.

    Only what is trained is copied: that many bytes are needed on top, on the model's device.
    """
    import numpy as np

    model, optimizer = state.model, state.optimizer
    kept = [(tensor, tensor.detach().clone()) for tensor in _changing(model)]
    # A deep copy, because the optimiser hands out the tensors that it goes on to change.
    saved = copy.deepcopy(optimizer.state_dict())
    step, ledger, modes = state.step, replace(state.ledger), _modes(model)
    overflows, scaler = state.overflows, state.scaler
    scale = scaler.state_dict() if scaler is not None else None
    generators = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in kept:
                tensor.copy_(value)
        optimizer.zero_grad(set_to_none=True)
        optimizer.load_state_dict(saved)
        state.step, state.ledger, state.overflows = step, ledger, overflows
        if scaler is not None:
            scaler.load_state_dict(scale)
        for module, training in modes:
            module.training = training
        random.setstate(generators[0])
        np.random.set_state(generators[1])
        torch.set_rng_state(generators[2])
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


def _changing(model: Any) -> list[torch.Tensor]:
    return [*(p for p in model.parameters() if p.requires_grad), *model.buffers()]


def _modes(model: Any) -> list[tuple[Any, bool]]:
    return [(module, module.training) for module in model.modules()]
