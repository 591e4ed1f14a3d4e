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

from tunesmith.models.attention_ways import block_mask, borders, by_kernel, by_model
from tunesmith.models.packs import Group

PACKED = "tunesmith_packed"


@dataclass(frozen=True, slots=True)
class Scores:
    """How a model's layer wants its attention scores."""

    scaling: float | None
    """Unset is one over the root of a head's width."""
    dropout: float
    """0 outside training: the model passes it so."""
    window: int | None
    """How many of the last tokens, its own among them, a token sees; all if unset."""
    softcap: float | None


Masks = dict[tuple[Any, ...], torch.Tensor]


@dataclass(slots=True)
class _Open:
    """The sequence that a forward pass is running over."""

    groups: tuple[Group, ...]
    how: str
    masks: Masks = field(default_factory=dict)
    """Made once and used by every layer."""
    read: Sequence[int] | None = None
    """Where the last layer's output is read; everywhere if unset."""


_open: list[_Open] = []


@contextmanager
def packed(model: Any, groups: Sequence[Group | int], how: str = "segments") -> Iterator[None]:
    """Let the model see one sequence as these groups of rows, through forward and backward.

    A number is a row of so many tokens by itself. ``how`` is segments, varlen, flash_attention_2,
    sdpa or eager; whether a model can is for ``attention_ways.why_not`` to say.
    """
    before = model.config._attn_implementation
    if before != PACKED:
        model.set_attn_implementation(PACKED)
    _open.append(_Open(tuple(Group(g) if isinstance(g, int) else g for g in groups), how))
    try:
        yield
    finally:
        _open.pop()
        if before != PACKED:
            model.set_attn_implementation(before)


def read_only_at(places: Sequence[int]) -> None:
    """Promise that the open sequence's last output is read at these places, each named once.

    It holds until ``packed`` ends, so that layers which the backward pass runs again know it too.
    """
    _open[-1].read = places


def places_read() -> Sequence[int] | None:
    """Return where the open sequence's last output is read, None for everywhere."""
    return _open[-1].read if _open else None


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
    """Attend as ``packed`` was told: query [1, heads, T, d], key and value [1, kv heads, T, d].

    Returns [1, T, heads, d]. ``attention_mask`` is always None here: the groups say it all.
    """
    del attention_mask
    here, states = _open[-1], (query, key, value)
    scores = Scores(scaling, dropout, sliding_window, softcap)
    if here.how == "segments":
        return by_segments(states, here.groups, scores, here.masks), None
    if here.how in ("sdpa", "eager"):
        known = (scores.window, query.dtype, query.device)
        if known not in here.masks:
            here.masks[known] = block_mask(here.groups, query, scores.window)
        if query.is_meta and here.how == "sdpa":
            heads = query.shape[1] // key.shape[1]
            several = [state.repeat_interleave(heads, 1) for state in (key, value)]
            fused = _Fused.apply(query, *several, here.masks[known])
            return fused.transpose(1, 2).contiguous(), None
        return by_model(here.how, module, states, here.masks[known], scores), None
    if query.is_meta:
        which = torch.tensor(borders(here.groups)[2], device=query.device)
        fused = _Fused.apply(query, key[:, :, which], value[:, :, which], None)
        return fused.transpose(1, 2).contiguous(), None
    return by_kernel(here.how, states, here.groups, scores), None


def by_segments(
    states: Sequence[torch.Tensor], groups: Sequence[Group], scores: Scores, masks: Masks
) -> torch.Tensor:
    """Attend part by part with SDPA; ``masks`` keeps what other layers can use as well."""
    sizes = [n for group in groups for n in (group.prefix, *group.rests)]
    parts = zip(*(state.split(sizes, 2) for state in states), strict=True)
    outputs = []
    for group in groups:
        q, k, v = next(parts)
        outputs.append(_attend(q, k, v, scores, masks))
        # What lies before every query's window need not be looked at.
        unseen = 0 if scores.window is None else max(0, group.prefix + 1 - scores.window)
        shared_k, shared_v = k[:, :, unseen:], v[:, :, unseen:]
        for _ in group.rests:
            q, k, v = next(parts)
            keys, values = torch.cat([shared_k, k], 2), torch.cat([shared_v, v], 2)
            outputs.append(_attend(q, keys, values, scores, masks))
    return torch.cat(outputs, 2).transpose(1, 2).contiguous()


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scores: Scores, masks: Masks
) -> torch.Tensor:
    """Attend causally, the last query standing at the last key."""
    keys = k.shape[2]
    if scores.softcap is not None:
        return _capped(q, k, v, scores, _mask(q, keys, scores.window, masks))
    plain = q.shape[2] == keys and (scores.window is None or keys <= scores.window)
    mask = None if plain else _mask(q, keys, scores.window, masks)
    if q.is_meta:
        fused: torch.Tensor = _Fused.apply(q, k, v, mask)
        return fused
    return scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scores.scaling,
        dropout_p=scores.dropout,
        enable_gqa=q.shape[1] > k.shape[1],
    )


def _mask(query: torch.Tensor, keys: int, window: int | None, masks: Masks) -> torch.Tensor:
    """Return what is added to scores [queries, keys]: 0 where a query sees a key, else -inf."""
    queries = query.shape[2]
    known = (queries, keys, window, query.dtype, query.device)
    if known not in masks:
        seen = torch.ones(queries, keys, dtype=torch.bool, device=query.device)
        seen = seen.tril(keys - queries)
        if window is not None:
            seen = seen.triu(keys - queries + 1 - window)
        nothing = torch.zeros(queries, keys, dtype=query.dtype, device=query.device)
        masks[known] = nothing.masked_fill(~seen, float("-inf"))
    return masks[known]


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
    wanted: Scores,
    mask: torch.Tensor,
) -> torch.Tensor:
    """Attend with soft-capped scores (Gemma 2), which SDPA cannot."""
    groups, cap = query.shape[1] // key.shape[1], wanted.softcap
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * (wanted.scaling or query.shape[-1] ** -0.5)
    scores = cap * torch.tanh(scores / cap) + mask
    weights = scores.softmax(-1, dtype=torch.float32)
    weights = torch.dropout(weights.to(query.dtype), wanted.dropout, wanted.dropout > 0)
    return weights @ value


def _no_mask(*_: Any, **__: Any) -> None:
    """Build no mask: at a few thousand packed tokens a dense one would be the largest tensor."""


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, _no_mask)
