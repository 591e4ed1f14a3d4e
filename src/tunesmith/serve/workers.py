"""Several copies of weights behind one server, taken in and sent away while it runs."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from tunesmith.serve.worker import Failed, Job, Voice, Worker


class Workers:
    """What one ``Worker`` is to the service, made of any number of them; a job goes to its own."""

    def __init__(self) -> None:
        self._all: tuple[Worker, ...] = ()
        self._lock = threading.Lock()
        self._gone = 0

    def add(self, worker: Worker) -> None:
        """Take in a worker that has been started; its voices have names of their own."""
        with self._lock:
            self._all = (*self._all, worker)

    def remove(self, voice: str) -> Sequence[str]:
        """Send away the worker of a voice; return the names of all that it served."""
        with self._lock:
            going = [one for one in self._all if voice in one.voices]
            self._all = tuple(one for one in self._all if one not in going)
        for worker in going:
            worker.stop()
            self._gone += worker.steps
        return [name for worker in going for name in worker.voices]

    @property
    def voices(self) -> dict[str, Voice]:
        """Return who answers by which name at this moment."""
        return {name: voice for worker in self._all for name, voice in worker.voices.items()}

    @property
    def alive(self) -> bool:
        """Say whether every thread runs."""
        return all(worker.alive for worker in self._all)

    @property
    def running(self) -> int:
        """Return how many answers are being decoded."""
        return sum(worker.running for worker in self._all)

    @property
    def waiting(self) -> int:
        """Return how many answers and prompts wait for their turn."""
        return sum(worker.waiting for worker in self._all)

    @property
    def steps(self) -> int:
        """Return the decoding steps so far."""
        return self._gone + sum(worker.steps for worker in self._all)

    def has_room(self, voice: str, rows: int, queue_length: int) -> bool:
        """Say whether so many more rows may wait for a voice; for one that has left none may."""
        worker = next((one for one in self._all if voice in one.voices), None)
        return worker is not None and worker.has_room(voice, rows, queue_length)

    def submit(self, job: Job) -> None:
        """Take a job in; called in the event loop."""
        worker = self._of(job)
        if worker is None:
            job.box.put_nowait(Failed("stopped"))
        else:
            worker.submit(job)

    def cancel(self, job: Job) -> None:
        """End a job at the next step; one that has ended is no error."""
        worker = self._of(job)
        if worker is not None:
            worker.cancel(job)

    def cancel_all(self) -> None:
        """End every job as ``stopped``."""
        for worker in self._all:
            worker.cancel_all()

    def stop(self) -> None:
        """End every job and every thread."""
        for worker in self._all:
            worker.stop()

    def _of(self, job: Job) -> Worker | None:
        name = job.voice.name
        return next((one for one in self._all if one.voices.get(name) is job.voice), None)
