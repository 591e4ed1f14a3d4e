"""Sequential generation, one request at a time: what the engine must equal."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch

from tunesmith.generate.requests import Completion, Request
from tunesmith.generate.sampling import choose
from tunesmith.types import StopReason


@torch.inference_mode()
def generate_one(
    model: Any,
    request: Request,
    decode: Callable[[Sequence[int]], str],
    stop_ids: Collection[int],
) -> Completion:
    """Generate with the model's own attention and the whole context at every step."""
    sampling = request.sampling
    ids = list(request.prompt_ids)
    tokens: list[int] = []
    device = next(model.parameters()).device
    logprobs: list[float] = []
    reason = StopReason.LENGTH

    def completion(text: str) -> Completion:
        kept = tuple(logprobs[: len(tokens)])
        return Completion(request.key, tuple(tokens), text, reason, kept)

    while len(tokens) < sampling.max_new_tokens:
        logits = model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[:, -1]
        seed = torch.tensor([request.seed], device=device)
        step = torch.tensor([len(tokens)], device=device)
        token = int(choose(logits, [sampling], seed, step))
        if sampling.logprobs:
            logprobs.append(float(logits[0].float().log_softmax(-1)[token]))
        if token in stop_ids:
            reason = StopReason.STOP_TOKEN
            break
        tokens.append(token)
        ids.append(token)
        text = decode(tokens)
        found = [at for s in sampling.stop if (at := text.find(s)) >= 0]
        if found:
            reason = StopReason.STOP_STRING
            return completion(text[: min(found)])
    return completion(decode(tokens))
