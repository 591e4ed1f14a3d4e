"""Backend on OpenAI-compatible servers: many questions at once, asked again where that may help."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import json
import queue
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2

from tunesmith import __version__
from tunesmith.errors import ModelError
from tunesmith.generate.backends import Question, Show, Stop
from tunesmith.generate.replies import (
    SHOWN,
    Answer,
    BrokenReply,
    body_of,
    printable,
    read_answer,
    read_fault,
)
from tunesmith.generate.requests import Completion
from tunesmith.generate.servers import NEWER, Server, Servers, ServerSettings, told

CONNECT_S = 10.0
LONGEST_WAIT_S = 60.0
"""The doubling of waits ends here."""
LONGEST_REST_S = 900.0
"""A server that wants to be left alone for longer ends the run."""
STRANGERS = 3
"""Retries while nothing was ever heard of any server: an address may be mistyped."""
TICK_S = 0.1
"""How often a stop is looked at."""
LEAVING_S = 0.7
"""How long requests may take to be dropped once a stop is asked for."""
_PASSING = {408, 409, 425, 429}
"""Besides 5xx: statuses after which the same request may succeed."""
_HINTS = {
    401: "check the key: --api-key-env NAME",
    403: "check the key: --api-key-env NAME",
    404: "check --address, which usually ends in /v1, and --model",
}


class _Passing(Exception):
    """A failure that may pass."""

    def __init__(self, kind: str, said: str, rest: float | None = None) -> None:
        super().__init__(said)
        self.kind = kind
        self.rest = rest
        """Seconds for which the server wants no request, where it said so."""


class _Renamed(Exception):
    """A server wants the limit of an answer under its other name; the question is asked again."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """The next piece of an answer that is watched."""

    key: Hashable
    text: str


class _Growing:
    """Hands an answer over in pieces; one that is begun again goes on where it says the same."""

    def __init__(self, question: Question, box: queue.SimpleQueue[Any]) -> None:
        self._key, self._box, self._shown = question.key, box, ""

    def __call__(self, answer: Answer) -> None:
        """Hand over what has been added."""
        text = answer.so_far()
        if len(text) > len(self._shown) and text.startswith(self._shown):
            self._box.put(_Piece(self._key, text[len(self._shown) :]))
            self._shown = text


@dataclass(frozen=True, slots=True)
class _End:
    """The last thing that the background hands over."""

    failure: BaseException | None


class RemoteBackend:
    """Asks servers; ``addresses`` and ``again`` say afterwards who answered, and what was repeated.

    Completions have no tokens, which servers do not tell. An answer is handed over once it is
    whole; one that breaks off is thrown away and asked for again.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._servers = Servers(settings)
        self._finished = 0
        self.again: Counter[str] = Counter()
        """Reason → requests that were repeated for it."""

    def summary(self) -> str:
        """Say in a sentence who answered how much; nothing where nobody did."""
        return told(self._servers.all, self.again)

    def answers(
        self,
        questions: Sequence[Question],
        *,
        should_stop: Stop | None = None,
        show: Show | None = None,
    ) -> Iterator[Completion]:
        """Yield answers as they come, at a stop those that are whole already.

        ``ModelError`` when a server refuses a request, or keeps failing; what was whole by then is
        yielded first.
        """
        if not questions:
            return
        asking = _Asking(self, questions, watched=show is not None)
        deadline: float | None = None
        try:
            while True:
                if deadline is None and should_stop and should_stop():
                    asking.cancel()
                    deadline = time.monotonic() + LEAVING_S
                try:
                    one = asking.box.get(timeout=TICK_S)
                except queue.Empty:
                    if deadline is not None and time.monotonic() > deadline:
                        return
                    continue
                if isinstance(one, Completion):
                    yield one
                elif isinstance(one, _Piece):
                    if show is not None:
                        show(one.key, one.text)
                elif one.failure is None or deadline is not None:
                    return
                else:
                    raise one.failure
        finally:
            asking.leave()

    async def ask_all(
        self, questions: Sequence[Question], box: queue.SimpleQueue[Any], *, watched: bool
    ) -> None:
        """Answer all questions, each into ``box`` as soon as it is whole; ``watched`` in pieces."""
        settings = self._settings
        waiting = deque(questions)
        most = min(settings.connections, len(questions))
        timeout = httpx2.Timeout(
            settings.timeout, connect=min(CONNECT_S, settings.timeout), pool=None
        )

        async def work(client: httpx2.AsyncClient) -> None:
            while waiting:
                question = waiting.popleft()
                growing = _Growing(question, box) if watched else None
                await self._answer(client, question, box, growing)

        client = httpx2.AsyncClient(
            timeout=timeout,
            limits=httpx2.Limits(max_connections=most, max_keepalive_connections=most),
            follow_redirects=False,
            trust_env=settings.proxies,
            headers={
                "Accept-Encoding": "identity",
                "Content-Type": "application/json",
                "User-Agent": f"tunesmith/{__version__}",
            },
        )
        async with client, asyncio.TaskGroup() as group:
            for _ in range(most):
                group.create_task(work(client))

    async def _answer(
        self,
        client: httpx2.AsyncClient,
        question: Question,
        box: queue.SimpleQueue[Any],
        growing: _Growing | None,
    ) -> None:
        """Ask until there is a whole answer, or too many failures have followed each other."""
        counted = turn = 0
        failed: Server | None = None
        finished = self._finished
        while True:
            server = await self._servers.take(failed)
            try:
                await self._once(client, server, question, box, growing)
                return
            except _Renamed:  # no failure, so that nothing is waited for or counted as one
                self.again[NEWER] += 1
                continue
            except _Passing as failure:
                turn += 1
                # Busy with others is no fault of the question, for as long as they are answered.
                counted += not (failure.kind == "429" and self._finished > finished)
                finished = self._finished
                self._note(server, failure, question, counted)
                failed = server
            finally:
                self._servers.give_back(server)
            await asyncio.sleep(self._wait(question.seed, turn))

    def _note(self, server: Server, failure: _Passing, question: Question, counted: int) -> None:
        """Count a failure; ``ModelError`` where it was one too many."""
        said = self._cleaned(str(failure))
        heard = any(one.reached for one in self._servers.all)
        retries = self._settings.retries
        if counted > (retries if heard else min(retries, STRANGERS)):
            raise ModelError(
                f"{server.address} gave no answer to {question.key!r} in {counted} tries; the "
                f"last one: {said}.",
                expected="an OpenAI-compatible server that answers",
                hint="the same command goes on with what is missing; check --address, or raise "
                "--address-timeout or --address-retries",
            )
        if failure.rest is not None and failure.rest > LONGEST_REST_S:
            raise ModelError(
                f"{server.address} wants no request for {failure.rest:,.0f} s: {said}.",
                hint="the same command goes on with what is missing, later",
            )
        server.failures += 1
        rest = failure.rest or 0.0
        if failure.kind == "connection" and len(self._servers.all) > 1:
            # One that cannot be reached would draw every new question, having none under way.
            rest = max(rest, self._wait(question.seed, server.failures))
        server.rest(asyncio.get_running_loop().time() + rest)
        self.again[failure.kind] += 1

    def _wait(self, seed: int, turn: int) -> float:
        """Return the seconds before a question is asked again: doubling, and spread by its seed."""
        doubled: float = self._settings.first_wait * 2 ** min(turn - 1, 30)
        longest = min(doubled, LONGEST_WAIT_S)
        return longest * random.Random(f"{seed} {turn}").uniform(0.5, 1)

    async def _once(
        self,
        client: httpx2.AsyncClient,
        server: Server,
        question: Question,
        box: queue.SimpleQueue[Any],
        growing: _Growing | None,
    ) -> None:
        """Ask one server once; an answer is in ``box`` at the moment at which it is whole."""
        headers = {"Authorization": f"Bearer {server.key}"} if server.key else {}
        url = f"{server.address}/chat/completions"
        # ASCII, so that a text which is no valid Unicode can be sent as well.
        limit = server.limit
        body = json.dumps(body_of(question, self._settings.model, limit)).encode()
        answered = False

        def whole(answer: Answer) -> None:
            nonlocal answered
            box.put(answer.completion(question))
            answered = True
            self._finished += 1
            server.answered += 1
            server.failures = 0

        try:
            async with client.stream("POST", url, content=body, headers=headers) as reply:
                server.reached = True
                # Raw: what a server compresses although it was asked not to cannot grow here.
                async with contextlib.aclosing(reply.aiter_raw()) as pieces:
                    if not reply.is_success:
                        said = await read_fault(pieces, server.key)
                        if reply.status_code == 400 and server.renames(limit, said):
                            raise _Renamed
                        raise self._refused(server, reply, said)
                    kind = reply.headers.get("content-type", "")
                    await read_answer(pieces, whole, growing, streamed="json" not in kind)
        except (httpx2.TransportError, BrokenReply) as failure:
            if not answered:
                raise self._passing(failure) from None

    def _passing(self, failure: Exception) -> _Passing:
        """Say in words what went wrong on the way."""
        timeout = self._settings.timeout
        if isinstance(failure, httpx2.ConnectTimeout):
            return _Passing("connection", f"no connection for {min(CONNECT_S, timeout):g} s")
        if isinstance(failure, httpx2.TimeoutException):
            return _Passing("silence", f"nothing came for {timeout:g} s")
        if isinstance(failure, BrokenReply):
            return _Passing("broken answer", f"it sent {failure}")
        return _Passing("connection", f"{type(failure).__name__}: {failure}".removesuffix(": "))

    def _refused(self, server: Server, reply: httpx2.Response, said: str) -> Exception:
        """Return what a status other than success means."""
        status = reply.status_code
        text = f"status {status}" + (f", «{said}»" if said else "")
        if status in _PASSING or status >= 500:
            rest = seconds_of(reply.headers.get("retry-after", ""))
            return _Passing("429" if status == 429 else f"{status}", text, rest)
        moved = " (redirects are not followed)" if 300 <= status < 400 else ""
        return ModelError(
            f"{server.address} refused the request: {self._cleaned(text)}{moved}.",
            expected="an OpenAI-compatible server that knows the model "
            f"{printable(self._settings.model, 80)!r}",
            hint=_HINTS.get(status, "check --address, --model and the sampling settings"),
        )

    def _cleaned(self, text: str) -> str:
        """Return a text for people: printable, short, without the key."""
        key = self._settings.key
        return printable(text.replace(key, "…") if key else text, SHOWN + 40)


class _Asking:
    """A call's requests, in a thread with an event loop of their own."""

    def __init__(
        self, backend: RemoteBackend, questions: Sequence[Question], *, watched: bool
    ) -> None:
        self.box: queue.SimpleQueue[Completion | _Piece | _End] = queue.SimpleQueue()
        self._begun: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=self._run, args=(backend, questions, watched), daemon=True, name="asking"
        )
        self._thread.start()
        self._loop, self._task = self._begun.get()

    def _run(self, backend: RemoteBackend, questions: Sequence[Question], watched: bool) -> None:
        async def asked() -> None:
            self._begun.put((asyncio.get_running_loop(), asyncio.current_task()))
            await backend.ask_all(questions, self.box, watched=watched)

        failure: BaseException | None = None
        try:
            asyncio.run(asked())
        except asyncio.CancelledError:
            pass
        except BaseExceptionGroup as several:
            failure = _first(several)
        except BaseException as one:  # handed over, to be raised where it is waited for
            failure = one
        self._begun.put((None, None))  # for a loop that never began
        self.box.put(_End(failure))

    def cancel(self) -> None:
        """Drop all requests that are under way."""
        if self._task is None:
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed already
            self._loop.call_soon_threadsafe(self._task.cancel)

    def leave(self) -> None:
        """Drop what is left, and wait for it for a moment."""
        self.cancel()
        self._thread.join(LEAVING_S)


def _first(several: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return one failure of several workers, one that was meant for people if there is any."""
    leaves: list[BaseException] = []
    groups: list[BaseException] = [several]
    while groups:
        one = groups.pop()
        if isinstance(one, BaseExceptionGroup):
            groups += one.exceptions
        else:
            leaves.append(one)
    return next((leaf for leaf in leaves if isinstance(leaf, ModelError)), leaves[0])


def seconds_of(value: str) -> float | None:
    """Return the seconds that a Retry-After names, as a number or a date; None for anything else.

    A server's clock may differ from ours; a date that has passed is no wait.
    """
    text = value.strip()
    if text.replace(".", "", 1).isascii() and text.replace(".", "", 1).isdigit():
        return float(text[:12])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
