"""Attention over packed rows: several rows lie in one sequence and none sees another.

The function is registered with transformers, so each model's own code calls it. How the rows lie
is kept in a module-level stack that the caller fills for forward and backward, so that gradient
checkpointing, which runs the forward again during the backward, finds it too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from tunesmith.models.packs import Group

PACKED = "tunesmith_packed"


@dataclass(frozen=True, slots=True)
class _Open:
    """The sequence that a forward pass is running over."""

    groups: tuple[Group, ...]
    masks: dict[tuple[Any, ...], torch.Tensor] = field(default_factory=dict)
    """Made once and used by every layer."""

    def mask(self, query: torch.Tensor, keys: int, window: int | None) -> torch.Tensor:
        """Return what is added to scores [queries, keys]: 0 where a query sees a key, else -inf.

        The last query stands at the last key; each sees the last ``window`` keys up to its own.
        """
        queries = query.shape[2]
        known = (queries, keys, window, query.dtype, query.device)
        if known not in self.masks:
            seen = torch.ones(queries, keys, dtype=torch.bool, device=query.device)
            seen = seen.tril(keys - queries)
            if window is not None:
                seen = seen.triu(keys - queries + 1 - window)
            nothing = torch.zeros(queries, keys, dtype=query.dtype, device=query.device)
            self.masks[known] = nothing.masked_fill(~seen, float("-inf"))
        return self.masks[known]


_open: list[_Open] = []


@contextmanager
def packed(model: Any, groups: Sequence[Group | int]) -> Iterator[None]:
    """Let the model see one sequence as these groups of rows, through forward and backward.

    A number is a row of so many tokens by itself.
    """
    before = model.config._attn_implementation
    if before != PACKED:
        model.set_attn_implementation(PACKED)
    _open.append(_Open(tuple(Group(g) if isinstance(g, int) else g for g in groups)))
    try:
        yield
    finally:
        _open.pop()
        if before != PACKED:
            model.set_attn_implementation(before)


def positions(groups: Sequence[Group | int], device: torch.device) -> torch.Tensor:
    """Return position ids [1, places]: from 0 in each group, each continuation from its prefix."""
    parts = []
    for group in groups:
        own = Group(group) if isinstance(group, int) else group
        parts.append(torch.arange(own.prefix, device=device))
        parts += [torch.arange(own.prefix, own.prefix + n, device=device) for n in own.rests]
    return torch.cat(parts)[None]


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
    """Attend group by group: query [1, heads, T, d], key and value [1, kv heads, T, d].

    Returns [1, T, heads, d]. ``attention_mask`` is always None here: the groups say it all.
    """
    del module, attention_mask
    here = _open[-1]
    sizes = [n for group in here.groups for n in (group.prefix, *group.rests)]
    parts = zip(query.split(sizes, 2), key.split(sizes, 2), value.split(sizes, 2), strict=True)
    outputs = []

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        keys = k.shape[2]
        if softcap is not None:
            mask = here.mask(q, keys, sliding_window)
            outputs.append(_capped(q, k, v, scaling, softcap, mask, dropout))
            return
        plain = q.shape[2] == keys and (sliding_window is None or keys <= sliding_window)
        mask = None if plain else here.mask(q, keys, sliding_window)
        if q.is_meta:
            outputs.append(_Fused.apply(q, k, v, mask))
        else:
            outputs.append(
                scaled_dot_product_attention(
                    q,
                    k,
                    v,
                    attn_mask=mask,
                    is_causal=mask is None,
                    scale=scaling,
                    dropout_p=dropout,  # 0 outside training: the model passes it so
                    enable_gqa=q.shape[1] > k.shape[1],
                )
            )

    for group in here.groups:
        q, k, v = next(parts)
        attend(q, k, v)
        # What lies before every query's window need not be looked at.
        unseen = 0 if sliding_window is None else max(0, group.prefix + 1 - sliding_window)
        shared_k, shared_v = k[:, :, unseen:], v[:, :, unseen:]
        for _rest in group.rests:
            q, k, v = next(parts)
            attend(q, torch.cat([shared_k, k], 2), torch.cat([shared_v, v], 2))
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


def _capped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    softcap: float,
    mask: torch.Tensor,
    dropout: float,
) -> torch.Tensor:
    """Attend with soft-capped scores (Gemma 2), which SDPA cannot."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * (scaling or query.shape[-1] ** -0.5)
    scores = softcap * torch.tanh(scores / softcap) + mask
    weights = scores.softmax(-1, dtype=torch.float32)
    weights = torch.dropout(weights.to(query.dtype), dropout, dropout > 0)
    return weights @ value


def _no_mask(*_: Any, **__: Any) -> None:
    """Build no mask: at a few thousand packed tokens a dense one would be the largest tensor."""


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, _no_mask)
