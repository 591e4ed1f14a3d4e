"""Settings of the verbs that look at a run before it is started: those of ``train``, and more."""

from __future__ import annotations

from pydantic import Field

from tunesmith.config.schema import FineTuningConfig, TaskName


class FindRateOptions(FineTuningConfig):
    """Everything that ``tunesmith find-lr`` knows."""

    lr_start: float = Field(default=1e-6, gt=0)
    """Rate of the first step of the sweep."""
    lr_end: float = Field(default=1.0, gt=0)
    """Rate of the last step, unless the loss diverges before."""
    lr_steps: int = Field(default=120, ge=16, le=2000)
    """Steps of the sweep; the learning-rate schedule, epochs and warm-up do not apply to it."""


class EstimateOptions(FineTuningConfig):
    """Everything that ``tunesmith estimate`` knows."""

    probe_steps: int = Field(default=3, ge=0, le=100)
    """Real steps that are timed, besides two of the longest; 0 leaves it at arithmetic."""
    compare: str | None = None
    """Folder of a finished run with the same settings: show predicted against measured."""


class SelfTestOptions(FineTuningConfig):
    """Everything that ``tunesmith selftest`` knows."""

    task: TaskName = "units"
    """Kind of work; units makes its own rows, so nothing but a model is needed."""
    test_rows: int = Field(default=6, ge=2, le=64)
    """Rows that the checks are made on, from the shortest to long ones."""
    test_tokens: int = Field(default=1024, ge=64)
    """Tokens that these rows have at most together, unless the shortest ones have more."""
