"""From a checked request to what the engine is asked: prompts, limits, seeds."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith.data.prompt_process import CostlyPrompt, PromptProcess
from tunesmith.data.render import Renderer
from tunesmith.errors import ContractError
from tunesmith.generate.requests import Sampling, attempt_seed
from tunesmith.serve.faults import Fault, invalid
from tunesmith.serve.shapes import (
    ChatRequest,
    TextRequest,
    chat_request,
    parse,
    text_request,
)
from tunesmith.serve.worker import Row, Voice
from tunesmith.types import Segment

TEXT_TOKENS = 16
"""Longest answer of /v1/completions where the request says nothing, as in OpenAI's API."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask for."""

    body_bytes: int = 1 << 20
    max_new_tokens: int = 1024
    choices: int = 32
    """Most answers of a request: prompts times n."""
    queue: int = 256
    """Most answers that wait for a slot."""
    request_s: float = 300.0
    """Longest time from the first byte of a request to the last one of its answer."""
    body_s: float = 20.0
    """Longest time that a body may take to come."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is made for a request."""

    asked: ChatRequest | TextRequest
    voice: Voice
    prompts: tuple[tuple[int, ...], ...]
    rows: tuple[Row, ...]
    seed: int
    texts: tuple[str, ...] = ()
    """The prompts of /v1/completions as texts, where they are echoed."""
    messages: tuple[Mapping[str, Any], ...] = ()
    score: bool = False
    """Whether the prompts' tokens are scored."""
    top: int = 0
    n: int = field(default=1)

    @property
    def chat(self) -> bool:
        """Say whether a conversation was asked for."""
        return isinstance(self.asked, ChatRequest)


def plan_chat(
    body: bytes, voices: Mapping[str, Voice], limits: Limits, prompts: PromptProcess
) -> Plan:
    """Read a body of /v1/chat/completions; ``Fault`` for what cannot be answered."""
    asked = chat_request(parse(body))
    voice = _voice(asked.model, voices)
    turns = tuple(
        Segment(
            "system" if message.role == "developer" else message.role,
            message.text(f"messages[{number}]"),
        )
        for number, message in enumerate(asked.messages)
    )
    what = ("The model's chat template", "these messages", "messages")
    ids = _ids(prompts, voice.renderer, turns, *what)
    sampling = _sampling(asked, limits, limits.max_new_tokens, logprobs=bool(asked.logprobs))
    rows, seed = _rows(asked, [(ids, turns[-1].text)], sampling, limits, "messages", voice)
    shown = tuple({"role": turn.role, "content": turn.text} for turn in turns)
    top = asked.top_logprobs or 0
    return Plan(asked, voice, (ids,), rows, seed, messages=shown, top=top, n=asked.n or 1)


def plan_text(
    body: bytes, voices: Mapping[str, Voice], limits: Limits, prompts: PromptProcess
) -> Plan:
    """Read a body of /v1/completions; ``Fault`` for what cannot be answered."""
    asked = text_request(parse(body))
    voice = _voice(asked.model, voices)
    vocabulary = voice.engine.vocabulary
    given = asked.prompts(vocabulary, limits.choices)
    made = [_text_ids(prompts, voice.renderer, prompt) for prompt in given]
    logprobs = asked.logprobs is not None
    sampling = _sampling(asked, limits, TEXT_TOKENS, logprobs=logprobs)
    rows, seed = _rows(asked, made, sampling, limits, "prompt", voice)
    return Plan(
        asked,
        voice,
        tuple(ids for ids, _ in made),
        () if asked.max_tokens == 0 else rows,
        seed,
        tuple(text for _, text in made),
        score=bool(asked.echo and logprobs),
        top=asked.logprobs or 0,
        n=asked.n or 1,
    )


def _text_ids(
    prompts: PromptProcess, renderer: Renderer, prompt: str | tuple[int, ...]
) -> tuple[tuple[int, ...], str]:
    """Return a prompt's tokens and its text."""
    if isinstance(prompt, tuple):
        return prompt, renderer.decode_raw(prompt)
    what = ("The tokenizer", "this prompt", "prompt")
    return _ids(prompts, renderer, (Segment(None, prompt),), *what), prompt


def _ids(
    prompts: PromptProcess,
    renderer: Renderer,
    turns: Sequence[Segment],
    who: str,
    what: str,
    param: str,
) -> tuple[int, ...]:
    """Return tokens; ``Fault`` where that is refused, or takes too long."""
    try:
        return prompts.prompt_ids(renderer, turns)
    except ContractError as failure:
        late = isinstance(failure, CostlyPrompt)
        said = f"{who} takes too long over {what}." if late else f"{who} does not take {what}."
        code = "prompt_too_slow" if late else "invalid_value"
        raise Fault(400, said, param=param, code=code, detail=str(failure)) from None


def _voice(name: str, voices: Mapping[str, Voice]) -> Voice:
    if name not in voices:
        raise Fault(
            404,
            "There is no such model; /v1/models lists those that are served.",
            param="model",
            code="model_not_found",
        )
    return voices[name]


def _sampling(
    asked: ChatRequest | TextRequest, limits: Limits, usual: int, *, logprobs: bool
) -> Sampling:
    limit = getattr(asked, "max_completion_tokens", None) or asked.max_tokens
    if limit is not None and limit > limits.max_new_tokens:
        name = "max_tokens" if asked.max_tokens is not None else "max_completion_tokens"
        raise invalid(name, f"This server makes at most {limits.max_new_tokens} tokens an answer.")
    return Sampling(
        limit or min(usual, limits.max_new_tokens),
        1.0 if asked.temperature is None else asked.temperature,
        1.0 if asked.top_p is None else asked.top_p,
        asked.top_k or 0,
        asked.min_p or 0.0,
        asked.stops,
        logprobs,
    )


def _rows(
    asked: ChatRequest | TextRequest,
    prompts: list[tuple[tuple[int, ...], str]],
    sampling: Sampling,
    limits: Limits,
    param: str,
    voice: Voice,
) -> tuple[tuple[Row, ...], int]:
    """Return the answers to make, each with the seed of its prompt's text and its number.

    They are those of ``tunesmith generate --seed``; without a seed one is drawn.
    """
    n = asked.n or 1
    if n * len(prompts) > limits.choices:
        raise invalid(
            "n", f"A request may have at most {limits.choices} answers, all prompts together."
        )
    room = voice.engine.room
    for ids, _ in prompts:
        if not ids:
            raise invalid(param, "The prompt is empty.")
        if len(ids) >= room:
            raise Fault(
                400,
                f"The prompt has {len(ids)} tokens; with its answer it may have {room}.",
                param=param,
                code="context_length_exceeded",
            )
    seed = secrets.randbits(31) if asked.seed is None else asked.seed
    rows = tuple(
        Row(place * n + index, ids, sampling, attempt_seed(seed, text, index))
        for place, (ids, text) in enumerate(prompts)
        for index in range(n)
    )
    return rows, seed
