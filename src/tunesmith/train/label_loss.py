"""Cross-entropy of labels whose gradient takes the place of the logits.

``torch.nn.functional.cross_entropy`` keeps a table of log-probabilities as large as the logits and
makes a third one for their gradient. Here nothing of that size is made: for logits x [N, V] and
label t of a row, with m = max x and s = Σ exp(x - m),

    loss = log s - (x_t - m),    ∂x = g (exp(x - m) / s - 1_t),

forward over rows that stay in the processor's cache, and backward in place.
"""

from __future__ import annotations

from typing import Any

import torch

CACHED_BYTES = 2**20
"""Of the rows that are worked on at once."""


class _LabelLoss(torch.autograd.Function):  # type: ignore[misc]  # torch gives it no type
    """Losses [N] in nats of labels [N] under float32 logits [N, V], and whether each is a hit."""

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        picked = logits.gather(-1, labels[:, None])[:, 0]
        # The maximum takes a CPU a fraction of the time of its place; in float32 ties are rare.
        top = logits.amax(-1)
        total = torch.empty_like(top)
        for rows in _parts(logits):
            shifted = logits[rows] - top[rows, None]
            torch.sum(shifted.exp_(), -1, out=total[rows])
        ctx.save_for_backward(logits, labels, top, total)
        hits = picked >= top
        return total.log().sub_(picked.sub_(top)), hits

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        logits, labels, top, total = ctx.saved_tensors
        grad = grads[0]
        share = grad / total
        # Whoever asks a second time is told by autograd that a saved tensor was modified.
        for rows in _parts(logits):
            logits[rows].sub_(top[rows, None]).exp_().mul_(share[rows, None])
        logits.scatter_add_(-1, labels[:, None], -grad[:, None])
        return logits, None


def label_losses(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss of each label [N] in nats, and whether it is the likeliest token.

    Nobody else may need the logits [N, V] in the backward pass, where they become their gradient.
    """
    losses, hits = _LabelLoss.apply(logits.float(), labels)
    if logits.dtype is not torch.float32:
        # Half precision has so few values that a label often shares the maximum with others.
        hits = logits.detach().argmax(-1) == labels
    return losses, hits


def _parts(logits: torch.Tensor) -> list[slice]:
    """Return the rows to work on at once: on a CPU some that the cache holds beside their copy."""
    if logits.device.type == "cuda":
        return [slice(None)]
    count = max(1, CACHED_BYTES // (4 * logits.shape[-1]))
    return [slice(start, start + count) for start in range(0, len(logits), count)]
