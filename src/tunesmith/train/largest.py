"""The largest micro-batches of a run, found from lengths before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.models.packs import Group
from tunesmith.train.batches import Plan, own_rows
from tunesmith.train.loop import Settings, micro_batches
from tunesmith.train.sharing import Bundle
from tunesmith.types import Encoded

ALIKE = 0.8
"""The longest row is not named apart if the largest batch has one of this share of its length."""


def largest_batches(
    rows: Sequence[Encoded],
    sizes: Sequence[int],
    plan: Plan,
    settings: Settings,
    processes: int = 1,
) -> tuple[list[list[Bundle]], bool]:
    """Return the micro-batch of most tokens and that of the longest row, which are mostly one.

    Also whether some step has several micro-batches. Looks at the first epoch, since the later
    ones only shuffle the same rows, and at the first process's part of it. A step is laid out only
    if by its lengths it could hold a larger micro-batch than those before.
    """
    most, longest = (0, 0), (0, 0)
    most_of, longest_of = list[Bundle](), list[Bundle]()
    several = False
    for step in range(min(plan.total_steps, plan.steps_an_epoch)):
        mine = own_rows(plan.step_rows(step), 0, processes)
        bound, row, one = _at_most([sizes[at] for at in mine], settings)
        if (several or one) and (bound, row) <= most and (row, bound) <= longest:
            continue
        batches = micro_batches(mine, rows, sizes, settings)
        several = several or len(batches) > 1
        for found in batches:
            row = max(max(bundle.lengths) for bundle in found)
            whole = tokens_of(found, settings)
            if (whole, row) > most:
                most, most_of = (whole, row), found
            if (row, whole) > longest:
                longest, longest_of = (row, whole), found
    # Memory grows with a row's length hardly faster than with the tokens of all rows together.
    alike = most[1] >= ALIKE * longest[0]
    return [most_of] if alike else [most_of, longest_of], several


def _at_most(sizes: Sequence[int], settings: Settings) -> tuple[int, int, bool]:
    """Return what no micro-batch of a step exceeds: tokens, and the length of a row.

    Also whether the step is one micro-batch for certain.
    """
    total, row = sum(sizes), max(sizes, default=0)
    if not settings.packing:
        at_once = settings.rows_a_micro_batch
        return row * min(len(sizes), at_once), row, len(sizes) <= at_once
    one = total <= settings.capacity
    # Groups that are taken whole may be more than the capacity.
    bound = total if settings.shared_prefix == "grouped" else max(settings.capacity, row)
    return min(total, bound), row, one


def groups_of(found: Sequence[Bundle], settings: Settings) -> tuple[Group, ...]:
    """Return how a micro-batch lies; padded rows are as long as the longest."""
    if settings.packing:
        return tuple(bundle.group for bundle in found)
    return (Group(max(bundle.prefix for bundle in found)),) * len(found)


def tokens_of(found: Sequence[Bundle], settings: Settings) -> int:
    """Return the tokens that are computed of a micro-batch, padding included."""
    return sum(group.tokens for group in groups_of(found, settings))
