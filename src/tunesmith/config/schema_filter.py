"""Settings of ``tunesmith data filter``."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field

from tunesmith.config.schema import Options

RuleName = Literal[
    "none",
    "empty-answer",
    "answer-is-prompt",
    "url-only",
    "control-characters",
    "replacement-characters",
    "mojibake",
    "few-letters",
    "repetition",
]


class FilterOptions(Options):
    """Everything that ``tunesmith data filter`` knows."""

    dataset: list[str] = Field(min_length=1)
    """Files, saved folders or hub names; several become one set."""
    output: str
    """Where kept rows go: .jsonl, .parquet, or a folder; their fields stay as they are."""
    rejects: str | None = None
    """Where removed rows go, with rule and reason (.jsonl); OUTPUT-rejected.jsonl if unset."""
    overwrite: bool = False
    """Replace files that are there."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Names of fields: prompt=Frage,completion=Antwort."""
    split: str = "train"
    """Split of a saved folder or hub data set."""
    encoding: str | None = None
    """Encoding of text files that are not UTF-8, such as windows-1252."""
    max_rows: int | None = Field(default=None, ge=1)
    """Take only the first rows of each source."""
    duplicates: Literal["exact", "near", "none"] = "exact"
    """Rows that repeat an earlier one: word for word, or nearly."""
    similarity: float = Field(default=0.8, gt=0, le=1)
    """Share of word pairs that near duplicates have in common."""
    ignore_numbers: bool = False
    """Near duplicates may differ in their numbers; otherwise those are different questions."""
    against: list[str] = Field(default_factory=list)
    """Files of test questions; training rows that hold one are removed."""
    overlap_words: int = Field(default=8, ge=3)
    """Words in a row that a training row and a test question must share."""
    min_words: int | None = Field(default=None, ge=1)
    """Fewest words."""
    max_words: int | None = Field(default=None, ge=1)
    """Most words."""
    min_characters: int | None = Field(default=None, ge=1)
    """Fewest characters."""
    max_characters: int | None = Field(default=None, ge=1)
    """Most characters."""
    min_tokens: int | None = Field(default=None, ge=1)
    """Fewest tokens, without those of a chat template."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Most tokens."""
    model: str | None = None
    """Model whose tokens are counted; only its tokenizer is loaded."""
    length_of: Literal["row", "answer"] = "row"
    """What lengths are taken of: prompt and answer together, or the answer alone."""
    rules: list[RuleName] = Field(default_factory=lambda: [*get_args(RuleName)[1:]])
    """Quality rules, or none."""
