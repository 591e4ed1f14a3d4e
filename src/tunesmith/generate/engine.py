"""Batched generation: a shared prefix computed once, slots refilled as rows finish."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from tunesmith.errors import OutOfMemoryError, UsageError
from tunesmith.generate.cache import Layers, Remembered, Store, attending
from tunesmith.generate.captured import Capture, CapturedSteps, recording
from tunesmith.generate.packed_head import packed_head
from tunesmith.generate.requests import Completion, Request
from tunesmith.generate.sampling import choose
from tunesmith.generate.scheduler import Scheduler, Slot, shared_prefix
from tunesmith.generate.text import Pieces, cut_at_stop
from tunesmith.models.memory import free_bytes, give_back, is_out_of_memory
from tunesmith.types import StopReason

MOST_SLOTS = 128
STORE_SHARE = 0.4
"""What keys and values may take of the memory that is free when a batch begins."""
PREFILL_TOKENS = 4096
"""Tokens of one prefill batch, padding counted."""
CHUNK = 512
"""Positions of a prompt that one forward pass takes: scores grow with them times the context."""

Show = Callable[[Hashable, str], None]
"""Is told the key of a request and the next piece of its answer."""


class Engine:
    """Generates for many requests at once with one model.

    Greedy output equals sequential generation up to ties that a last bit decides; a sampled row
    depends on its own seed only. The weights must not change while an engine that remembers is in
    use.
    """

    def __init__(
        self,
        model: Any,
        decode: Callable[[Sequence[int]], str],
        stop_ids: Collection[int],
        *,
        max_slots: int | None = None,
        remember_bytes: int = 0,
        capture: Capture | None = None,
    ) -> None:
        """Prepare a model; with ``remember_bytes`` prompts that begin alike go on from there.

        ``capture`` records decode steps; None takes what the model's device has for that.
        """
        self._model, self._decode = model, decode
        self._stop_ids = frozenset(stop_ids)
        self._max_slots = max_slots or MOST_SLOTS
        self._positions = int(getattr(model.config, "max_position_embeddings", 0) or 1 << 20)
        self._device = next(model.parameters()).device
        self._remembered = Remembered(remember_bytes) if remember_bytes else None
        self._cancelled: set[Hashable] = set()
        self._capture = capture or recording(self._device)
        self._captured: CapturedSteps | None = None
        self.prefilled = 0
        """Prompt tokens that were computed, those that were shared or remembered left out."""

    def cancel(self, key: Hashable) -> None:
        """End a request at the next step; its completion says ``CANCELLED``."""
        self._cancelled.add(key)

    def run(
        self,
        requests: Sequence[Request],
        *,
        should_stop: Callable[[], bool] | None = None,
        show: Show | None = None,
    ) -> Iterator[Completion]:
        """Yield completions in the order in which they finish.

        ``should_stop`` is asked at every step; once true, nothing more is yielded. ``show`` gets
        each answer in pieces as it grows. A request whose prompt fills the model's positions is an
        error; one whose limit passes them ends there. Where memory runs out, what is left is begun
        again with half as many at once, which changes no answer (of one that is shown, the pieces
        come again); ``OutOfMemoryError`` if one alone does not fit.
        """
        if requests:
            self._check(requests)
        left = {request.key: request for request in requests}
        most = self._max_slots
        while left:
            some = list(left.values())
            prefix = self._prefix(some)
            room = max(len(r.prompt_ids) - prefix + self._limit(r) for r in some)
            slots = min(self._slots(room), len(some), most)
            try:
                for done in self._run(some, prefix, room, slots, should_stop, show):
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
        show: Show | None,
    ) -> Iterator[Completion]:
        store = self._new_store(slots, room, prefix)
        scheduler = Scheduler(requests, store.slots)
        was_training = self._model.training
        self._model.eval()
        try:
            with ExitStack() as stack:
                stack.enter_context(attending(self._model, store))
                stack.enter_context(packed_head(self._model))
                self._fill_prefix(store, requests[0].prompt_ids[:prefix])
                while scheduler and not (should_stop and should_stop()):
                    if self._cancelled:
                        yield from self._drop_cancelled(scheduler, store)
                        continue
                    logits = self._admit(scheduler, store, show)
                    if logits is None:
                        logits = self._step(scheduler, store)
                    yield from self._advance(scheduler, store, logits, show)
        finally:
            self._model.train(was_training)

    def _new_store(self, slots: int, room: int, prefix: int = 0) -> Store:
        """Return an empty store; steps that were recorded over another one are forgotten."""
        store = Store(slots, room, prefix_length=prefix)
        if self._capture is not None:
            self._captured = CapturedSteps(store, self._last_logits, self._capture)
        return store

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

    def _prefix(self, requests: Sequence[Request]) -> int:
        if len(requests) == 1 and self._remembered is not None:
            return len(requests[0].prompt_ids) - 1
        return shared_prefix([request.prompt_ids for request in requests])

    def _limit(self, request: Request) -> int:
        return min(request.sampling.max_new_tokens, self._positions - len(request.prompt_ids))

    def _slots(self, room: int, *, of_all: bool = False) -> int:
        """Return how many rows of so many tokens fit into memory; not capped for ``of_all``."""
        config = self._model.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        item = next(self._model.parameters()).element_size()
        row = int(2 * config.num_hidden_layers * heads * width * room * item)
        budget = int(STORE_SHARE * free_bytes(self._device))
        return max(1, budget // row if of_all else min(self._max_slots, budget // row))

    def _forward(self, ids: torch.Tensor, places: torch.Tensor, keep: Any) -> torch.Tensor:
        logits: torch.Tensor = self._model(
            input_ids=ids.to(self._device),
            position_ids=places.to(self._device),
            use_cache=False,
            logits_to_keep=keep,
        ).logits
        return logits

    def _last_logits(self, ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        return self._forward(ids, places, 1)[:, -1]

    def _fill_prefix(self, store: Store, prefix: Sequence[int]) -> None:
        """Compute what all rows share, chunk by chunk, from where it is not remembered."""
        if not prefix:
            return
        if self._remembered is not None:
            store.filled, layers = self._remembered.find(prefix)
            for layer, pair in layers.items() if store.filled else ():
                grown = (one.new_empty(one.shape[0], len(prefix), one.shape[2]) for one in pair)
                keys, values = grown
                for new, old in zip((keys, values), pair, strict=True):
                    new[:, : store.filled] = old[:, : store.filled]
                store.prefix[layer] = (keys, values)
        store.filling_prefix = True
        while store.filled < len(prefix):
            ids = torch.tensor([list(prefix[store.filled : store.filled + CHUNK])])
            store.begin(None, torch.zeros(1, dtype=torch.long, device=self._device), 0)
            self._forward(ids, store.filled + torch.arange(ids.shape[1])[None], 1)
            store.filled += ids.shape[1]
            self.prefilled += ids.shape[1]
        store.filling_prefix = False

    def _admit(self, scheduler: Scheduler, store: Store, show: Show | None) -> torch.Tensor | None:
        """Prefill new requests; return the logits [active, V] of every row then, or None."""
        taken = scheduler.refill()
        if not taken:
            return None
        running = len(scheduler.active)
        known = self._step(scheduler, store) if running else None
        groups: dict[tuple[int, ...], list[int]] = {}
        for row, request in enumerate(taken, running):
            pieces = Pieces(self._decode, request.sampling.stop) if show else None
            scheduler.active.append(Slot(request, self._limit(request), pieces=pieces))
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
        """Compute each distinct prompt once, padded on the right, and copy it to its other rows.

        Chunk by chunk of its positions; prompts that have ended drop out of the later ones.
        """
        self.prefilled += sum(len(ids) for ids, _ in batch)
        for start in range(0, max(len(ids) for ids, _ in batch), CHUNK):
            some = [(ids, rows) for ids, rows in batch if len(ids) > start]
            parts = [ids[start : start + CHUNK] for ids, _ in some]
            longest = max(map(len, parts))
            padded = torch.tensor([list(ids) + [0] * (longest - len(ids)) for ids in parts])
            places = (store.prefix_length + start + torch.arange(longest)).expand(len(some), -1)
            store.begin(
                torch.tensor([rows[0] for _, rows in some], device=self._device),
                torch.full((len(some),), start, device=self._device),
                longest,
                start + longest,
            )
            lasts = torch.tensor([len(ids) - 1 for ids in parts])
            keep, which = lasts.unique(return_inverse=True)
            out = self._forward(padded, places, keep.to(self._device))
            for number, (ids, rows) in enumerate(some):
                if len(ids) <= start + CHUNK:
                    logits.update(dict.fromkeys(rows, out[number, which[number]]))
        for ids, rows in batch:
            if len(rows) > 1:
                store.copy(rows[0], rows[1:], len(ids))
            for row in rows:
                scheduler.active[row].length = len(ids)

    def _step(self, scheduler: Scheduler, store: Store) -> torch.Tensor:
        """Run the last token of every active row; return logits [active, V]."""
        active = scheduler.active
        ids = torch.tensor([[slot.tokens[-1]] for slot in active], device=self._device)
        lengths = [slot.length for slot in active]
        starts = torch.tensor(lengths, device=self._device)
        reach = max(lengths) + 1
        logits = self._captured(ids, starts, reach) if self._captured is not None else None
        if logits is None:
            store.begin(None, starts, 1, reach)
            logits = self._last_logits(ids, (store.prefix_length + starts)[:, None])
        for slot in active:
            slot.length += 1
        return logits

    def _advance(
        self, scheduler: Scheduler, store: Store, logits: torch.Tensor, show: Show | None
    ) -> Iterator[Completion]:
        """Choose a token for each row, yield the rows that end, keep the others together."""
        active = scheduler.active
        tokens = choose(
            logits,
            [slot.request.sampling for slot in active],
            torch.tensor([slot.request.seed for slot in active], device=self._device),
            torch.tensor([len(slot.tokens) for slot in active], device=self._device),
        )
        asked = [row for row, slot in enumerate(active) if slot.request.sampling.logprobs]
        if asked:
            picked = logits[asked].float().log_softmax(-1).gather(-1, tokens[asked][:, None])
            for row, value in zip(asked, picked[:, 0].tolist(), strict=True):
                active[row].logprobs.append(value)
        ended: list[int] = []
        for row, (slot, token) in enumerate(zip(active, tokens.tolist(), strict=True)):
            done = self._end(slot, token)
            if show and slot.pieces:
                key = slot.request.key
                piece = slot.pieces.rest(done.text) if done else slot.pieces.add(slot.tokens)
                if piece:
                    show(key, piece)
            if done is not None:
                ended.append(row)
                self._remember(scheduler, store, row)
                yield done
        self._drop(scheduler, store, ended)

    def _end(self, slot: Slot, token: int) -> Completion | None:
        """Add a token; return the completion if the row ends with it."""
        if token in self._stop_ids:
            return self._completion(slot, StopReason.STOP_TOKEN)
        slot.tokens.append(token)
        stop = slot.request.sampling.stop
        if stop and (text := cut_at_stop(self._decode, slot.tokens, stop)) is not None:
            return self._completion(slot, StopReason.STOP_STRING, text)
        if len(slot.tokens) >= slot.limit:
            return self._completion(slot, StopReason.LENGTH)
        return None

    def _completion(self, slot: Slot, stop: StopReason, text: str | None = None) -> Completion:
        tokens = tuple(slot.tokens)
        text = self._decode(tokens) if text is None else text
        return Completion(slot.request.key, tokens, text, stop, tuple(slot.logprobs[: len(tokens)]))

    def _drop(self, scheduler: Scheduler, store: Store, rows: Sequence[int]) -> None:
        for source, target, length in scheduler.drop(rows):
            store.copy(source, [target], length)

    def _drop_cancelled(self, scheduler: Scheduler, store: Store) -> Iterator[Completion]:
        cancelled, self._cancelled = self._cancelled, set()
        for request in scheduler.withdraw(cancelled):
            yield Completion(request.key, (), "", StopReason.CANCELLED)
        gone = [row for row, s in enumerate(scheduler.active) if s.request.key in cancelled]
        done = [self._completion(scheduler.active[row], StopReason.CANCELLED) for row in gone]
        for row in gone:
            self._remember(scheduler, store, row)
        self._drop(scheduler, store, gone)
        yield from done

    def _remember(self, scheduler: Scheduler, store: Store, row: int) -> None:
        """Keep what an ended row has computed: its prompt and all of its answer but the end."""
        if self._remembered is None:
            return
        slot = scheduler.active[row]
        known = store.prefix_length + slot.length
        ids = (*slot.request.prompt_ids, *slot.tokens)[:known]
        layers: Layers = {}
        for layer, own in store.own.items():
            parts = [one[row, :, : slot.length] for one in own]
            if store.prefix_length:
                ahead = store.prefix[layer]
                parts = [torch.cat(pair, 1) for pair in zip(ahead, parts, strict=True)]
            layers[layer] = (parts[0].clone(), parts[1].clone())
        self._remembered.add(ids, layers)
