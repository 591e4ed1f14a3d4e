"""What each process of a run is doing, told to the others; one that fails or stalls ends them all.

The main thread notes where it is, a thread of its own tells the others once a second. Each process
judges the others by its own clock alone: by how long their notes have not changed.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from tunesmith.errors import StalledError, TrainingError
from tunesmith.train.store import Store, open_store

WORKS, WAITS, ALONE = "works", "waits", "alone"
"""At something that others wait for; waiting for the others; at something of its own length."""
FAREWELL_S = 5.0


@dataclass(slots=True)
class Pulse:
    """Where the main thread of this process is."""

    step: int = 0
    """Steps done."""
    doing: str = "starting"
    kind: str = ALONE
    mark: int = 0
    """Grows with every note, so that it shows whether anything goes on."""


_own = Pulse()


def note(step: int, doing: str) -> None:
    """Say that this process begins with a part of a step; ``step`` counts those done."""
    _own.step, _own.doing, _own.kind = step, doing, WORKS
    _own.mark += 1


@contextmanager
def waiting(doing: str) -> Iterator[None]:
    """Say that this process needs the others from here to the end of the block."""
    with _as(WAITS, doing):
        yield


@contextmanager
def alone(doing: str) -> Iterator[None]:
    """Say that this process is at work by itself, for which there is no limit of time."""
    with _as(ALONE, doing):
        yield


@contextmanager
def _as(kind: str, doing: str) -> Iterator[None]:
    before = _own.kind, _own.doing
    _own.kind, _own.doing = kind, doing
    _own.mark += 1
    try:
        yield
    finally:
        _own.kind, _own.doing = before
        _own.mark += 1


@dataclass(slots=True)
class _Seen:
    """What is known of another process, and since when."""

    text: str
    heard: float
    pulse: Pulse
    moved: float


class Failures:
    """The one failure that a run ends with: the first that is claimed, by whichever process."""

    def __init__(self, store: Store, rank: int, count: int) -> None:
        self._store, self._rank, self._count = store, rank, count

    def claim(self, code: int, text: str) -> bool:
        """Make this the failure of the run; False if another process came first.

        Where nothing can be said to the others any more, each speaks for itself.
        """
        mine = json.dumps({"rank": self._rank, "code": code, "text": text})
        try:
            return self._store.first("failed", mine) == mine
        except RuntimeError:
            return True

    def found(self) -> dict[str, Any] | None:
        """Return the failure that was claimed, if any."""
        try:
            text = self._store.read("failed")
        except RuntimeError:
            return None
        return None if text is None else dict(json.loads(text))

    def take_leave(self, patient: bool = False) -> None:
        """Say that this process ends now; the first one waits a little for the others to say so.

        It may be the one that keeps what is said, and if it left at once they would not hear why.
        A ``patient`` one waits as well: what the others are at changes once it is gone.
        """
        with contextlib.suppress(RuntimeError):
            self._store.write(f"left/{self._rank}", "yes")
            until = time.monotonic() + FAREWELL_S
            while (patient or self._rank == 0) and time.monotonic() < until:
                if all(self._store.read(f"left/{at}") for at in range(self._count)):
                    return
                time.sleep(0.05)


class Watch(threading.Thread):
    """Tells the others what this process does, and ends it where one of them failed or stalls.

    ``end`` gets an exit code, a text to say (empty where another process says it) and whether
    stacks are wanted; it does not return. It is called from this thread, because the main one may
    hang in a library that nothing interrupts.
    """

    def __init__(
        self,
        rank: int,
        count: int,
        limit_s: float,
        end: Callable[[int, str, bool], None],
    ) -> None:
        super().__init__(name="watch", daemon=True)
        self._rank, self._count, self._limit, self._end = rank, count, limit_s, end
        self._store = open_store()
        self.failures = Failures(self._store, rank, count)
        self._period = min(1.0, limit_s / 5, 0.2 + 0.05 * count)
        self._seen: dict[int, _Seen] = {}
        self._beats = 0
        self._marked = (-1, time.monotonic())
        """The last mark of this process that was seen, and when it was new."""
        self._over = threading.Event()
        self._unreachable = 0

    def stop(self) -> None:
        """End the thread."""
        self._over.set()
        self.join(5)

    def run(self) -> None:
        """Look and tell until stopped."""
        while not self._over.wait(self._period):
            try:
                self._tell()
                self._look()
                self._unreachable = 0
            except RuntimeError:  # the store's own errors
                self._unreachable += 1
                if self._unreachable >= 5 and not self._over.is_set():
                    self._end(TrainingError.exit_code, self._without_store(), False)

    def silent(self) -> list[str]:
        """Name the processes that have not been heard of for three periods, with their step."""
        now = time.monotonic()
        return [
            f"process {rank} (last heard of at step {seen.pulse.step + 1}, {seen.pulse.doing})"
            for rank, seen in sorted(self._seen.items())
            if now - seen.heard > 3 * self._period + 1
        ]

    def _without_store(self) -> str:
        return (
            f"Process {self._rank} has lost the launcher and the other processes "
            f"at step {_own.step + 1}."
        )

    def _tell(self) -> None:
        self._beats += 1
        told = {"beat": self._beats, **asdict(_own)}
        self._store.write(f"beat/{self._rank}", json.dumps(told))

    def _look(self) -> None:
        failed = self.failures.found()
        if failed is not None:
            if failed["rank"] != self._rank:
                self._end(int(failed["code"]), "", failed["code"] == StalledError.exit_code)
            return
        now = time.monotonic()
        if _own.mark != self._marked[0]:
            self._marked = _own.mark, now
        for rank in range(self._count):
            text = None if rank == self._rank else self._store.read(f"beat/{rank}")
            if text is not None:
                self._hear(rank, text, now)
        fault = self._fault(now)
        if fault:
            first = self.failures.claim(StalledError.exit_code, fault)
            self._end(StalledError.exit_code, fault if first else "", True)

    def _hear(self, rank: int, text: str, now: float) -> None:
        told = json.loads(text)
        told.pop("beat")
        pulse, before = Pulse(**told), self._seen.get(rank)
        if before is None:
            self._seen[rank] = _Seen(text, now, pulse, now)
            return
        if text != before.text:
            before.text, before.heard = text, now
        if pulse.mark != before.pulse.mark:
            before.moved = now
        before.pulse = pulse

    def _fault(self, now: float) -> str:
        """Return what is wrong with the other processes, or nothing."""
        still = now - self._marked[1]
        for rank, seen in sorted(self._seen.items()):
            at = f"at step {seen.pulse.step + 1} ({seen.pulse.doing})"
            if now - seen.heard > self._limit:
                return (
                    f"Process {rank} has given no sign of life for {now - seen.heard:.0f} s; "
                    f"the last one came {at}."
                )
            if seen.pulse.kind == WORKS and now - seen.moved > self._limit:
                if _own.kind == WORKS and still > self._limit:
                    # Shards are gathered within the model, where nobody notes who waits for whom.
                    return f"Processes {rank} and {self._rank} stall together {at}."
                return f"Process {rank} stalls: it has been {at} for {now - seen.moved:.0f} s."
        waiting = [seen for seen in self._seen.values() if seen.pulse.kind == WAITS]
        long = min([still, *(now - seen.moved for seen in waiting)]) > 2 * self._limit
        if _own.kind == WAITS and len(waiting) == self._count - 1 and long:
            return f"All processes wait for one another since {still:.0f} s ({_own.doing})."
        return ""
