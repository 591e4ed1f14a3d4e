"""That a request's answer does not depend on its neighbours, tried on a model at hand."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch

from tunesmith.generate.engine import Engine
from tunesmith.generate.reference import generate_one
from tunesmith.generate.requests import Request, Sampling
from tunesmith.types import Finding


def batched(
    model: Any,
    prompts: Sequence[tuple[int, ...]],
    decode: Callable[[Sequence[int]], str],
    stop_ids: Collection[int],
    *,
    tokens: int,
    rounding: float,
) -> Finding:
    """Compare greedy answers in one batch with those of each prompt alone, without the engine.

    Where two answers part, the difference is how far apart the two tokens' logits were there, over
    the largest logit: rounding may decide between two that are as good as equal.
    """
    sampling = Sampling(max_new_tokens=tokens)
    requests = [Request(number, ids, sampling) for number, ids in enumerate(prompts)]
    together = {done.key: done.tokens for done in Engine(model, decode, stop_ids).run(requests)}
    apart, parted, made = 0.0, 0, 0
    was_training = model.training
    model.eval()
    try:
        for request in requests:
            solo = generate_one(model, request, decode, stop_ids).tokens
            made += len(solo)
            if solo != together[request.key]:
                parted += 1
                apart = max(apart, _margin(model, request, solo, together[request.key]))
    finally:
        model.train(was_training)
    note = f"{made} tokens of {len(requests)} greedy answers"
    if parted:
        note += f"; {parted} part, at a tie" if apart <= rounding else f"; {parted} differ"
    return Finding("batched = alone", "answers", apart, rounding, note)


@torch.inference_mode()
def _margin(
    model: Any, request: Request, solo: tuple[int, ...], together: tuple[int, ...]
) -> float:
    """Return the gap between the best logits where two answers part, over the largest."""
    at = next(
        (at for at, (a, b) in enumerate(zip(solo, together, strict=False)) if a != b),
        min(len(solo), len(together)),
    )
    device = next(model.parameters()).device
    ids = torch.tensor([[*request.prompt_ids, *solo[:at]]], device=device)
    logits = model(input_ids=ids, use_cache=False).logits[0, -1].double()
    chosen = [found[at] for found in (solo, together) if at < len(found)]
    best = logits.max()
    # An answer that ended took a stop token; how likely that was, the best logit bounds.
    worst = min(logits[token] for token in chosen)
    if len(chosen) < 2:
        worst = torch.minimum(worst, logits.topk(2).values[1])
    return float((best - worst) / logits.abs().max().clamp_min(1e-30))
