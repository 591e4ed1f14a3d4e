"""Prompts made in a process of their own, which the kernel ends when one takes too long.

A template is a small program in somebody else's file, and a conversation may be long: neither can
be stopped within a process that has other things to do. Both ends are this file.
"""

from __future__ import annotations

import itertools
import os
import select
import signal
import sys
import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from subprocess import Popen
from typing import IO, Any

from tunesmith.data.worker import receive, send, start
from tunesmith.errors import ContractError
from tunesmith.types import Segment

SECONDS = 2.0
"""Of the processor, for a short conversation."""
SECONDS_PER_MIB = 6.0
"""Further ones, for each MiB of text: tokenizers need time as well."""
MEGABYTES = 512
"""Memory that a prompt may take."""
PATIENCE = 10.0
"""Times as long by the clock: a machine may have other things to do."""
START_S = 60.0
"""Until a process is there."""


class CostlyPrompt(ContractError):
    """A prompt that takes too long, or too much memory."""


class PromptProcess:
    """Asks one process for prompts; one that is ended is followed by another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._known: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        """Renderers that the process has, by the numbers that stand for them."""
        self._process: Popen[bytes] | None = None
        self._closed = False

    def begin(self) -> None:
        """Start the process, so that the first prompt does not wait for it."""
        with self._lock:
            self._there()

    def prompt_ids(self, renderer: Any, messages: Sequence[Segment]) -> tuple[int, ...]:
        """Return what the renderer's ``prompt_ids`` does; ``CostlyPrompt`` where that is too much.

        Raises ``ContractError`` where a renderer does.
        """
        with self._lock:
            process = self._there()
            number = self._known.get(renderer)
            fresh = None if number is not None else renderer
            if number is None:
                number = self._known[renderer] = next(self._numbers)
            turns = [(one.role, one.text) for one in messages]
            size = sum(len(text) for _, text in turns)
            seconds = SECONDS + SECONDS_PER_MIB * size / (1 << 20)
            order = (number, fresh, tuple(self._known.values()), turns, seconds, MEGABYTES)
            try:
                assert process.stdin is not None
                send(process.stdin, order)
                ids, refused, broken = _reply(process, START_S + PATIENCE * seconds)
            except (EOFError, OSError):
                code = self._end()
                if not self._closed:
                    self._there()  # for the next one
                if code > 0:
                    broken = f"The process that makes prompts ended early (exit code {code})."
                    raise RuntimeError(broken) from None
                raise CostlyPrompt(
                    f"The prompt takes over {seconds:.1f} s of the processor, or over {MEGABYTES} "
                    "MiB.",
                    expected="a chat template that ends soon, on shorter conversations",
                ) from None
        if broken is not None:
            raise RuntimeError(broken)
        if refused is not None:
            found, expected, hint = refused
            raise ContractError(found, expected=expected, hint=hint)
        return tuple(ids)

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._closed = True
        if (process := self._process) is not None:
            process.kill()
        with self._lock:
            self._end()

    def _there(self) -> Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self._end()
        if self._process is None:
            self._process = start("tunesmith.data.prompt_process")
            self._finalizer = weakref.finalize(self, _kill, self._process)
        return self._process

    def _end(self) -> int:
        """End the process, if there is one; return its exit code."""
        process, self._process = self._process, None
        self._known.clear()
        if process is None:
            return 0
        self._finalizer()
        return process.returncode


def _reply(process: Popen[bytes], seconds: float) -> Any:
    """Read one message; ``EOFError`` where none comes."""
    assert process.stdout is not None
    waiting = select.poll()  # unlike select(), it takes any file's number
    waiting.register(process.stdout, select.POLLIN)
    if not waiting.poll(1000 * seconds):
        raise EOFError
    return receive(process.stdout)


def _kill(process: Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()


# Everything below runs in the process.


def main() -> None:
    """Make prompts until the other end closes."""
    from tunesmith.data import render

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides, and closes the pipe
    source, target = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing that prints may get between the messages
    renderers: dict[int, render.Renderer] = {}
    with suppress(EOFError, BrokenPipeError):
        while True:
            send(target, _made(source, renderers))


def _made(source: IO[bytes], renderers: dict[int, Any]) -> tuple[Any, Any, Any]:
    """Read an order; return the ids, or who refuses it, or what broke."""
    _free_memory()
    number, fresh, known, turns, seconds, megabytes = receive(source)
    if fresh is not None:
        renderers[number] = fresh
    for gone in renderers.keys() - set(known):
        del renderers[gone]
    _limit_memory(megabytes << 20)
    signal.setitimer(signal.ITIMER_PROF, seconds)  # its end ends the process
    try:
        ids = renderers[number].prompt_ids([Segment(role, text) for role, text in turns])
    except ContractError as refused:
        if isinstance(refused.__cause__, MemoryError):
            signal.raise_signal(signal.SIGKILL)
        return None, (refused.found, refused.expected, refused.hint), None
    except MemoryError:
        signal.raise_signal(signal.SIGKILL)
        raise
    except Exception as failure:
        return None, None, f"{type(failure).__name__}: {failure}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return ids, None, None


def _limit_memory(more: int) -> None:
    """Let the process take so many bytes more than it has now."""
    with suppress(ImportError, ValueError, OSError):  # a system without them has the clock still
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        wanted = pages * resource.getpagesize() + more
        if hard == resource.RLIM_INFINITY or wanted < hard:
            resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))


def _free_memory() -> None:
    """Take that limit away: a tokenizer that comes next may be large."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


if __name__ == "__main__":
    main()
