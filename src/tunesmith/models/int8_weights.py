"""Matrices held in eight bits with one scale for each row, for models that only generate.

A row of a weight [out, in] becomes integers of at most 127 and a float32 scale, max|w|/127, so that
no number moves by more than half a scale. A product takes rows block by block into a small buffer
of the type of its input, and multiplies what comes out by the scales. Inputs are not rounded.

Quantised are the linear layers, the embeddings of the vocabulary and the head; one matrix stays one
where head and embeddings are tied, since a row of it belongs to one word in both. Norms, biases,
embeddings of positions and adapters stay as they are.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from tunesmith.errors import ModelError

LARGEST = 127
BLOCK_BYTES = 4 << 20
"""What a block of rows takes in the type of the input: it shall stay in the cache, and smaller ones
cost more in calls than they save (``bench/LOG.md``)."""

REPLACED = ("ModulesToSaveWrapper", "TrainableTokensWrapper", "TrainableTokensLayer")
"""What PEFT puts in the place of whole modules that were trained; they stay as they are."""

_own = threading.local()


@dataclass(frozen=True, slots=True)
class Int8Weights:
    """What became of a model's weights."""

    matrices: int
    bytes_before: int
    """Of the quantised matrices, in the type that the model would have otherwise."""
    bytes_after: int
    """Of the same, scales included."""
    others: int
    """Bytes of all other parameters and buffers, adapters included."""

    def __str__(self) -> str:
        before, after = self.bytes_before / 1e6, self.bytes_after / 1e6
        return (
            f"Weights in int8, a scale for each row: {self.matrices} matrices, {before:,.1f} MB to "
            f"{after:,.1f} MB; all else ({self.others / 1e6:,.1f} MB) is not"
        )


class _Rows(torch.nn.Module):  # type: ignore[misc]  # torch gives it no type
    """A matrix [rows, columns] in eight bits, which two modules may share."""

    def __init__(self, values: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> None:
        # Not Linear's, which would make a matrix of its own.
        torch.nn.Module.__init__(self)
        self.register_buffer("values", values)
        self.register_buffer("scales", scales)
        self.dtype = dtype

    @property
    def weight(self) -> torch.Tensor:
        """Return the matrix as it is multiplied with, made anew: PEFT asks for it, for DoRA."""
        whole = (self.values.float() * self.scales[:, None]).to(self.dtype)
        return torch.nn.Parameter(whole, requires_grad=False)


class Int8Linear(_Rows, torch.nn.Linear):  # type: ignore[misc]
    """A linear layer of such a matrix [out, in]; what it takes and gives is not quantised."""

    def __init__(
        self,
        values: torch.Tensor,
        scales: torch.Tensor,
        dtype: torch.dtype,
        bias: torch.nn.Parameter | None = None,
    ) -> None:
        """Take int8 values [out, in] and float32 scales [out]."""
        _Rows.__init__(self, values, scales, dtype)
        self.out_features, self.in_features = values.shape
        self.register_parameter("bias", bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x [..., in] times the transposed matrix, plus the bias: [..., out]."""
        flat = x.reshape(-1, self.in_features)
        blocks = list(self._blocks(flat))
        y = blocks[0] if len(blocks) == 1 else torch.cat(blocks, 1)
        # The scales are float32, so the product is taken in it and rounded once.
        y = y.mul_(self.scales) if y.dtype == torch.float32 else (y * self.scales).to(y.dtype)
        if self.bias is not None:
            y = y.add_(self.bias)
        return y.view(*x.shape[:-1], self.out_features)

    def _blocks(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        rows = block_rows(self.out_features, self.in_features, x.dtype)
        buffer = _buffer(rows * self.in_features, x)
        for some in self.values.split(rows):
            block = buffer[: some.numel()].view(some.shape)
            yield x @ block.copy_(some).t()


class Int8Embedding(_Rows):
    """Embeddings [words, width] in eight bits; ``factor`` is what Gemma multiplies them by."""

    def __init__(
        self,
        values: torch.Tensor,
        scales: torch.Tensor,
        dtype: torch.dtype,
        factor: torch.Tensor | None = None,
    ) -> None:
        """Take int8 values [words, width] and float32 scales [words]."""
        super().__init__(values, scales, dtype)
        self.num_embeddings, self.embedding_dim = values.shape
        self.register_buffer("factor", factor, persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of token ids [...]: [..., width]."""
        found = self.values[ids].float() * self.scales[ids][..., None]
        found = found.to(self.dtype)
        return found if self.factor is None else found * self.factor.to(self.dtype)


def block_rows(rows: int, columns: int, dtype: torch.dtype) -> int:
    """Return how many rows of a matrix are multiplied at once; at least one."""
    return max(1, min(rows, BLOCK_BYTES // int(columns * dtype.itemsize)))


def _buffer(size: int, like: torch.Tensor) -> torch.Tensor:
    """Return a buffer of this thread: a fresh one for each product would cost page faults."""
    known: dict[Any, torch.Tensor] = _own.__dict__
    key = f"{like.device} {like.dtype}"
    if key not in known or known[key].numel() < size:
        with torch.inference_mode(False):  # so that it may be written outside that mode, too
            known[key] = torch.empty(size, dtype=like.dtype, device=like.device)
    return known[key]


def quantise_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return int8 values [rows, columns] and float32 scales [rows] of a matrix.

    A row of zeros has a scale of one. ``ModelError`` for numbers that are not finite.
    """
    values = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scales = torch.empty(weight.shape[0], device=weight.device)
    rows = block_rows(weight.shape[0], weight.shape[1], torch.float32)
    for start in range(0, weight.shape[0], rows):
        some = weight[start : start + rows].float()
        scale = some.abs().amax(1) / LARGEST
        if not scale.isfinite().all():
            raise ModelError("A weight is infinite or no number, which int8 cannot hold.")
        scale[scale == 0] = 1
        places = slice(start, start + rows)
        scales[places] = scale
        values[places] = (some / scale[:, None]).round_().clamp_(-LARGEST, LARGEST)
    return values, scales


@torch.no_grad()
def hold_in_int8(model: Any, dtype: torch.dtype) -> Int8Weights:
    """Quantise a model in place, one matrix after the other, and free each at once.

    Adapters on top stay; ``dtype`` is the type of what layers take and give, and of the weights
    that stay. ``ModelError`` where nothing can be quantised.
    """
    made: dict[int, tuple[Any, torch.Tensor, torch.Tensor]] = {}
    before = 0
    for parent, name in _found(model):
        module = getattr(parent, name)
        weight = module.weight
        if id(weight) not in made:
            rows = weight.t() if isinstance(module, Conv1D) else weight
            # The parameter stays alive as long as its id is a key; its numbers do not.
            made[id(weight)] = (weight, *quantise_rows(rows.detach()))
            before += weight.numel() * dtype.itemsize
            weight.data = weight.data.new_empty(0)
        _, values, scales = made[id(weight)]
        setattr(parent, name, _quantised(module, values, scales, dtype))
        for adapter in parent.modules() if name == "base_layer" else ():
            if hasattr(adapter, "fan_in_fan_out"):
                adapter.fan_in_fan_out = False  # on a Conv1D: the matrix lies as Linear's now
    if not made:
        raise ModelError("This model has no linear layers that int8 could hold.")
    for parameter in model.parameters():
        # A copy even of the same type: a view would keep the whole mapped file in memory.
        parameter.data = parameter.data.to(dtype, copy=True)
    after = sum(values.nbytes + scales.nbytes for _, values, scales in made.values())
    return Int8Weights(len(made), before, after, held_bytes(model) - after)


def _quantised(
    module: Any, values: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype
) -> Int8Linear | Int8Embedding:
    if isinstance(module, torch.nn.Embedding):
        return Int8Embedding(values, scales, dtype, getattr(module, "embed_scale", None))
    return Int8Linear(values, scales, dtype, module.bias)


def _found(model: Any) -> list[tuple[Any, str]]:
    """Return parents and names of what is quantised: nothing that an adapter brings.

    A matrix that a module of another kind holds as well stays whole in all of them.
    """
    words = model.get_input_embeddings()
    found: list[tuple[Any, str]] = []
    pending: list[Any] = [model]
    while pending:
        parent = pending.pop()
        on_top = isinstance(getattr(parent, "base_layer", None), torch.nn.Module)
        for name, module in parent.named_children():
            if (on_top and name != "base_layer") or type(module).__name__ in REPLACED:
                continue
            if type(module) in (torch.nn.Linear, Conv1D) or (module is words and _plain(words)):
                found.append((parent, name))
            else:
                pending.append(module)
    held = Counter(id(p) for m in model.modules() for p in m._parameters.values())
    mine = Counter(id(getattr(parent, name).weight) for parent, name in found)
    return [
        (parent, name)
        for parent, name in found
        if held[id(weight := getattr(parent, name).weight)] == mine[id(weight)]
    ]


def _plain(words: Any) -> bool:
    """Say whether embeddings are looked up, and at most multiplied by a number."""
    scaled = type(words).__name__.endswith("ScaledWordEmbedding") and hasattr(words, "embed_scale")
    return type(words) is torch.nn.Embedding or scaled


def held_bytes(model: Any) -> int:
    """Return the bytes of all parameters and buffers; what two modules share counts once."""
    held = {t.data_ptr(): t.nbytes for t in (*model.parameters(), *model.buffers())}
    return sum(held.values())
