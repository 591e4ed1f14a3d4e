"""The loss: the one shift, the head on trained tokens only, sums instead of means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from tunesmith.data.blocks import TokenRows
from tunesmith.models.attention import packed, positions
from tunesmith.types import Encoded

HELD_OUT_CAPACITY = 2048
"""Tokens of a sequence when held-out losses are taken."""


def token_losses(
    model: Any, rows: Sequence[Encoded], device: torch.device, *, packing: bool = True
) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Run rows forward; return losses and weights of their trained tokens, and how many each has.

    Losses are in nats, both tensors [trained tokens], row after row. Must be called inside
    ``attention.packed`` if ``packing``; otherwise the rows are padded and masked by position.
    """
    if packing:
        return _packed(model, rows, device)
    return _padded(model, rows, device)


def lengths(rows: Sequence[Encoded]) -> Sequence[int]:
    """Return the rows' lengths in tokens; rows in blocks need not be made for it."""
    if isinstance(rows, TokenRows):
        return rows.lengths()
    return [len(row.ids) for row in rows]


def packed_rows(model: Any, rows: Sequence[Encoded]) -> Any:
    """Return the context in which these rows are one sequence, for forward and backward."""
    return packed(model, lengths(rows))


def _targets(row: Encoded) -> list[int]:
    """Return the positions whose next token is trained: the one shift of the project."""
    return [at - 1 for at, weight in enumerate(row.weights) if weight and at]


def _packed(
    model: Any, rows: Sequence[Encoded], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    ids = torch.tensor([[token for row in rows for token in row.ids]], device=device)
    keep: list[int] = []
    start = 0
    for row in rows:
        keep += [start + at for at in _targets(row)]
        start += len(row.ids)
    logits = model(
        input_ids=ids,
        position_ids=positions(lengths(rows), device),
        use_cache=False,
        logits_to_keep=torch.tensor(keep, device=device),
    ).logits[0]
    return _losses(logits, rows, device)


def _padded(
    model: Any, rows: Sequence[Encoded], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    longest = max(lengths(rows))
    ids = torch.tensor([[*row.ids, *[0] * (longest - len(row.ids))] for row in rows], device=device)
    mask = torch.tensor([[1] * n + [0] * (longest - n) for n in lengths(rows)], device=device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    kept = [logits[number, _targets(row)] for number, row in enumerate(rows)]
    return _losses(torch.cat(kept), rows, device)


def _losses(
    logits: torch.Tensor, rows: Sequence[Encoded], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    places = [_targets(row) for row in rows]
    wanted = [row.ids[at + 1] for row, ats in zip(rows, places, strict=True) for at in ats]
    weights = [row.weights[at + 1] for row, ats in zip(rows, places, strict=True) for at in ats]
    losses = cross_entropy(logits.float(), torch.tensor(wanted, device=device), reduction="none")
    return losses, torch.tensor(weights, device=device), [len(ats) for ats in places]


@torch.inference_mode()
def row_losses(
    model: Any, rows: Sequence[Encoded], device: torch.device, capacity: int
) -> list[tuple[float, float]]:
    """Return (sum of weighted losses in nats, sum of weights) of each row, in order."""
    from tunesmith.train.batches import pack

    found: dict[int, tuple[float, float]] = {}
    was_training = model.training
    model.eval()
    for members in pack(range(len(rows)), lengths(rows), capacity):
        batch = [rows[at] for at in members]
        with packed_rows(model, batch):
            losses, weights, counts = token_losses(model, batch, device)
        parts = zip(losses.split(counts), weights.split(counts), strict=True)
        for at, (loss, weight) in zip(members, parts, strict=True):
            found[at] = (float((loss * weight).double().sum()), float(weight.double().sum()))
    model.train(was_training)
    return [found[at] for at in range(len(rows))]
