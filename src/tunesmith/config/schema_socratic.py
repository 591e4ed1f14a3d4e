"""Settings of ``tunesmith data socratic``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tunesmith.config.schema import Options


class SocraticOptions(Options):
    """Everything that ``tunesmith data socratic`` knows."""

    dataset: list[str] = Field(min_length=1)
    """Files, saved folders or hub names."""
    form: Literal["gsm8k", "mathdial", "list"] = "list"
    """gsm8k: «question ** step» lines; mathdial: dialogues; list: instruction and output."""
    output: str
    """Where rows go: .jsonl, .parquet, or a folder."""
    rejects: str | None = None
    """Where removed rows and questions go, with reason; OUTPUT-rejected.jsonl if unset."""
    overwrite: bool = False
    """Replace files that are there."""
    encoding: str | None = None
    """Encoding of text files that are not UTF-8, such as windows-1252."""
    max_rows: int | None = Field(default=None, ge=1)
    """Take only the first rows of each source."""
    faulty: Literal["question", "row", "keep"] = "question"
    """What a faulty question takes out: itself, its whole row, or nothing (then it is counted)."""
    min_questions: int = Field(default=1, ge=1)
    """Fewest questions of a row."""
    max_questions: int = Field(default=20, ge=1)
    """Most questions of a row."""
