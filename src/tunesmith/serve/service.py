"""Carries out one request: reads and plans it, asks the engine, stops when the client leaves."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tunesmith.data.prompt_process import PromptProcess
from tunesmith.generate.live import Grown
from tunesmith.serve.answers import Reply
from tunesmith.serve.faults import BROKEN, BUSY, MEMORY, SLOW, STOPPING, Fault, encoded
from tunesmith.serve.guard import too_large
from tunesmith.serve.metrics import Metrics
from tunesmith.serve.plan import Limits, Plan
from tunesmith.serve.request_log import RequestLog
from tunesmith.serve.worker import Event, Failed, Job, Scored, Voice, Worker
from tunesmith.serve.workers import Workers

Planner = Callable[[bytes, Mapping[str, Voice], Limits, PromptProcess], Plan]
T = TypeVar("T")
RETRY_S = 1
LAST_WORD_S = 1.0
"""How long a client may take to be told that its stream ends early."""


class _Left(Exception):
    """The client has gone."""


class Service:
    """The models that are served, and the limits that they are served within."""

    def __init__(
        self,
        worker: Worker | Workers,
        limits: Limits,
        metrics: Metrics,
        log: RequestLog | None = None,
    ) -> None:
        self.worker, self.limits, self.metrics, self.log = worker, limits, metrics, log
        self.created = int(time.time())
        self.prompts = PromptProcess()
        # One thread: a renderer and its tokenizer belong to one request at a time.
        self._reader = ThreadPoolExecutor(1, "requests")

    def close(self) -> None:
        """End every job, and what the service has started."""
        self.worker.stop()
        self._reader.shutdown(wait=False, cancel_futures=True)
        self.prompts.close()
        if self.log is not None:
            self.log.close()

    async def generate(self, request: Request, planner: Planner) -> Response:
        """Answer a request, whole or as a stream."""
        began = time.monotonic()
        body = await self.body(request)
        loop = asyncio.get_running_loop()
        plan = await loop.run_in_executor(
            self._reader, planner, body, self.worker.voices, self.limits, self.prompts
        )
        job = self._submit(plan, request.state.request_id)
        running = Running(self, plan, job, request.state.request_id, began)
        if plan.asked.stream:
            return Streamed(running)
        try:
            await _unless_left(request.receive, running.finish())
        except _Left:
            self.metrics.add("cancelled_total")
            return Response(status_code=499)
        finally:
            running.leave()
        return Response(encoded(running.reply.whole()), media_type="application/json")

    async def body(self, request: Request, wanted: str = "application/json") -> bytes:
        """Read a body of this type within its limits of size and time."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != wanted:
            raise Fault(415, f"The body is to be {wanted}.", code="wrong_content_type")
        parts, size = [], 0
        try:
            async with asyncio.timeout(self.limits.body_s):
                async for part in request.stream():
                    parts.append(part)
                    size += len(part)
                    if size > self.limits.body_bytes:
                        raise too_large(self.limits.body_bytes)
        except TimeoutError:
            raise Fault(
                408,
                "The body took too long to come.",
                code="body_too_slow",
                headers={"connection": "close"},
            ) from None
        return b"".join(parts)

    def _submit(self, plan: Plan, request_id: str) -> Job:
        if not self.worker.alive:
            raise Fault(503, BROKEN, code="internal_error", detail="the engine's thread has ended")
        score = plan.prompts if plan.score else ()
        job = Job(plan.voice, plan.rows, score, plan.top, request_id)
        if not self.worker.has_room(plan.voice.name, job.left, self.limits.queue):
            raise Fault(429, BUSY, code="queue_full", headers={"retry-after": str(RETRY_S)})
        self.worker.submit(job)
        self.metrics.add("prompt_tokens_total", sum(map(len, plan.prompts)))
        return job


class Running:
    """One request while the engine works on it."""

    def __init__(
        self, service: Service, plan: Plan, job: Job, request_id: str, began: float
    ) -> None:
        self.reply = Reply(plan)
        self.request_id = request_id
        self._service, self._job, self._began = service, job, began
        self._ended = self._heard = False

    async def events(self) -> AsyncIterator[Event]:
        """Yield what the engine tells, within the time of a request; ``Fault`` where it fails."""
        left = self._service.limits.request_s - (time.monotonic() - self._began)
        deadline = asyncio.get_running_loop().time() + left
        events = self._job.events()
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    event = await anext(events)
            except StopAsyncIteration:
                break
            except TimeoutError:
                raise Fault(504, SLOW, code="timeout") from None
            if isinstance(event, Failed):
                raise _FAILED[event.why]()
            if not self._heard:
                self._heard = True
                self._service.metrics.took("first_token_seconds", time.monotonic() - self._began)
            yield event
        self._ended = True
        self._done()

    async def finish(self) -> None:
        """Take in everything."""
        async for event in self.events():
            self.take(event)

    def take(self, event: Event) -> None:
        """Take in what needs no telling yet."""
        if isinstance(event, Scored):
            self.reply.scored(event.prompt, event.scores)
        elif isinstance(event, Grown):
            self.reply.grown(event)

    def leave(self) -> None:
        """Free the slots of what has not ended."""
        if not self._ended:
            self._service.worker.cancel(self._job)
        self._service.metrics.took("request_seconds", time.monotonic() - self._began)

    def _done(self) -> None:
        usage = self.reply.usage
        self._service.metrics.add("generated_tokens_total", usage["completion_tokens"])
        if self._service.log is not None:
            self._service.log.add(self.reply, self.request_id)

    def gone(self) -> None:
        """Note that the client has left."""
        self._service.metrics.add("cancelled_total")

    @property
    def left_s(self) -> float:
        """Return the seconds that the request may still take."""
        return self._service.limits.request_s - (time.monotonic() - self._began)


class Streamed(Response):
    """A stream of server-sent events; it ends when the client leaves, or is too slow to read it."""

    def __init__(self, running: Running) -> None:
        super().__init__(media_type="text/event-stream")
        self._running = running
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        del scope
        running = self._running
        try:
            async with asyncio.timeout(running.left_s + LAST_WORD_S):
                await _unless_left(receive, self._pump(send))
        except _Left:
            running.gone()
        except TimeoutError:
            running.gone()
            raise _too_slow() from None
        finally:
            running.leave()

    async def _pump(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        reply = self._running.reply

        async def say(obj: dict[str, Any]) -> None:
            await _event(send, encoded(obj))

        for piece in reply.first_pieces():
            await say(piece)
        try:
            async for event in self._running.events():
                if isinstance(event, Grown):
                    for piece in reply.pieces(event):
                        await say(piece)
            if reply.plan.asked.with_usage:
                await say(reply.usage_piece())
            await _event(send, b"[DONE]")
        except Fault as fault:
            await say(fault.body(self._running.request_id))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _event(send: Send, data: bytes) -> None:
    body = b"data: " + data + b"\n\n"
    await send({"type": "http.response.body", "body": body, "more_body": True})


def _too_slow() -> Fault:
    return Fault(504, SLOW, code="timeout")


_FAILED: Mapping[str, Callable[[], Fault]] = {
    "memory": lambda: Fault(503, MEMORY, code="out_of_memory", headers={"retry-after": "5"}),
    "stopped": lambda: Fault(503, STOPPING, code="stopping", headers={"connection": "close"}),
    "broken": lambda: Fault(500, BROKEN, code="internal_error"),
}


async def _unless_left(receive: Receive, work: Awaitable[T]) -> T:
    """Do something as long as the client is there; ``_Left`` once it has gone."""
    doing = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_until_left(receive))
    try:
        await asyncio.wait({doing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise _Left
        return doing.result()
    finally:
        for task in (doing, leaving):
            task.cancel()
        for task in (doing, leaving):
            with contextlib.suppress(BaseException):
                await task


async def _until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
