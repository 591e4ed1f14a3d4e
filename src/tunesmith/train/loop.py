"""The training loop as a generator: it makes the steps, the caller owns the rhythm."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from tunesmith.errors import Interrupted
from tunesmith.train import policy as nonfinite
from tunesmith.train import processes, pulse
from tunesmith.train.batches import Plan
from tunesmith.train.decisions import Decisions
from tunesmith.train.groups import parameter_groups
from tunesmith.train.ledger import Ledger
from tunesmith.train.losses import lay_out, lengths, packed_rows, token_losses
from tunesmith.train.new_rows import NewRows, keep_new_rows, without_decay
from tunesmith.train.noise import noisy_embeddings
from tunesmith.train.policy import STOP, Policy
from tunesmith.train.schedule import factor
from tunesmith.train.sharing import Bundle, Rows, alone, bundles, packs
from tunesmith.train.shrink import within_memory
from tunesmith.train.update import update
from tunesmith.train.watch import RowSeen, Watch
from tunesmith.train.zero import Zero
from tunesmith.types import Encoded

if TYPE_CHECKING:
    from tunesmith.train.trunk_cache import TrunkCache


@dataclass(frozen=True, slots=True)
class Settings:
    """What decides the steps besides plan, rows and weights."""

    learning_rate: float
    schedule: str = "cosine"
    warmup: int = 0
    """Steps."""
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    """0 leaves gradients as they are."""
    packing: bool = True
    capacity: int = 2048
    """Tokens of one packed sequence; rows of one sequence in all if not packed."""
    rows_a_micro_batch: int = 1
    """Only without packing: rows of one padded batch."""
    lora_plus_ratio: float = 1.0
    """Rate of LoRA's B over that of A."""
    layer_lr_decay: float = 1.0
    """Rate of a layer over that of the layer above it."""
    optim: str = "adamw"
    """adamw, adafactor or adamw_8bit."""
    neftune_alpha: float = 0.0
    """Noise on the embeddings; 0 is none."""
    new_rows: NewRows | None = None
    """Rows of new tokens that are trained alone at first."""
    shared_prefix: str = "auto"
    """Of rows in one step: off computes it in each; grouped takes a group of up to
    ``rows_a_micro_batch`` rows whole, also over the capacity."""
    attention: str = "segments"
    """Only with packing: how ``models.attention.packed`` computes it."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """One finished step."""

    step: int
    """Steps done, this one included."""
    epoch: float
    loss: float
    """Nats a trained token, over the whole step."""
    learning_rate: float
    """The schedule's; groups with a rate of their own follow it in proportion."""
    grad_norm: float
    tokens: int
    """Prompt and completion tokens, no padding."""
    trained_tokens: int
    seconds: float
    rows: tuple[int, ...]
    skipped: str = ""
    """Why no update was made; "" for a step that made one."""
    seen: tuple[RowSeen, ...] = ()
    """What became of each of ``rows``, before the update."""

    @property
    def accuracy(self) -> float:
        """Return the share of trained tokens whose label was the model's likeliest token."""
        return sum(row.right for row in self.seen) / max(1, sum(row.tokens for row in self.seen))


@dataclass(slots=True)
class State:
    """All that changes while training; with the plan it is all that a resume needs."""

    model: Any
    optimizer: Any
    """One of PyTorch's interface, or ``Zero``."""
    step: int = 0
    ledger: Ledger = field(default_factory=Ledger)
    scaler: Any = None
    """That of fp16."""
    overflows: int = 0
    """Steps in a row that the scaler has skipped."""
    decisions: Decisions = field(default_factory=Decisions)

    @property
    def meets(self) -> bool:
        """Return whether processes meet within every micro-batch, for weights or gradients."""
        return processes.is_sharded(self.model) or isinstance(self.optimizer, Zero)


def make_optimizer(model: Any, settings: Settings) -> torch.optim.Optimizer:
    """Return the optimiser over what is trained, each group at its own rate and decay."""
    groups = parameter_groups(
        model,
        settings.learning_rate,
        settings.weight_decay,
        lora_plus=settings.lora_plus_ratio,
        layer_decay=settings.layer_lr_decay,
    )
    if settings.optim == "adafactor":
        return torch.optim.Adafactor(groups)
    if settings.optim == "adamw_8bit":
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(groups)
    return torch.optim.AdamW(groups, fused=True)


def fit(
    state: State,
    rows: Sequence[Encoded],
    plan: Plan,
    settings: Settings,
    accelerator: Any,
    *,
    rate_at: Callable[[int], float] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    policy: Policy = STOP,
    trunk: TrunkCache | None = None,
) -> Iterator[StepResult]:
    """Train from ``state.step`` to the end of the plan, yielding after every step.

    ``rate_at`` gives the rate of a step, counted from 0, in place of the schedule. ``trunk`` keeps
    the output of the frozen layers, which then run for a row once. Raises ``DivergedError`` before
    an update that would not be finite, naming the rows, unless ``policy`` skips it, and
    ``TrainingError`` at the end if other rows were trained than planned, or before that its
    ``OutOfMemoryError``. ``Interrupted`` when
    ``should_stop`` turns true: the running step is given up, the state is the one after the last
    yielded step.
    """
    state.model.train()
    if state.scaler is None:
        state.scaler = getattr(accelerator, "scaler", None)
    work = Work(rows, lengths(rows), settings, accelerator, should_stop, plan.seed, trunk)
    while state.step < plan.total_steps:
        began = time.perf_counter()
        picked = plan.step_rows(state.step)
        if rate_at is not None:
            share = rate_at(state.step) / settings.learning_rate
        else:
            share = factor(settings.schedule, state.step, plan.total_steps, settings.warmup)
        for group in state.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * share
        loss, norm, trained = float("nan"), float("nan"), 0
        seen: tuple[RowSeen, ...] = ()
        skipped = state.decisions.skips.get(state.step, "")
        alone = settings.new_rows is not None and state.step < settings.new_rows.steps
        if not skipped:
            loss, trained, seen = gradients(state, work, picked)
            nonfinite.unscale(state)
            if alone and settings.new_rows is not None:
                keep_new_rows(state.model, settings.new_rows)
            norm = _clip(state, settings, accelerator)
            skipped = nonfinite.judge(state, rows, picked, loss, norm, policy)
        if skipped:
            state.ledger.skip(state.step, picked)
            state.step += 1
        else:
            with without_decay(state.optimizer) if alone else nullcontext():
                update(state, accelerator)
            state.optimizer.zero_grad(set_to_none=True)
            state.step += 1
            nonfinite.check_update(state, rows, picked)
            state.ledger.add(picked)
        yield StepResult(
            state.step,
            state.step / plan.steps_an_epoch,
            loss,
            settings.learning_rate * share,
            norm,
            sum(work.sizes[at] for at in picked),
            trained,
            time.perf_counter() - began,
            tuple(picked),
            skipped,
            seen,
        )
    nonfinite.check_finite(state)
    state.ledger.check(plan, plan.total_steps)


@dataclass(frozen=True, slots=True)
class Work:
    """What all steps of a run have in common."""

    rows: Sequence[Encoded]
    sizes: Sequence[int]
    """Tokens of each row."""
    settings: Settings
    accelerator: Any
    should_stop: Callable[[], bool]
    seed: int
    trunk: TrunkCache | None


def gradients(
    state: State, work: Work, picked: Sequence[int]
) -> tuple[float, int, tuple[RowSeen, ...]]:
    """Make a step's gradients, in smaller micro-batches where memory runs out."""

    def compute(settings: Settings) -> tuple[float, int, tuple[RowSeen, ...]]:
        # Dropout draws from a stream of its own for each step, so no random state has to be saved.
        cuda = [work.accelerator.device] if work.accelerator.device.type == "cuda" else []
        with torch.random.fork_rng(cuda):
            torch.manual_seed(_step_seed(work.seed, state.step, work.accelerator.process_index))
            return _backward(state, work, settings, picked)

    def split(settings: Settings) -> list[list[Bundle]]:
        return micro_batches(picked, work.rows, work.sizes, settings)

    step_lengths = [work.sizes[at] for at in picked]
    return within_memory(compute, state, step_lengths, work.settings, work.accelerator, split)


def micro_batches(
    mine: Sequence[int], rows: Rows, sizes: Sequence[int], settings: Settings
) -> list[list[Bundle]]:
    """Return what a process computes at once, one after the other, of its rows of a step."""
    if not settings.packing:
        size = settings.rows_a_micro_batch
        return [alone(mine[at : at + size], sizes) for at in range(0, len(mine), size)]
    # Noise is drawn for each row, so rows with noise have no tokens in common.
    if settings.shared_prefix == "off" or settings.neftune_alpha:
        return packs(alone(mine, sizes), settings.capacity)
    whole = settings.rows_a_micro_batch if settings.shared_prefix == "grouped" else 1
    found = bundles(mine, rows, settings.capacity, at_least=whole)
    return packs(found, settings.capacity)


def _backward(
    state: State, work: Work, settings: Settings, picked: Sequence[int]
) -> tuple[float, int, tuple[RowSeen, ...]]:
    """Accumulate the gradients of a step; return its loss, the trained tokens and the rows seen.

    Sums over micro-batches and processes are divided once by the weight of all trained tokens of
    the step, so neither packing nor accumulation nor the number of processes changes the loss.
    """
    accelerator, trunk = work.accelerator, work.trunk
    made = {at: work.rows[at] for at in picked}
    weight = sum(sum(row.weights) for row in made.values())
    trained = sum(1 for row in made.values() for w in row.weights if w)

    def split(mine: Sequence[int]) -> list[list[Bundle]]:
        return micro_batches(mine, made, work.sizes, settings)

    batches, counted = processes.share(picked, split, state.meets, accelerator)
    total = torch.zeros((), device=accelerator.device, dtype=torch.float64)
    watch, stopped = Watch(), False
    for number, bundled in enumerate(batches):
        pulse.note(state.step, f"micro-batch {number + 1} of {len(batches)}")
        stopped = stopped or work.should_stop()
        # Where the others would wait in every micro-batch, all go on to the end of the step.
        if stopped and not state.meets:
            break
        members = [at for bundle in bundled for at in bundle.rows]
        batch = lay_out(made, bundled) if settings.packing else [made[at] for at in members]
        last = number == len(batches) - 1
        whole = nullcontext()
        if settings.packing:
            whole = packed_rows(state.model, batch, settings.attention)
        with processes.last_alone_synchronises(state.model, last), whole:
            noise = _noise(state, settings, members, work.sizes, f"{work.seed}/{state.step}")
            stored = nullcontext() if trunk is None else trunk.stored(members, state.decisions)
            with stored, accelerator.autocast(), noise:
                found = token_losses(
                    state.model, batch, accelerator.device, packing=settings.packing
                )
            loss = (found.losses * found.weights).sum() / weight * (number < counted)
            if isinstance(state.optimizer, Zero):
                state.optimizer.backward(loss, last)
            else:
                accelerator.backward(loss * processes.scale(state.model, accelerator))
            total += loss.detach()
            if number < counted:
                watch.add(members, found)
    if processes.settle(state.model, stopped, accelerator, state.meets):
        state.optimizer.zero_grad(set_to_none=True)
        raise Interrupted(
            f"Stopped by a signal after step {state.step}.",
            hint="the same command with --resume",
        )
    with processes.needing_others("the sum over processes"):
        whole_loss, seen = watch.finish(total, picked, accelerator)
    return whole_loss, trained, seen


def _noise(
    state: State, settings: Settings, members: Sequence[int], sizes: Sequence[int], seed: str
) -> AbstractContextManager[None]:
    """Return the context in which these rows of a step have NEFTune's noise, if any."""
    if not settings.neftune_alpha:
        return nullcontext()
    return noisy_embeddings(
        state.model,
        settings.neftune_alpha,
        [sizes[at] for at in members],
        [f"{seed}/{at}" for at in members],
        packing=settings.packing,
    )


def _clip(state: State, settings: Settings, accelerator: Any) -> float:
    if isinstance(state.optimizer, Zero):
        return state.optimizer.norm()  # its step clips
    parameters = [p for p in state.model.parameters() if p.grad is not None]
    limit = settings.max_grad_norm or float("inf")
    return processes.number(accelerator.clip_grad_norm_(parameters, limit))


def _step_seed(seed: int, step: int, process: int) -> int:
    key = f"{seed}/{step}/{process}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1
