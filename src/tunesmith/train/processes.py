"""A step that several processes share: who takes which rows, and how sums become one.

Each process holds the whole model, or under FSDP2 a shard of it. Gradients of whole models are
summed here, in pieces of one fixed layout, rather than by PyTorch's wrapper: that one gathers its
pieces anew after the first step, so a resumed run would sum in another order, and it hangs where a
process has no row in a step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule

from tunesmith.errors import TrainingError
from tunesmith.train import pulse
from tunesmith.train.batches import own_rows, pack
from tunesmith.train.losses import RowScore, lengths
from tunesmith.train.losses import row_scores as scores_here
from tunesmith.types import Encoded

T = TypeVar("T")
PIECE = 1 << 22
"""Numbers that are summed over processes at once."""


def is_sharded(model: Any) -> bool:
    """Say whether this process holds only a shard of the model."""
    return isinstance(model, FSDPModule)


@contextmanager
def needing_others(doing: str) -> Iterator[None]:
    """Raise ``TrainingError`` in place of what the library says when another process is gone."""
    try:
        with pulse.waiting(doing):
            yield
    except (dist.DistError, RuntimeError) as failure:
        if lost(failure):
            raise TrainingError(f"Another process has ended in the midst of {doing}.") from failure
        raise


def lost(failure: BaseException) -> bool:
    """Say whether an exception tells of another process that is gone."""
    if isinstance(failure, dist.DistNetworkError | dist.DistBackendError):
        return True
    words = str(failure).lower()
    return isinstance(failure, RuntimeError) and ("gloo" in words or "closed by peer" in words)


def share(
    picked: Sequence[int],
    split: Callable[[Sequence[int]], list[T]],
    equally_often: bool,
    accelerator: Any,
) -> tuple[list[T], int]:
    """Return the micro-batches of this process in a step, and how many of them count.

    Where all processes must run the model ``equally_often``, those with fewer micro-batches get
    further ones, of a row that another process trains, to be counted as nothing.
    """
    count = accelerator.num_processes
    mine = split(own_rows(picked, accelerator.process_index, count))
    if count == 1 or not equally_often:
        return mine, len(mine)
    most = max(len(split(own_rows(picked, at, count))) for at in range(count))
    return [*mine, *split(picked[:1]) * (most - len(mine))], len(mine)


def scale(model: Any, accelerator: Any) -> int:
    """Return what a loss is multiplied by before the backward pass: shards average gradients."""
    return int(accelerator.num_processes) if is_sharded(model) else 1


@contextmanager
def last_alone_synchronises(model: Any, last: bool) -> Iterator[None]:
    """Let the shards' gradients meet after the last micro-batch only."""
    if not is_sharded(model):
        yield
        return
    model.set_requires_gradient_sync(last)
    yield


def settle(model: Any, stopped: bool, accelerator: Any, summed_already: bool) -> bool:
    """Sum a step's gradients over the processes; say whether any of them was stopped.

    After a stop the gradients are worth nothing.
    """
    if accelerator.num_processes == 1:
        return stopped
    trained = [p for p in model.parameters() if p.requires_grad]
    said = [float(stopped), *(float(p.grad is not None) for p in trained)]
    words = torch.tensor(said, dtype=torch.float64, device=accelerator.device)
    with needing_others("the sum over processes"):
        dist.all_reduce(words)
        summed = words.tolist()
        if not summed[0] and not summed_already:
            # What no process has a gradient for stays without one, as with a single process.
            _sum_gradients([p for p, n in zip(trained, summed[1:], strict=True) if n])
    return bool(summed[0])


def first_found(name: str | None, model: Any) -> str | None:
    """Return what any process found in its shard of a model; None where none found anything."""
    if not is_sharded(model):
        return name
    device = next(model.parameters()).device
    found = torch.tensor(float(name is not None), device=device)
    with needing_others("the look for numbers that are not finite"):
        dist.all_reduce(found)
    return name if name is not None or not found else "a weight of another process"


def _sum_gradients(parameters: Sequence[Any]) -> None:
    piece: list[Any] = []
    for at, parameter in enumerate(parameters):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        piece.append(parameter.grad)
        ends = at + 1 == len(parameters) or parameters[at + 1].dtype != parameter.dtype
        if ends or sum(grad.numel() for grad in piece) >= PIECE:
            _sum_piece(piece)
            piece = []


def _sum_piece(gradients: Sequence[torch.Tensor]) -> None:
    flat = torch.cat([grad.reshape(-1) for grad in gradients])
    dist.all_reduce(flat)
    parts = flat.split([grad.numel() for grad in gradients])
    for grad, part in zip(gradients, parts, strict=True):
        grad.copy_(part.view_as(grad))


def number(value: Any) -> float:
    """Return a scalar that may lie in shards."""
    if hasattr(value, "full_tensor"):
        with needing_others("the norm of the gradients"):
            value = value.full_tensor()
    return float(value)


def row_scores(
    model: Any,
    rows: Sequence[Encoded],
    accelerator: Any,
    capacity: int,
    attention: str,
    step: int,
) -> list[RowScore]:
    """Return what ``losses.row_scores`` returns, each process having done a part of it.

    The rows are packed as by a single process, so that each one's loss is the same to the bit.
    """
    count, device = accelerator.num_processes, accelerator.device

    def scores(some: Sequence[Encoded]) -> list[RowScore]:
        halve = not is_sharded(model)
        found: list[RowScore] = scores_here(
            model, some, device, capacity, attention, may_halve=halve
        )
        return found

    if count == 1:
        return scores(rows)
    packs = pack(range(len(rows)), lengths(rows), capacity)
    mine = packs[accelerator.process_index :: count]
    found = torch.zeros(len(rows), 4, dtype=torch.float64)
    for members in mine:
        pulse.note(step, "held-out loss")
        made = scores([rows[at] for at in members])
        found[members] = torch.tensor([astuple(one) for one in made], dtype=torch.float64)
    if is_sharded(model) and len(mine) < -(-len(packs) // count):
        # As often as the others, or they would wait for this process's shards.
        scores([rows[packs[0][0]]])
    found = found.to(device)
    with needing_others("the held-out loss"):
        dist.all_reduce(found)
    return [RowScore(loss, weight, int(n), int(r)) for loss, weight, n, r in found.tolist()]


def fingerprint(model: Any) -> str:
    """Return a hash of all that is trained, as this process has it."""
    digest = hashlib.sha256()
    for name, value in model.named_parameters():
        if value.requires_grad:
            digest.update(name.encode())
            raw = value.detach().cpu().contiguous().view(-1).view(torch.uint8)
            digest.update(raw.numpy())
    return digest.hexdigest()
