"""Choosing the next token: a pure function of logits, settings, seed and position."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tunesmith.generate.requests import Sampling


def uniform(seeds: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """Return a number in (0, 1) for each (seed, step) of two int64 tensors [B] → float64 [B].

    splitmix64 (Steele, Lea, Flood 2014) as a counter-based generator: a row's numbers depend on
    nothing but its seed and position, so neighbours and restarts change nothing.
    """
    state = seeds + (steps + 1) * -7046029254386353131
    state = (state ^ _shift(state, 30)) * -4658895280553007687
    state = (state ^ _shift(state, 27)) * -7723592293110705685
    state = state ^ _shift(state, 31)
    return (_shift(state, 11).double() + 0.5) / 2.0**53


def _shift(value: torch.Tensor, by: int) -> torch.Tensor:
    """Shift right without the sign."""
    return (value >> by) & ((1 << (64 - by)) - 1)


def filtered(logits: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """Return probabilities and the tokens they belong to, both [B, V].

    Temperature first, then top-k, top-p and min-p; what they leave out has probability 0. With any
    of these the probabilities come in falling order, otherwise in that of the vocabulary: sorting
    it at every step would cost more than a small model's forward pass.
    """
    if not sampling.top_k and sampling.top_p >= 1 and sampling.min_p <= 0:
        tokens = torch.arange(logits.shape[-1], device=logits.device).expand(logits.shape)
        return (logits.float() / sampling.temperature).softmax(-1), tokens
    scaled = logits.double() / sampling.temperature
    scores, tokens = scaled.sort(dim=-1, descending=True, stable=True)
    if sampling.top_k:
        scores[:, sampling.top_k :] = float("-inf")
    probabilities = scores.softmax(-1)
    if sampling.top_p < 1:
        # The token that crosses the threshold stays, so at least one always does.
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.masked_fill(before >= sampling.top_p, 0)
    if sampling.min_p > 0:
        floor = sampling.min_p * probabilities[:, :1]
        probabilities = probabilities.masked_fill(probabilities < floor, 0)
    return probabilities / probabilities.sum(-1, keepdim=True), tokens


def choose(
    logits: torch.Tensor, samplings: Sequence[Sampling], seeds: torch.Tensor, steps: torch.Tensor
) -> torch.Tensor:
    """Return the next token of each row: logits [B, V], seeds and steps int64 [B] → int64 [B]."""
    chosen = logits.argmax(-1)
    groups: dict[Sampling, list[int]] = {}
    for row, sampling in enumerate(samplings):
        if sampling.temperature > 0:
            groups.setdefault(sampling, []).append(row)
    for sampling, members in groups.items():
        rows = torch.tensor(members, device=logits.device)
        probabilities, tokens = filtered(logits[rows], sampling)
        target = uniform(seeds[rows], steps[rows])[:, None]
        place = (probabilities.cumsum(-1, dtype=torch.float64) < target).sum(-1, keepdim=True)
        # Rounding may leave the sum below the target: then it is the last token that can be drawn.
        order = torch.arange(probabilities.shape[-1], device=logits.device)
        last = ((probabilities > 0) * order).amax(-1, keepdim=True)
        chosen[rows] = tokens.gather(1, place.minimum(last))[:, 0]
    return chosen
