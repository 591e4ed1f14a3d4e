"""Answers in OpenAI's shapes: whole, in pieces, with log-probabilities and usage."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith.generate.live import Grown, Likeliest
from tunesmith.generate.prompt_scores import PromptScores
from tunesmith.serve.faults import new_id
from tunesmith.serve.plan import Plan
from tunesmith.types import StopReason

_REASONS = {StopReason.LENGTH: "length"}
LOWEST = -9999.0
"""Stands for the log-probability of what is impossible: JSON has no infinity."""
_LOST = "\N{REPLACEMENT CHARACTER}"


@dataclass(slots=True)
class Choice:
    """One answer while it grows."""

    index: int
    text: list[str] = field(default_factory=list)
    told: list[tuple[int, float, Likeliest]] = field(default_factory=list)
    """Each token with its log-probability and the likeliest ones, where asked for."""
    sent: int = 0
    """How many of them are in a piece already."""
    reason: str | None = None
    tokens: int = 0

    def add(self, grown: Grown, *, with_end: bool) -> None:
        """Take in a step; the token that ends an answer is told only ``with_end``."""
        self.text.append(grown.piece)
        done = grown.done
        ended = done is not None and done.stop is StopReason.STOP_TOKEN
        if grown.token is not None and grown.logprob is not None and (with_end or not ended):
            self.told.append((grown.token, grown.logprob, grown.likeliest))
        if done is not None:
            self.tokens = len(done.tokens)
            self.reason = _REASONS.get(done.stop, "stop")


class Reply:
    """The reply to one request, made of what the engine tells."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.id = new_id("chatcmpl" if plan.chat else "cmpl")
        self._created = int(time.time())
        self._renderer = plan.voice.renderer
        count = len(plan.prompts) * plan.n
        self.choices = [Choice(index) for index in range(count)]
        if not plan.rows:
            for choice in self.choices:
                choice.reason = "length"
        self._scores: dict[int, PromptScores] = {}

    def scored(self, prompt: int, scores: PromptScores) -> None:
        """Take in the scores of a prompt."""
        self._scores[prompt] = scores

    def grown(self, grown: Grown) -> Choice:
        """Take in what a step has added; return the choice that it belongs to."""
        choice = self.choices[grown.key[1]]  # type: ignore[index]
        choice.add(grown, with_end=not self.plan.chat)
        return choice

    @property
    def usage(self) -> dict[str, int]:
        """Return the tokens of prompts and answers; a prompt counts once."""
        prompt = sum(map(len, self.plan.prompts))
        made = sum(choice.tokens for choice in self.choices)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": made,
            "total_tokens": prompt + made,
        }

    def whole(self) -> dict[str, Any]:
        """Return the reply once every answer has ended."""
        made = self._chat_choice if self.plan.chat else self._text_choice
        return {
            "id": self.id,
            "object": "chat.completion" if self.plan.chat else "text_completion",
            "created": self._created,
            "model": self.plan.voice.name,
            "choices": [made(choice) for choice in self.choices],
            "usage": self.usage,
        }

    def text_of(self, choice: Choice) -> str:
        """Return an answer's text without any echo."""
        return "".join(choice.text)

    def first_pieces(self) -> Iterator[dict[str, Any]]:
        """Yield what a stream begins with."""
        for choice in self.choices:
            if self.plan.chat:
                delta = {"role": "assistant", "content": ""}
                yield self._piece({"delta": delta, **_end(choice.index, None, None)})
            elif self.plan.asked.echo:  # type: ignore[union-attr]
                echoed = self.plan.texts[choice.index // self.plan.n]
                yield self._piece({"text": echoed, **_end(choice.index, None, None)})
            if choice.reason is not None:
                yield from self._last(choice)

    def pieces(self, grown: Grown) -> Iterator[dict[str, Any]]:
        """Yield what a step adds to a stream."""
        choice = self.grown(grown)
        ended = choice.reason is not None
        fresh = choice.told[choice.sent :]
        if grown.piece or (ended and fresh):
            choice.sent = len(choice.told)
            said: dict[str, Any] = (
                {"delta": {"content": grown.piece}} if self.plan.chat else {"text": grown.piece}
            )
            yield self._piece({**said, **_end(choice.index, self._logprobs(fresh), None)})
        if ended:
            yield from self._last(choice)

    def usage_piece(self) -> dict[str, Any]:
        """Return the last piece of a stream whose usage was asked for."""
        return {**self._head(), "choices": [], "usage": self.usage}

    def _last(self, choice: Choice) -> Iterator[dict[str, Any]]:
        said: dict[str, Any] = {"delta": {}} if self.plan.chat else {"text": ""}
        yield self._piece({**said, **_end(choice.index, None, choice.reason)})

    def _piece(self, choice: Mapping[str, Any]) -> dict[str, Any]:
        usage = {"usage": None} if self.plan.asked.with_usage else {}
        return {**self._head(), "choices": [choice], **usage}

    def _head(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "chat.completion.chunk" if self.plan.chat else "text_completion",
            "created": self._created,
            "model": self.plan.voice.name,
        }

    def _chat_choice(self, choice: Choice) -> dict[str, Any]:
        message = {"role": "assistant", "content": self.text_of(choice), "refusal": None}
        logprobs = self._logprobs(choice.told)
        return {"message": message, **_end(choice.index, logprobs, choice.reason)}

    def _text_choice(self, choice: Choice) -> dict[str, Any]:
        asked, place = self.plan.asked, choice.index // self.plan.n
        echoed = self.plan.texts[place] if asked.echo else ""  # type: ignore[union-attr]
        logprobs = self._text_logprobs(choice, place) if asked.logprobs is not None else None
        return {
            "text": echoed + self.text_of(choice),
            **_end(choice.index, logprobs, choice.reason),
        }

    def _logprobs(self, told: list[tuple[int, float, Likeliest]]) -> dict[str, Any] | None:
        if not self.plan.chat:
            if self.plan.asked.logprobs is None:
                return None
            return self._listed(told)
        if not self.plan.asked.logprobs:
            return None
        entries = [
            {
                **self._entry(token, value),
                "top_logprobs": [self._entry(one, score) for one, score in likeliest],
            }
            for token, value, likeliest in told
        ]
        return {"content": entries, "refusal": None}

    def _entry(self, token: int, value: float) -> dict[str, Any]:
        text = self._renderer.decode_raw([token])
        spelled = None if _LOST in text else list(text.encode())
        return {"token": text, "logprob": _finite(value), "bytes": spelled}

    def _text_logprobs(self, choice: Choice, place: int) -> dict[str, Any]:
        """Return the lists of /v1/completions; the first token of a prompt has no value."""
        told: list[tuple[int, float | None, Likeliest]] = []
        if (scores := self._scores.get(place)) is not None:
            ids = self.plan.prompts[place]
            told.append((ids[0], None, ()))
            told += zip(ids[1:], scores.logprobs, scores.likeliest, strict=True)
        return self._listed([*told, *choice.told])

    def _listed(self, told: Sequence[tuple[int, float | None, Likeliest]]) -> dict[str, Any]:
        tokens = [self._renderer.decode_raw([token]) for token, _, _ in told]
        offsets, at = [], 0
        for text in tokens:
            offsets.append(at)
            at += len(text)
        return {
            "tokens": tokens,
            "token_logprobs": [None if v is None else _finite(v) for _, v, _ in told],
            "top_logprobs": [
                None if value is None else self._tops(token, value, likeliest)
                for token, value, likeliest in told
            ],
            "text_offset": offsets,
        }

    def _tops(self, token: int, value: float, likeliest: Likeliest) -> dict[str, float]:
        """Return text → log-probability of the likeliest tokens and the chosen one.

        Of tokens with the same text, such as parts of characters, the likelier one stands.
        """
        found: dict[str, float] = {}
        for one, score in (*likeliest, (token, value)):
            text = self._renderer.decode_raw([one])
            found[text] = max(found.get(text, LOWEST), _finite(score))
        return found


def _end(index: int, logprobs: Any, reason: str | None) -> dict[str, Any]:
    return {"index": index, "logprobs": logprobs, "finish_reason": reason}


def _finite(value: float) -> float:
    return value if math.isfinite(value) else LOWEST
