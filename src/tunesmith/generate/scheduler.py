"""Which request runs in which slot; no tensors here."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, field

from tunesmith.generate.requests import Request
from tunesmith.generate.text import Pieces


@dataclass(slots=True)
class Slot:
    """A running request."""

    request: Request
    limit: int
    """New tokens that it may still make in all."""
    tokens: list[int] = field(default_factory=list)
    length: int = 0
    """Tokens of its own in the store, the shared prefix not counted."""
    logprobs: list[float] = field(default_factory=list)
    pieces: Pieces | None = None
    """What cuts the answer for somebody who watches it grow."""


def shared_prefix(prompts: Sequence[tuple[int, ...]], shortest: int = 16) -> int:
    """Return how many first tokens all prompts share; 0 when it is not worth a store of its own.

    Each prompt keeps at least one token of its own, since its last position makes the first one.
    """
    if len(prompts) < 2:
        return 0
    low, high = min(prompts), max(prompts)
    limit = min(len(prompt) for prompt in prompts) - 1
    common = 0
    while common < limit and low[common] == high[common]:
        common += 1
    return common if common >= shortest else 0


class Scheduler:
    """Fills free slots from a queue; active slots always lie in the rows 0 … n-1 of the store."""

    def __init__(self, requests: Sequence[Request], slots: int) -> None:
        # Equal prompts stand together, so that one prefill serves all of them.
        order: dict[tuple[int, ...], list[Request]] = {}
        for request in requests:
            order.setdefault(request.prompt_ids, []).append(request)
        self._queue = deque(request for group in order.values() for request in group)
        self._slots = slots
        self.active: list[Slot] = []

    def __bool__(self) -> bool:
        return bool(self._queue or self.active)

    @property
    def waiting(self) -> int:
        """Return how many requests have not begun."""
        return len(self._queue)

    def add(self, requests: Sequence[Request]) -> None:
        """Put further requests behind those that wait."""
        self._queue.extend(requests)

    def refill(self) -> list[Request]:
        """Take from the queue what the free slots hold; the caller makes slots of it."""
        free = self._slots - len(self.active)
        return [self._queue.popleft() for _ in range(min(free, len(self._queue)))]

    def withdraw(self, keys: Collection[Hashable]) -> list[Request]:
        """Take requests that have not begun out of the queue; return them."""
        gone = [request for request in self._queue if request.key in keys]
        self._queue = deque(request for request in self._queue if request.key not in keys)
        return gone

    def drop(self, rows: Sequence[int]) -> list[tuple[int, int, int]]:
        """Free these rows; return the moves (from, to, own tokens) that close the gaps."""
        moves = []
        for row in sorted(rows, reverse=True):
            last = len(self.active) - 1
            if row != last:
                self.active[row] = self.active[last]
                moves.append((last, row, self.active[row].length))
            self.active.pop()
        return moves
