"""The engine for requests that come while others run: each step admits, decodes and tells."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tunesmith.generate.cache import attending
from tunesmith.generate.engine import Engine
from tunesmith.generate.requests import Completion, Request
from tunesmith.generate.sampling import choose
from tunesmith.generate.scheduler import Scheduler

Likeliest = tuple[tuple[int, float], ...]
"""Tokens with their log-probabilities in nats, the likeliest first."""


@dataclass(frozen=True, slots=True)
class Grown:
    """What one step has added to a request."""

    key: Hashable
    piece: str = ""
    """Text that may be shown; joined, the pieces of a request are its text."""
    token: int | None = None
    """The token that was chosen, also where it ends the answer; None for a cancelled request."""
    logprob: float | None = None
    likeliest: Likeliest = ()
    done: Completion | None = None
    """The whole answer, once it is."""


class LiveEngine(Engine):
    """Decodes whatever has been added so far; a new request joins at the next step.

    Answers equal those of ``Engine.run``. ``room`` tokens are the most that a prompt and its answer
    take together; ``slots`` of them are held at once, fewer where memory does not suffice.
    """

    def __init__(
        self,
        model: Any,
        decode: Callable[[Sequence[int]], str],
        stop_ids: Collection[int],
        *,
        room: int,
        slots: int,
        share: float = 1.0,
    ) -> None:
        """Prepare a model; ``share`` of the memory for keys and values is this engine's."""
        super().__init__(model, decode, stop_ids, max_slots=slots)
        self._positions = self.room = min(room, self._positions)
        self.slots = max(1, min(slots, int(self._slots(self.room, of_all=True) * share)))
        self._tops: dict[Hashable, int] = {}
        self.reset()

    def reset(self) -> list[Hashable]:
        """Forget everything that was added; return the keys of what had not ended."""
        left = list(self._tops)
        self._store = self._new_store(self.slots, self.room)
        self._scheduler = Scheduler((), self.slots)
        self._tops = {}
        self._cancelled.clear()
        return left

    def halve(self) -> None:
        """Hold half as many requests at once from now on, after memory ran out."""
        self.slots = max(1, self.slots // 2)

    def __bool__(self) -> bool:
        return bool(self._scheduler)

    @property
    def vocabulary(self) -> int:
        """Return how many token ids the model knows."""
        return int(self._model.get_input_embeddings().weight.shape[0])

    @property
    def running(self) -> int:
        """Return how many requests are being decoded."""
        return len(self._scheduler.active)

    @property
    def waiting(self) -> int:
        """Return how many requests wait for a slot."""
        return self._scheduler.waiting

    def add(self, requests: Sequence[Request], top: int = 0) -> None:
        """Take requests in; with ``top`` the likeliest tokens at each place are told.

        ``UsageError`` for one whose prompt is empty or leaves no room for an answer.
        """
        self._check(requests)
        self._tops.update(dict.fromkeys((request.key for request in requests), top))
        self._scheduler.add(requests)

    @torch.inference_mode()
    def step(self) -> list[Grown]:
        """Admit what waits where slots are free, and make one token of each request."""
        scheduler, store = self._scheduler, self._store
        grown = [
            Grown(done.key, done=done)
            for done in (self._drop_cancelled(scheduler, store) if self._cancelled else ())
        ]
        if scheduler:
            with attending(self._model, store):
                logits = self._admit(scheduler, store, _watched)
                if logits is None:
                    logits = self._step(scheduler, store)
            grown += self._grow(logits)
        for one in grown:
            if one.done is not None:
                self._tops.pop(one.key, None)
        return grown

    def _grow(self, logits: torch.Tensor) -> list[Grown]:
        """Choose a token for each row; keep those that go on together."""
        active = self._scheduler.active
        tokens = choose(
            logits,
            [slot.request.sampling for slot in active],
            torch.tensor([slot.request.seed for slot in active], device=self._device),
            torch.tensor([len(slot.tokens) for slot in active], device=self._device),
        )
        told = self._told(logits, tokens)
        grown, ended = [], []
        for row, (slot, token) in enumerate(zip(active, tokens.tolist(), strict=True)):
            value, likeliest = told.get(row, (None, ()))
            if value is not None:
                slot.logprobs.append(value)
            done = self._end(slot, token)
            assert slot.pieces is not None
            piece = slot.pieces.rest(done.text) if done else slot.pieces.add(slot.tokens)
            grown.append(Grown(slot.request.key, piece, token, value, likeliest, done))
            if done is not None:
                ended.append(row)
        self._drop(self._scheduler, self._store, ended)
        return grown

    def _told(
        self, logits: torch.Tensor, tokens: torch.Tensor
    ) -> dict[int, tuple[float, Likeliest]]:
        """Return row → log-probability of its token and the likeliest ones, where asked for."""
        active = self._scheduler.active
        asked = [row for row, slot in enumerate(active) if slot.request.sampling.logprobs]
        if not asked:
            return {}
        scores = logits[asked].float().log_softmax(-1)
        picked = scores.gather(-1, tokens[asked][:, None])[:, 0].tolist()
        tops = [self._tops[active[row].request.key] for row in asked]
        most = max(tops)
        values, ids = scores.topk(most, -1) if most else (scores[:, :0], scores[:, :0])
        return {
            row: (value, tuple(zip(names[:top], found[:top], strict=True)))
            for row, value, names, found, top in zip(
                asked, picked, ids.tolist(), values.tolist(), tops, strict=True
            )
        }


def _watched(_key: Hashable, _piece: str) -> None:
    """Make the engine cut every answer into pieces; they are told with their tokens."""
