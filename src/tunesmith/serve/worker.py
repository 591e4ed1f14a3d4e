"""The engine's thread: jobs go in by a queue, what every step adds to them comes back."""

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith.data.render import Renderer
from tunesmith.generate.live import Grown, LiveEngine
from tunesmith.generate.packed_head import packed_head
from tunesmith.generate.prompt_scores import PromptScores, score_prompt
from tunesmith.generate.requests import Request, Sampling
from tunesmith.models.memory import give_back, is_out_of_memory
from tunesmith.models.switching import Switch

ONE_AT_A_TIME = threading.Lock()
"""Held while a model computes: what attention reads of a step belongs to the process, so copies of
weights that decode in threads of their own take turns."""


@dataclass(frozen=True, slots=True)
class Voice:
    """A model that is served by a name: the weights with one adapter, or with none."""

    name: str
    engine: LiveEngine
    renderer: Renderer
    """Renders and tokenises requests; it is not the one whose decoder the engine uses."""
    adapter: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One answer to make; ``index`` is its place in the reply."""

    index: int
    prompt_ids: tuple[int, ...]
    sampling: Sampling
    seed: int


@dataclass(frozen=True, slots=True)
class Scored:
    """The scores of one prompt of a job."""

    prompt: int
    scores: PromptScores


@dataclass(frozen=True, slots=True)
class Failed:
    """A job that ended otherwise: ``memory``, ``stopped`` or ``broken``."""

    why: str


Event = Grown | Scored | Failed


@dataclass(slots=True, eq=False)
class Job:
    """What one request asks of the engine, and the box that the answers fall into."""

    voice: Voice
    rows: tuple[Row, ...]
    score: tuple[tuple[int, ...], ...] = ()
    """Prompts whose tokens are scored before anything is generated."""
    top: int = 0
    name: str = ""
    """What the server's log calls it."""
    box: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    left: int = 0
    """Rows that have not ended, and prompts that are not scored yet."""
    cancelled: bool = False

    def __post_init__(self) -> None:
        self.left = len(self.rows) + len(self.score)

    async def events(self) -> AsyncIterator[Event]:
        """Yield what happens to the job until all of it has ended."""
        left = len(self.rows) + len(self.score)
        while left:
            event = await self.box.get()
            yield event
            if isinstance(event, Failed):
                return
            left -= isinstance(event, Scored) or event.done is not None


class Worker:
    """One thread that decodes for every voice in turn, a step each.

    All voices share one copy of the weights, so the thread is also what keeps them apart.
    """

    def __init__(
        self, model: Any, voices: Mapping[str, Voice], report: Callable[[str], None]
    ) -> None:
        """Prepare; ``report`` is told, in the engine's thread, what went wrong."""
        self._model, self._report = model, report
        self.voices = dict(voices)
        self._inbox: queue.SimpleQueue[tuple[str, Job | None]] = queue.SimpleQueue()
        self._jobs: dict[int, Job] = {}
        self._numbers: dict[Job, int] = {}
        self._count = itertools.count()
        self._to_score: deque[tuple[Job, int]] = deque()
        self._switch = Switch(model)
        self._lock = threading.Lock()
        self._outstanding = dict.fromkeys(self.voices, 0)
        self._out: list[tuple[Job, Event]] = []
        self._thread = threading.Thread(target=self._run, daemon=True, name="engine")
        self.steps = 0

    def start(self) -> None:
        """Begin to decode."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Say whether the thread runs."""
        return self._thread.is_alive()

    @property
    def running(self) -> int:
        """Return how many answers are being decoded."""
        return sum(voice.engine.running for voice in self.voices.values())

    @property
    def waiting(self) -> int:
        """Return how many answers and prompts wait for their turn."""
        with self._lock:
            return max(0, sum(self._outstanding.values()) - self.running)

    def has_room(self, voice: str, rows: int, queue_length: int) -> bool:
        """Say whether so many more rows may wait for a voice; one that is idle takes any number."""
        with self._lock:
            there = self._outstanding[voice]
        return there == 0 or there + rows <= self.voices[voice].engine.slots + queue_length

    def submit(self, job: Job) -> None:
        """Take a job in; called in the event loop."""
        self._count_for(job, job.left)
        self._inbox.put(("begin", job))

    def cancel(self, job: Job) -> None:
        """End a job at the next step; one that has ended is no error."""
        self._inbox.put(("cancel", job))

    def cancel_all(self) -> None:
        """End every job as ``stopped``."""
        self._inbox.put(("cancel all", None))

    def stop(self, wait_s: float = 10.0) -> None:
        """End every job and the thread."""
        self._inbox.put(("stop", None))
        if self._thread.is_alive():
            self._thread.join(wait_s)

    # Everything below runs in the engine's thread.

    def _run(self) -> None:
        was_training = self._model.training
        self._model.eval()
        try:
            with packed_head(self._model):
                while self._take_orders():
                    with ONE_AT_A_TIME:
                        self._turn()
        finally:
            self._end_all("broken")
            self._model.train(was_training)

    def _take_orders(self) -> bool:
        """Carry out what has come in, waiting where there is nothing to decode; false to end."""
        busy = bool(self._to_score) or any(voice.engine for voice in self.voices.values())
        while True:
            try:
                what, job = self._inbox.get(block=not busy)
            except queue.Empty:
                return True
            busy = True
            if what == "stop":
                self._end_all("stopped")
                return False
            if job is None:
                self._end_all("stopped")
            elif what == "begin":
                self._begin(job)
            else:
                self._drop(job)
            self._send()

    def _begin(self, job: Job) -> None:
        number = next(self._count)
        self._jobs[number], self._numbers[job] = job, number
        self._to_score.extend((job, place) for place in range(len(job.score)))
        requests = [
            Request((number, row.index), row.prompt_ids, row.sampling, row.seed) for row in job.rows
        ]
        try:
            job.voice.engine.add(requests, job.top)
        except Exception as failure:  # the routes have checked all that is known to be refused
            self._fail(job, "broken", failure)

    def _drop(self, job: Job) -> None:
        """Forget a job whose client has left."""
        number = self._numbers.get(job)
        if number is None:
            return
        job.cancelled = True
        for row in job.rows:
            job.voice.engine.cancel((number, row.index))
        dropped = [one for one in self._to_score if one[0] is job]
        self._to_score = deque(one for one in self._to_score if one[0] is not job)
        self._count_off(job, len(dropped))

    def _turn(self) -> None:
        """Score one prompt, and make one token of every answer."""
        if self._to_score:
            job, place = self._to_score.popleft()
            try:
                self._switch.to(job.voice.adapter)
                scores = score_prompt(self._model, job.score[place], job.top)
                self._tell(job, Scored(place, scores))
            except Exception as failure:
                self._recover([job], failure)
        for voice in self.voices.values():
            if not voice.engine:
                continue
            try:
                self._switch.to(voice.adapter)
                grown = voice.engine.step()
            except Exception as failure:
                if is_out_of_memory(failure):
                    voice.engine.halve()
                keys: Sequence[Any] = voice.engine.reset()
                self._recover([self._jobs[n] for n in {n for n, _ in keys}], failure)
                continue
            self.steps += 1
            for one in grown:
                if (job_ := self._jobs.get(one.key[0])) is not None:
                    self._tell(job_, one)
        self._send()

    def _tell(self, job: Job, event: Grown | Scored) -> None:
        self._out.append((job, event))
        if isinstance(event, Scored) or event.done is not None:
            self._count_off(job, 1)

    def _recover(self, jobs: Sequence[Job], failure: Exception) -> None:
        """Fail the jobs that an error has hit; the others go on."""
        memory = is_out_of_memory(failure)
        for job in jobs:
            self._fail(job, "memory" if memory else "broken", failure)
        give_back(next(self._model.parameters()).device)

    def _fail(self, job: Job, why: str, failure: Exception | None = None) -> None:
        if job not in self._numbers:
            return
        if failure is not None:
            self._report(f"{job.name}: {why}: {type(failure).__name__}: {failure}")
        self._out.append((job, Failed(why)))
        for row in job.rows:
            job.voice.engine.cancel((self._numbers[job], row.index))
        self._to_score = deque(one for one in self._to_score if one[0] is not job)
        self._count_off(job, job.left)

    def _end_all(self, why: str) -> None:
        for voice in self.voices.values():
            voice.engine.reset()
        for job in list(self._numbers):
            self._fail(job, why)
        self._send()

    def _count_off(self, job: Job, by: int) -> None:
        """Note that parts of a job have ended, and forget it with the last one."""
        job.left -= by
        self._count_for(job, -by)
        if job.left <= 0:
            self._jobs.pop(self._numbers.pop(job, -1), None)

    def _count_for(self, job: Job, by: int) -> None:
        with self._lock:
            self._outstanding[job.voice.name] += by

    def _send(self) -> None:
        """Hand over what has happened, with one call for each event loop."""
        loops = {id(job.loop): job.loop for job, _ in self._out}
        for loop in loops.values():
            some = [one for one in self._out if one[0].loop is loop]
            try:
                loop.call_soon_threadsafe(_hand_over, some)
            except RuntimeError:  # the loop is closed, so nobody waits any more
                continue
        self._out = []


def _hand_over(several: Sequence[tuple[Job, Event]]) -> None:
    for job, event in several:
        if not job.cancelled:
            job.box.put_nowait(event)
