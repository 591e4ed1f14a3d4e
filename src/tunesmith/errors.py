"""Every error that tunesmith raises on purpose.

TunesmithError                 exit code 1
├── UsageError                 2   a flag, a preset, a key of a config file
├── DataError                  3   an input file or one of its rows
├── ContractError              4   a row breaks the token contract
├── ModelError                 5   a model folder that cannot be loaded or used
├── TrainingError              6   training that cannot go on, such as a ledger that does not add up
│   ├── DivergedError          6   a loss, gradient or weight that is not finite
│   └── OutOfMemoryError       6   memory that does not suffice even for the smallest part
├── CheckpointError            7   nothing valid to resume from, or a run folder in use
├── StorageError               8   a full disk, a folder without write permission
└── StalledError               9   one of several processes that does not go on
Interrupted                    130 stopped by a signal, resumable
"""

from __future__ import annotations


class TunesmithError(Exception):
    """A mistake that a person can mend: one sentence each for what, expected and next step."""

    exit_code = 1

    def __init__(self, found: str, *, expected: str = "", hint: str = "") -> None:
        super().__init__(found)
        self.found = found
        self.expected = expected
        self.hint = hint

    def __str__(self) -> str:
        lines = [self.found]
        if self.expected:
            lines.append(f"Expected: {self.expected}")
        if self.hint:
            lines.append(f"Try: {self.hint}")
        return "\n".join(lines)


class UsageError(TunesmithError):
    exit_code = 2


class DataError(TunesmithError):
    exit_code = 3


class ContractError(TunesmithError):
    exit_code = 4


class ModelError(TunesmithError):
    exit_code = 5


class TrainingError(TunesmithError):
    exit_code = 6


class DivergedError(TrainingError):
    """A loss, gradient or weight that is not finite; what a return to a checkpoint has to know."""

    def __init__(
        self,
        found: str,
        *,
        expected: str = "",
        hint: str = "",
        step: int | None = None,
        why: str = "",
        weights_until: int | None = None,
    ) -> None:
        super().__init__(found, expected=expected, hint=hint)
        self.step = step
        """The step to blame, counted from 0, where it is known."""
        self.why = why
        self.weights_until = weights_until
        """Steps done when weights were found broken; None where weights are finite."""


class OutOfMemoryError(TrainingError):
    """Memory that does not suffice; what a caller has to know to leave a checkpoint."""

    def __init__(
        self, found: str, *, expected: str = "", hint: str = "", complete: bool = True
    ) -> None:
        super().__init__(found, expected=expected, hint=hint)
        self.complete = complete
        """Whether weights and optimiser are those after the last whole step."""


class CheckpointError(TunesmithError):
    exit_code = 7


class StorageError(TunesmithError):
    exit_code = 8


class StalledError(TunesmithError):
    exit_code = 9


class Interrupted(TunesmithError):
    exit_code = 130
