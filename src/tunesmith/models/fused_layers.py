"""Gates and norms on a CPU, with less memory touched: forward and backward by hand.

PyTorch runs ``silu(gate) * up`` and a root-mean-square norm operation by operation, each into
memory that is taken anew and over numbers that have left the cache since the last. Here there are
fewer such passes, and a gate's gradients take the place of what was kept for them:

    y = silu(a) b,                 ∂b = g silu(a),    ∂a = g b silu'(a);
    y = w x r, r = 1/√(x̄² + ε),    ∂w = Σ g x r,      ∂x = r g w - x r³ (g w · x) / width.

The same arithmetic but for the order of sums. It holds for float32 and float64 on a CPU while
gradients are taken; everything else, evaluation too, runs the model's own code.

On every device, while gradients are taken: of the last block's output only what a label needs is
ever read, so its feed-forward layer is computed for those tokens alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from tunesmith.errors import ModelError
from tunesmith.models.adapters import blocks
from tunesmith.models.attention import places_read


class _Gate(torch.autograd.Function):  # type: ignore[misc]  # torch gives it no type
    """silu(gate) * up, both [T, inner] and needed by nobody else in the backward pass."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        y = torch.nn.functional.silu(gate).mul_(up)
        ctx.save_for_backward(gate, up)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        (g,) = grads
        gate, up = ctx.saved_tensors
        opened = torch.nn.functional.silu(gate)
        torch.ops.aten.silu_backward.grad_input(g * up, gate, grad_input=gate)
        torch.mul(g, opened, out=up)
        return gate, up


class _Norm(torch.autograd.Function):  # type: ignore[misc]  # torch gives it no type
    """Root-mean-square norm of x [T, width] times weight [width]."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = scale.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        y = (x * scale).mul_(weight)
        ctx.save_for_backward(x, weight, scale)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (g,) = grads
        x, weight, scale = ctx.saved_tensors
        needs = ctx.needs_input_grad
        both = g * x
        of_x = of_weight = None
        if needs[1]:
            of_weight = both.t() @ scale[:, 0]
        if needs[0]:
            along = (both @ weight)[:, None].mul_(scale**3).div_(-x.shape[-1])
            of_x = torch.mul(g, weight, out=both).mul_(scale).addcmul_(x, along)
        return of_x, of_weight, None


class _Rows(torch.autograd.Function):  # type: ignore[misc]  # torch gives it no type
    """Rows of a tied table [V, width], whose gradient is added where the head's already lies.

    As an input of its own the table would get a gradient of V rows, most of them zero, for every
    sequence. What other processes are told of a gradient they are told before: not for them.
    """

    @staticmethod
    def forward(
        ctx: Any, _: torch.Tensor, ids: torch.Tensor, weight: Any, padding: int | None
    ) -> torch.Tensor:
        ctx.save_for_backward(ids)
        ctx.weight, ctx.padding = weight, padding
        return torch.nn.functional.embedding(ids, weight.detach(), padding)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[None, ...]:
        weight, ids, rows = ctx.weight, ctx.saved_tensors[0].flatten(), grads[0].flatten(0, -2)
        if ctx.padding is not None:
            rows = rows * (ids != ctx.padding)[:, None]
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        weight.grad.index_add_(0, ids, rows)
        return None, None, None, None


def fuse_layers(model: Any) -> int:
    """Let gates, norms, tied table and last feed-forward layer train in this way; count them.

    Results differ by rounding only. What is saved and the names of parameters stay.
    """
    fused = 0
    tied = _tied_table(model)
    forward: Callable[..., torch.Tensor]
    for module in list(model.modules()):
        kind: Any = type(module)
        if hasattr(kind, "unfused"):
            continue
        if _is_gate(module):
            forward = _gate_forward
        elif _is_norm(module):
            forward = _norm_forward
        elif kind.__name__ == "NewGELUActivation":
            forward = _gelu_forward
        elif module is tied:
            forward = _table_forward
        else:
            continue
        module.__class__ = _with(kind, forward, "unfused")
        fused += 1
    last = _last_feed_forward(model)
    kind = type(last)
    if last is not None and _is_by_token(last) and not hasattr(kind, "everywhere"):
        last.__class__ = _with(kind, _last_forward, "everywhere")
        fused += 1
    return fused


@cache
def _with(kind: type, forward: Any, before: str) -> type:
    """Return a layer's class with another forward pass; ``before`` names what it was."""
    return type(kind.__name__, (kind,), {"forward": forward, before: kind})


def _is_gate(module: Any) -> bool:
    from transformers.models.llama.modeling_llama import LlamaMLP

    silu = ("SiLUActivation", "SiLU")
    return _computes_as(module, LlamaMLP) and type(module.act_fn).__name__ in silu


def _last_feed_forward(model: Any) -> Any:
    try:
        return getattr(blocks(model)[-1], "mlp", None)
    except ModelError:  # a model without a list of layers
        return None


def _is_by_token(module: Any) -> bool:
    """Say whether a feed-forward layer takes each token by itself and draws nothing."""
    from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
    from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXMLP
    from transformers.models.llama.modeling_llama import LlamaMLP

    kind = getattr(type(module), "unfused", type(module))
    known = any(_runs(kind, one) for one in (LlamaMLP, GPT2MLP, GPTNeoXMLP))
    drops = any(isinstance(m, torch.nn.Dropout) and m.p for m in module.modules())
    return known and not drops and "forward" not in vars(module)


def _is_norm(module: Any) -> bool:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    return _computes_as(module, LlamaRMSNorm)


def _computes_as(module: Any, known: Any) -> bool:
    """Say whether a module's forward pass is the code of ``known``: many models copy Llama's."""
    return _runs(type(module), known) and "forward" not in vars(module)


def _runs(kind: Any, known: Any) -> bool:
    own, its = (getattr(one.forward, "__code__", None) for one in (kind, known))
    if own is None:
        return False
    return all(getattr(own, of) == getattr(its, of) for of in ("co_code", "co_names", "co_consts"))


def _tied_table(model: Any) -> Any:
    """Return the embedding whose weights the vocabulary head computes with too, or None."""
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    if type(table) is not torch.nn.Embedding or head is None:
        return None
    plain = table.max_norm is None and not table.scale_grad_by_freq
    return table if plain and getattr(head, "weight", None) is table.weight else None


def _gate_forward(self: Any, x: torch.Tensor) -> torch.Tensor:
    if not _by_hand(x):
        return self.unfused.forward(self, x)
    gate, up = self.gate_proj(x), self.up_proj(x)
    y = _Gate.apply(gate.flatten(0, -2), up.flatten(0, -2))
    return self.down_proj(y.view_as(gate))


def _last_forward(self: Any, x: torch.Tensor) -> torch.Tensor:
    """Compute the places that are read, of x [1, T, width]; nobody looks at the zeros elsewhere."""
    read = places_read()
    # Without a gradient the output may be kept: it is that of a frozen trunk.
    if not read or not x.requires_grad:
        return self.everywhere.forward(self, x)
    places = torch.tensor(read, device=x.device)
    y = self.everywhere.forward(self, x.index_select(1, places))
    return y.new_zeros(x.shape).index_copy(1, places, y)


def _norm_forward(self: Any, x: torch.Tensor) -> torch.Tensor:
    # The model's own code takes a norm in float32 whatever it is given.
    if not _by_hand(x) or not x.dtype == self.weight.dtype == torch.float32:
        return self.unfused.forward(self, x)
    y = _Norm.apply(x.flatten(0, -2), self.weight, self.variance_epsilon)
    return y.view_as(x)


def _gelu_forward(self: Any, x: torch.Tensor) -> torch.Tensor:
    """Take PyTorch's own kernel of the same formula: one pass instead of eight."""
    if not _by_hand(x):
        return self.unfused.forward(self, x)
    return torch.nn.functional.gelu(x, approximate="tanh")


def _table_forward(self: Any, ids: torch.Tensor) -> torch.Tensor:
    weight = self.weight
    alone = weight.device.type in ("cpu", "meta") and not torch.distributed.is_initialized()
    if not (alone and weight.requires_grad and torch.is_grad_enabled()):
        return self.unfused.forward(self, ids)
    return _Rows.apply(_anchor(), ids, weight, self.padding_idx)


@cache
def _anchor() -> torch.Tensor:
    """Return what makes autograd ask for a gradient that is nobody's input."""
    return torch.empty(0, requires_grad=True)


def _by_hand(x: torch.Tensor) -> bool:
    """Say whether a gradient will be asked for, on a CPU, without automatic casts."""
    device = x.device.type
    if device != "meta" and (device != "cpu" or torch.is_autocast_enabled(device)):
        return False
    return torch.is_grad_enabled() and x.dtype in (torch.float32, torch.float64)
