"""How likely a model finds given continuations: scored in padded batches, one forward each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tunesmith.errors import OutOfMemoryError, UsageError
from tunesmith.models.memory import give_back, is_out_of_memory

Pair = tuple[Sequence[int], Sequence[int]]
"""The ids of a prompt and of what is to follow it."""
BATCH_TOKENS = 4096
"""Tokens of one forward, padding counted."""
BATCH_LOGITS = 1 << 26
"""Logits of one forward: a large vocabulary makes smaller batches."""


@dataclass(frozen=True, slots=True)
class Scored:
    """What a model makes of a continuation."""

    logprob: float
    """Summed over its tokens, in nats."""
    greedy: bool
    """Whether each of its tokens is the likeliest one at its place."""


def log_likelihoods(
    model: Any, pairs: Sequence[Pair], *, batch_tokens: int = BATCH_TOKENS
) -> list[float]:
    """Return the log-probability (in nats) of each continuation after its prompt, summed.

    Errors are those of ``score``.
    """
    return [one.logprob for one in score(model, pairs, batch_tokens=batch_tokens)]


@torch.inference_mode()
def score(model: Any, pairs: Sequence[Pair], *, batch_tokens: int = BATCH_TOKENS) -> list[Scored]:
    """Return how likely each continuation is after its prompt.

    Equal to scoring one pair at a time: padding stands on the right, where no token sees it. The
    last token of a pair is only foretold, so a pair may have one more than the model has positions.
    Raises ``UsageError`` for an empty prompt or continuation and for a longer pair;
    ``OutOfMemoryError`` if one pair alone does not fit.
    """
    _check(model, pairs)
    was_training = model.training
    model.eval()
    scores = [Scored(0.0, True)] * len(pairs)
    order = sorted(range(len(pairs)), key=lambda at: (len(pairs[at][0]), len(pairs[at][1])))
    try:
        vocabulary = int(model.get_output_embeddings().weight.shape[0])
        for batch in _batches(pairs, order, batch_tokens, vocabulary):
            for at, one in zip(batch, _halving(model, pairs, batch), strict=True):
                scores[at] = one
    finally:
        model.train(was_training)
    return scores


def _check(model: Any, pairs: Sequence[Pair]) -> None:
    positions = int(getattr(model.config, "max_position_embeddings", 0) or 1 << 20)
    for prompt, continuation in pairs:
        if not prompt or not continuation:
            raise UsageError("An empty prompt or continuation has no likelihood.")
        if len(prompt) + len(continuation) > positions + 1:
            raise UsageError(
                f"A prompt of {len(prompt)} tokens with a continuation of {len(continuation)} is "
                f"more than the {positions} positions of the model.",
                hint="shorter questions, or --prompt direct",
            )


def _batches(
    pairs: Sequence[Pair], order: Sequence[int], batch_tokens: int, vocabulary: int
) -> Iterator[list[int]]:
    """Yield positions of pairs that go together; ``order`` has those of kindred length together."""
    batch: list[int] = []
    for at in order:
        several = [*batch, at]
        longest = max(len(pairs[n][0]) + len(pairs[n][1]) for n in several)
        scored = longest - min(len(pairs[n][0]) for n in several)
        full = len(several) * longest > batch_tokens
        if batch and (full or len(several) * scored * vocabulary > BATCH_LOGITS):
            yield batch
            several = [at]
        batch = several
    if batch:
        yield batch


def _halving(model: Any, pairs: Sequence[Pair], batch: list[int]) -> list[Scored]:
    """Score a batch; where memory runs out, its halves."""
    try:
        return _forward(model, [pairs[at] for at in batch])
    except (MemoryError, RuntimeError) as failure:
        if not is_out_of_memory(failure):
            raise
    give_back(next(model.parameters()).device)
    if len(batch) == 1:
        raise OutOfMemoryError(
            "Memory ran out while a single option was scored.", hint="--choice-by generate"
        )
    half = len(batch) // 2
    return _halving(model, pairs, batch[:half]) + _halving(model, pairs, batch[half:])


def _forward(model: Any, pairs: Sequence[Pair]) -> list[Scored]:
    """Return the scores of pairs that are computed together."""
    device = next(model.parameters()).device
    rows = [[*prompt, *continuation] for prompt, continuation in pairs]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    # The token at a position is foretold by the one before it.
    first = min(len(prompt) for prompt, _ in pairs) - 1
    keep = torch.arange(first, longest - 1)
    places = torch.arange(longest - 1).expand(len(rows), -1)
    logits = model(
        input_ids=ids[:, :-1].to(device),
        position_ids=places.to(device),
        use_cache=False,
        logits_to_keep=keep.to(device),
    ).logits
    targets = ids[:, first + 1 :].to(device)
    chosen = torch.log_softmax(logits.float(), -1).gather(-1, targets[..., None])[..., 0]
    likeliest = logits.argmax(-1) == targets
    where = torch.arange(first + 1, longest)[None]
    begins = torch.tensor([[len(prompt)] for prompt, _ in pairs])
    ends = torch.tensor([[len(row)] for row in rows])
    inside = ((where >= begins) & (where < ends)).to(device)
    sums = chosen.double().masked_fill(~inside, 0).sum(-1).tolist()
    greedy = (likeliest | ~inside).all(-1).tolist()
    return [Scored(float(value), bool(flag)) for value, flag in zip(sums, greedy, strict=True)]
