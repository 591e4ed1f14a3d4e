"""How much a set of attempts thinks, in tokens, and how often it never comes to an answer."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

from tunesmith.grading.thinking import split_thinking
from tunesmith.types import Attempt


def measure_thinking(
    attempts: Sequence[Attempt], decode: Callable[[Sequence[int]], str] | None
) -> tuple[float | None, float | None]:
    """Return mean tokens of thinking of an attempt and the share that never closes it.

    Both are None where no attempt thinks. An unclosed block takes all of its attempt's tokens.
    Without ``decode`` nobody knows the tokens, and the first is None.
    """
    parts = [split_thinking(attempt.text) for attempt in attempts]
    if not any(part.thinking for part in parts):
        return None, None
    unclosed = sum(part.answer is None for part in parts) / len(attempts)
    if decode is None:
        return None, unclosed
    tokens = 0
    for attempt, part in zip(attempts, parts, strict=True):
        if part.answer is None:
            tokens += len(attempt.tokens)
        elif part.thinking:
            tokens += _tokens_until(attempt.tokens, len(part.thinking), decode)
    return tokens / len(attempts), unclosed


def _tokens_until(
    tokens: Sequence[int], length: int, decode: Callable[[Sequence[int]], str]
) -> int:
    """Return how many tokens it takes to spell the first ``length`` characters."""
    return bisect_left(
        range(len(tokens) + 1), length, hi=len(tokens), key=lambda n: len(decode(tokens[:n]))
    )
