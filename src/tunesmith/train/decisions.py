"""What a run has decided from what it met: kept when decided, replayed when it is resumed.

A step that is skipped and a micro-batch that is made smaller change every later weight. Whether
they happen again after a kill may depend on the machine, so they are written down at once, in
``decisions.json`` of the run's folder. What was measured to plan the run lies in ``plan.json``
(``workflows/measured_plan.py``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tunesmith.errors import CheckpointError
from tunesmith.storage import write_json


def _say_nothing(_: str) -> None:
    pass


@dataclass(slots=True)
class Decisions:
    """The decisions of a run so far; steps are counted from 0."""

    skips: dict[int, str] = field(default_factory=dict)
    """Steps that are passed over without an update, and why."""
    sizes: dict[int, int] = field(default_factory=dict)
    """The micro-batch from a step on: tokens of a pack, or rows of a padded batch."""
    rewinds: int = 0
    watched: int = 0
    """Until this step the weights are looked at after every update."""
    path: Path | None = None
    """Where they are kept; None keeps nothing."""
    tell: Callable[[str], None] = _say_nothing
    """Is told each decision in a sentence."""

    def skip(self, step: int, why: str) -> None:
        """Decide that a step makes no update."""
        self.skips[step] = why
        self._keep()
        self.tell(f"step {step + 1} makes no update: {why}")

    def shrink(self, step: int, size: int, said: str, why: str = "") -> None:
        """Decide on a smaller micro-batch from a step on; ``why`` if not for a failure in it."""
        self.sizes[step] = size
        self._keep()
        why = why or f"memory ran out in step {step + 1}"
        self.tell(f"{why}, so micro-batches shrink to {said}")

    def go_back(self, watched: int | None = None) -> None:
        """Count a return to a checkpoint, from where the weights may have to be watched."""
        self.rewinds += 1
        self.watched = max(self.watched, watched or 0)
        self._keep()

    def size(self, step: int) -> int | None:
        """Return the micro-batch decided for a step, or None where none was."""
        return min((size for at, size in self.sizes.items() if at <= step), default=None)

    def sentences(self, unit: str) -> list[str]:
        """Say what was decided about micro-batches; ``unit`` is what they are counted in."""
        if not self.sizes:
            return []
        return [
            f"From step {min(self.sizes) + 1} on memory did not suffice, and the rows of a step "
            f"were computed in smaller parts, of {min(self.sizes.values())} {unit} in the end; "
            "the loss is that of the whole step."
        ]

    def to_json(self) -> dict[str, Any]:
        """Return what is kept."""
        return {
            "skips": {str(step): why for step, why in self.skips.items()},
            "sizes": {str(step): size for step, size in self.sizes.items()},
            "rewinds": self.rewinds,
            "watched": self.watched,
        }

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> Self:
        """Return what was kept."""
        return cls(
            {int(step): str(why) for step, why in kept["skips"].items()},
            {int(step): int(size) for step, size in kept["sizes"].items()},
            int(kept["rewinds"]),
            int(kept["watched"]),
        )

    @classmethod
    def read(cls, path: Path, otherwise: Mapping[str, Any] | None) -> Self:
        """Return the decisions of a file, or those given where there is no such file.

        Raises ``CheckpointError`` for a file that is there and cannot be read: to go on without it
        would not be the same run.
        """
        try:
            return cls.from_json(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return cls() if otherwise is None else cls.from_json(otherwise)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise CheckpointError(
                f"{str(path)!r} cannot be read, and it holds what this run has decided.",
                expected="the file as the run has left it",
                hint="restore it from a copy, or begin again with --overwrite",
            ) from None

    def _keep(self) -> None:
        if self.path is not None:
            write_json(self.path, self.to_json())
