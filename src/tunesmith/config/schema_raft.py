"""Settings of ``tunesmith data raft``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tunesmith.config.schema import ModelOptions


class RaftOptions(ModelOptions):
    """Everything that ``tunesmith data raft`` knows."""

    documents: list[str] = Field(min_length=1)
    """Files (text, Markdown, HTML, PDF, rows, or a data set of questions) or folders of them;
    tunesmith/village is a small built-in set."""
    output: str = "raft_training_data.jsonl"
    """Rows: .jsonl, .parquet, or a name without a suffix for a datasets folder."""
    layout: Literal["instruction", "gorilla"] = "instruction"
    """instruction and output with all that is known of a row, or the RAFT authors' own fields."""
    overwrite: bool = False
    """Replace rows that are there."""
    statistics: str | None = None
    """Also write what was counted, as JSON."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Names of fields in rows: text=Inhalt, or question=Frage,answer=Antwort in --questions."""
    encoding: str | None = None
    """Encoding of text files that are not UTF-8, such as windows-1252."""
    chunk_size: int = Field(default=300, ge=10)
    """Words of a chunk, at most; chunks are whole sentences."""
    chunk_tokens: int | None = Field(default=None, ge=16)
    """Tokens of the model's tokenizer, instead of words."""
    chunk_overlap: int | None = Field(default=None, ge=0)
    """Words (or tokens) of whole sentences that a chunk repeats from the one before, at most; a
    tenth of the chunk if unset."""
    ask: Literal["auto", "given", "templates", "model", "address"] = "auto"
    """Who asks: pairs that were given, templates (offline), --model, or --address; auto takes
    pairs where there are any, else templates."""
    questions: str | None = None
    """File of question, answer and perhaps context, matched to the chunks that answer them."""
    max_questions: int = Field(default=3, ge=1)
    """Questions that templates or a model ask of a chunk, at most."""
    num_distractors: int = Field(default=3, ge=0)
    """Documents beside the oracle that do not answer."""
    distractor_probability: float = Field(default=0.5, ge=0, le=1)
    """Share of rows that have any distractor."""
    oracle_share: float = Field(default=0.8, ge=0, le=1)
    """Share of rows that show the oracle; a row without distractors keeps it."""
    abstain_share: float = Field(default=1.0, ge=0, le=1)
    """Share of prompts that ask to say so when the documents do not tell; in the others the answer
    then comes from memory."""
    mined_share: float = Field(default=0.5, ge=0, le=1)
    """Share of distractors that the retriever finds for the question; the others are random."""
    retriever: Literal["bm25", "embeddings"] = "bm25"
    """How distractors are mined; embeddings needs the extra of that name."""
    embedding_model: str = "sentence-transformers/all-MiniLM-L6-v2"
    """Model of --retriever embeddings."""
    answer_style: Literal["plain", "quoted"] = "plain"
    """plain is «Based on the documents: …»; quoted gives a reason with a quote, then the answer."""
    validation_split: float = Field(default=0.1, ge=0, lt=1)
    """Share of documents (or groups, such as a story's sections) whose rows are held out."""
    seed: int = 42
    """Decides sides, distractors, places and what is left out, each row by itself."""
    address: str | None = None
    """OpenAI-compatible server for --ask address, such as http://localhost:8000/v1."""
    address_model: str = "default"
    """Name of the model there."""
    address_key: str = "OPENAI_API_KEY"
    """Environment variable that holds its key."""
    address_timeout: float = Field(default=60.0, gt=0)
    """Seconds to wait for a reply."""
    address_retries: int = Field(default=3, ge=0)
    """Further tries after a failure that may pass."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """What is shown on the terminal."""
