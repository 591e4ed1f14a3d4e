"""The largest pieces of a run, computed once before its first step, and then forgotten.

A run that cannot end for want of memory fails in its first seconds, with a sentence. No step of
the optimiser is made for it: forward and backward passes touch nothing but gradients, and the
bytes that the optimiser and waiting gradients will take are added to what was seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from tunesmith.errors import OutOfMemoryError
from tunesmith.models.memory import free_bytes, is_out_of_memory
from tunesmith.train.batches import Plan, pack
from tunesmith.train.estimate import watched
from tunesmith.train.largest import largest_batches, tokens_of
from tunesmith.train.loop import Settings
from tunesmith.train.losses import (
    HELD_OUT_CAPACITY,
    lay_out,
    lengths,
    packed_rows,
    row_losses,
    token_losses,
)
from tunesmith.train.sharing import Bundle
from tunesmith.train.snapshot import only_passing
from tunesmith.types import Encoded

SHARE = 0.03
"""Of a run's tokens: a run for which the rehearsal would be more than this goes without."""


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of a run that is rehearsed."""

    name: str
    size: str
    """For people, such as «3 rows, 1,024 tokens»."""
    tokens: int
    change: str
    """What makes it smaller, as flags."""
    make: Callable[[], object]
    kept: int
    """Bytes that the run holds beside it later and not yet now."""


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """What a piece took."""

    part: Part
    grown: int
    """Bytes at most, beside what was held before."""


def training_parts(
    model: Any,
    rows: Sequence[Encoded],
    plan: Plan,
    settings: Settings,
    accelerator: Any,
    kept: tuple[int, int],
) -> list[Part]:
    """Return the largest micro-batches as parts; ``kept`` are bytes of optimiser and gradients."""
    sizes = lengths(rows)
    optimizer, gradients = kept
    batches, several = largest_batches(rows, sizes, plan, settings)

    def part(found: list[Bundle]) -> Part:
        return Part(
            "the largest training batch" if found is batches[0] else "the longest training row",
            _size(found, settings),
            tokens_of(found, settings),
            "--gradient-checkpointing auto, a lower --max-length, --lora, or --optim adafactor",
            lambda: _forward_and_backward(model, rows, found, settings, accelerator),
            optimizer + (gradients if several else 0),
        )

    return [part(found) for found in batches]


def held_out_part(
    model: Any,
    rows: Sequence[Encoded],
    device: torch.device,
    optimizer: int,
    attention: str = "segments",
) -> Part:
    """Return the largest batch of the held-out loss as a part."""
    sizes = lengths(rows)
    batches = pack(range(len(rows)), sizes, HELD_OUT_CAPACITY)
    members = max(batches, key=lambda members: sum(sizes[at] for at in members))
    return Part(
        "the largest batch of the held-out loss",
        f"{len(members)} rows, {sum(sizes[at] for at in members):,} tokens",
        sum(sizes[at] for at in members),
        "a lower --max-length, --lora, or --optim adafactor",
        lambda: row_losses(
            model, [rows[at] for at in members], device, HELD_OUT_CAPACITY, attention
        ),
        optimizer,
    )


def rehearse(
    part: Part,
    model: Any,
    device: torch.device,
    free: Callable[[torch.device], int] = free_bytes,
) -> Rehearsed:
    """Make a part once and put everything back; ``OutOfMemoryError`` if the run could not end."""
    has = free(device)
    with only_passing(model):
        try:
            with watched(device) as grown:
                part.make()
        except Exception as failure:
            if not is_out_of_memory(failure):
                raise
            raise _too_large(part, f"more than the {_gb(has)} that are free", device) from None
    if device.type == "cuda":
        torch.cuda.empty_cache()
    if grown[0] + part.kept > has:
        beside = f"{_gb(grown[0])}, beside {_gb(part.kept)} of optimiser and gradients by then"
        raise _too_large(part, f"{beside}, and {_gb(has)} are free", device)
    return Rehearsed(part, grown[0])


def refuse_by_arithmetic(part: Part, bytes_: int, has: int, device: torch.device) -> None:
    """Raise ``OutOfMemoryError`` for a part that would not fit, without trying.

    On a CPU a failed try is no exception: the system ends the process, or swaps for hours.
    """
    if bytes_ > has:
        raise _too_large(part, f"{_gb(bytes_)} by arithmetic, and {_gb(has)} are free", device)


def _forward_and_backward(
    model: Any,
    rows: Sequence[Encoded],
    found: Sequence[Bundle],
    settings: Settings,
    accelerator: Any,
) -> None:
    model.train()
    members = [rows[at] for bundle in found for at in bundle.rows]
    batch = lay_out(rows, found) if settings.packing else members
    whole = packed_rows(model, batch, settings.attention) if settings.packing else nullcontext()
    with whole:
        with accelerator.autocast():
            made = token_losses(model, batch, accelerator.device, packing=settings.packing)
        # Not by the accelerator: its scaler and its count of micro-batches stay as they are.
        ((made.losses * made.weights).sum() / made.weights.sum()).backward()


def _size(found: Sequence[Bundle], settings: Settings) -> str:
    padded = "" if settings.packing else " with padding"
    count = sum(len(bundle.rows) for bundle in found)
    rows = "1 row" if count == 1 else f"{count} rows"
    return f"{rows}, {tokens_of(found, settings):,} tokens{padded}"


def _too_large(part: Part, needs: str, device: torch.device) -> OutOfMemoryError:
    return OutOfMemoryError(
        f"This run could not end: {part.name} ({part.size}) needs {needs} on {device}. Nothing was "
        "trained.",
        expected=part.change,
        hint="--no-rehearsal starts all the same",
    )


def _gb(size: float) -> str:
    return f"{size / 1e9:,.2f} GB"
