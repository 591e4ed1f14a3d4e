"""Words between the processes of a run: JSON through the launcher's store, never a pickle."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from tunesmith.train import pulse
from tunesmith.train.store import open_store

LONGEST_PAUSE_S = 0.2
"""Between two looks for a word that has not come yet."""


class Wire:
    """What processes say to each other in turn: all of them make the same calls in one order."""

    def __init__(self, rank: int, count: int) -> None:
        self.rank, self.count = rank, count
        self._store = open_store()
        self._calls = 0

    def tell(self, value: object = None) -> Any:
        """Return what the first process says, in all of them; its ``value`` alone counts."""
        name = self._name()
        if self.rank == 0:
            self._store.write(name, json.dumps(value))
            return value
        return json.loads(self._await(partial(self._store.read, name), "process 0"))

    def gather(self, value: object) -> list[Any]:
        """Return what each process says, in all of them, by their numbers."""
        name = self._name()
        self._store.write(f"{name}/{self.rank}", json.dumps(value))
        texts = [
            self._await(partial(self._store.read, f"{name}/{at}"), f"process {at}")
            for at in range(self.count)
        ]
        return [json.loads(text) for text in texts]

    def meet(self) -> None:
        """Wait until every process has come here."""
        self.gather(None)

    def _name(self) -> str:
        self._calls += 1
        return f"word/{self._calls}"

    def _await(self, look: Callable[[], str | None], whom: str) -> str:
        # No limit of time: if the other one fails or stalls, the watch ends this process.
        pause = 0.005
        with pulse.waiting(f"waiting for {whom}"):
            while (found := look()) is None:
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)
        return found
