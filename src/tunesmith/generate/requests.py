"""What is asked of the engine and what it gives back."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from tunesmith.errors import UsageError
from tunesmith.types import StopReason


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen; a temperature of 0 is greedy."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps all tokens."""
    min_p: float = 0.0
    """Tokens less likely than this share of the likeliest one are left out."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer; they are cut off."""
    logprobs: bool = False
    """Whether completions carry the log-probability of each token."""

    def __post_init__(self) -> None:
        faults = [
            text
            for bad, text in (
                (self.max_new_tokens < 1, f"max-new-tokens {self.max_new_tokens} is below 1"),
                (not 0 <= self.temperature < 100, f"temperature {self.temperature} is below 0"),
                (not 0 < self.top_p <= 1, f"top-p {self.top_p} is not in (0, 1]"),
                (self.top_k < 0, f"top-k {self.top_k} is below 0"),
                (not 0 <= self.min_p < 1, f"min-p {self.min_p} is not in [0, 1)"),
            )
            if bad
        ]
        if faults:
            raise UsageError("; ".join(faults) + ".")


@dataclass(frozen=True, slots=True)
class Request:
    """One generation to make."""

    key: Any
    """Comes back with the completion; must be hashable."""
    prompt_ids: tuple[int, ...]
    sampling: Sampling
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.key, Hashable):
            raise TypeError(f"the key {self.key!r} cannot be hashed")


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished generation; ``tokens`` are without the stop token."""

    key: Any
    tokens: tuple[int, ...]
    text: str
    stop: StopReason
    logprobs: tuple[float, ...] = ()
    """Of each token, in nats, under the model itself: before temperature and filters."""


def attempt_seed(run_seed: int, problem_id: str, index: int) -> int:
    """Return the seed of one attempt: neighbours, order and restarts do not enter."""
    key = f"{run_seed}\x1f{problem_id}\x1f{index}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1
