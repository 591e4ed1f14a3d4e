"""Weights for delivery: quantised ones made plain, an adapter folded in, folders written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tunesmith.data.render import Renderer
from tunesmith.errors import ModelError
from tunesmith.models.device import DTYPES
from tunesmith.models.load import LoadedModel, load
from tunesmith.models.quantize import is_quantised


@dataclass(frozen=True, slots=True)
class Folded:
    """A plain model in float32, without adapter and without quantised layers."""

    model: Any
    folded: bool
    """Whether an adapter was folded in."""
    dequantised: int
    """Linear layers that had been quantised."""


def dequantise(model: Any) -> int:
    """Put a plain layer in the place of each one that bitsandbytes quantised; return how many."""
    found = [name for name, module in model.named_modules() if is_quantised(module)]
    for name in found:
        parent, _, own = name.rpartition(".")
        layer = model.get_submodule(name)
        plain = torch.nn.Linear(
            layer.in_features, layer.out_features, layer.bias is not None, device="meta"
        )
        plain.weight = torch.nn.Parameter(_plain_weight(layer), requires_grad=False)
        if layer.bias is not None:
            plain.bias = torch.nn.Parameter(layer.bias.detach().float(), requires_grad=False)
        setattr(model.get_submodule(parent), own, plain)
    model.is_quantized = False
    if getattr(model.config, "quantization_config", None) is not None:
        del model.config.quantization_config
    model.hf_quantizer = None
    return len(found)


def _plain_weight(layer: Any) -> torch.Tensor:
    import bitsandbytes.functional as functions

    weight = layer.weight
    if type(weight).__name__ == "Params4bit":
        return functions.dequantize_4bit(weight.data, weight.quant_state).float()
    scales = weight.SCB if getattr(weight, "SCB", None) is not None else layer.state.SCB
    return weight.data.float() * (scales.float() / 127)[:, None]


def fold(loaded: LoadedModel, bits: str | None = None) -> Folded:
    """Fold the adapter of a loaded model into its weights; ``loaded`` is not to be used after it.

    Quantised layers are made plain first: folded into rounded numbers, an adapter would be rounded
    away. For that the model is loaded again, since PEFT wraps a quantised layer in a class of its
    own. Raises ``ModelError`` for weights that are not finite.
    """
    model, count = loaded.model, 0
    if loaded.quantised is not None or getattr(model, "is_quantized", False):
        loaded.model = None
        model = load(loaded.ref.path, dtype="float32", device=str(loaded.device), bits=bits).model
        count = dequantise(model)
        if loaded.ref.adapter:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, loaded.ref.adapter)
    folded = hasattr(model, "merge_and_unload")
    if folded:
        try:
            model = model.merge_and_unload(safe_merge=True)
        except ValueError as failure:
            raise ModelError(f"The adapter cannot be folded in: {failure}") from None
    model.eval().float()
    return Folded(model, folded, count)


def save_adapter(loaded: LoadedModel, renderer: Renderer, folder: Path) -> None:
    """Write the adapter alone, as PEFT lays it out, with tokenizer, template and stop tokens."""
    loaded.model.save_pretrained(folder, save_embedding_layers=False)
    generation = loaded.model.generation_config
    save_words(loaded.tokenizer, renderer, generation, folder)


def save_merged(
    folded: Folded, tokenizer: Any, renderer: Renderer, folder: Path, dtype: str
) -> None:
    """Write a whole model folder in a type of weights; the model is in that type afterwards.

    Raises ``ModelError`` where a weight does not fit into the type.
    """
    model, wanted = folded.model, DTYPES[dtype]
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value.to(wanted)).all()):
            raise ModelError(
                f"{name} holds numbers that {dtype} cannot: up to {float(value.abs().max()):.3g}.",
                hint="--dtype bfloat16, or float32",
            )
    model.to(wanted)
    model.config.dtype = wanted
    model.generation_config.eos_token_id = list(renderer.stop_ids)
    model.save_pretrained(folder)
    save_words(tokenizer, renderer, model.generation_config, folder)


def save_words(tokenizer: Any, renderer: Renderer, generation: Any, folder: Path) -> None:
    """Write tokenizer, chat template and stop tokens."""
    tokenizer.chat_template = renderer.template
    tokenizer.save_pretrained(folder)
    generation.eos_token_id = list(renderer.stop_ids)
    generation.save_pretrained(folder)
