"""Settings of questions that are answered from documents."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from tunesmith.config.options import Options

Context = Literal["retrieved", "mixed", "oracle", "distractors", "rows", "none"]
Phrase = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class RagOptions(Options):
    """Documents in the prompt (--task raft)"""

    documents: list[str] = Field(default_factory=list)
    """Files (text, Markdown, HTML, PDF, rows) or folders that task raft retrieves from, as
    tunesmith data raft reads them; the texts of the data set itself if unset."""
    context: list[Context] = Field(default=["retrieved"])
    """What stands in the prompt of task raft: the passages that BM25 finds (retrieved), the oracle
    among the nearest that do not answer (mixed), the oracle alone, such distractors alone, what
    the row itself shows (rows), or no document (none). Several make a set of attempts each."""
    passages: list[Annotated[int, Field(ge=1)]] = Field(default=[4])
    """Passages shown (k), the oracle of mixed counted; several numbers make a set of attempts
    each. (--top-k is sampling's.)"""
    oracle_position: list[str] = Field(default=["shuffled"])
    """Place of the oracle among the passages of --context mixed: first, middle, last, shuffled or
    a number from 1; several make a set of attempts each."""
    chunk_size: int = Field(default=300, ge=10)
    """Words of a passage of --documents, at most; passages are whole sentences."""
    abstain_phrases: list[Phrase] = Field(default_factory=list)
    """Further phrases by which an answer says that the documents do not tell, such as «steht nicht
    im Text»; English ones are known. Case and white space do not matter."""
