"""Settings of the commands under ``tunesmith data``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tunesmith.config.schema import ModelOptions, TaskName


class ShowOptions(ModelOptions):
    """Everything that ``tunesmith data show`` knows."""

    dataset: list[str] = Field(min_length=1)
    """Files, saved folders or hub names."""
    task: TaskName = "instruct"
    """Kind of work."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Names of fields: prompt=Frage,completion=Antwort."""
    max_length: int = Field(default=1024, ge=8)
    """Tokens of a row."""
    rows: int = Field(default=3, ge=1)
    """Rows to show."""
    color: Literal["auto", "always", "never"] = "auto"
    """Colour trained tokens; without colour they stand in brackets."""
