"""How likely a model finds each token of given texts, and which tokens it finds likeliest there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tunesmith.generate.live import Likeliest

BLOCK = 1 << 24
"""Logits that are held at once in float32."""


@dataclass(frozen=True, slots=True)
class PromptScores:
    """Of each token but the first, which nothing foretells."""

    logprobs: tuple[float, ...]
    likeliest: tuple[Likeliest, ...]


@torch.inference_mode()
def score_prompt(model: Any, ids: Sequence[int], top: int) -> PromptScores:
    """Score one prompt; ``top`` of the likeliest tokens are told at each place."""
    if len(ids) < 2:
        return PromptScores((), ())
    device = next(model.parameters()).device
    given = torch.tensor([list(ids)], device=device)
    vocabulary = int(model.get_output_embeddings().weight.shape[0])
    step = max(1, BLOCK // vocabulary)
    logits = model(
        input_ids=given[:, :-1],
        position_ids=torch.arange(len(ids) - 1, device=device)[None],
        use_cache=False,
    ).logits[0]
    logprobs: list[float] = []
    likeliest: list[Likeliest] = []
    for start in range(0, len(logits), step):
        scores = logits[start : start + step].float().log_softmax(-1)
        wanted = given[0, 1 + start : 1 + start + len(scores), None]
        logprobs += scores.gather(-1, wanted)[:, 0].tolist()
        values, tokens = scores.topk(top, -1)
        likeliest += [
            tuple(zip(names, found, strict=True))
            for names, found in zip(tokens.tolist(), values.tolist(), strict=True)
        ]
    return PromptScores(tuple(logprobs), tuple(likeliest))
