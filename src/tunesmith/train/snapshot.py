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
    model, optimizer = state.model, state.optimizer
    kept = [(p, p.detach().clone()) for p in model.parameters() if p.requires_grad]
    # A deep copy, because the optimiser hands out the tensors that it goes on to change.
    saved = copy.deepcopy(optimizer.state_dict())
    step, ledger, overflows = state.step, replace(state.ledger), state.overflows
    scaler = state.scaler
    scale = scaler.state_dict() if scaler is not None else None
    with only_passing(model):
        try:
            yield
        finally:
            _put_back(kept)
            optimizer.zero_grad(set_to_none=True)
            optimizer.load_state_dict(saved)
            state.step, state.ledger, state.overflows = step, ledger, overflows
            if scaler is not None:
                scaler.load_state_dict(scale)


@contextmanager
def only_passing(model: Any) -> Iterator[None]:
    """Restore buffers, modes and random states at the end, to the bit, and drop the gradients.

    For forward and backward passes without an optimiser step: no weight is copied for it.
    """
    import numpy as np

    kept = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    modes = [(module, module.training) for module in model.modules()]
    generators = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        _put_back(kept)
        model.zero_grad(set_to_none=True)
        for module, training in modes:
            module.training = training
        random.setstate(generators[0])
        np.random.set_state(generators[1])
        torch.set_rng_state(generators[2])
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


def _put_back(kept: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    with torch.no_grad():
        for tensor, value in kept:
            tensor.copy_(value)
