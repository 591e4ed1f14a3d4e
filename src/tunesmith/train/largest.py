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
    ones only shuffle the same rows, and at the first process's part of it.
    """
    most, longest = (0, 0), (0, 0)
    most_of, longest_of = list[Bundle](), list[Bundle]()
    several = False
    for step in range(min(plan.total_steps, plan.steps_an_epoch)):
        mine = own_rows(plan.step_rows(step), 0, processes)
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


def groups_of(found: Sequence[Bundle], settings: Settings) -> tuple[Group, ...]:
    """Return how a micro-batch lies; padded rows are as long as the longest."""
    if settings.packing:
        return tuple(bundle.group for bundle in found)
    return (Group(max(bundle.prefix for bundle in found)),) * len(found)


def tokens_of(found: Sequence[Bundle], settings: Settings) -> int:
    """Return the tokens that are computed of a micro-batch, padding included."""
    return sum(group.tokens for group in groups_of(found, settings))
