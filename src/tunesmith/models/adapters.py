"""LoRA adapters through PEFT, with the target modules resolved and counted by us."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from tunesmith.errors import ModelError
from tunesmith.models.quantize import elements


@dataclass(frozen=True, slots=True)
class Trainable:
    """How much of a model is trained."""

    parameters: int
    of: int
    what: str

    def __str__(self) -> str:
        share = 100 * self.parameters / max(1, self.of)
        return f"{self.what}: {self.parameters:,} of {self.of:,} parameters ({share:.2f}%)"


def count(model: Any, what: str) -> Trainable:
    """Count trained and all parameters; one shared by two modules counts once."""
    parameters = list(model.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    return Trainable(trained, sum(map(elements, parameters)), what)


def linear_modules(model: Any) -> list[str]:
    """Return the names of all linear layers, Conv1D too; no head, no embedding."""
    head = model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
    ]


def add_lora(
    model: Any,
    *,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    targets: Sequence[str] | None = None,
    base_name: str = "",
    seed: int = 0,
    rslora: bool = False,
    dora: bool = False,
    pissa: bool = False,
) -> Any:
    """Put a fresh LoRA adapter on a model; everything else is frozen.

    ``targets`` are full names or endings of module names; all linear layers without it. Targets
    that match nothing are an error: training everything instead would be a silent disaster.

    ``rslora`` scales by alpha/√rank, ``dora`` trains magnitudes of their own, ``pissa`` starts from
    the largest singular values and takes them out of the weights, which makes the adapter useless
    on the original base until ``save_as_plain_lora`` has converted it.
    """
    from peft import LoraConfig, get_peft_model

    available = linear_modules(model)
    wanted = list(targets or ["all-linear"])
    if wanted == ["all-linear"]:
        chosen = available
    else:
        chosen = [n for n in available if any(n == t or n.endswith(f".{t}") for t in wanted)]
        idle = [t for t in wanted if not any(n == t or n.endswith(f".{t}") for n in available)]
        if idle:
            chosen = []
    if not chosen:
        endings = sorted({name.rsplit(".", 1)[-1] for name in available})
        raise ModelError(
            f"The LoRA targets {', '.join(wanted)} do not all match a linear layer of this model.",
            expected=f"names such as {', '.join(endings)}",
            hint="leave --lora-target-modules out to take all linear layers",
        )
    if pissa:
        _check_rank(model, chosen, rank)
    config = LoraConfig(
        use_rslora=rslora,
        use_dora=dora,
        init_lora_weights="pissa" if pissa else True,
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=chosen,
        task_type="CAUSAL_LM",
        fan_in_fan_out=any(isinstance(m, Conv1D) for m in model.modules()),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config)
    if base_name:
        adapted.peft_config["default"].base_model_name_or_path = base_name
    return adapted


def _check_rank(model: Any, chosen: Sequence[str], rank: int) -> None:
    sizes = {name: min(model.get_submodule(name).weight.shape) for name in chosen}
    name, least = min(sizes.items(), key=lambda item: item[1])
    if rank > least:
        raise ModelError(
            f"{name} has {least} singular values, fewer than the rank {rank} of PiSSA.",
            hint=f"--lora-rank {least}",
        )


def factors(model: Any) -> dict[str, torch.Tensor]:
    """Return a copy of an adapter's matrices by the names that they are saved under."""
    from peft import get_peft_model_state_dict

    saved = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: value.detach().clone() for name, value in saved.items()}


def save_as_plain_lora(folder: Path, start: Mapping[str, torch.Tensor]) -> None:
    """Rewrite a saved PiSSA adapter as one of twice the rank for the base as it was.

    PiSSA took B₀A₀ out of the weights, so what training changed is BA - B₀A₀, the product of
    [B, -B₀] and [A; A₀]. ``start`` are the matrices before the first step.
    """
    from safetensors.torch import load_file, save_file

    path = folder / "adapter_model.safetensors"
    whole = load_file(path)
    for name, value in whole.items():
        first = start[name].to("cpu", value.dtype)
        joined = [value, first] if ".lora_A." in name else [value, -first]
        whole[name] = torch.cat(joined, 0 if ".lora_A." in name else 1).contiguous()
    save_file(whole, path, metadata={"format": "pt"})
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    config["init_lora_weights"] = True
    config["r"] *= 2
    # The scale stays: alpha/rank, or with rsLoRA alpha/√rank.
    config["lora_alpha"] *= 2**0.5 if config["use_rslora"] else 2
    text = json.dumps(config, indent=2, sort_keys=True)
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")


def blocks(model: Any) -> torch.nn.ModuleList:
    """Return the transformer blocks: the longest list of modules of a model."""
    lists = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList)]
    if not lists:
        raise ModelError("This architecture has no list of layers, so none can be frozen.")
    return max(lists, key=len)


def frozen_blocks(layers: int, ratio: float) -> int:
    """Return how many of so many blocks a share freezes; a part of one is none."""
    return int(ratio * layers)


def least_ratio(layers: int) -> float:
    """Return the smallest share, in hundredths, that freezes one of so many blocks."""
    return next(at / 100 for at in range(1, 101) if frozen_blocks(layers, at / 100))


def freeze_bottom(model: Any, ratio: float) -> int:
    """Freeze the bottom share of the blocks and the embeddings below them; return how many blocks.

    A head tied to the embeddings is frozen with them.
    """
    layers = blocks(model)
    frozen = frozen_blocks(len(layers), ratio)
    if frozen == 0:
        return 0
    for layer in layers[:frozen]:
        layer.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            module.requires_grad_(False)
    return frozen


def recompute_activations(model: Any, layers: int | None = None) -> int:
    """Compute activations of so many layers again in the backward pass; all without a number.

    They are spread evenly over the layers that the backward pass reaches; frozen ones below keep
    nothing anyway. Returns how many. Raises ``ModelError`` for more layers than there are.
    """
    own = blocks(model)
    reached = reached_layers(model)
    wanted = len(reached) if layers is None else layers
    if wanted > len(reached):
        raise ModelError(
            f"{wanted} layers were to be recomputed; the backward pass reaches {len(reached)} of "
            f"the {len(own)} layers of this model.",
            hint=f"--gradient-checkpointing {len(reached)}",
        )
    # Not reentrant, so no input needs a gradient for it, and frozen layers get no backward pass.
    settings = {"use_reentrant": False}
    # transformers renamed it within version 5; both names are in use.
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(settings)
    else:
        model.gradient_checkpointing_enable(settings)
    chosen = {reached[(2 * at + 1) * len(reached) // (2 * wanted)] for at in range(wanted)}
    for number, layer in enumerate(own):
        layer.gradient_checkpointing = number in chosen
    return wanted


def keep_activations(model: Any) -> None:
    """Turn gradient checkpointing off again."""
    for module in model.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = False


def reached_layers(model: Any) -> list[int]:
    """Return the numbers of the layers that the backward pass goes through."""
    own = blocks(model)
    if model.get_input_embeddings().weight.requires_grad:
        return list(range(len(own)))
    trained = [
        at for at, layer in enumerate(own) if any(p.requires_grad for p in layer.parameters())
    ]
    return list(range(min(trained, default=len(own)), len(own)))
