"""One step of GRPO on answers that are there already: log-probabilities, loss, updates.

Answers to one prompt share it in the packed sequence, so k answers to a prompt of P tokens cost
P + kC places and not k(P + C). No answer's loss depends on what it is computed beside.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import torch

from tunesmith.errors import Interrupted, OutOfMemoryError
from tunesmith.models.packs import Pack
from tunesmith.train import policy as nonfinite
from tunesmith.train.batches import packed_capacity
from tunesmith.train.loop import Settings, State, micro_batches
from tunesmith.train.losses import head_logits, lay_out, packed_rows
from tunesmith.train.policy_gradient import Objective, token_terms
from tunesmith.train.sharing import Bundle
from tunesmith.train.shrink import within_memory
from tunesmith.train.update import update
from tunesmith.types import Encoded

T = TypeVar("T")
Reference = Callable[[], AbstractContextManager[Any]]
"""Opens the model that the policy is held close to."""
LogProbs = Mapping[int, torch.Tensor]
"""Of a row, by its number: the log-probabilities of its trained tokens, in nats."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How answers are drawn and learnt from."""

    objective: Objective
    stop_ids: tuple[int, ...]
    """The tokens that end an answer."""
    temperature: float = 1.0
    inner_steps: int = 1
    """Updates on the same answers."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """The answers of one step as rows: the prompt with weight 0, the answer with weight 1."""

    rows: Sequence[Encoded]
    advantages: Sequence[float]

    @property
    def tokens(self) -> int:
        """Return the tokens of all answers."""
        return sum(1 for row in self.rows for weight in row.weights if weight)


class Scored(NamedTuple):
    """The trained tokens of a pack, row after row; tensors [tokens] in nats."""

    log_probs: torch.Tensor
    entropies: torch.Tensor
    """Of the distributions that the tokens were drawn from; no gradient."""


class Sums(NamedTuple):
    """What one pass over the answers of a step found; means over tokens."""

    loss: float
    """Over all answers of the step."""
    kl: float
    clipped: float
    """Share."""
    entropy: float


@dataclass(frozen=True, slots=True)
class PolicyResult:
    """One finished step; what inner steps have each is their mean, entropy is that of the first."""

    loss: float = 0.0
    kl: float = 0.0
    clipped: float = 0.0
    entropy: float | None = None
    """None where no answer was computed."""
    grad_norm: float = 0.0
    updates: int = 0
    """0 where no answer said anything."""
    seconds: float = 0.0


def log_probs(model: Any, pack: Pack, device: torch.device, policy: Policy) -> Scored:
    """Run a pack forward inside ``packed_rows`` and score its trained tokens.

    Logits are divided by the sampling temperature first: those are the probabilities that the
    tokens were drawn with, and the ratio of new to old must be one of them. The end of an answer is
    one event, whichever of the stop tokens it was written with: an attempt does not say which.
    """
    logits, targets, which = head_logits(model, pack, device)
    known = (logits.float() / policy.temperature).log_softmax(-1)
    labels = torch.tensor(targets, device=device)
    found = known.gather(-1, labels[:, None])[:, 0]
    if len(policy.stop_ids) > 1:
        stops = torch.tensor(policy.stop_ids, device=device)
        found = torch.where(torch.isin(labels, stops), known[:, stops].logsumexp(-1), found)
    with torch.no_grad():
        plain = known.detach()
        # What cannot be drawn (log-probability -inf) adds nothing.
        entropies = -(plain.exp() * plain).nan_to_num(0.0).sum(-1)
    if which is not None:
        chosen = torch.tensor(which, device=device)
        found, entropies = found[chosen], entropies[chosen]
    return Scored(found, entropies)


@torch.no_grad()
def known_log_probs(
    model: Any,
    rows: Sequence[Encoded],
    batches: Sequence[Sequence[Bundle]],
    device: torch.device,
    policy: Policy,
    attention: str = "segments",
) -> dict[int, torch.Tensor]:
    """Return the log-probabilities that a model gives the trained tokens of each row."""
    found: dict[int, torch.Tensor] = {}
    for bundled in batches:
        batch = lay_out(rows, bundled)
        with packed_rows(model, batch, attention):
            scored = log_probs(model, batch, device, policy).log_probs
        found.update(zip(_members(bundled), scored.split(list(batch.counts)), strict=True))
    return found


def backward(
    model: Any,
    rollout: Rollout,
    batches: Sequence[Sequence[Bundle]],
    device: torch.device,
    policy: Policy,
    *,
    old: LogProbs | None = None,
    reference: LogProbs | None = None,
    attention: str = "segments",
    between: Callable[[], None] = lambda: None,
) -> tuple[Sums, dict[int, torch.Tensor]]:
    """Add up the gradients of the loss; return its parts and the log-probabilities of each row.

    Without ``old`` the policy is still the one that wrote the answers, and every ratio is 1. The
    sum over tokens is divided by the tokens of all answers, those left out of ``batches`` too.
    ``between`` is called before each of ``batches``.
    """
    totals = torch.zeros(4, dtype=torch.float64, device=device)
    computed = 0
    now: dict[int, torch.Tensor] = {}
    for bundled in batches:
        between()
        members = _members(bundled)
        batch = lay_out(rollout.rows, bundled)
        counts = list(batch.counts)
        with packed_rows(model, batch, attention):
            scored = log_probs(model, batch, device, policy)
            new = scored.log_probs
            advantage = torch.tensor(
                [rollout.advantages[at] for at in members], dtype=new.dtype, device=device
            ).repeat_interleave(torch.tensor(counts, device=device))
            terms = token_terms(
                new,
                new.detach() if old is None else torch.cat([old[at] for at in members]),
                advantage,
                policy.objective,
                None if reference is None else torch.cat([reference[at] for at in members]),
            )
            (terms.losses.sum() / rollout.tokens).backward()
        found = (terms.losses.detach(), terms.divergences, terms.clipped, scored.entropies)
        totals += torch.stack([part.double().sum() for part in found])
        computed += sum(counts)
        now.update(zip(members, new.detach().split(counts), strict=True))
    loss, kl, clipped, entropy = totals.tolist()
    own = max(1, computed)
    return Sums(loss / rollout.tokens, kl / own, clipped / own, entropy / own), now


def policy_step(
    state: State,
    rollout: Rollout,
    policy: Policy,
    settings: Settings,
    accelerator: Any,
    *,
    rate: float,
    reference: Reference | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> PolicyResult:
    """Make a step's updates on its answers; nothing is updated where no answer says anything.

    The model is in evaluation mode: dropout would be noise in every ratio. Raises ``DivergedError``
    before an update that would not be finite, and ``Interrupted`` where ``should_stop`` turns true
    before the first update: from then on the step is carried through, since only whole steps can
    be gone on from.
    """
    began = time.perf_counter()
    state.model.eval()
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    # Where nothing holds the policy back, an answer without an advantage has no gradient either.
    held = reference is not None and policy.objective.kl > 0
    picked = [at for at, worth in enumerate(rollout.advantages) if held or worth]
    if not picked:
        state.step += 1
        return PolicyResult(seconds=time.perf_counter() - began)
    work = _Work(state, rollout, policy, settings, accelerator, picked)
    known = work.reference(reference) if held and reference is not None else None
    old: dict[int, torch.Tensor] | None = None
    found: list[Sums] = []
    norms: list[float] = []
    for inner in range(policy.inner_steps):
        try:
            sums, now = work.gradients(old, known, should_stop if not inner else lambda: False)
            norm = _clip(state.model, settings)
            nonfinite.judge(state, rollout.rows, picked, sums.loss, norm, nonfinite.STOP)
            update(state, accelerator)
        except OutOfMemoryError as failure:
            failure.complete = failure.complete and not inner
            raise
        state.optimizer.zero_grad(set_to_none=True)
        old = now if old is None else old
        found.append(sums)
        norms.append(norm)
    state.step += 1
    loss, kl, clipped, _ = (sum(part) / len(found) for part in zip(*found, strict=True))
    return PolicyResult(
        loss,
        kl,
        clipped,
        found[0].entropy,
        sum(norms) / len(norms),
        len(found),
        time.perf_counter() - began,
    )


@contextmanager
def without_adapter(model: Any) -> Iterator[Any]:
    """Open the base below an adapter."""
    with model.disable_adapter():
        yield model


@dataclass(frozen=True, slots=True)
class _Work:
    """What the passes over one step's answers have in common."""

    state: State
    rollout: Rollout
    policy: Policy
    settings: Settings
    accelerator: Any
    picked: Sequence[int]

    def gradients(
        self, old: LogProbs | None, reference: LogProbs | None, should_stop: Callable[[], bool]
    ) -> tuple[Sums, dict[int, torch.Tensor]]:
        """Make the gradients of one update, in smaller parts where memory runs out."""

        def between() -> None:
            if should_stop():
                self.state.optimizer.zero_grad(set_to_none=True)
                raise stopped(self.state.step)

        def compute(settings: Settings) -> tuple[Sums, dict[int, torch.Tensor]]:
            return backward(
                self.state.model,
                self.rollout,
                self._batches(settings),
                self.accelerator.device,
                self.policy,
                old=old,
                reference=reference,
                attention=settings.attention,
                between=between,
            )

        return self._within_memory(compute)

    def reference(self, opened: Reference) -> dict[int, torch.Tensor]:
        """Return what the reference makes of the answers."""

        def compute(settings: Settings) -> dict[int, torch.Tensor]:
            batches, device = self._batches(settings), self.accelerator.device
            with opened() as model:
                parts = (model, self.rollout.rows, batches, device, self.policy)
                found: dict[int, torch.Tensor] = known_log_probs(*parts, settings.attention)
            return found

        return self._within_memory(compute)

    def _within_memory(self, compute: Callable[[Settings], T]) -> T:
        width = self.state.model.get_input_embeddings().weight.shape[1]
        sizes = self._sizes()
        longest = max(sizes[at] for at in self.picked)
        capacity = packed_capacity(longest, width, self.accelerator.device.type)
        settings = replace(self.settings, capacity=capacity)
        lengths = [sizes[at] for at in self.picked]
        return within_memory(
            compute, self.state, lengths, settings, self.accelerator, self._batches
        )

    def _sizes(self) -> list[int]:
        return [len(row.ids) for row in self.rollout.rows]

    def _batches(self, settings: Settings) -> list[list[Bundle]]:
        return micro_batches(self.picked, self.rollout.rows, self._sizes(), settings)


def stopped(step: int) -> Interrupted:
    """Return what says that a signal has stopped a run after a step."""
    return Interrupted(
        f"Stopped by a signal after step {step}.", hint="the same command with --resume"
    )


def _clip(model: Any, settings: Settings) -> float:
    """Bound the norm of all gradients; return what it was."""
    trained = [p for p in model.parameters() if p.grad is not None]
    limit = settings.max_grad_norm or float("inf")
    return float(torch.nn.utils.clip_grad_norm_(trained, limit))


def _members(bundled: Sequence[Bundle]) -> list[int]:
    return [at for bundle in bundled for at in bundle.rows]
