"""Settings of ``tunesmith judge``."""

from __future__ import annotations

from pydantic import Field

from tunesmith.config.schema import ModelOptions, OutputOptions
from tunesmith.config.schema_backend import BackendOptions


class JudgeOptions(OutputOptions, BackendOptions, ModelOptions):
    """Everything that ``tunesmith judge`` knows."""

    results: list[str] = Field(min_length=1, max_length=2)
    """Folders or files of attempts: two are judged against each other, a single one is graded from
    1 to 10."""
    model: str
    """The judge: weights, or with --address the servers' name of it. It answers greedily."""
    labels: str | None = None
    """File of your own verdicts: rows with id and winner (a, b, tie), or with id and score where a
    single set is graded. The judge's agreement with them is measured."""
    max_new_tokens: int = Field(default=1024, ge=1)
    """Longest answer of the judge; one that is cut off is no verdict."""
    batch_size: int | None = Field(default=None, ge=1)
    """Judgements made at once with local weights; found from the memory if unset."""
    name: str | None = None
    """Name of the folder; made from the sets and the judge if unset."""
    overwrite: bool = False
    """Start over instead of going on with stored judgements."""
