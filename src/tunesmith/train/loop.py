"""The training loop as a generator: it makes the steps, the caller owns the rhythm."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from tunesmith.errors import DivergedError, Interrupted, TrainingError
from tunesmith.train import processes, pulse
from tunesmith.train.batches import Plan, pack
from tunesmith.train.groups import parameter_groups
from tunesmith.train.losses import lengths, packed_rows, token_losses
from tunesmith.train.noise import noisy_embeddings
from tunesmith.train.schedule import factor
from tunesmith.types import Encoded


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
    """adamw or adafactor."""
    neftune_alpha: float = 0.0
    """Noise on the embeddings; 0 is none."""


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


@dataclass(slots=True)
class Ledger:
    """Which rows were trained: their number and a running hash over them in order."""

    count: int = 0
    digest: str = ""

    def add(self, rows: Sequence[int]) -> None:
        """Note the rows of one finished step."""
        text = f"{self.digest}|{','.join(map(str, rows))}"
        self.digest = hashlib.sha256(text.encode()).hexdigest()
        self.count += len(rows)

    @classmethod
    def planned(cls, plan: Plan, steps: int) -> Ledger:
        """Return what a ledger must say after so many steps."""
        ledger = cls()
        for step in range(steps):
            ledger.add(plan.step_rows(step))
        return ledger


@dataclass(slots=True)
class State:
    """All that changes while training; with the plan it is all that a resume needs."""

    model: Any
    optimizer: torch.optim.Optimizer
    step: int = 0
    ledger: Ledger = field(default_factory=Ledger)


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
) -> Iterator[StepResult]:
    """Train from ``state.step`` to the end of the plan, yielding after every step.

    ``rate_at`` gives the rate of a step, counted from 0, in place of the schedule. Raises
    ``DivergedError`` before an update that would not be finite, naming the rows, and
    ``TrainingError`` at the end if other rows were trained than planned. ``Interrupted`` when
    ``should_stop`` turns true: the running step is given up, the state is the one after the last
    yielded step.
    """
    state.model.train()
    sizes = lengths(rows)
    while state.step < plan.total_steps:
        began = time.perf_counter()
        picked = plan.step_rows(state.step)
        if rate_at is not None:
            share = rate_at(state.step) / settings.learning_rate
        else:
            share = factor(settings.schedule, state.step, plan.total_steps, settings.warmup)
        for group in state.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * share
        # Dropout draws from a stream of its own for each step, so no random state has to be saved.
        cuda = [accelerator.device] if accelerator.device.type == "cuda" else []
        with torch.random.fork_rng(cuda):
            torch.manual_seed(_step_seed(plan.seed, state.step, accelerator.process_index))
            loss, trained = _backward(
                state,
                rows,
                picked,
                sizes,
                settings,
                accelerator,
                should_stop,
                seed=f"{plan.seed}/{state.step}",
            )
        norm = _clip(state, settings, accelerator)
        if not (
            loss == loss and abs(loss) != float("inf") and norm == norm and norm < float("inf")
        ):
            state.optimizer.zero_grad(set_to_none=True)
            places = ", ".join(str(rows[at].origin) for at in picked[:8])
            raise DivergedError(
                f"Step {state.step + 1}: loss {loss}, gradient norm {norm}; no update was made. "
                f"Rows: {places}.",
                hint="a lower --learning-rate, or look at these rows",
            )
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        state.ledger.add(picked)
        yield StepResult(
            state.step,
            state.step / plan.steps_an_epoch,
            loss,
            settings.learning_rate * share,
            norm,
            sum(sizes[at] for at in picked),
            trained,
            time.perf_counter() - began,
            tuple(picked),
        )
    check_ledger(state, plan, plan.total_steps)


def check_ledger(state: State, plan: Plan, steps: int) -> None:
    """Raise ``TrainingError`` if other rows were trained than those planned for so many steps."""
    if state.ledger != Ledger.planned(plan, steps):
        raise TrainingError(
            f"The ledger does not add up: {state.ledger.count} rows were trained, "
            "not the planned ones in the planned order."
        )


def _backward(
    state: State,
    rows: Sequence[Encoded],
    picked: Sequence[int],
    sizes: Sequence[int],
    settings: Settings,
    accelerator: Any,
    should_stop: Callable[[], bool],
    seed: str = "",
) -> tuple[float, int]:
    """Accumulate the gradients of a step; return its loss and the trained tokens.

    Sums over micro-batches and processes are divided once by the weight of all trained tokens of
    the step, so neither packing nor accumulation nor the number of processes changes the loss.
    """
    weight = sum(sum(rows[at].weights) for at in picked)
    trained = sum(1 for at in picked for w in rows[at].weights if w)

    def split(mine: Sequence[int]) -> list[list[int]]:
        if settings.packing:
            return pack(mine, sizes, settings.capacity)
        size = settings.rows_a_micro_batch
        return [list(mine[at : at + size]) for at in range(0, len(mine), size)]

    batches, counted = processes.share(picked, split, state.model, accelerator)
    total = torch.zeros((), device=accelerator.device, dtype=torch.float64)
    stopped = False
    for number, members in enumerate(batches):
        pulse.note(state.step, f"micro-batch {number + 1} of {len(batches)}")
        stopped = stopped or should_stop()
        # Shards are gathered in every micro-batch, so there all go on to the end of the step.
        if stopped and not processes.is_sharded(state.model):
            break
        batch = [rows[at] for at in members]
        last = number == len(batches) - 1
        whole = packed_rows(state.model, batch) if settings.packing else nullcontext()
        with processes.last_alone_synchronises(state.model, last), whole:
            noise = _noise(state, settings, members, sizes, seed)
            with accelerator.autocast(), noise:
                losses, weights, _ = token_losses(
                    state.model, batch, accelerator.device, packing=settings.packing
                )
            loss = (losses * weights).sum() / weight * (number < counted)
            accelerator.backward(loss * processes.scale(state.model, accelerator))
            total += loss.detach()
    summed, stopped = processes.settle(state.model, total, stopped, accelerator)
    if stopped:
        state.optimizer.zero_grad(set_to_none=True)
        raise Interrupted(
            f"Stopped by a signal after step {state.step}.",
            hint="the same command with --resume",
        )
    return summed, trained


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
    parameters = [p for p in state.model.parameters() if p.grad is not None]
    limit = settings.max_grad_norm or float("inf")
    return processes.number(accelerator.clip_grad_norm_(parameters, limit))


def _step_seed(seed: int, step: int, process: int) -> int:
    key = f"{seed}/{step}/{process}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1
