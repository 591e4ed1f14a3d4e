"""A small OpenAI-compatible server that misbehaves as it is told, and keeps a log of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

Behave = Callable[[str, int], str]
"""Of a question and how often it was asked before: what the server does."""
FAULTS = ("busy", "error", "hang", "break", "cut", "garbage", "slow", "close", "fault in stream")
"""Ways to misbehave that may pass; slow is none, but it is one of a mix."""


@dataclass(slots=True)
class Asked:
    """One request as the server saw it."""

    question: str
    body: dict[str, Any]
    headers: dict[str, str]
    target: str
    time: float


@dataclass(slots=True)
class Writer:
    """One connection to a client."""

    stream: asyncio.StreamWriter
    pieces: list[bytes] = field(default_factory=list)

    async def head(self, status: str, *lines: str) -> None:
        """Write status and headers."""
        text = "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""])
        self.stream.write(text.encode())
        await self.stream.drain()

    async def whole(self, status: str, body: str, *lines: str, kind: str = "json") -> None:
        """Write a reply of known length."""
        data = body.encode()
        await self.head(
            status, f"Content-Type: application/{kind}", f"Content-Length: {len(data)}", *lines
        )
        self.stream.write(data)
        await self.stream.drain()

    async def chunk(self, data: bytes) -> None:
        """Write a chunk; an empty one ends the reply."""
        self.stream.write(b"%x\r\n%s\r\n" % (len(data), data))
        await self.stream.drain()


def event(value: Any) -> bytes:
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"


def piece(**delta: Any) -> dict[str, Any]:
    """Return an event of a stream: its delta, or with finish its end."""
    finish = delta.pop("finish", None)
    logprobs = delta.pop("logprobs", None)
    choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": logprobs}
    return {"choices": [choice]}


def key_of(body: dict[str, Any]) -> str:
    return f"{body['messages'][-1]['content']}#{body['seed']}"


class FakeServer:
    """Serves ``/v1/chat/completions`` on a free port of this machine.

    ``text`` is the answer; what is behaved as json may make it of the question.
    """

    def __init__(
        self,
        behave: Behave = lambda _question, _before: "fine",
        *,
        text: Any = "So it is.\n<answer>7</answer>",
        retry_after: str = "0.05",
        delay: float = 0.0,
    ) -> None:
        self._behave, self.text, self._retry_after, self._delay = behave, text, retry_after, delay
        self.asked: list[Asked] = []
        self.completed: list[str] = []
        """Questions whose answer was sent to its end, each time that it was."""
        self.most_at_once = self._at_once = 0
        self._before: Counter[str] = Counter()
        self._tasks: set[Any] = set()
        self._streams: list[asyncio.StreamWriter] = []
        self._ready = threading.Event()
        self.release = threading.Event()
        """Lets answers go on that are held in their middle."""
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(5)

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._client, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._end.wait()
        # A connection that is being taken when the server closes would be left open by asyncio.
        await asyncio.sleep(0.05)
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for stream in self._streams:
            stream.transport.abort()
        await asyncio.sleep(0.01)

    async def _client(self, reader: asyncio.StreamReader, stream: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._tasks.add(task)
        self._streams.append(stream)
        try:
            while await self._request(reader, Writer(stream)):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            stream.close()

    async def _request(self, reader: asyncio.StreamReader, writer: Writer) -> bool:
        """Answer one request; return whether the connection stays open."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {
            name.lower(): value for name, value in (line.split(": ", 1) for line in head[1:-2])
        }
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        question = key_of(body)
        asked = Asked(question, body, headers, head[0].split()[1], time.monotonic())
        self.asked.append(asked)
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            if self._delay:
                await asyncio.sleep(self._delay)
            before = self._before[question]
            self._before[question] += 1
            return await self._answer(self._behave(question, before), asked, writer)
        finally:
            self._at_once -= 1

    async def _answer(self, how: str, asked: Asked, writer: Writer) -> bool:
        if how == "close":
            return False
        if how == "hang":
            await asyncio.sleep(60)
        refusals = {
            "busy": ("429 Too Many Requests", "slow down", f"Retry-After: {self._retry_after}"),
            "error": ("500 Internal Server Error", "oh", "X-Nothing: 1"),
            "denied": (
                "401 Unauthorized",
                f"no \x1b[31mkey\n {asked.headers.get('authorization')} " + "x" * 999,
                "X-Nothing: 1",
            ),
            "too many": ("400 Bad Request", "max_tokens is too large", "X-Nothing: 1"),
            "both too many": (
                "400 Bad Request",
                "'max_tokens' or 'max_completion_tokens' is too large",
                "X-Nothing: 1",
            ),
            "renamed": (
                "400 Bad Request",
                "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
                "'max_completion_tokens' instead.",
                "X-Nothing: 1",
            ),
            "moved": ("307 Temporary Redirect", "", f"Location: {self.text}"),
        }
        if how == "renamed" and "max_completion_tokens" in asked.body:
            how = "fine"
        if how in refusals:
            status, said, line = refusals[how]
            await writer.whole(status, json.dumps({"error": {"message": said}}), line)
            return True
        if how == "json":
            said = self.text(asked.question) if callable(self.text) else self.text
            message = {"role": "assistant", "content": said}
            reply = {"choices": [{"message": message, "finish_reason": "stop"}]}
            self.completed.append(asked.question)
            await writer.whole("200 OK", json.dumps(reply))
            return True
        return await self._stream(how, asked, writer)

    async def _stream(self, how: str, asked: Asked, writer: Writer) -> bool:
        chunked = "Connection: close" if how == "cut" else "Transfer-Encoding: chunked"
        await writer.head("200 OK", "Content-Type: text/event-stream; charset=utf-8", chunked)

        async def send(data: bytes) -> None:
            if how == "cut":
                writer.stream.write(data)
                await writer.stream.drain()
            else:
                await writer.chunk(data)

        half = len(self.text) // 2
        if how == "thinking":
            await send(event(piece(reasoning_content="Let me ")) + event(piece(reasoning="see.\n")))
        await send(b": hello\r\n\r\n" + event(piece(role="assistant", content="")))
        # An event may come in any pieces.
        first = event(piece(content=self.text[:half], logprobs={"content": [{"logprob": -0.5}]}))
        await send(first[:9])
        await send(first[9:])
        if how in ("break", "cut"):
            return False
        if how == "garbage":
            await send(b"data: {]\n\n")
            await asyncio.sleep(60)
        if how == "fault in stream":
            await send(event({"error": {"message": "out of memory"}}))
            return False
        while how == "held" and not self.release.is_set():
            await asyncio.sleep(0.01)
        if how == "slow":
            await asyncio.sleep(0.1)
        await send(event(piece(content=self.text[half:])))
        finish = {"long": "length", "filtered": "content_filter", "odd": "odd"}.get(how, "stop")
        if finish != "odd":
            self.completed.append(asked.question)
        await send(event(piece(finish=finish)) + event({"choices": [], "usage": {"n": 1}}))
        if how == "endless":
            await asyncio.sleep(60)
        await send(event(b"[DONE]"))
        await send(b"")
        return True


def mixed(faults: tuple[str, ...], seed: int, most: int = 3) -> Behave:
    """Return a behaviour that misbehaves at random, at most so often at one question."""

    def behave(question: str, before: int) -> str:
        rng = random.Random(f"{seed} {question} {before}")
        if before >= most or rng.random() < 0.5:
            return rng.choice(["fine", "json", "slow"])
        return rng.choice(faults)

    return behave


@contextmanager
def servers(*behaviours: Behave, **more: Any) -> Iterator[list[FakeServer]]:
    """Run one server for each behaviour."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(FakeServer(behave, **more)) for behave in behaviours]
