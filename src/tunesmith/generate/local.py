"""Backends on weights of this machine: the engine, and transformers' generate as the reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from tunesmith.data.render import Renderer
from tunesmith.errors import UsageError
from tunesmith.generate.backends import Question, Show, Stop
from tunesmith.generate.engine import Engine
from tunesmith.generate.requests import Completion, Request, Sampling
from tunesmith.types import Segment, StopReason

TOGETHER = 8
"""Rows that transformers generates at once if nothing is said."""


def rendered(questions: Sequence[Question], renderer: Renderer) -> list[Request]:
    """Return questions as requests; neighbours that share their messages are rendered once."""
    requests: list[Request] = []
    messages: tuple[Segment, ...] | None = None
    prompt: tuple[int, ...] = ()
    for question in questions:
        if question.messages is not messages:
            messages, prompt = question.messages, renderer.prompt_ids(question.messages)
        requests.append(Request(question.key, prompt, question.sampling, question.seed))
    return requests


class EngineBackend:
    """The project's own engine: batches do not change answers."""

    def __init__(self, model: Any, renderer: Renderer, max_slots: int | None = None) -> None:
        self._model, self._renderer, self._slots = model, renderer, max_slots

    def answers(
        self,
        questions: Sequence[Question],
        *,
        should_stop: Stop | None = None,
        show: Show | None = None,
    ) -> Iterator[Completion]:
        """Yield completions as rows end; errors are those of ``Engine.run``."""
        renderer = self._renderer
        engine = Engine(self._model, renderer.decode, renderer.stop_ids, max_slots=self._slots)
        yield from engine.run(rendered(questions, renderer), should_stop=should_stop, show=show)


class TransformersBackend:
    """``model.generate`` in batches.

    Greedy answers equal the engine's up to ties that a last bit decides. Samples come from torch's
    random state, seeded by the first row of a batch, so they depend on the batch.
    """

    def __init__(self, model: Any, renderer: Renderer, together: int | None = None) -> None:
        self._model, self._renderer = model, renderer
        self._together = together or TOGETHER
        self._positions = int(getattr(model.config, "max_position_embeddings", 0) or 1 << 20)

    def answers(
        self,
        questions: Sequence[Question],
        *,
        should_stop: Stop | None = None,
        show: Show | None = None,
    ) -> Iterator[Completion]:
        """Yield completions batch by batch, whole; ``UsageError`` for a prompt without room."""
        del show  # a batch is known when it is done
        was_training = self._model.training
        self._model.eval()
        try:
            for batch in self._batches(rendered(questions, self._renderer)):
                if should_stop and should_stop():
                    return
                done = self._generate(batch, should_stop)
                if should_stop and should_stop():
                    return  # rows that were cut by the stop look like finished ones
                yield from done
        finally:
            self._model.train(was_training)

    def _batches(self, requests: Sequence[Request]) -> Iterator[list[Request]]:
        """Split requests; one whose answer the positions cut short goes by itself."""
        batch: list[Request] = []
        for request in requests:
            if self._room(request) < request.sampling.max_new_tokens:
                yield [request]
                continue
            if batch and (len(batch) == self._together or batch[0].sampling != request.sampling):
                yield batch
                batch = []
            batch.append(request)
        if batch:
            yield batch

    def _room(self, request: Request) -> int:
        room = self._positions - len(request.prompt_ids)
        if room < 1:
            raise UsageError(
                f"The prompt of {request.key!r} has {len(request.prompt_ids)} tokens; "
                f"the model takes {self._positions}.",
                expected="a prompt that leaves room for an answer",
            )
        return room

    @torch.inference_mode()
    def _generate(self, batch: Sequence[Request], should_stop: Stop | None) -> list[Completion]:
        from transformers import StoppingCriteriaList

        device = next(self._model.parameters()).device
        pad = self._renderer.stop_ids[0]
        longest = max(len(request.prompt_ids) for request in batch)
        missing = [longest - len(request.prompt_ids) for request in batch]
        rows = [[pad] * n + list(r.prompt_ids) for n, r in zip(missing, batch, strict=True)]
        mask = [[0] * n + [1] * (longest - n) for n in missing]
        limit = min(batch[0].sampling.max_new_tokens, min(map(self._room, batch)))

        def ended(ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            stop = should_stop is not None and should_stop()
            return torch.full((ids.shape[0],), stop, device=ids.device)

        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices), self._settings(batch[0].sampling, limit):
            torch.manual_seed(batch[0].seed)
            made = self._model.generate(
                input_ids=torch.tensor(rows, device=device),
                attention_mask=torch.tensor(mask, device=device),
                stopping_criteria=StoppingCriteriaList([ended]),
            )
        found = [self._values(made, row) for row in range(len(batch))]
        ids = made.sequences[:, longest:].tolist()
        return [
            self._completion(request, row, values)
            for request, row, values in zip(batch, ids, found, strict=True)
        ]

    @contextmanager
    def _settings(self, sampling: Sampling, limit: int) -> Iterator[None]:
        """Put the model's own generation settings aside, which would fill in whatever is unset."""
        from transformers import GenerationConfig

        chosen: dict[str, Any] = {"do_sample": False}
        if sampling.temperature > 0:
            chosen = {
                "do_sample": True,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": sampling.top_k,
                **({"min_p": sampling.min_p} if sampling.min_p else {}),
            }
        model = self._model
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        before = inner.generation_config
        inner.generation_config = GenerationConfig(
            max_new_tokens=limit,
            eos_token_id=list(self._renderer.stop_ids),
            pad_token_id=self._renderer.stop_ids[0],
            return_dict_in_generate=True,
            output_logits=sampling.logprobs,
            **chosen,
        )
        try:
            yield
        finally:
            inner.generation_config = before

    def _values(self, made: Any, row: int) -> list[float]:
        """Return the log-probability of each new token of a row, where they were asked for."""
        if not made.logits:
            return []
        tokens = made.sequences[row, -len(made.logits) :]
        logits = torch.stack([step[row] for step in made.logits]).float()
        chosen: list[float] = logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0].tolist()
        return chosen

    def _completion(self, request: Request, row: list[int], values: list[float]) -> Completion:
        stops = frozenset(self._renderer.stop_ids)
        end = next((at for at, token in enumerate(row) if token in stops), None)
        reason = StopReason.LENGTH if end is None else StopReason.STOP_TOKEN
        return completion(request, row[:end], reason, self._renderer, values)


def completion(
    request: Request,
    tokens: Sequence[int],
    reason: StopReason,
    renderer: Renderer,
    values: Sequence[float],
) -> Completion:
    """Return an answer, cut at its first stop string as the engine would have cut it."""
    text = renderer.decode(tokens)
    stop = request.sampling.stop
    if any(one in text for one in stop):
        reason = StopReason.STOP_STRING
        size = next(
            size
            for size in range(1, len(tokens) + 1)
            if any(one in renderer.decode(tokens[:size]) for one in stop)
        )
        tokens = tokens[:size]
        text = renderer.decode(tokens)
        text = text[: min(at for one in stop if (at := text.find(one)) >= 0)]
    return Completion(request.key, tuple(tokens), text, reason, tuple(values[: len(tokens)]))
