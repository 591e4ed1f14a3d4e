"""The mathematics of GRPO: plain tensors in and out, no model.

Group-relative policy optimisation (Shao et al. 2024, arXiv 2402.03300) with the token-level mean of
DAPO (Yu et al. 2025, arXiv 2503.14476): all tokens of a batch weigh alike, however long their
answers are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

STD_FLOOR = 1e-4
"""Added to a group's standard deviation before it divides."""


@dataclass(frozen=True, slots=True)
class Objective:
    """What decides the loss of a token besides its probabilities and its advantage."""

    clip_low: float = 0.2
    """A ratio below 1 minus this teaches nothing more where the advantage is negative."""
    clip_high: float = 0.2
    """A ratio above 1 plus this teaches nothing more where the advantage is positive."""
    kl: float = 0.0
    """Weight of the divergence from the reference; 0 does without a reference."""


class TokenTerms(NamedTuple):
    """What each token of some answers adds; tensors [tokens]."""

    losses: torch.Tensor
    divergences: torch.Tensor
    """Of the policy from the reference in nats, estimated; zeros without a reference."""
    clipped: torch.Tensor
    """Bool: whether clipping took the token's gradient away."""


def advantages(rewards: torch.Tensor, *, scale: bool = True) -> torch.Tensor:
    """Return how much better each answer is than its group: rewards [groups, answers], same shape.

    With ``scale`` in units of the group's standard deviation (n - 1 in its denominator). NaN stands
    for an answer without a grade: it counts in no mean and its advantage is 0.
    """
    graded = ~rewards.isnan()
    count = graded.sum(1, keepdim=True)
    mean = rewards.nansum(1, keepdim=True) / count.clamp(min=1)
    centred = torch.where(graded, rewards - mean, 0.0)
    # Equal rewards leave what rounding the mean makes of them; dividing would blow it up.
    centred = torch.where(has_signal(rewards)[:, None], centred, 0.0)
    if not scale:
        return centred
    spread = (centred.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    return centred / (spread + STD_FLOOR)


def has_signal(rewards: torch.Tensor) -> torch.Tensor:
    """Return for each group [groups] whether its graded rewards [groups, answers] differ."""
    graded = ~rewards.isnan()
    most = rewards.masked_fill(~graded, float("-inf")).amax(1)
    least = rewards.masked_fill(~graded, float("inf")).amin(1)
    return most > least


def token_terms(
    new: torch.Tensor,
    old: torch.Tensor,
    advantage: torch.Tensor,
    objective: Objective,
    reference: torch.Tensor | None = None,
) -> TokenTerms:
    """Return what each token adds to the loss; all tensors are [tokens], log-probabilities in nats.

    ``old`` are those of the policy that wrote the answers, ``reference`` those of the model that
    it is held close to. Their gradient is not taken.
    """
    ratio = (new - old).exp()
    bounded = ratio.clamp(1 - objective.clip_low, 1 + objective.clip_high)
    losses = -torch.minimum(ratio * advantage, bounded * advantage)
    with torch.no_grad():
        high = (ratio > 1 + objective.clip_high) & (advantage > 0)
        low = (ratio < 1 - objective.clip_low) & (advantage < 0)
    divergences = torch.zeros_like(new)
    if reference is not None and objective.kl:
        # k3 of Schulman's «Approximating KL divergence»: never negative, and without bias. Tokens
        # were drawn by the old policy, so each counts by its ratio; it makes the gradient that of
        # the divergence also where the ratio is 1 (DeepSeek-V3.2, arXiv 2512.02556).
        gap = reference - new
        divergences = ratio * (gap.exp() - gap - 1)
        losses = losses + objective.kl * divergences
    return TokenTerms(losses, divergences.detach(), low | high)
