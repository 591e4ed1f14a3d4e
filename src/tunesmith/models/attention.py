"""Attention over packed rows: several rows lie in one sequence and none sees another.

The function is registered with transformers, so each model's own code calls it. The lengths of
the rows lie in a module-level stack that the caller fills for forward and backward, so that
gradient checkpointing, which runs the forward again during the backward, finds them too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

PACKED = "tunesmith_packed"
_lengths: list[tuple[int, ...]] = []


@contextmanager
def packed(model: Any, lengths: Sequence[int]) -> Iterator[None]:
    """Let the model see one sequence as rows of these lengths, through forward and backward."""
    before = model.config._attn_implementation
    if before != PACKED:
        model.set_attn_implementation(PACKED)
    _lengths.append(tuple(lengths))
    try:
        yield
    finally:
        _lengths.pop()
        if before != PACKED:
            model.set_attn_implementation(before)


def positions(lengths: Sequence[int], device: torch.device) -> torch.Tensor:
    """Return position ids [1, sum of lengths] that begin at 0 in each row."""
    return torch.cat([torch.arange(n, device=device) for n in lengths])[None]


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend row by row. query [1, heads, T, d]; key, value [1, kv heads, T, d] → [1, T, heads, d].

    ``attention_mask`` is always None here: the rows' lengths say all there is to say.
    """
    del module, attention_mask
    groups = query.shape[1] // key.shape[1]
    outputs = []
    parts = zip(
        query.split(_lengths[-1], 2),
        key.split(_lengths[-1], 2),
        value.split(_lengths[-1], 2),
        strict=True,
    )
    for q, k, v in parts:
        length = q.shape[2]
        windowed = sliding_window is not None and length > sliding_window
        if softcap is not None:
            outputs.append(_capped(q, k, v, scaling, softcap, sliding_window, dropout))
            continue
        mask = _window_mask(length, sliding_window, q.device) if windowed else None
        if q.is_meta:
            outputs.append(_Fused.apply(q, k, v, mask))
            continue
        outputs.append(
            scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=mask,
                is_causal=mask is None,
                scale=scaling,
                dropout_p=dropout,  # 0 outside training: the model passes it so
                enable_gqa=groups > 1,
            )
        )
    return torch.cat(outputs, 2).transpose(1, 2).contiguous(), None


class _Fused(torch.autograd.Function):  # type: ignore[misc]
    """Attention on the meta device, for counting memory: it keeps what the fused kernels keep.

    These are inputs, output, a sum for each position and the mask, if any, as numbers; PyTorch's
    own way on that device would keep the matrix of scores. Nothing is computed, so there is no
    backward.
    """

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        out = torch.empty_like(q)
        sums = q.new_empty(q.shape[:-1], dtype=torch.float32)
        masks = () if mask is None else (mask.to(q.dtype),)
        ctx.save_for_backward(q, k, v, out, sums, *masks)
        return out


def _window_mask(length: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Return the causal mask [length, length], cut to the last ``window`` positions."""
    mask = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return mask if window is None else mask.triu(1 - window)


def _capped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    softcap: float,
    window: int | None,
    dropout: float,
) -> torch.Tensor:
    """Attend with soft-capped scores (Gemma 2), which SDPA cannot."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * (scaling or query.shape[-1] ** -0.5)
    scores = softcap * torch.tanh(scores / softcap)
    mask = _window_mask(query.shape[2], window, query.device)
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1, dtype=torch.float32)
    weights = torch.dropout(weights.to(query.dtype), dropout, dropout > 0)
    return weights @ value


def _no_mask(*_: Any, **__: Any) -> None:
    """Build no mask: at a few thousand packed tokens a dense one would be the largest tensor."""


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, _no_mask)
