"""What becomes of a step whose loss, gradients or weights are not finite.

Loss and gradient norm are looked at before every update; their values are on the host anyway, for
the log. Weights and the optimiser's state are looked at where it costs next to nothing: when a
loss or norm is not finite, before a checkpoint is written, and at the end. So no checkpoint holds
them, and the newest one is always good to go back to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from tunesmith.errors import DivergedError
from tunesmith.train import processes

if TYPE_CHECKING:
    from tunesmith.train.loop import State
    from tunesmith.types import Encoded

OVERFLOWS_IN_A_ROW = 20
"""Steps in a row that fp16's scaler may skip before the run stops."""
OVERFLOW = "a gradient overflowed in fp16; the scale is halved"
NAMED = 8
"""Rows that a sentence names."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What to do about numbers that are not finite."""

    nonfinite: str = "stop"
    """stop, skip or rewind."""
    limit: int = 0
    """Steps that may be skipped in a run."""


STOP = Policy()


def unscale(state: State) -> None:
    """Take fp16's scale out of the gradients, noting whether one overflowed."""
    if state.scaler is not None:
        state.scaler.unscale_(state.optimizer)


def judge(
    state: State, rows: Sequence[Encoded], picked: Sequence[int], loss: float, norm: float,
    policy: Policy,
) -> str:  # fmt: skip
    """Return "" for a step whose update can be made, or why it is skipped, its gradients gone.

    Raises ``DivergedError`` where the policy is not to skip, or no step is left that may be.
    """
    finite = math.isfinite(loss) and math.isfinite(norm)
    overflowed = not finite and state.scaler is not None and math.isfinite(loss)
    if state.scaler is not None:
        before = state.scaler.state_dict()
        state.scaler.update()
        if not finite and not overflowed:
            # The scale answers for gradients alone: a replay of this skip must find it unchanged.
            state.scaler.load_state_dict(before)
    if finite:
        state.overflows = 0
        return ""
    state.optimizer.zero_grad(set_to_none=True)
    if overflowed:
        state.overflows += 1
        if state.overflows < OVERFLOWS_IN_A_ROW:
            return OVERFLOW
        raise DivergedError(
            f"Step {state.step + 1}: the gradients overflowed in fp16 {OVERFLOWS_IN_A_ROW} times "
            f"in a row; no update was made. Rows: {name_rows(rows, picked)}.",
            hint="--mixed-precision bf16, or a lower --learning-rate",
        )
    what = f"loss {loss}, gradient norm {norm}; no update was made. "
    what += f"Rows: {name_rows(rows, picked)}."
    check_finite(state, f"Step {state.step + 1}: {what}")
    if policy.nonfinite == "skip" and len(state.decisions.skips) < policy.limit:
        state.decisions.skip(state.step, what)
        return what
    spent = ""
    if policy.nonfinite == "skip":
        spent = f" {policy.limit} steps were skipped already, as many as --max-nonfinite-steps."
    raise DivergedError(
        f"Step {state.step + 1}: {what}{spent}",
        hint="a lower --learning-rate, or look at these rows",
        step=state.step,
        why=what,
    )


def check_update(state: State, rows: Sequence[Encoded], picked: Sequence[int]) -> None:
    """Look at the weights after the update of a step that is being watched."""
    if state.step <= state.decisions.watched:
        check_finite(state, f"Rows: {name_rows(rows, picked)}.", exact=True)


def check_finite(state: State, rows: str = "", *, exact: bool = False) -> None:
    """Raise ``DivergedError`` if a trained weight, or what the optimiser keeps, is not finite.

    One synchronisation for all of them. ``exact`` says that the last step is the one to blame.
    """
    # Each process sees its shard alone, and all are to come to the same end.
    broken = processes.first_found(first_broken(state), state.model)
    if broken is None:
        return
    when = f"the update of step {state.step}" if exact else f"step {state.step} or one before it"
    raise DivergedError(
        f"{broken} is not finite after {when}; the weights are not saved. {rows}".rstrip(),
        hint="--resume with --nonfinite rewind, or a lower --learning-rate",
        step=state.step - 1 if exact else None,
        why=f"{broken} is not finite after its update. {rows}".rstrip(),
        weights_until=state.step,
    )


@torch.no_grad()
def first_broken(state: State) -> str | None:
    """Return the name of a trained weight or optimiser state that is not finite, or None."""
    named: list[tuple[str, torch.Tensor]] = []
    for name, parameter in state.model.named_parameters():
        if parameter.requires_grad:
            named.append((name, parameter))
            kept: dict[str, Any] = state.optimizer.state.get(parameter, {})
            for key, value in kept.items():
                if isinstance(value, torch.Tensor) and value.is_floating_point():
                    named.append((f"the optimiser's {key} of {name}", value))
    # Of a shard its own part: each process looks at what it holds.
    parts = [(n, v.to_local() if hasattr(v, "to_local") else v) for n, v in named]
    named = [(name, value) for name, value in parts if value.numel()]
    if not named:
        return None
    # The extremes are NaN or infinite if anything is, and need no memory of the weights' size.
    ends = torch.stack([torch.stack(value.aminmax()).float() for _, value in named])
    for (name, _), finite in zip(named, ends.isfinite().all(1).tolist(), strict=True):
        if not finite:
            return name
    return None


def name_rows(rows: Sequence[Encoded], picked: Sequence[int]) -> str:
    """Return where the first rows of a step come from, and how many more there are."""
    named = ", ".join(str(rows[at].origin) for at in picked[:NAMED])
    more = len(picked) - NAMED
    return f"{named} and {more} more" if more > 0 else named
