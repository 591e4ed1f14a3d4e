"""A step that does not fit into memory is computed again in smaller parts.

The parts are the micro-batches; what a step trains on and its loss stay the same, because sums are
divided once by all trained tokens of the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from tunesmith.errors import OutOfMemoryError
from tunesmith.models.memory import give_back, is_out_of_memory

if TYPE_CHECKING:
    from tunesmith.train.loop import Settings, State
    from tunesmith.train.sharing import Bundle

T = TypeVar("T")


def within_memory(
    compute: Callable[[Settings], T],
    state: State,
    lengths: Sequence[int],
    settings: Settings,
    accelerator: Any,
    split: Callable[[Settings], Iterable[Sequence[Bundle]]],
) -> T:
    """Return what ``compute`` makes of a step, in smaller micro-batches if memory runs out.

    ``lengths`` are those of the step's rows in tokens, ``split`` returns its micro-batches.
    Raises ``OutOfMemoryError`` when one row alone does not fit, or several processes would have
    to agree.
    """
    while True:
        shaped = sized(settings, state.decisions.size(state.step))
        try:
            return compute(shaped)
        except (MemoryError, RuntimeError) as failure:
            if not is_out_of_memory(failure):
                raise
        # Here the error is gone, and with it the frames that held the activations.
        state.optimizer.zero_grad(set_to_none=True)
        give_back(accelerator.device)
        smaller = halved(shaped, split(shaped))
        if accelerator.num_processes > 1 or smaller is None:
            raise _too_large(state, lengths, accelerator.num_processes)
        unit = "tokens" if settings.packing else "rows"
        state.decisions.shrink(state.step, smaller, f"{smaller} {unit}")


def sized(settings: Settings, size: int | None) -> Settings:
    """Return the settings with micro-batches of at most this size: tokens, or rows if padded.

    None leaves them as they are.
    """
    if size is None:
        return settings
    if settings.packing:
        # Groups that are taken whole would not become smaller with the capacity.
        shared = "auto" if settings.shared_prefix == "grouped" else settings.shared_prefix
        return replace(settings, capacity=min(size, settings.capacity), shared_prefix=shared)
    return replace(settings, rows_a_micro_batch=min(size, settings.rows_a_micro_batch))


def halved(settings: Settings, batches: Iterable[Sequence[Bundle]]) -> int | None:
    """Return half the largest of these micro-batches, or None where each row is alone already.

    A row that is alone cannot be made smaller, however long it is, so it is left out of account.
    """
    most = 0
    for found in batches:
        rows = sum(len(bundle.rows) for bundle in found)
        if rows > 1:
            places = sum(bundle.group.tokens for bundle in found)
            most = max(most, places if settings.packing else rows)
    # Rows of one prompt that were taken whole may be more than the capacity.
    return max(1, min(most // 2, settings.capacity)) if most else None


def _too_large(state: State, lengths: Sequence[int], processes: int) -> OutOfMemoryError:
    if processes > 1:
        return OutOfMemoryError(
            f"Memory ran out in step {state.step + 1}, and {processes} processes cannot agree on "
            "smaller micro-batches on the way.",
            hint="--resume with a lower --max-length, --gradient-checkpointing, or --no-packing "
            "and a lower --per-device-train-batch-size with more --gradient-accumulation-steps",
        )
    return OutOfMemoryError(
        f"Memory ran out in step {state.step + 1} with every row alone; the longest has "
        f"{max(lengths, default=0)} tokens.",
        hint="--gradient-checkpointing, a lower --max-length, --lora, or --optim adafactor",
    )
