"""The vocabulary head of a decode step on a CPU, with its weights laid out for it.

A product of a few rows by a large matrix spends its time on bringing the matrix into the order that
the kernel wants. oneDNN takes it in that order once and for all; see ``bench/LOG.md``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

LEAST = 2_000_000
"""Weights below which it does not pay."""
MOST_ROWS = 64
"""Rows up to which the product is taken this way."""


@contextmanager
def packed_head(model: Any) -> Iterator[None]:
    """Let the head multiply by a reordered copy of its weights, where that is faster."""
    head = model.get_output_embeddings()
    if not _pays(head):
        yield
        return
    weight, bias = head.weight.detach(), head.bias
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, MOST_ROWS)
    plain = head.forward

    def forward(x: torch.Tensor) -> torch.Tensor:
        if x.numel() > MOST_ROWS * x.shape[-1]:
            return plain(x)
        found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
        return found

    head.forward = forward
    try:
        yield
    finally:
        del head.forward


def _pays(head: Any) -> bool:
    return (
        type(head) is torch.nn.Linear
        and "forward" not in head.__dict__
        and head.weight.device.type == "cpu"
        and head.weight.dtype == torch.float32
        and head.weight.numel() >= LEAST
        and torch.backends.mkldnn.is_available()
    )
