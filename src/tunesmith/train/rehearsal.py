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

from tunesmith.errors import TrainingError
from tunesmith.models.memory import free_bytes, is_out_of_memory
from tunesmith.train.batches import Plan, pack
from tunesmith.train.estimate import micro_batches, watched
from tunesmith.train.loop import Settings
from tunesmith.train.losses import (
    HELD_OUT_CAPACITY,
    lengths,
    packed_rows,
    row_losses,
    token_losses,
)
from tunesmith.train.snapshot import only_passing
from tunesmith.types import Encoded

SHARE = 0.03
"""Of a run's tokens: a run for which the rehearsal would be more than this goes without."""
ALIKE = 0.8
"""The longest row is not tried apart if the largest batch has one of this share of its length."""


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


def largest_batches(
    sizes: Sequence[int], plan: Plan, settings: Settings, processes: int = 1
) -> tuple[list[list[int]], bool]:
    """Return the micro-batch of most tokens and that of the longest row, which are mostly one.

    Also whether some step has several micro-batches. Looks at the first epoch, since the later
    ones only shuffle the same rows.
    """
    most: tuple[int, int, list[int]] = (0, 0, [])
    longest: tuple[int, int, list[int]] = (0, 0, [])
    several = False
    for step in range(min(plan.total_steps, plan.steps_an_epoch)):
        batches = micro_batches(plan.step_rows(step), sizes, settings, processes)
        several = several or len(batches) > 1
        for members in batches:
            row = max(sizes[at] for at in members)
            whole = tokens_of(members, sizes, settings)
            most = max(most, (whole, row, members))
            longest = max(longest, (row, whole, members))
    # Memory grows with a row's length hardly faster than with the tokens of all rows together.
    alike = most[1] >= ALIKE * longest[0]
    return [most[2]] if alike else [most[2], longest[2]], several


def tokens_of(members: Sequence[int], sizes: Sequence[int], settings: Settings) -> int:
    """Return the tokens of a micro-batch, padding included."""
    if settings.packing:
        return sum(sizes[at] for at in members)
    return len(members) * max(sizes[at] for at in members)


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
    batches, several = largest_batches(sizes, plan, settings, accelerator.num_processes)
    smaller = "" if settings.packing else " a smaller --per-device-train-batch-size,"
    change = f"--gradient-checkpointing auto, a lower --max-length,{smaller} --lora, "
    change += "or --optim adafactor"

    def part(members: list[int]) -> Part:
        return Part(
            "the largest training batch" if members is batches[0] else "the longest training row",
            _size(members, sizes, settings),
            tokens_of(members, sizes, settings),
            change,
            lambda: _forward_and_backward(
                model, [rows[at] for at in members], settings, accelerator
            ),
            optimizer + (gradients if several else 0),
        )

    return [part(members) for members in batches]


def held_out_part(
    model: Any, rows: Sequence[Encoded], device: torch.device, optimizer: int
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
        lambda: row_losses(model, [rows[at] for at in members], device, HELD_OUT_CAPACITY),
        optimizer,
    )


def rehearse(
    part: Part,
    model: Any,
    device: torch.device,
    free: Callable[[torch.device], int] = free_bytes,
) -> Rehearsed:
    """Make a part once and put everything back; ``TrainingError`` if the run could not end."""
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
    """Raise ``TrainingError`` for a part that would not fit, without trying.

    On a CPU a failed try is no exception: the system ends the process, or swaps for hours.
    """
    if bytes_ > has:
        raise _too_large(part, f"{_gb(bytes_)} by arithmetic, and {_gb(has)} are free", device)


def _forward_and_backward(
    model: Any, batch: Sequence[Encoded], settings: Settings, accelerator: Any
) -> None:
    model.train()
    whole = packed_rows(model, batch) if settings.packing else nullcontext()
    with whole:
        with accelerator.autocast():
            losses, weights, _ = token_losses(
                model, batch, accelerator.device, packing=settings.packing
            )
        # Not by the accelerator: its scaler and its count of micro-batches stay as they are.
        ((losses * weights).sum() / weights.sum()).backward()


def _size(members: Sequence[int], sizes: Sequence[int], settings: Settings) -> str:
    padded = "" if settings.packing else " with padding"
    rows = "1 row" if len(members) == 1 else f"{len(members)} rows"
    return f"{rows}, {tokens_of(members, sizes, settings):,} tokens{padded}"


def _too_large(part: Part, needs: str, device: torch.device) -> TrainingError:
    return TrainingError(
        f"This run could not end: {part.name} ({part.size}) needs {needs} on {device}. Nothing was "
        "trained.",
        expected=part.change,
        hint="--no-rehearsal starts all the same",
    )


def _gb(size: float) -> str:
    return f"{size / 1e9:,.2f} GB"
