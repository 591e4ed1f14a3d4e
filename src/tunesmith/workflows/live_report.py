"""The report of a run that is not over: written at its first milestone and kept up to date."""

from __future__ import annotations

import contextlib
import time
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Self

from tunesmith.errors import Interrupted, TunesmithError

if TYPE_CHECKING:
    from tunesmith.rundir import RunDir
    from tunesmith.workflows.metrics import Metrics
    from tunesmith.workflows.samples import Samples

EVERY_S = 30.0
"""Seconds between two writings, and after which the page reads itself again."""
SHARE = 0.01
"""Most of the run's time that the writing may take: a slow one is made less often."""


class LiveReport:
    """Writes the page while a run goes on; as a context it says on the page how the run failed.

    The page of a run that ends well is written by ``finish``.
    """

    def __init__(self, run: RunDir, total: int, metrics: Metrics, samples: Samples) -> None:
        self._run, self.total, self._metrics, self._samples = run, total, metrics, samples
        """``total`` may be planned anew before the first step."""
        self._begun = False
        self._next = 0.0

    def begin(self) -> None:
        """Note an evaluation or a checkpoint: from the first on there is a page."""
        self._begun = True
        self.step()

    def step(self) -> None:
        """Bring the page up to date, if there is one and its time has come."""
        began = time.monotonic()
        if not self._begun or began < self._next:
            return
        self._write(
            f"Running, step {self._metrics.done} of {self.total}. Written {_now()}; while "
            f"the run lasts, the page looks for a newer one every {EVERY_S:.0f} s.",
            refresh=max(1, round(EVERY_S)),
        )
        took = time.monotonic() - began
        self._next = began + max(EVERY_S, took / SHARE)

    def _write(self, status: str, refresh: int = 0) -> None:
        from tunesmith.workflows.report import write_report

        self._metrics.write()
        self._samples.write()
        write_report(self._run.path, status=status, refresh=refresh)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if value is None or not self._begun:
            return
        how = "Stopped" if isinstance(value, Interrupted | KeyboardInterrupt) else "Failed"
        said = value.found if isinstance(value, TunesmithError) else type(value).__name__
        steps = f"step {self._metrics.done} of {self.total}"
        # The failure itself is what has to be seen, not that of a page about it.
        with contextlib.suppress(TunesmithError, OSError):
            self._write(f"{how} after {steps}, {_now()}: {said}")


def _now() -> str:
    return f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S %Z}"
