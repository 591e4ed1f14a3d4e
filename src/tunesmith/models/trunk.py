"""The trunk: the frozen layers at the bottom of a model, whose output for a row never changes.

Its output is caught where its last layer hands it on, and put back in the same place, so that the
model's own code runs around it: masks, positions, the scale of embeddings, norms and head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch

from tunesmith.models.adapters import blocks


@dataclass(slots=True)
class Trunk:
    """The frozen layers, from the bottom."""

    model: Any
    layers: tuple[torch.nn.Module, ...]
    outputs: int = 0
    """Length of the tuple that a layer returns, 0 for a lone tensor; known once it has run."""


class _EndOfTrunk(Exception):
    """Ends a forward pass whose rest is not wanted."""


def find_trunk(model: Any) -> Trunk:
    """Return the layers from the bottom in which nothing is trained; there may be none."""
    frozen = takewhile(lambda layer: not _trains(layer), blocks(model))
    return Trunk(model, tuple(frozen))


def _trains(module: torch.nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


@contextmanager
def caught(trunk: Trunk, *, whole: bool = False) -> Iterator[list[torch.Tensor]]:
    """Let a forward pass inside end behind the trunk; the list then holds the trunk's output.

    ``whole`` lets it go on through the layers above.

    The model is in evaluation mode meanwhile: nothing of the trunk may be left to chance.
    """
    found: list[torch.Tensor] = []

    def stop(_: torch.nn.Module, __: Any, output: Any) -> None:
        several = isinstance(output, tuple)
        trunk.outputs = len(output) if several else 0
        found.append(output[0] if several else output)
        if not whole:
            raise _EndOfTrunk

    hook = trunk.layers[-1].register_forward_hook(stop)
    try:
        with in_evaluation(trunk.model):
            yield found
    except _EndOfTrunk:
        pass
    finally:
        hook.remove()


@contextmanager
def replaced(trunk: Trunk, states: torch.Tensor) -> Iterator[None]:
    """Let the trunk's layers compute nothing, and the last of them hand on ``states``.

    ``states`` are [rows, tokens, width], as a forward pass of the same rows would have them there.
    """

    def returned(value: Any) -> Any:
        return (value, *[None] * (trunk.outputs - 1)) if trunk.outputs else value

    def pass_on(*given: Any, **named: Any) -> Any:
        return returned(given[0] if given else named["hidden_states"])

    def hand_out(*_: Any, **__: Any) -> Any:
        return returned(states)

    before = [layer.__dict__.get("forward") for layer in trunk.layers]
    try:
        for layer in trunk.layers[:-1]:
            layer.forward = pass_on
        trunk.layers[-1].forward = hand_out
        yield
    finally:
        for layer, own in zip(trunk.layers, before, strict=True):
            if own is None:
                layer.__dict__.pop("forward", None)
            else:
                layer.forward = own


@contextmanager
def in_evaluation(model: Any) -> Iterator[None]:
    """Switch a model to evaluation and each of its modules back to the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def shares_layers(model: Any) -> bool:
    """Say whether later layers use keys and values that earlier ones have computed."""
    config = getattr(model, "config", None)
    text = getattr(config, "text_config", None) or config
    return bool(getattr(text, "num_kv_shared_layers", 0))


def trained_below(trunk: Trunk, output: torch.Tensor) -> str | None:
    """Return the name of a trained parameter that the trunk's output depends on, if any.

    ``output`` is what a forward pass with gradients handed out there.
    """
    trained = [(n, p) for n, p in trunk.model.named_parameters() if p.requires_grad]
    if not output.requires_grad or not trained:
        return None
    # Every output depends on the table, which may take its gradient another way (fused_layers).
    table = trunk.model.get_input_embeddings().weight
    for name, parameter in trained:
        if parameter is table:
            return str(name)
    gradients = torch.autograd.grad(
        output.float().sum(), [p for _, p in trained], allow_unused=True
    )
    reached = (
        n for (n, _), gradient in zip(trained, gradients, strict=True) if gradient is not None
    )
    return next(reached, None)
