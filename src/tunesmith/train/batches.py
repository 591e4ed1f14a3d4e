"""Which rows a step trains on, and how they are packed: pure functions, no tensors."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache


def epoch_order(rows: int, seed: int, epoch: int) -> list[int]:
    """Return the order of rows in one epoch; nothing but these three numbers decides it."""
    order = list(range(rows))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order


@lru_cache(maxsize=2)
def _remembered_order(rows: int, seed: int, epoch: int) -> list[int]:
    # Every step asks for its epoch's order, and shuffling a million rows takes half a second.
    return epoch_order(rows, seed, epoch)


@dataclass(frozen=True, eq=False, slots=True)
class Prompts:
    """The rows of each prompt; compared by identity, so that looking one up costs nothing."""

    members: tuple[tuple[int, ...], ...]


def epoch_order_by_prompt(prompts: Prompts, rows_a_step: int, seed: int, epoch: int) -> list[int]:
    """Return the order of rows in one epoch in which rows of one prompt meet in a step.

    Prompts are shuffled, and the rows of each. Each step takes the next prompt that fits into what
    is left of it; where none does, the next one is cut, and its rest comes last: it would cut its
    neighbour in turn. Nothing but the arguments decides it.
    """
    rng = random.Random(f"{seed}/{epoch}")
    shuffled = [list(members) for members in prompts.members]
    rng.shuffle(shuffled)
    waiting: dict[int, deque[tuple[int, list[int]]]] = {}
    for number, members in enumerate(shuffled):
        rng.shuffle(members)
        for at in range(0, len(members), rows_a_step):
            piece = members[at : at + rows_a_step]
            waiting.setdefault(len(piece), deque()).append((number, piece))
    order: list[int] = []
    room, last = rows_a_step, len(shuffled)
    while waiting:
        fitting = [size for size in waiting if size <= room] or list(waiting)
        size = min(fitting, key=lambda one: waiting[one][0][0])
        _, piece = waiting[size].popleft()
        if not waiting[size]:
            del waiting[size]
        order += piece[:room]
        rest = piece[room:]
        if rest:
            last += 1
            waiting.setdefault(len(rest), deque()).append((last, rest))
        room = room - len(piece[:room]) or rows_a_step
    return order


_remembered_order_by_prompt = lru_cache(maxsize=2)(epoch_order_by_prompt)


@dataclass(frozen=True, slots=True)
class Plan:
    """Every step of a run, known before the first."""

    rows: int
    """Training rows."""
    rows_a_step: int
    """Rows of one optimiser step, over accumulation and processes."""
    total_steps: int
    seed: int
    prompts: Prompts | None = None
    """Given where the rows of a prompt are to meet in a step."""

    @property
    def steps_an_epoch(self) -> int:
        """Return optimiser steps in an epoch; the last one may be smaller."""
        return math.ceil(self.rows / self.rows_a_step)

    def epoch(self, step: int) -> int:
        """Return the epoch, from 0, that a step (from 0) lies in."""
        return step // self.steps_an_epoch

    def step_rows(self, step: int) -> list[int]:
        """Return the rows of one step, counted from 0."""
        start = step % self.steps_an_epoch * self.rows_a_step
        epoch = self.epoch(step)
        if self.prompts is None:
            order = _remembered_order(self.rows, self.seed, epoch)
        else:
            size = self.rows_a_step
            order = _remembered_order_by_prompt(self.prompts, size, self.seed, epoch)
        return order[start : start + self.rows_a_step]


def make_plan(
    rows: int,
    rows_a_step: int,
    epochs: float,
    max_steps: int | None,
    seed: int,
    prompts: Prompts | None = None,
) -> Plan:
    """Plan a run of so many epochs, or of ``max_steps`` steps if that is given."""
    steps = max_steps or max(1, round(math.ceil(rows / rows_a_step) * epochs))
    return Plan(rows, rows_a_step, steps, seed, prompts)


def own_rows(picked: Sequence[int], process: int, processes: int) -> list[int]:
    """Return a process's part of a step: neighbours, so that rows of one prompt stay together."""
    first, end = (at * len(picked) // processes for at in (process, process + 1))
    return list(picked[first:end])


def packed_capacity(longest: int, hidden_size: int, device: str) -> int:
    """Return the tokens of a packed sequence: enough for the full speed of the device, no more.

    On a CPU matrices reach their full rate at about 2**18 numbers, 512 tokens of a hidden size of
    512; more tokens at once only cost memory. A row is never cut for it.
    """
    enough = 2048 if device != "cpu" else min(2048, max(512, 2**18 // hidden_size))
    return max(longest, enough)


def pack(rows: Sequence[int], lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Pack rows into as few sequences of at most ``capacity`` tokens as best fit finds.

    Longest first, each into the fullest sequence that still has room for it. A row longer than
    ``capacity`` gets a sequence of its own. Within a sequence the order of ``rows`` is kept.
    """
    bins: list[tuple[int, list[int]]] = []
    for row in sorted(rows, key=lambda r: (-lengths[r], r)):
        length = lengths[row]
        fitting = [(room, at) for at, (room, _) in enumerate(bins) if room >= length]
        if fitting:
            room, at = min(fitting)
            bins[at] = (room - length, [*bins[at][1], row])
        else:
            bins.append((capacity - length, [row]))
    place = {row: at for at, row in enumerate(rows)}
    packed = [sorted(members, key=place.__getitem__) for _, members in bins]
    return sorted(packed, key=lambda members: place[members[0]])
