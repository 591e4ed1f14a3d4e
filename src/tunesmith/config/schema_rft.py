"""Settings of the recipe stage ``rft``."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from tunesmith.config.schema import Options, TaskName


class RftOptions(Options):
    """Keys of the stage rft"""

    task: TaskName = "units"
    """A graded task, such as units or maths."""
    dataset: str | None = None
    """Questions: a folder with a train and a dev split; units makes its own."""
    rounds: int = Field(default=3, ge=1)
    """Most rounds; it ends earlier where the held-out score falls or nothing new is verified."""
    sample: dict[str, Any] = Field(default_factory=dict)
    """Settings of tunesmith sample; its own rounds and hint_last are those within one round."""
    later: dict[str, Any] = Field(default_factory=dict)
    """Settings of sample that the rounds after the first have instead, such as prompt: direct."""
    select: dict[str, Any] = Field(default_factory=dict)
    """Which verified paths of all rounds are trained on: max_paths, prefer, max_path_tokens and
    keep_gold of tunesmith sample."""
    train: dict[str, Any] = Field(default_factory=dict)
    """Settings of tunesmith train; every round trains the model named by from, never the last."""
    eval: dict[str, Any] = Field(default_factory=dict)
    """Settings of tunesmith eval for the held-out questions, of a dev split."""
