"""Batched generation: a shared prefix computed once, slots refilled as rows finish."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch

from tunesmith.errors import OutOfMemoryError, UsageError
from tunesmith.generate.cache import Store, attending
from tunesmith.generate.requests import Completion, Request
from tunesmith.generate.sampling import choose
from tunesmith.generate.scheduler import Scheduler, Slot, shared_prefix
from tunesmith.models.memory import give_back, is_out_of_memory
from tunesmith.types import StopReason

MOST_SLOTS = 128
STORE_BYTES = 1 << 30
"""What the rows' own keys and values may take."""
PREFILL_TOKENS = 4096
"""Tokens of one prefill batch, padding counted."""


class Engine:
    """Generates for many requests at once with one model.

    Greedy output equals sequential generation up to ties that a last bit decides; a sampled row
    depends on its own seed only.
    """

    def __init__(
        self,
        model: Any,
        decode: Callable[[Sequence[int]], str],
        stop_ids: Collection[int],
        *,
        max_slots: int | None = None,
    ) -> None:
        self._model, self._decode = model, decode
        self._stop_ids = frozenset(stop_ids)
        self._max_slots = max_slots or MOST_SLOTS
        self._positions = int(getattr(model.config, "max_position_embeddings", 0) or 1 << 20)
        self._device = next(model.parameters()).device

    def run(
        self,
        requests: Sequence[Request],
        *,
        should_stop: Callable[[], bool] | None = None,
    ) -> Iterator[Completion]:
        """Yield completions in the order in which they finish.

        ``should_stop`` is asked at every step; once true, nothing more is yielded. A request whose
        prompt fills the model's positions is an error; one whose limit passes them ends there.
        Where memory runs out, what is left is begun again with half as many at once, which changes
        no answer; ``OutOfMemoryError`` if one alone does not fit.
        """
        if requests:
            self._check(requests)
        left = {request.key: request for request in requests}
        most = self._max_slots
        while left:
            some = list(left.values())
            prefix = shared_prefix([request.prompt_ids for request in some])
            room = max(len(r.prompt_ids) - prefix + self._limit(r) for r in some)
            slots = min(self._slots(room), len(some), most)
            try:
                for done in self._run(some, prefix, room, slots, should_stop):
                    del left[done.key]
                    yield done
                return
            except (MemoryError, RuntimeError) as failure:
                if not is_out_of_memory(failure):
                    raise
            # Here the error is gone, and with it the frames that held keys and values.
            give_back(self._device)
            if slots == 1:
                raise OutOfMemoryError(
                    "Memory ran out while a single answer was generated, of at most "
                    f"{prefix + room:,} tokens with its prompt.",
                    hint="fewer --eval-questions, or 0 for none; --eval-samples 0; a lower "
                    "--max-new-tokens where answers are sampled",
                )
            most = slots // 2

    @torch.inference_mode()
    def _run(
        self,
        requests: Sequence[Request],
        prefix: int,
        room: int,
        slots: int,
        should_stop: Callable[[], bool] | None,
    ) -> Iterator[Completion]:
        store = Store(slots, room, prefix_length=prefix)
        scheduler = Scheduler(requests, store.slots)
        was_training = self._model.training
        self._model.eval()
        try:
            with attending(self._model, store):
                if prefix:
                    self._fill_prefix(store, requests[0].prompt_ids[:prefix])
                while scheduler and not (should_stop and should_stop()):
                    logits = self._admit(scheduler, store)
                    if logits is None:
                        logits = self._step(scheduler, store)
                    yield from self._advance(scheduler, store, logits)
        finally:
            self._model.train(was_training)

    def _check(self, requests: Sequence[Request]) -> None:
        for request in requests:
            if not request.prompt_ids:
                raise UsageError(f"Request {request.key!r} has an empty prompt.")
            if len(request.prompt_ids) >= self._positions:
                raise UsageError(
                    f"The prompt of {request.key!r} has {len(request.prompt_ids)} tokens; "
                    f"the model takes {self._positions}.",
                    expected="a prompt that leaves room for an answer",
                )

    def _limit(self, request: Request) -> int:
        return min(request.sampling.max_new_tokens, self._positions - len(request.prompt_ids))

    def _slots(self, room: int) -> int:
        config = self._model.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        item = next(self._model.parameters()).element_size()
        row = 2 * config.num_hidden_layers * heads * width * room * item
        return max(1, min(self._max_slots, STORE_BYTES // int(row)))

    def _forward(self, ids: torch.Tensor, places: torch.Tensor, keep: Any) -> torch.Tensor:
        return self._model(
            input_ids=ids.to(self._device),
            position_ids=places.to(self._device),
            use_cache=False,
            logits_to_keep=keep,
        ).logits

    def _fill_prefix(self, store: Store, prefix: Sequence[int]) -> None:
        store.filling_prefix = True
        places = torch.arange(len(prefix))[None]
        self._forward(torch.tensor([list(prefix)]), places, 1)
        store.filling_prefix = False

    def _admit(self, scheduler: Scheduler, store: Store) -> torch.Tensor | None:
        """Prefill new requests; return the logits [active, V] of every row then, or None."""
        taken = scheduler.refill()
        if not taken:
            return None
        running = len(scheduler.active)
        known = self._step(scheduler, store) if running else None
        groups: dict[tuple[int, ...], list[int]] = {}
        for row, request in enumerate(taken, running):
            scheduler.active.append(Slot(request, self._limit(request)))
            groups.setdefault(request.prompt_ids[store.prefix_length :], []).append(row)
        logits: dict[int, torch.Tensor] = {}
        batch: list[tuple[tuple[int, ...], list[int]]] = []
        for group in sorted(groups.items(), key=lambda item: len(item[0])):
            if batch and (len(batch) + 1) * len(group[0]) > PREFILL_TOKENS:
                self._prefill(batch, scheduler, store, logits)
                batch = []
            batch.append(group)
        self._prefill(batch, scheduler, store, logits)
        fresh = torch.stack([logits[row] for row in range(running, len(scheduler.active))])
        return fresh if known is None else torch.cat([known, fresh])

    def _prefill(
        self,
        batch: list[tuple[tuple[int, ...], list[int]]],
        scheduler: Scheduler,
        store: Store,
        logits: dict[int, torch.Tensor],
    ) -> None:
        """Compute each distinct prompt once, padded on the right, and copy it to its other rows."""
        longest = max(len(ids) for ids, _ in batch)
        padded = torch.tensor([list(ids) + [0] * (longest - len(ids)) for ids, _ in batch])
        places = (store.prefix_length + torch.arange(longest)).expand(len(batch), -1)
        store.rows = torch.tensor([rows[0] for _, rows in batch], device=self._device)
        store.starts = torch.zeros(len(batch), dtype=torch.long, device=self._device)
        store.reach = longest
        lasts = torch.tensor([len(ids) - 1 for ids, _ in batch])
        keep, which = lasts.unique(return_inverse=True)
        out = self._forward(padded, places, keep.to(self._device))
        for number, (ids, rows) in enumerate(batch):
            if len(rows) > 1:
                store.copy(rows[0], rows[1:], len(ids))
            for row in rows:
                scheduler.active[row].length = len(ids)
                logits[row] = out[number, which[number]]

    def _step(self, scheduler: Scheduler, store: Store) -> torch.Tensor:
        """Run the last token of every active row; return logits [active, V]."""
        active = scheduler.active
        last = torch.tensor([[slot.tokens[-1]] for slot in active])
        starts = torch.tensor([slot.length for slot in active])
        store.rows = None
        store.starts = starts.to(self._device)
        store.reach = int(starts.max()) + 1
        logits = self._forward(last, (store.prefix_length + starts)[:, None], 1)
        for slot in active:
            slot.length += 1
        return logits[:, -1]

    def _advance(
        self, scheduler: Scheduler, store: Store, logits: torch.Tensor
    ) -> Iterator[Completion]:
        """Choose a token for each row, yield the rows that end, keep the others together."""
        active = scheduler.active
        chosen = choose(
            logits,
            [slot.request.sampling for slot in active],
            torch.tensor([slot.request.seed for slot in active], device=self._device),
            torch.tensor([len(slot.tokens) for slot in active], device=self._device),
        ).tolist()
        ended: list[int] = []
        for row, (slot, token) in enumerate(zip(active, chosen, strict=True)):
            done = self._end(slot, token)
            if done is not None:
                ended.append(row)
                yield done
        for source, target, length in scheduler.drop(ended):
            store.copy(source, [target], length)

    def _end(self, slot: Slot, token: int) -> Completion | None:
        """Add a token; return the completion if the row ends with it."""
        key = slot.request.key
        if token in self._stop_ids:
            return Completion(
                key, tuple(slot.tokens), self._decode(slot.tokens), StopReason.STOP_TOKEN
            )
        slot.tokens.append(token)
        if slot.request.sampling.stop:
            text = self._decode(slot.tokens)
            found = [at for s in slot.request.sampling.stop if (at := text.find(s)) >= 0]
            if found:
                tokens = tuple(slot.tokens)
                return Completion(key, tokens, text[: min(found)], StopReason.STOP_STRING)
        if len(slot.tokens) >= slot.limit:
            tokens = tuple(slot.tokens)
            return Completion(key, tokens, self._decode(tokens), StopReason.LENGTH)
        return None
