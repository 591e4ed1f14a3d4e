"""Reading what an OpenAI-compatible server sends, which may be anything."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tunesmith.generate.backends import Question
from tunesmith.generate.requests import Completion
from tunesmith.types import StopReason

LARGEST = 16 << 20
"""Bytes of one reply that are read at most."""
LARGEST_FAULT = 64 << 10
"""Bytes of an error's text that are read at most."""
SHOWN = 300
"""Characters of a server's message that are shown."""
AFTER_THE_END_S = 5.0
"""How long the end of a stream is waited for once its answer is whole."""

_REASONS = {
    "stop": StopReason.STOP_TOKEN,
    "eos": StopReason.STOP_TOKEN,
    "eos_token": StopReason.STOP_TOKEN,
    "stop_sequence": StopReason.STOP_STRING,
    "length": StopReason.LENGTH,
    "content_filter": StopReason.FILTERED,
}
_FIRST_HALVES = frozenset(map(chr, range(0xD800, 0xDC00)))
"""Of characters that JSON spells as a pair."""


class BrokenReply(Exception):
    """A reply that is no whole answer; the question may be asked again."""


@dataclass(slots=True)
class Answer:
    """What of an answer has come so far."""

    text: list[str] = field(default_factory=list)
    thinking: list[str] = field(default_factory=list)
    """What a server with a reasoning parser has taken out of the text."""
    logprobs: list[float] = field(default_factory=list)
    stop: StopReason | None = None
    """Known once the answer is whole."""

    def add(self, reply: Any, part: str) -> None:
        """Take in one JSON value; ``part`` is where a choice holds its text: delta or message."""
        if not isinstance(reply, Mapping):
            raise BrokenReply("no JSON object")
        if reply.get("error"):
            raise BrokenReply(f"an error in the stream: {message_of(reply)}")
        choices = reply.get("choices")
        if not isinstance(choices, list):
            raise BrokenReply("no list of choices")
        if not choices:  # such as the last piece, which holds only the usage
            return
        choice = choices[0]
        said = choice.get(part) if isinstance(choice, Mapping) else None
        if not isinstance(said, Mapping | None):
            raise BrokenReply("a choice that is no object")
        said = said or {}
        thought = said.get("reasoning_content") or said.get("reasoning")
        for target, value in ((self.text, said.get("content")), (self.thinking, thought)):
            if not isinstance(value, str | None):
                raise BrokenReply("content that is no text")
            target.append(value or "")
        self._add_logprobs(choice.get("logprobs"))
        if (reason := choice.get("finish_reason")) is not None:
            if not isinstance(reason, str) or reason not in _REASONS:
                raise BrokenReply(f"an answer that ended for {printable(str(reason), 40)!r}")
            cut = isinstance(choice.get("stop_reason"), str) and reason == "stop"
            self.stop = StopReason.STOP_STRING if cut else _REASONS[reason]

    def _add_logprobs(self, found: Any) -> None:
        entries = found.get("content") if isinstance(found, Mapping) else None
        for entry in entries if isinstance(entries, list) else ():
            value = entry.get("logprob") if isinstance(entry, Mapping) else None
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise BrokenReply("a log-probability that is no number")
            self.logprobs.append(float(value))

    def so_far(self) -> str:
        """Return what of the text has come, and what nothing that follows is likely to change."""
        text, thinking = "".join(self.text), "".join(self.thinking).strip()
        if thinking:
            text = _behind(thinking, text) if text.strip() else f"<think>\n{thinking}"
        return _paired(text[:-1] if text[-1:] in _FIRST_HALVES else text)

    def completion(self, question: Question) -> Completion:
        """Return the whole answer; thinking stands in front of it, in its usual tags."""
        if self.stop is None:
            raise BrokenReply("an answer that broke off")
        text, thinking = "".join(self.text), "".join(self.thinking)
        text = _paired(_behind(thinking.strip(), text) if thinking else text)
        kept = tuple(self.logprobs) if question.sampling.logprobs else ()
        return Completion(question.key, (), text, self.stop, kept)


def _behind(thinking: str, text: str) -> str:
    """Return an answer behind its thinking."""
    return f"<think>\n{thinking}\n</think>\n\n{text.lstrip()}"


def _paired(text: str) -> str:
    """Join halves of a pair, which may come in two pieces; one that stays alone is no text."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def body_of(question: Question, model: str, limit: str) -> dict[str, Any]:
    """Return what is posted for a question; settings that do nothing are left out.

    ``limit`` is the server's name for the most tokens of an answer. Seeds are cut to 31 bits,
    which every server takes.
    """
    sampling = question.sampling
    body: dict[str, Any] = {
        "model": model,
        "messages": [
            {"role": turn.role or "user", "content": turn.text, **turn.extra}
            for turn in question.messages
        ],
        limit: sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "seed": question.seed & 0x7FFFFFFF,
        "n": 1,
        "stream": True,
    }
    body |= {"top_p": sampling.top_p} if sampling.top_p < 1 else {}
    body |= {"top_k": sampling.top_k} if sampling.top_k else {}
    body |= {"min_p": sampling.min_p} if sampling.min_p else {}
    body |= {"stop": list(sampling.stop)} if sampling.stop else {}
    body |= {"logprobs": True} if sampling.logprobs else {}
    return body


async def read_answer(
    pieces: AsyncIterator[bytes],
    whole: Callable[[Answer], None],
    grown: Callable[[Answer], None] | None = None,
    *,
    streamed: bool,
) -> None:
    """Read an answer from the bytes of a reply: a stream of events, or one JSON object.

    ``grown`` gets the answer after each of its events, ``whole`` at the moment at which nothing is
    missing any more; what follows it is read only so that the connection serves again. Raises
    ``BrokenReply`` for anything but an answer.
    """
    answer = Answer()
    if not streamed:
        answer.add(_parsed(await _all(pieces)), "message")
        whole(answer)
        return
    async with contextlib.aclosing(_lines(pieces)) as lines:
        async for line in lines:
            data = _data(line)
            if data == b"[DONE]":
                break
            if data:
                answer.add(_parsed(data), "delta")
                if grown is not None:
                    grown(answer)
            if answer.stop is not None:
                break
        whole(answer)
        await _read_to_the_end(lines)


async def _read_to_the_end(lines: AsyncIterator[bytes]) -> None:
    """Read what follows a whole answer, for a while; no fault of it counts."""
    try:
        async with asyncio.timeout(AFTER_THE_END_S):
            async for line in lines:
                if _data(line) == b"[DONE]":
                    return
    except (BrokenReply, TimeoutError):
        return


def _data(line: bytes) -> bytes:
    """Return the data of an event's line; nothing for comments and other fields."""
    return line[5:].strip() if line.startswith(b"data:") else b""


async def _lines(pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    held, size = b"", 0
    async for piece in pieces:
        size += len(piece)
        if size > LARGEST:
            raise BrokenReply(f"more than {LARGEST >> 20} MiB")
        *whole, held = (held + piece).split(b"\n")
        for line in whole:
            yield line.rstrip(b"\r")
    if held:
        yield held


async def _all(pieces: AsyncIterator[bytes]) -> bytes:
    found = bytearray()
    async for piece in pieces:
        found += piece
        if len(found) > LARGEST:
            raise BrokenReply(f"more than {LARGEST >> 20} MiB")
    return bytes(found)


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise BrokenReply("what is no JSON") from None


async def read_fault(pieces: AsyncIterator[bytes], secret: str) -> str:
    """Return the message of an error's reply, short, printable, and without the key."""
    found = bytearray()
    async for piece in pieces:
        found += piece
        if len(found) >= LARGEST_FAULT:
            break
    try:
        text = message_of(json.loads(bytes(found)))
    except (ValueError, RecursionError):
        text = found.decode("utf-8", "replace")
    if secret:
        text = text.replace(secret, "…")
    return printable(text, SHOWN)


def message_of(reply: Any) -> str:
    """Return the message that a JSON reply holds, wherever servers put it."""
    for _ in range(3):
        names = [n for n in ("error", "message", "detail") if isinstance(reply, Mapping)]
        reply = next((reply[name] for name in names if reply.get(name)), reply)
    return reply if isinstance(reply, str) else json.dumps(reply, ensure_ascii=False)


def printable(text: str, most: int) -> str:
    """Return a text in one line without control characters, at most so long."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= most else f"{line[:most]}…"
