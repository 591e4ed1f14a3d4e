"""The key/value store of the engine and the attention that reads it.

A prefix shared by all rows lies in the store once; each row has a preallocated strip for its own
tokens. A layer's attention is two products, one against the prefix for all rows together and one
against the rows' own strips, joined by one softmax.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

CACHED = "tunesmith_cached"
Layers = dict[int, tuple[torch.Tensor, torch.Tensor]]
"""Layer → keys and values."""


@dataclass(slots=True)
class Store:
    """Keys and values by layer; filled as the model runs.

    ``prefix`` holds [kv heads, prefix, d], ``own`` [slots, kv heads, room, d].
    """

    slots: int
    room: int
    """Tokens of its own that a row may hold."""
    prefix_length: int = 0
    filled: int = 0
    """Tokens of the prefix that are there."""
    prefix: Layers = field(default_factory=dict)
    own: Layers = field(default_factory=dict)

    # What the running forward works on, and what it makes once for all layers:
    filling_prefix: bool = False
    rows: torch.Tensor | None = None
    """Rows of the store that the batch stands for; None means the first ones in order."""
    starts: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    """Own tokens that each row of the batch held before this forward [B]."""
    reach: int = 0
    """The most own tokens that any row of the batch holds after this forward."""
    _made: dict[Any, Any] = field(default_factory=dict)

    def begin(
        self, rows: torch.Tensor | None, starts: torch.Tensor, new: int, reach: int | None = None
    ) -> None:
        """Say what the next forward works on: ``new`` tokens behind the starts of these rows."""
        self.rows, self.starts = rows, starts
        self.reach = int(starts.max()) + new if reach is None else reach
        self._made.clear()

    def put(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Write the new keys and values [B, kv heads, T, d] behind what each row holds."""
        batch, heads, new, _ = key.shape
        if layer not in self.own:
            shape = (self.slots, heads, self.room)
            self.own[layer] = (
                key.new_zeros((*shape, key.shape[3])),
                value.new_zeros((*shape, value.shape[3])),
            )
        places = self._places(batch, heads, new, key.device)
        for strips, fresh in zip(self.own[layer], (key, value), strict=True):
            strips.view(-1, strips.shape[3]).index_copy_(
                0, places, fresh.reshape(-1, strips.shape[3])
            )

    def _places(self, batch: int, heads: int, new: int, device: torch.device) -> torch.Tensor:
        """Return where each new key lies among all [slots × kv heads × room] of a layer."""
        if ("places", heads) not in self._made:
            rows = torch.arange(batch, device=device) if self.rows is None else self.rows
            # A padded row may reach past its strip; what lands on the last place is never read.
            at = (self.starts[:, None] + torch.arange(new, device=device)).clamp_max(self.room - 1)
            strip = rows[:, None] * heads + torch.arange(heads, device=device)
            places = strip[:, :, None] * self.room + at[:, None]
            self._made["places", heads] = places.reshape(-1)
        found: torch.Tensor = self._made["places", heads]
        return found

    def fill(
        self, layer: int, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the prefix's next keys and values [1, kv heads, T, d]; return all so far."""
        new, heads = key.shape[2], key.shape[1]
        if layer not in self.prefix:
            shape = (heads, self.prefix_length)
            self.prefix[layer] = (
                key.new_empty((*shape, key.shape[3])),
                value.new_empty((*shape, value.shape[3])),
            )
        keys, values = self.prefix[layer]
        end = self.filled + new
        keys[:, self.filled : end], values[:, self.filled : end] = key[0], value[0]
        return keys[None, :, :end], values[None, :, :end]

    def copy(self, source: int, targets: list[int], length: int) -> None:
        """Copy the first ``length`` own tokens of one row to others, in every layer."""
        for strips in self.own.values():
            for one in strips:
                one[targets, :, :length] = one[source, :, :length].clone()

    def hidden(
        self, new: int, window: int | None, device: torch.device
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return what each query must not see of the prefix and of the own tokens; None if nothing.

        Both are bool, [B, T, prefix] and [B, T, reach].
        """
        if ("hidden", window) not in self._made:
            self._made["hidden", window] = self._hidden(new, window, device)
        found: tuple[torch.Tensor | None, torch.Tensor | None] = self._made["hidden", window]
        return found

    def _hidden(
        self, new: int, window: int | None, device: torch.device
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        fresh = torch.arange(new, device=device)
        if self.filling_prefix:
            at = (self.filled + fresh)[None]
            return _outside(at, 0, self.filled + new, window), None
        at = self.prefix_length + self.starts[:, None] + fresh
        ahead = None
        # Own tokens come behind the prefix, so that only a window can hide any of it.
        if window is not None and self.prefix_length:
            ahead = _outside(at, 0, self.prefix_length, window)
        return ahead, _outside(at, self.prefix_length, self.prefix_length + self.reach, window)


def _outside(at: torch.Tensor, begin: int, end: int, window: int | None) -> torch.Tensor:
    """Return which of the positions begin … end-1 queries at these [B, T] must not see."""
    places = torch.arange(begin, end, device=at.device)
    hidden = places > at[..., None]
    if window is not None:
        hidden |= places <= at[..., None] - window
    return hidden


class Remembered:
    """Keys and values of token sequences that were computed before, the least used given up."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._kept: OrderedDict[tuple[int, ...], Layers] = OrderedDict()

    def find(self, ids: Sequence[int]) -> tuple[int, Layers]:
        """Return how many first tokens of ``ids`` are there, and the layers that hold them."""
        best, chosen = 0, None
        for kept in self._kept:
            shared = next(
                (at for at, (a, b) in enumerate(zip(kept, ids, strict=False)) if a != b),
                min(len(kept), len(ids)),
            )
            if shared > best:
                best, chosen = shared, kept
        if chosen is None:
            return 0, {}
        self._kept.move_to_end(chosen)
        return best, self._kept[chosen]

    def add(self, ids: tuple[int, ...], layers: Layers) -> None:
        """Keep the keys and values of ``ids``, in place of those that they begin with."""
        for kept in [kept for kept in self._kept if ids[: len(kept)] == kept]:
            del self._kept[kept]
        self._kept[ids] = layers
        while len(self._kept) > 1 and self._bytes() > self._limit:
            self._kept.popitem(last=False)
        if self._bytes() > self._limit:
            self._kept.clear()

    def _bytes(self) -> int:
        pairs = (pair for layers in self._kept.values() for pair in layers.values())
        return sum(one.nbytes for pair in pairs for one in pair)


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

    def scored(keys: torch.Tensor, hidden: torch.Tensor | None) -> torch.Tensor:
        """Return scores [B, kv heads, groups × T, keys]."""
        scores = grouped @ keys.transpose(-1, -2) if keys.dim() == 4 else _for_all(grouped, keys)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        if hidden is not None:
            shaped = scores.view(batch, kv_heads, -1, new, hidden.shape[-1])
            shaped.masked_fill_(hidden[:, None, None], float("-inf"))
        return scores

    ahead, own = store.hidden(new, sliding_window, query.device)
    if store.filling_prefix:
        keys, values = store.fill(layer, key, value)
        weights = scored(keys, ahead).softmax(-1, dtype=torch.float32).to(query.dtype)
        output = weights @ values
    else:
        store.put(layer, key, value)
        keys, values = (
            strips[:batch, :, : store.reach]
            if store.rows is None
            else strips[store.rows, :, : store.reach]
            for strips in store.own[layer]
        )
        scores = scored(keys, own)
        prefix = store.prefix_length
        if prefix:
            scores = torch.cat([scored(store.prefix[layer][0], ahead), scores], -1)
        weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
        output = weights[..., prefix:] @ values
        if prefix:
            output += _for_all(weights[..., :prefix], store.prefix[layer][1].transpose(1, 2))
    return output.reshape(batch, heads, new, -1).transpose(1, 2).contiguous(), None


def _for_all(rows: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
    """Multiply [B, kv heads, N, a] by what all rows share, [kv heads, b, a] → [B, kv heads, N, b].

    One product a head for all rows together.
    """
    batch, heads, number, _ = rows.shape
    together = rows.transpose(0, 1).reshape(heads, batch * number, -1)
    found = together @ shared.transpose(1, 2)
    return found.view(heads, batch, number, -1).transpose(0, 1)


def _no_mask(*_: Any, **__: Any) -> None:
    """Build no mask; the store knows what each row may see."""


AttentionInterface.register(CACHED, cached_attention)
AttentionMaskInterface.register(CACHED, _no_mask)
