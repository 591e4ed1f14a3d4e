"""NEFTune: uniform noise on the embeddings of a training step.

Each row's noise follows from the run's seed, the step and the row alone, so neither packing, nor
accumulation, nor a resume, nor other random draws change it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def noisy_embeddings(
    model: Any, alpha: float, lengths: Sequence[int], seeds: Sequence[str], *, packing: bool
) -> Iterator[None]:
    """Add noise of at most alpha/√(length·width) to the embeddings of rows of these lengths.

    Length and width are those of the row's own matrix of embeddings, padding not counted (arXiv
    2310.05914). The rows lie behind each other if ``packing``, below each other if not.
    """

    def add(_: torch.nn.Module, __: Any, embedded: torch.Tensor) -> torch.Tensor:
        noise = torch.zeros_like(embedded)
        start = 0
        for number, (length, seed) in enumerate(zip(lengths, seeds, strict=True)):
            place = noise[0, start : start + length] if packing else noise[number, :length]
            width = embedded.shape[-1]
            place.copy_(_uniform(length, width, seed, embedded) * (alpha / (length * width) ** 0.5))
            start += length
        return embedded + noise

    inner = getattr(model, "module", model)  # data-parallel wrappers hide the model in there
    hook = inner.get_input_embeddings().register_forward_hook(add)
    try:
        yield
    finally:
        hook.remove()


def _uniform(length: int, width: int, seed: str, like: torch.Tensor) -> torch.Tensor:
    """Return numbers [length, width] between -1 and 1 that the seed decides."""
    digest = hashlib.blake2b(f"noise/{seed}".encode(), digest_size=8).digest()
    stream = torch.Generator(like.device).manual_seed(int.from_bytes(digest, "big") >> 1)
    return torch.rand(length, width, generator=stream, device=like.device) * 2 - 1
