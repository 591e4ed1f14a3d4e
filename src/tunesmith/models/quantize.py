"""Weights in four or eight bits through bitsandbytes: how they are loaded, and what they take.

Only linear layers inside the blocks are quantised. The head, the embeddings and the norms stay in
the type of the weights, and what is trained is an adapter on top.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from transformers import BitsAndBytesConfig

ROUNDED = "Products with it round their inputs to eight bits, too (on a CPU outside training only)."
NAMES = {"4bit": "NF4 with double quantisation", "8bit": "int8"}


@dataclass(frozen=True, slots=True)
class Quantised:
    """What became of a model's weights."""

    bits: str
    """4bit or 8bit."""
    modules: int
    bytes_before: int
    """Of the quantised matrices, in the type that the model would have otherwise."""
    bytes_after: int
    """Of the same, scales included."""
    others: int
    """Bytes of all that stays as it is: head, embeddings, norms, biases."""

    @property
    def name(self) -> str:
        """Return the format's name."""
        return NAMES[self.bits]

    def __str__(self) -> str:
        before, after = self.bytes_before / 1e6, self.bytes_after / 1e6
        return (
            f"Quantised to {self.name}: {self.modules} linear layers, {before:,.1f} MB to "
            f"{after:,.1f} MB; head, embeddings and norms ({self.others / 1e6:,.1f} MB) are not"
        )


def quantisation_config(bits: str, dtype: torch.dtype) -> Any:
    """Return what transformers needs to quantise while it loads; ``dtype`` is that of products."""
    if bits == "8bit":
        # It says of each layer that inputs pass through float16, which is how eight bits work.
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def is_quantised(module: Any) -> bool:
    """Say whether a linear layer holds its weight in four or eight bits."""
    # Its own one: a layer of an adapter shows the weight of the layer that it wraps.
    own = getattr(module, "_parameters", {}).get("weight")
    return type(own).__name__ in ("Params4bit", "Int8Params")


def elements(parameter: Any) -> int:
    """Return the numbers of a weight; four-bit ones lie two in a byte."""
    state = getattr(parameter, "quant_state", None)
    return int(parameter.numel() if state is None else state.shape.numel())


def weight_bytes(parameter: Any) -> int:
    """Return the bytes of a weight, the scales of a quantised one included."""
    size = int(parameter.numel() * parameter.element_size())
    state = getattr(parameter, "quant_state", None)
    if state is not None:
        tensors = state.as_dict(packed=True).values()
        return size + sum(int(t.numel() * t.element_size()) for t in tensors)
    scales = getattr(parameter, "SCB", None)
    return size if scales is None else size + int(scales.numel() * scales.element_size())


def parameter_bytes(model: Any) -> int:
    """Return the bytes of all weights as they lie in memory."""
    scales = sum(
        module.state.SCB.numel() * module.state.SCB.element_size()
        for module in model.modules()
        if _moved_scales(module)
    )
    return int(scales) + sum(weight_bytes(p) for p in model.parameters())


def _moved_scales(module: Any) -> bool:
    """Say whether an eight-bit layer has taken the scales from its weight, as a forward does."""
    state = getattr(module, "state", None)
    return (
        is_quantised(module)
        and getattr(state, "SCB", None) is not None
        and getattr(module.weight, "SCB", None) is None
    )


def look_at(model: Any, bits: str, dtype: torch.dtype) -> Quantised:
    """Count what was quantised of a model that was just loaded."""
    weights = [module.weight for module in model.modules() if is_quantised(module)]
    after = sum(map(weight_bytes, weights))
    return Quantised(
        bits,
        len(weights),
        sum(map(elements, weights)) * dtype.itemsize,
        after,
        parameter_bytes(model) - after,
    )


def plain_shells(model: Any, dtype: torch.dtype) -> dict[int, torch.nn.Linear]:
    """Return for each quantised layer, by its id, a frozen plain one on the meta device.

    In a forward pass they keep the same activations, so memory can be counted with them.
    """
    shells = {}
    for module in model.modules():
        if is_quantised(module):
            bias = module.bias is not None
            shell = torch.nn.Linear(
                module.in_features, module.out_features, bias, device="meta", dtype=dtype
            )
            shells[id(module)] = shell.requires_grad_(False)
    return shells
