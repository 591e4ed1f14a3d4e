"""Tokenising in several processes: examples go out, blocks come back in order."""

from __future__ import annotations

import contextlib
import os
import queue
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO

from tunesmith.data.render import Renderer
from tunesmith.data.worker import flatten, receive, send, start
from tunesmith.errors import ContractError, TunesmithError
from tunesmith.types import Example

WORTH_IT = 40_000_000
"""Characters from which processes of their own are started unasked: they need seconds to start."""


def choose_workers(wanted: int | None, characters: int) -> int:
    """Return the number of processes: as asked, else one for each core where rows are many."""
    if wanted is not None:
        return wanted
    if characters < WORTH_IT:
        return 1
    count = getattr(os, "process_cpu_count", os.cpu_count)
    return count() or 1


def encode_in_processes(
    parts: Iterable[Sequence[Example]],
    renderer: Renderer,
    max_length: int,
    *,
    answers_only: bool,
    workers: int,
) -> Iterator[bytes]:
    """Yield the block of each part, as bytes and in order, made by so many processes.

    Raises the ``ContractError`` of the first part that has one, and ``TunesmithError`` when a
    process dies.
    """
    free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    started = [_Worker() for _ in range(workers)]

    def encode(part: Sequence[Example]) -> bytes:
        worker = free.get()
        try:
            return worker.encode(part)
        finally:
            free.put(worker)

    pool = ThreadPoolExecutor(workers)
    try:
        setup = (renderer, max_length, answers_only)
        for worker in started:
            worker.open(setup)
            free.put(worker)
        waiting: deque[Future[bytes]] = deque()
        for part in parts:
            waiting.append(pool.submit(encode, part))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for worker in started:
            worker.close()
        pool.shutdown(cancel_futures=True)


class _Worker:
    def __init__(self) -> None:
        self._process = start("tunesmith.data.worker")

    @property
    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin, self._process.stdout

    def open(self, setup: tuple[Renderer, int, bool]) -> None:
        with self._dying():
            send(self._pipes[0], setup)

    def encode(self, part: Sequence[Example]) -> bytes:
        with self._dying():
            send(self._pipes[0], flatten(part))
            content, failure = receive(self._pipes[1])
        if failure is not None:
            found, expected, hint = failure
            raise ContractError(found, expected=expected, hint=hint)
        done: bytes = content
        return done

    @contextlib.contextmanager
    def _dying(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError, ValueError):
            code = self._process.wait()
            raise TunesmithError(
                f"A process that tokenises rows ended early (exit code {code}).",
                expected="enough memory for every process; its own message stands above",
                hint="--num-workers 1",
            ) from None

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.close()
