"""LoRA layers in three matrix products, nothing of the width of a layer between them.

PEFT computes ``base(x) + B(A(x)) * scale`` piece by piece: two more passes over every output, and
in the backward pass two more over every input. Here the product is added in place,

    y = x Wᵀ + s (x Aᵀ) Bᵀ,    ∂x = g W + s (g B) A,    ∂A = s (g B)ᵀ x,    ∂B = s gᵀ (x Aᵀ),

which is the same arithmetic but for the order of a sum. Whatever this does not cover (dropout,
DoRA, quantised weights, several adapters, automatic casts) stays PEFT's.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D


class _LowRank(torch.autograd.Function):  # type: ignore[misc]  # torch gives it no type
    """A frozen linear layer with trained factors; x [T, in], weight [in, out], A [r, in]."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        down: torch.Tensor,
        up: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        inner = x @ down.t()
        y = x @ weight if bias is None else torch.addmm(bias, x, weight)
        y.addmm_(inner, up.t(), alpha=scale)
        ctx.save_for_backward(x, weight, down, up, inner)
        ctx.scale = scale
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (g,) = grads
        x, weight, down, up, inner = ctx.saved_tensors
        needs = ctx.needs_input_grad
        folded = (g @ up).mul_(ctx.scale)
        of_x = of_down = of_up = None
        if needs[0]:
            of_x = g @ weight.t()
            of_x.addmm_(folded, down)
        if needs[3]:
            of_down = folded.t() @ x
        if needs[4]:
            of_up = (g.t() @ inner).mul_(ctx.scale)
        return of_x, None, None, of_down, of_up, None


def fuse_lora(model: Any) -> int:
    """Let a model's plain LoRA layers compute in this way; return how many do.

    Results differ from PEFT's by rounding only. Saving, merging and the names of parameters stay.
    """
    from peft.tuners.lora.layer import Linear

    fused = _fused_class()
    found = [m for m in model.modules() if type(m) is Linear and _is_plain(m)]
    for module in found:
        module.__class__ = fused
    return len(found)


@cache
def _fused_class() -> Any:
    """Return PEFT's layer with another forward pass; made late, since PEFT is slow to import."""
    from peft.tuners.lora.layer import Linear

    return type("FusedLinear", (Linear,), {"forward": _forward})


def _is_plain(layer: Any) -> bool:
    """Say whether a layer is a frozen linear one with a single adapter of the first kind."""
    base = layer.get_base_layer()
    names = list(layer.lora_A)
    return (
        type(base) in (torch.nn.Linear, Conv1D)
        and not any(p.requires_grad for p in base.parameters())
        and len(names) == 1
        and not layer.lora_variant
        and not layer.lora_bias[names[0]]
    )


def _forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Take the short way where it holds at this moment, else PEFT's."""
    from peft.tuners.lora.layer import Linear

    active = self.active_adapters
    if args or kwargs or self.disable_adapters or self.merged or len(self.lora_A) != 1:
        return Linear.forward(self, x, *args, **kwargs)
    (name,) = self.lora_A
    down, up = self.lora_A[name].weight, self.lora_B[name].weight
    drops = self.training and isinstance(self.lora_dropout[name], torch.nn.Dropout)
    base = self.base_layer
    if (
        list(active) != [name]
        or drops
        or not x.dtype == base.weight.dtype == down.dtype
        or _casts(x.device.type)
    ):
        return Linear.forward(self, x)
    weight = base.weight if isinstance(base, Conv1D) else base.weight.t()
    flat = x.reshape(-1, x.shape[-1])
    y = _LowRank.apply(flat, weight, base.bias, down, up, self.scaling[name])
    return y.view(*x.shape[:-1], -1)


def _casts(device: str) -> bool:
    """Say whether operations on a device are cast; those on the meta device know no casts."""
    return device != "meta" and torch.is_autocast_enabled(device)
