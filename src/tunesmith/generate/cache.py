"""The key/value store of the engine and the attention that reads it.

A prefix shared by all rows lies in the store once; each row has a preallocated strip for its own
tokens. A layer's attention is two products, one against the prefix for all rows together and one
against the rows' own strips, joined by one softmax.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

CACHED = "tunesmith_cached"


@dataclass(slots=True)
class Store:
    """Keys and values by layer; filled as the model runs."""

    slots: int
    room: int
    """Tokens of its own that a row may hold."""
    prefix: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    """Layer → keys and values [kv heads, prefix, d]."""
    own: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    """Layer → keys and values [slots, kv heads, room, d]."""
    prefix_length: int = 0

    # What the running forward works on:
    filling_prefix: bool = False
    rows: torch.Tensor | None = None
    """Rows of the store that the batch stands for; None means the first ones in order."""
    starts: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    """Own tokens that each row of the batch held before this forward [B]."""
    reach: int = 0
    """The most own tokens that any row of the batch holds after this forward."""

    def put(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Write the new keys and values [B, kv heads, T, d] behind what each row holds."""
        if layer not in self.own:
            shape = (self.slots, key.shape[1], self.room, key.shape[3])
            self.own[layer] = (key.new_zeros(shape), value.new_zeros((*shape[:3], value.shape[3])))
        keys, values = self.own[layer]
        batch, _, new, _ = key.shape
        rows = torch.arange(batch, device=key.device) if self.rows is None else self.rows
        places = self.starts[:, None] + torch.arange(new, device=key.device)
        places = places.clamp_max(self.room - 1)
        keys[rows[:, None], :, places] = key.transpose(1, 2)
        values[rows[:, None], :, places] = value.transpose(1, 2)

    def copy(self, source: int, targets: list[int], length: int) -> None:
        """Copy the first ``length`` own tokens of one row to others, in every layer."""
        for keys, values in self.own.values():
            keys[targets, :, :length] = keys[source, :, :length].clone()
            values[targets, :, :length] = values[source, :, :length].clone()


_current: list[Store] = []


@contextmanager
def attending(model: Any, store: Store) -> Iterator[None]:
    """Let the model's attention read and write this store."""
    before = model.config._attn_implementation
    model.set_attn_implementation(CACHED)
    _current.append(store)
    try:
        yield
    finally:
        _current.pop()
        model.set_attn_implementation(before)


def cached_attention(
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
    """Attend to prefix and own tokens. query [B, heads, T, d] → [B, T, heads, d]."""
    del attention_mask, dropout
    store, layer = _current[-1], int(module.layer_idx)
    batch, heads, new, width = query.shape
    kv_heads = key.shape[1]
    scale = width**-0.5 if scaling is None else scaling
    # Rows of queries that share a key head: [B, kv heads, groups × T, d].
    grouped = (query * scale).reshape(batch, kv_heads, heads // kv_heads * new, width)
    if store.filling_prefix:
        store.prefix[layer] = (key[0].contiguous(), value[0].contiguous())
        own_keys, own_values, reach = key, value, new
    else:
        store.put(layer, key, value)
        keys, values = store.own[layer]
        reach = store.reach
        if store.rows is None:
            own_keys, own_values = keys[:batch, :, :reach], values[:batch, :, :reach]
        else:
            own_keys, own_values = keys[store.rows, :, :reach], values[store.rows, :, :reach]
    scores = grouped @ own_keys.transpose(2, 3)
    prefix = 0
    if not store.filling_prefix and store.prefix_length:
        prefix_keys, prefix_values = store.prefix[layer]
        prefix = prefix_keys.shape[1]
        together = grouped.transpose(0, 1).reshape(kv_heads, -1, width)
        ahead = (together @ prefix_keys.transpose(1, 2)).view(kv_heads, batch, -1, prefix)
        scores = torch.cat([ahead.transpose(0, 1), scores], -1)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    hidden = _hidden(store, batch, new, prefix, reach, sliding_window, query.device)
    if hidden is not None:
        shaped = scores.view(batch, kv_heads, -1, new, prefix + reach)
        scores = shaped.masked_fill(hidden[:, None, None], float("-inf")).view(scores.shape)
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    output = weights[..., prefix:] @ own_values
    if prefix:
        ahead = weights[..., :prefix].transpose(0, 1).reshape(kv_heads, -1, prefix)
        back = (ahead @ prefix_values).view(kv_heads, batch, -1, prefix_values.shape[2])
        output = output + back.transpose(0, 1)
    return output.reshape(batch, heads, new, -1).transpose(1, 2).contiguous(), None


def _hidden(
    store: Store,
    batch: int,
    new: int,
    prefix: int,
    reach: int,
    window: int | None,
    device: torch.device,
) -> torch.Tensor | None:
    """Return what each query must not see, bool [B, T, prefix + reach]; None if nothing."""
    starts = torch.zeros(batch, dtype=torch.long) if store.filling_prefix else store.starts
    at = prefix + starts[:, None].to(device) + torch.arange(new, device=device)
    places = torch.arange(prefix + reach, device=device)
    hidden = places > at[..., None]
    if window is not None:
        hidden |= places <= at[..., None] - window
    return hidden


def _no_mask(*_: Any, **__: Any) -> None:
    """Build no mask; the store knows what each row may see."""


AttentionInterface.register(CACHED, cached_attention)
AttentionMaskInterface.register(CACHED, _no_mask)
