"""What must come out alike however it is computed, tried on a model and machine at hand.

Every check computes one thing in two ways and returns how far apart they are. Nothing is left of
it: weights, buffers and random states are put back, files lie in a folder that the caller removes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tunesmith.models.adapters import blocks, freeze_bottom
from tunesmith.train import checkpoint
from tunesmith.train.batches import Plan
from tunesmith.train.loop import Settings, State, Work, fit, gradients, make_optimizer
from tunesmith.train.losses import lengths
from tunesmith.train.sharing import SHORTEST
from tunesmith.train.snapshot import only_passing, untouched
from tunesmith.train.trunk_cache import NoTrunkError, TrunkCache, look
from tunesmith.types import Encoded, Finding

ROUNDING = {torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Relative differences that rounding alone may make, by the type that is computed in."""
STEPS = 4
"""Of the short runs; half of them lie before the interruption."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What the checks are made on: a model that is ready to be trained, and rows for it."""

    model: Any
    rows: Sequence[Encoded]
    settings: Settings
    accelerator: Any
    rounding: float
    """See ``ROUNDING``."""
    positions: int
    """Tokens that a row of this model may have."""
    seed: int = 0

    def state(self) -> State:
        """Return the model with an optimiser of its own."""
        return State(self.model, make_optimizer(self.model, self.settings))

    def plan(self, epochs: int = 2) -> Plan:
        """Return a plan of ``STEPS`` steps in so many epochs, or of as many as the rows give."""
        size = -(-len(self.rows) * epochs // STEPS)
        steps = epochs * -(-len(self.rows) // size)
        return Plan(len(self.rows), size, steps, self.seed)


def rounding_of(dtype: torch.dtype, mixed_precision: str) -> float:
    """Return what rounding may do to weights of a type under a precision of the computation."""
    named = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(mixed_precision, dtype)
    return max(ROUNDING[dtype], ROUNDING[named])


def packed(subject: Subject) -> Finding:
    """Compare the gradients of rows in packed sequences with those of each row by itself."""
    ways = (
        replace(subject.settings, packing=True, shared_prefix="off"),
        _one_by_one(subject.settings),
    )
    return _gradients("packed = unpacked", subject, subject.rows, ways)


def accumulated(subject: Subject) -> Finding:
    """Compare the gradients of one padded batch with those of as many batches of one row."""
    whole = replace(_one_by_one(subject.settings), rows_a_micro_batch=len(subject.rows))
    ways = (whole, _one_by_one(subject.settings))
    return _gradients("batch = accumulated", subject, subject.rows, ways)


def shared(subject: Subject) -> Finding:
    """Compare the gradients of answers behind one shared prompt with those of whole rows."""
    longest = max(subject.rows, key=lambda row: len(row.ids))
    room = subject.positions - len(longest.ids)
    prompt = (longest.ids * -(-SHORTEST // len(longest.ids)))[:room]
    if len(prompt) < SHORTEST:
        why = f"not made: {len(longest.ids)} tokens leave no room for a prompt in front of them"
        return Finding("shared = unshared", "gradients", None, subject.rounding, why)
    rows = [
        replace(row, ids=prompt + row.ids, weights=(0.0,) * len(prompt) + row.weights)
        for row in subject.rows
    ]
    ways = tuple(
        replace(subject.settings, packing=True, shared_prefix=way, rows_a_micro_batch=len(rows))
        for way in ("grouped", "off")
    )
    return _gradients("shared = unshared", subject, rows, ways)


def resumed(subject: Subject, folder: Path) -> Finding:
    """Compare a run that goes on from a checkpoint in ``folder`` with one that never stopped.

    On a CPU they must agree to the bit; a GPU may add up in another order.
    """
    state, plan = subject.state(), subject.plan()
    with untouched(state):
        for _ in _run(subject, state, plan):
            pass
        whole = _trained(state.model)
    with untouched(state):
        for done in _run(subject, state, plan):
            if done.step == plan.total_steps // 2:
                break
        path = checkpoint.save(folder, state, {})
    again = subject.state()
    with untouched(again):
        checkpoint.restore(path, again)
        for _ in _run(subject, again, plan):
            pass
        apart = _apart(_trained(again.model), whole)
    limit = 0.0 if subject.accelerator.device.type == "cpu" else subject.rounding
    return Finding("resumed = unstopped", "weights", apart, limit)


def kept_trunk(subject: Subject, folder: Path) -> Finding:
    """Compare the losses of a run that stores its frozen layers' output with one that does not.

    Where the run itself freezes nothing, the lower half of the layers is frozen for the check.
    """
    name, what = "kept trunk = computed", "losses"
    plan = subject.plan()
    with _frozen_below(subject.model), without_dropout(subject.model):
        state = subject.state()
        settings = replace(subject.settings, shared_prefix="off", neftune_alpha=0.0)
        parts = (subject.rows, plan, settings, subject.accelerator)
        try:
            found = look(state.model, *parts)
        except NoTrunkError as obstacle:
            return Finding(name, what, None, subject.rounding, f"not for this model: {obstacle}")
        with untouched(state):
            plain = [done.loss for done in fit(state, *parts)]
        cache = TrunkCache(folder / "trunk", state.model, *parts, found)
        try:
            with untouched(state):
                stored = [done.loss for done in fit(state, *parts, trunk=cache)]
        finally:
            cache.remove()
    apart = max(abs(a - b) / abs(b) for a, b in zip(stored, plain, strict=True))
    met = len(subject.rows) * plan.total_steps // plan.steps_an_epoch
    note = f"the frozen layers ran for {cache.computed} of {met} rows"
    return Finding(name, what, apart, subject.rounding, note)


def merged(model: Any, rows: Sequence[Encoded], rounding: float) -> Finding:
    """Compare the logits of a model beside its LoRA adapter with those of the two merged.

    The adapter's second matrices are drawn for it: fresh ones are zero, and hide every fault.
    """
    name, what = "merged = adapter", "logits"
    if not hasattr(model, "merge_adapter"):
        return Finding(name, what, None, rounding, "nothing to merge: this run trains no adapter")
    device = next(model.parameters()).device
    texts = [torch.tensor([row.ids], device=device) for row in rows]
    drawn = [p for key, p in model.named_parameters() if ".lora_B." in key]
    kept = [p.detach().clone() for p in model.parameters()]
    with only_passing(model), torch.no_grad():
        model.eval()
        try:
            generator = torch.Generator().manual_seed(0)
            for p in drawn:
                p.copy_(0.02 * torch.randn(p.shape, generator=generator))
            beside = [model(input_ids=ids, use_cache=False).logits for ids in texts]
            model.merge_adapter()
            try:
                apart = max(
                    _relative(model(input_ids=ids, use_cache=False).logits, logits)
                    for ids, logits in zip(texts, beside, strict=True)
                )
            finally:
                model.unmerge_adapter()
        finally:
            # Merging and unmerging rounds; the weights are to be what they were.
            for p, value in zip(model.parameters(), kept, strict=True):
                p.copy_(value)
    return Finding(name, what, apart, rounding)


def _one_by_one(settings: Settings) -> Settings:
    return replace(settings, packing=False, rows_a_micro_batch=1, shared_prefix="off")


def _gradients(
    name: str, subject: Subject, rows: Sequence[Encoded], ways: tuple[Settings, ...]
) -> Finding:
    """Compare gradients, by their norm, and losses of one step over all rows in two ways."""
    state = State(subject.model, torch.optim.SGD([torch.zeros(1)]))
    found, losses = [], []
    with only_passing(subject.model), without_dropout(subject.model):
        for settings in ways:
            work = Work(
                rows,
                lengths(rows),
                replace(settings, neftune_alpha=0.0),
                subject.accelerator,
                lambda: False,
                subject.seed,
                None,
            )
            subject.model.zero_grad(set_to_none=True)
            loss, _, _ = gradients(state, work, range(len(rows)))
            losses.append(loss)
            own = subject.model.named_parameters()
            found.append({key: p.grad for key, p in own if p.grad is not None})
    apart = _apart(*found)
    note = f"losses differ by {abs(losses[0] - losses[1]):.1e}"
    return Finding(name, "gradients", apart, subject.rounding, note)


def _run(subject: Subject, state: State, plan: Plan) -> Iterator[Any]:
    return fit(state, subject.rows, plan, subject.settings, subject.accelerator)


def _trained(model: Any) -> dict[str, torch.Tensor]:
    return {k: p.detach().clone() for k, p in model.named_parameters() if p.requires_grad}


def _apart(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """Return the norm of the difference over that of the second; infinite for other names."""
    if set(first) != set(second):
        return float("inf")
    difference = sum(_squares(first[key] - second[key]) for key in second)
    return float((difference / max(sum(map(_squares, second.values())), 1e-300)) ** 0.5)


def _relative(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((_squares(first - second) / max(_squares(second), 1e-300)) ** 0.5)


def _squares(value: torch.Tensor) -> float:
    return float(value.detach().double().square().sum())


@contextmanager
def without_dropout(model: Any) -> Iterator[None]:
    """Turn every dropout of a model off to the end of the block; its mode stays as it is."""
    kept: list[tuple[Any, str, float]] = []
    for module in model.modules():
        names = ["p"] if isinstance(module, torch.nn.Dropout) else []
        names += [key for key in vars(module) if "dropout" in key]
        for key in names:
            value = getattr(module, key)
            if isinstance(value, float) and value:
                kept.append((module, key, value))
                setattr(module, key, 0.0)
    try:
        yield
    finally:
        for module, key, value in kept:
            setattr(module, key, value)


@contextmanager
def _frozen_below(model: Any) -> Iterator[None]:
    """Freeze the lower half of the layers to the end of the block, unless some are frozen."""
    lowest = blocks(model)[0]
    if not any(p.requires_grad for p in lowest.parameters()):
        yield
        return
    kept = [(p, p.requires_grad) for p in model.parameters()]
    freeze_bottom(model, 0.5)
    try:
        yield
    finally:
        for p, trained in kept:
            with suppress(RuntimeError):  # of a quantised weight, which never had a gradient
                p.requires_grad_(trained)
