"""Parameter groups: which rate and which decay each trained weight has."""

from __future__ import annotations

from typing import Any

import torch

from tunesmith.errors import TrainingError
from tunesmith.models.adapters import blocks


def parameter_groups(
    model: Any,
    rate: float,
    weight_decay: float,
    *,
    lora_plus: float = 1.0,
    layer_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """Group what is trained by decay and rate; norms and biases are not decayed.

    ``initial_lr`` of a group is its rate at the peak of the schedule. ``lora_plus`` multiplies the
    rate of every LoRA matrix B. ``layer_decay`` multiplies it once more with each layer downwards:
    the top one, the last norm and a head of its own keep the full rate, the embeddings, tied to a
    head or not, lie below the first.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not trained:
        raise TrainingError("Nothing of the model is trained.", hint="lower --freeze-ratio")
    depths = _depths(model) if layer_decay != 1 else {}
    groups: dict[tuple[bool, float], list[Any]] = {}
    for name, parameter in trained:
        scale = layer_decay ** depths.get(parameter, 0)
        scale *= lora_plus if ".lora_B." in name else 1.0
        groups.setdefault((parameter.dim() > 1, scale), []).append(parameter)
    # The order numbers the optimiser's state in a checkpoint, so it follows from the keys alone.
    return [
        {
            "params": groups[decayed, scale],
            "weight_decay": weight_decay if decayed else 0.0,
            "lr": rate * scale,
            "initial_lr": rate * scale,
        }
        for decayed, scale in sorted(groups, reverse=True)
    ]


def _depths(model: Any) -> dict[Any, int]:
    """Return how many layers lie above each parameter of the layers and the embeddings."""
    layers = blocks(model)
    found = {
        parameter: len(layers) - 1 - at
        for at, layer in enumerate(layers)
        for parameter in layer.parameters()
    }
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            found.update(dict.fromkeys(module.parameters(), len(layers)))
    return found
