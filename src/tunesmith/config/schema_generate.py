"""Settings of ``tunesmith generate`` and ``tunesmith chat``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tunesmith.config.schema import DrawOptions, ModelOptions, Options, SamplingOptions
from tunesmith.config.schema_backend import BackendOptions, WeightOptions


class DocumentOptions(Options):
    """Documents"""

    documents: list[str] = Field(default_factory=list)
    """Files (text, Markdown, HTML, PDF, rows) or folders to answer from, as tunesmith data raft
    reads them; tunesmith/village is a small built-in set."""
    passages: int = Field(default=4, ge=1)
    """Passages that are found for a question and shown to the model (BM25), at most."""
    chunk_size: int = Field(default=300, ge=10)
    """Words of a passage, at most; passages are whole sentences. Best as in the training rows."""
    answer_style: Literal["plain", "quoted"] = "plain"
    """How the model was trained to answer from documents: plain, or quoted with its evidence."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Names of fields in rows: text=Inhalt for documents, prompt=Frage for prompts."""
    encoding: str | None = None
    """Encoding of text files that are not UTF-8, such as windows-1252."""


class AnswerOptions(Options):
    """Answers"""

    system: str | None = None
    """System message."""
    stop: list[str] = Field(default_factory=list)
    """Texts that end an answer; they are cut off."""


class GenerateOptions(
    DocumentOptions, AnswerOptions, SamplingOptions, BackendOptions, ModelOptions
):
    """Everything that ``tunesmith generate`` knows."""

    prompt: str | None = None
    """What the model is asked; - reads it from stdin."""
    prompts: str | None = None
    """File of prompts: .txt with one a line; rows (.jsonl, .json, .csv, …) with prompt, question,
    instruction or messages."""
    samples: int = Field(default=1, ge=1)
    """Answers to a prompt."""
    output: str | None = None
    """Write a row for each prompt with its answers (.jsonl, .parquet) instead of printing them;
    what is answered of them survives a stop."""
    overwrite: bool = False
    """Replace an output that is there."""
    logprobs: bool = False
    """Say how likely each answer was; rows hold the log-probability of every token."""
    compare_base: bool = False
    """Let the model that was tuned answer too, beside the tuned one."""


class ChatOptions(DocumentOptions, AnswerOptions, DrawOptions, WeightOptions, ModelOptions):
    """Everything that ``tunesmith chat`` knows."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """What is shown besides the answers."""
