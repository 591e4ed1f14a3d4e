"""The launcher's store of short texts, which every process of a run reaches."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch.distributed as dist

_runs = 0


def next_run() -> None:
    """Begin a run: its words are kept apart from those of an earlier run of the same processes."""
    global _runs
    _runs += 1


class Store:
    """Texts by name that every process of a run can read and write."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self._prefix = f"tunesmith/{_runs}/"

    def write(self, name: str, text: str) -> None:
        """Keep a text."""
        self._store.set(self._prefix + name, text)

    def read(self, name: str) -> str | None:
        """Return a text, or None if there is none yet; never waits for one."""
        if not self._store.check([self._prefix + name]):
            return None
        found: bytes = self._store.get(self._prefix + name)
        return found.decode()

    def first(self, name: str, text: str) -> str:
        """Keep a text if there is none of this name; return the one that is there then."""
        found: bytes = self._store.compare_set(self._prefix + name, "", text)
        return found.decode()

    def add(self, name: str, number: int) -> int:
        """Add to a counter and return it."""
        return int(self._store.add(self._prefix + name, number))


def open_store() -> Store:
    """Open a connection of its own to the store that the launcher has made.

    The process group has one already, but a thread that waits in there keeps all others out.
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(
        address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=60)
    )
    return Store(store)
