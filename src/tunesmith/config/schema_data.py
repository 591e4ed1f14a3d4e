"""Settings of the commands under ``tunesmith data``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tunesmith.config.schema import TaskName, TokenizerOptions


class RowsOptions(TokenizerOptions):
    """Rows"""

    dataset: list[str] = Field(min_length=1)
    """Files, saved folders or hub names."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Names of fields: prompt=Frage,completion=Antwort; also a.b or a template of {fields}."""
    encoding: str | None = None
    """Encoding of text files that are not UTF-8, such as windows-1252."""
    split: str = "train"
    """Split of a saved folder or hub data set."""
    task: TaskName = "instruct"
    """Kind of work."""


class ShowOptions(RowsOptions):
    """Everything that ``tunesmith data show`` knows."""

    model: str = "tunesmith/tiny"
    """Whose tokenizer and template: a model, a run folder, a hub name, or a tokenizer's folder."""
    max_length: int | None = Field(default=None, ge=8)
    """Tokens of a row; the model's positions, at most 2,048, if unset."""
    rows: int = Field(default=3, ge=1)
    """Rows to show."""
    thinking: Literal["keep", "strip", "mask"] = "keep"
    """<think> blocks of answers, as tunesmith train --thinking has them."""
    color: Literal["auto", "always", "never"] = "auto"
    """Colour trained tokens; without colour they stand in brackets."""


class ValidateOptions(RowsOptions):
    """Everything that ``tunesmith data validate`` knows."""

    model: str | None = None
    """Hold rows to the token contract of this model, or of a tokenizer's folder."""
    max_length: int | None = Field(default=None, ge=8)
    """Tokens of a row; the model's positions, at most 2,048, if unset."""
    max_rows: int | None = Field(default=None, ge=1)
    """Look at the first rows of each source only."""
    against: str | None = None
    """Test questions that must not stand in the rows: a file or hub name."""
    near_duplicates: bool = False
    """Look for rows that nearly repeat another one, too (about 8 KB of memory a row)."""
    fix: str | None = None
    """Write a corrected copy here (.jsonl, .parquet), and what is left out to FIX-rejects.jsonl."""
    overwrite: bool = False
    """Replace a corrected copy and its rejects that are there."""
    json_output: bool = False
    """Print the result as JSON on stdout."""
    allow_refused: float = Field(default=0.0, ge=0, le=1)
    """Share of rows that may be refused before the exit code is not 0."""
