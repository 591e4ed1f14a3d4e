"""Several processes as one run: one speaks and writes, all decide alike, none is left behind."""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tunesmith.config.load import Resolved
from tunesmith.config.schema import FineTuningConfig
from tunesmith.errors import Interrupted, TrainingError, TunesmithError
from tunesmith.rundir import RunDir
from tunesmith.workflows import console, launched, zero
from tunesmith.workflows.launched import Way

if TYPE_CHECKING:
    from tunesmith.models.load import LoadedModel
    from tunesmith.train.pulse import Failures, Watch
    from tunesmith.train.wire import Wire

T = TypeVar("T")
UNEXPECTED = 70
"""Exit code of an error that is nobody's fault but ours."""
STACKS = "stacks"
"""Folder in that of a run, made only where a process has stalled."""
PATIENCE_S = 3.0
"""How long a process that has lost another one waits for a word of why."""


class Team:
    """The processes of a run; a single one is a team as well, and waits for nobody."""

    def __init__(self, way: Way = "copies", wire: Wire | None = None) -> None:
        self.way, self.wire = way, wire
        self.main = wire is None or wire.rank == 0
        """Whether this process is the one that speaks and writes."""
        self.count = 1 if wire is None else wire.count
        self.folder: Path | None = None
        """The run's folder, once there is one."""

    @property
    def several(self) -> bool:
        """Return whether there is more than one process."""
        return self.wire is not None

    @contextmanager
    def first(self) -> Iterator[None]:
        """Let the first process do the block, then the others; what it stored they find."""
        if self.wire is not None and not self.main:
            self.wire.tell()
        with self._alone("preparing"):
            yield
        if self.wire is not None and self.main:
            self.wire.tell(True)

    def only_main(self, work: Callable[[], T], doing: str) -> T | None:
        """Let the first process do some work while the others wait; they get None."""
        found = None
        if self.main:
            with self._alone(doing):
                found = work()
        self.meet()
        return found

    def told(self, work: Callable[[], T]) -> T:
        """Let the first process do some work and tell all of them the result, which is JSON."""
        if self.wire is None:
            return work()
        found: T = self.wire.tell(work() if self.main else None)
        return found

    def meet(self) -> None:
        """Wait for all processes."""
        if self.wire is not None:
            self.wire.meet()

    @contextmanager
    def run_folder(self, make: Callable[[], RunDir]) -> Iterator[RunDir]:
        """Make and hold the run's folder in the first process; the others know it."""
        made = make() if self.main else None
        path = self.told(lambda: str(made.path) if made is not None else "")
        run = made or RunDir(path)
        self.folder = run.path
        with run:
            yield run

    def whole(self, model: Any, loaded: LoadedModel) -> None:
        """Bring ``loaded.model`` of the main process up to date with the trained shards."""
        if self.way != "shards":
            return
        from tunesmith.train.sharded import gather

        gather(model, loaded.model)

    def check_copies(self, model: Any) -> None:
        """Raise ``TrainingError`` if the copies of a model have come apart."""
        if self.wire is None or self.way == "shards":
            return
        from tunesmith.train.processes import fingerprint

        if len(set(self.wire.gather(fingerprint(model)))) > 1:
            raise TrainingError(
                "The processes no longer hold the same weights, so their sums mean nothing.",
                expected="machines whose processors compute alike",
                hint="start over on equal ones; the last checkpoint is good",
            )

    @contextmanager
    def _alone(self, doing: str) -> Iterator[None]:
        if self.wire is None:
            yield
            return
        from tunesmith.train import pulse

        with pulse.alone(doing):
            yield


@contextmanager
def together(resolved: Resolved[FineTuningConfig]) -> Iterator[Team]:
    """Join the processes that were launched; a failure in one of them ends all with its code."""
    way = launched.check_launch(resolved)
    if launched.processes() == 1:
        yield Team(way)
        return
    with launched.without_wrapper(), _joined(resolved, way) as team:
        yield team


@contextmanager
def _joined(resolved: Resolved[FineTuningConfig], way: Way) -> Iterator[Team]:
    count = launched.processes()
    config, rank = resolved.options, launched.rank()
    if rank:
        console.keep_quiet()
        warnings.simplefilter("ignore")
    _connect(config, way)
    from tunesmith.train import pulse
    from tunesmith.train.store import next_run, open_store
    from tunesmith.train.wire import Wire

    next_run()
    team = Team(way, Wire(rank, count))
    failures = pulse.Failures(open_store(), rank, count)
    watch = pulse.Watch(rank, count, config.stall_seconds, _ending(team, rank, failures.take_leave))
    watch.start()
    try:
        yield team
        team.meet()
    except BaseException as failure:
        _fail(failure, failures, watch, team, rank)
    watch.stop()


def _connect(config: FineTuningConfig, way: Way) -> None:
    cpu = config.device == "cpu" or not launched.has_cuda()
    if way == "zero" and cpu:
        # DeepSpeed picks a kind of device when it is imported, which accelerate does already.
        os.environ["DS_ACCELERATOR"] = "cpu"
    from accelerate.state import PartialState

    # The watch ends a run that stalls; the library's own limit is for when it cannot.
    limit = timedelta(seconds=max(1800.0, 4 * config.stall_seconds))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="OMP_NUM_THREADS")
        PartialState(cpu=cpu, timeout=limit)


def _fail(failure: BaseException, failures: Failures, watch: Watch, team: Team, rank: int) -> None:
    """Raise the failure if it is the run's first one, else leave with the first one's code."""
    if threading.current_thread() is threading.main_thread():
        # The launcher ends the others' processes once one has ended; this one has more to say.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
    failure = _explained(failure, failures, watch)
    if team.way == "zero":
        zero.without_resume(failure)
    code, text = _code(failure), str(failure)
    if failures.claim(code, text):
        if isinstance(failure, TunesmithError) and rank and not isinstance(failure, Interrupted):
            failure.found = f"Process {rank}: {failure.found}"

        def leave() -> None:
            failures.take_leave()
            _end_quietly(code)

        # Whoever called this has yet to say what went wrong; the libraries' own clean-up, which
        # aborts or hangs where others are gone, is passed over.
        atexit.register(leave)
        raise failure
    found = failures.found() or {}
    failures.take_leave()
    _end_quietly(int(found.get("code", code)))


def _explained(failure: BaseException, failures: Failures, watch: Watch) -> BaseException:
    """Wait a moment for the others' word where the failure is but that one of them is gone."""
    from tunesmith.train.processes import lost

    if not any(lost(one) for one in (failure, failure.__cause__) if one is not None):
        return failure
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and failures.found() is None:
        time.sleep(0.1)
    names = watch.silent()
    who = " and ".join(names).capitalize() if names else "Another process"
    return TrainingError(
        f"{who} has ended without a word: killed, perhaps for want of memory.",
        hint="the same command with --resume",
    )


def _code(failure: BaseException) -> int:
    if isinstance(failure, TunesmithError):
        return failure.exit_code
    if isinstance(failure, KeyboardInterrupt):
        return 130
    return int(failure.code or 0) if isinstance(failure, SystemExit) else UNEXPECTED


def _ending(
    team: Team, rank: int, take_leave: Callable[[bool], None]
) -> Callable[[int, str, bool], None]:
    """Return what ends this process from the thread that watches the others."""

    def end(code: int, text: str, stacks: bool) -> None:
        if stacks and team.folder is not None:
            with contextlib.suppress(OSError):
                folder = team.folder / STACKS
                folder.mkdir(exist_ok=True)
                with (folder / f"process-{rank}.txt").open("w") as file:
                    faulthandler.dump_traceback(file, all_threads=True)
                if text:
                    text += f"\nTry: look at {folder}, where every process left its stack"
        if text:
            print(f"error: {text}", file=sys.stderr, flush=True)
        take_leave(stacks)  # the others' stacks are wanted as they are
        _end_quietly(code)

    return end


def _end_quietly(code: int) -> None:
    """Leave at once: clean-up would wait for processes that are gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
