"""What a run measures and decides by that: ``plan.json`` of its folder.

Here lies how the run is made: the layers that are computed again, the steps that fit into its
minutes, and the step at which the time was over. What a step meets, and what is done about it,
lies in ``decisions.json`` (``train/decisions.py``).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunesmith.errors import CheckpointError
from tunesmith.storage import write_json


class MeasuredPlan:
    """Results of measuring, stored when they are taken and replayed when a run is resumed.

    Only runs of one process measure, so that one writes the file. Without a path nothing is stored.
    """

    def __init__(self, path: Path | None, *, replay: bool = False) -> None:
        self._path = path
        self._stored: dict[str, Any] = {}
        if replay and path is not None and path.is_file():
            self._stored = _read(path)

    def get(self, name: str) -> Any:
        """Return what is stored, or None."""
        return self._stored.get(name)

    def take(self, name: str, decide: Callable[[], Any]) -> Any:
        """Return what is stored, or decide and store it; it is plain JSON."""
        if name not in self._stored:
            self.store(name, decide())
        return self._stored[name]

    def store(self, name: str, decision: Any) -> None:
        """Store a decision before anything is done by it."""
        self._stored[name] = decision
        if self._path is not None:
            write_json(self._path, self._stored)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as failure:
        found = failure
    if isinstance(found, dict):
        return found
    raise CheckpointError(
        f"{path} says how this run is made, and cannot be read.",
        expected="the file as the run wrote it",
        hint="the same command with --overwrite instead of --resume",
    )
