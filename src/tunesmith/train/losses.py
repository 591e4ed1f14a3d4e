"""The loss: the one shift, the head on trained tokens only, sums instead of means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from tunesmith.data.blocks import TokenRows
from tunesmith.errors import OutOfMemoryError
from tunesmith.models.attention import packed, positions, read_only_at
from tunesmith.models.memory import give_back, is_out_of_memory
from tunesmith.models.packs import Pack
from tunesmith.train.batches import pack
from tunesmith.train.label_loss import label_losses
from tunesmith.train.sharing import Bundle, Rows, alone
from tunesmith.types import Encoded

HELD_OUT_CAPACITY = 2048
"""Tokens of a sequence when held-out losses are taken."""


class TokenLosses(NamedTuple):
    """The trained tokens of some rows, row after row; tensors [trained tokens]."""

    losses: torch.Tensor
    """Nats."""
    weights: torch.Tensor
    counts: list[int]
    """Trained tokens of each row."""
    hits: torch.Tensor
    """Bool: whether the label is the model's likeliest token."""


@dataclass(frozen=True, slots=True)
class RowScore:
    """What a model makes of one row."""

    loss: float
    """Weighted sum over its trained tokens, in nats."""
    weight: float
    tokens: int
    right: int
    """Trained tokens whose label is the model's likeliest token."""


def token_losses(
    model: Any, rows: Sequence[Encoded] | Pack, device: torch.device, *, packing: bool = True
) -> TokenLosses:
    """Run rows forward and return what became of their trained tokens.

    A pack, and rows if ``packing``, must be run inside ``packed_rows``; else they are padded,
    masked by position.
    """
    if isinstance(rows, Pack):
        return _packed(model, rows, device)
    if packing:
        return _packed(model, lay_out(rows), device)
    return _padded(model, rows, device)


def lengths(rows: Sequence[Encoded]) -> Sequence[int]:
    """Return the rows' lengths in tokens; rows in blocks need not be made for it."""
    if isinstance(rows, TokenRows):
        return rows.lengths()
    return [len(row.ids) for row in rows]


def packed_rows(model: Any, rows: Sequence[Encoded] | Pack, attention: str = "segments") -> Any:
    """Return the context in which these rows are one sequence, for forward and backward."""
    return packed(model, rows.groups if isinstance(rows, Pack) else lengths(rows), attention)


def lay_out(rows: Rows, bundles: Sequence[Bundle] | None = None) -> Pack:
    """Lay rows into one sequence, bundle after bundle; each by itself if no bundles are given."""
    if bundles is None:
        bundles = alone(range(len(rows)), [len(rows[at].ids) for at in range(len(rows))])
    ids: list[int] = []
    places: list[int] = []
    labels: list[tuple[int, float]] = []
    counts = []
    for bundle in bundles:
        start = len(ids)
        ids += rows[bundle.rows[0]].ids[: bundle.prefix]
        for number in bundle.rows:
            row, targets = rows[number], _targets(rows[number])
            # From its own tokens on, a row lies this much further on than its prefix does.
            shift = len(ids) - start - bundle.prefix
            places += [start + at + (shift if at >= bundle.prefix else 0) for at in targets]
            labels += [(row.ids[at + 1], row.weights[at + 1]) for at in targets]
            counts.append(len(targets))
            ids += row.ids[bundle.prefix :]
    return Pack(
        tuple(ids),
        tuple(bundle.group for bundle in bundles),
        tuple(places),
        tuple(token for token, _ in labels),
        tuple(weight for _, weight in labels),
        tuple(counts),
    )


def _targets(row: Encoded) -> list[int]:
    """Return the positions whose next token is trained: the one shift of the project."""
    return [at - 1 for at, weight in enumerate(row.weights) if weight and at]


def head_places(pack: Pack) -> dict[tuple[int, int], int]:
    """Return each place and target once, numbered: what the vocabulary head is computed for."""
    pairs = dict.fromkeys(zip(pack.places, pack.targets, strict=True))
    return {pair: number for number, pair in enumerate(pairs)}


def head_logits(
    model: Any, pack: Pack, device: torch.device
) -> tuple[torch.Tensor, list[int], list[int] | None]:
    """Run a pack forward inside ``packed_rows``; return logits [pairs, V] and their targets.

    Last comes the pair of each label, or None where every label is a pair of its own.
    """
    pairs = head_places(pack)
    read_only_at(sorted({place for place, _ in pairs}))
    logits = model(
        input_ids=torch.tensor([pack.ids], device=device),
        position_ids=positions(pack.groups, device),
        use_cache=False,
        logits_to_keep=torch.tensor([place for place, _ in pairs], device=device),
    ).logits.flatten(0, 1)
    which = None
    if len(pairs) < len(pack.places):
        which = [pairs[pair] for pair in zip(pack.places, pack.targets, strict=True)]
    return logits, [target for _, target in pairs], which


def _packed(model: Any, pack: Pack, device: torch.device) -> TokenLosses:
    logits, targets, which = head_logits(model, pack, device)
    losses, hits = _compared(logits, targets, device)
    if which is not None:
        chosen = torch.tensor(which, device=device)
        losses, hits = losses[chosen], hits[chosen]
    return TokenLosses(losses, torch.tensor(pack.weights, device=device), list(pack.counts), hits)


def _padded(model: Any, rows: Sequence[Encoded], device: torch.device) -> TokenLosses:
    longest = max(lengths(rows))
    ids = torch.tensor([[*row.ids, *[0] * (longest - len(row.ids))] for row in rows], device=device)
    mask = torch.tensor([[1] * n + [0] * (longest - n) for n in lengths(rows)], device=device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    places = [_targets(row) for row in rows]
    kept = torch.cat([logits[number, ats] for number, ats in enumerate(places)])
    wanted = [row.ids[at + 1] for row, ats in zip(rows, places, strict=True) for at in ats]
    weights = [row.weights[at + 1] for row, ats in zip(rows, places, strict=True) for at in ats]
    losses, hits = _compared(kept, wanted, device)
    counts = [len(ats) for ats in places]
    return TokenLosses(losses, torch.tensor(weights, device=device), counts, hits)


def _compared(
    logits: torch.Tensor, wanted: Sequence[int], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss of each label, in nats, and whether it is the likeliest token."""
    labels = torch.tensor(wanted, device=device)
    return label_losses(logits, labels)


def row_losses(
    model: Any,
    rows: Sequence[Encoded],
    device: torch.device,
    capacity: int,
    attention: str = "segments",
) -> list[tuple[float, float]]:
    """Return (sum of weighted losses in nats, sum of weights) of each row, in order."""
    return [(one.loss, one.weight) for one in row_scores(model, rows, device, capacity, attention)]


@torch.no_grad()  # inference mode would leave shards behind that training cannot use
def row_scores(
    model: Any,
    rows: Sequence[Encoded],
    device: torch.device,
    capacity: int,
    attention: str = "segments",
    *,
    may_halve: bool = True,
) -> list[RowScore]:
    """Return what the model, without dropout, makes of each row, in order.

    Where memory runs out, the rows that are left go on in sequences of half the tokens, unless
    other processes count on this one's (``may_halve``). ``OutOfMemoryError`` if a row alone does
    not fit.
    """
    sizes = lengths(rows)
    found: dict[int, RowScore] = {}
    was_training = model.training
    model.eval()
    try:
        waiting = pack(range(len(rows)), sizes, capacity)
        while waiting:
            members = waiting[0]
            scores = _scores(model, [rows[at] for at in members], device, attention)
            if scores is not None:
                found.update(zip(members, scores, strict=True))
                waiting = waiting[1:]
                continue
            give_back(device)
            if len(members) == 1 or not may_halve:
                raise _too_large([sizes[at] for at in members])
            capacity = sum(sizes[at] for at in members) // 2
            waiting = pack([at for some in waiting for at in some], sizes, capacity)
    finally:
        model.train(was_training)
    return [found[at] for at in range(len(rows))]


def _scores(
    model: Any, batch: Sequence[Encoded], device: torch.device, attention: str
) -> list[RowScore] | None:
    """Return the scores of rows in one sequence, or None where memory ran out."""
    try:
        with packed_rows(model, batch, attention):
            losses, weights, counts, hits = token_losses(model, batch, device)
        parts = zip(losses.split(counts), weights.split(counts), hits.split(counts), strict=True)
        return [
            RowScore(
                float((loss * weight).double().sum()),
                float(weight.double().sum()),
                len(hit),
                int(hit.sum()),
            )
            for loss, weight, hit in parts
        ]
    except (MemoryError, RuntimeError) as failure:
        if not is_out_of_memory(failure):
            raise
    return None


def _too_large(sizes: Sequence[int]) -> OutOfMemoryError:
    rows = "one row" if len(sizes) == 1 else f"{len(sizes)} rows"
    return OutOfMemoryError(
        f"Memory ran out while held-out losses were taken: {rows} of {sum(sizes):,} tokens "
        f"{'does' if len(sizes) == 1 else 'do'} not fit.",
        hint="a lower --max-length, a smaller --validation-split, --eval-strategy no, --lora, or "
        "--optim adafactor",
    )
