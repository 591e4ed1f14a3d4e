"""One interface to whatever answers: the engine, another library, or servers far away."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from tunesmith.generate.requests import Completion, Sampling
from tunesmith.types import Segment

Stop = Callable[[], bool]
"""Asked again and again; once true, a backend ends."""
Show = Callable[[Hashable, str], None]
"""Is told the key of a question and the next piece of its answer."""


@dataclass(frozen=True, slots=True)
class Question:
    """One generation to make, before anything is rendered."""

    key: Hashable
    """Comes back with the completion; no two questions of a call have the same."""
    messages: tuple[Segment, ...]
    sampling: Sampling
    seed: int = 0


class Backend(Protocol):
    """Answers questions, each once."""

    def answers(
        self,
        questions: Sequence[Question],
        *,
        should_stop: Stop | None = None,
        show: Show | None = None,
    ) -> Iterator[Completion]:
        """Yield completions in the order in which they finish.

        Once ``should_stop`` is true it yields at most what is whole already, and ends. ``show``
        gets answers in pieces as they grow, from a backend that knows them before they are whole;
        what it was told of one that had to be begun again may differ from the completion.
        """
        ...
