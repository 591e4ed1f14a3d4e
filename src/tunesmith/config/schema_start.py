"""Settings of a beginning: the look at the machine, a first recipe, the split of its rows."""

from __future__ import annotations

from pydantic import Field

from tunesmith.config.options import Options
from tunesmith.config.schema import TaskName


class DoctorOptions(Options):
    """Everything that ``tunesmith doctor`` knows."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N, as training takes it."""
    output_dir: str = "runs"
    """Folder that runs would be written to: is there room, and the right to write?"""
    json_output: bool = False
    """Print the findings as JSON."""


class InitOptions(Options):
    """Everything that ``tunesmith init`` knows."""

    dataset: str = Field(min_length=1)
    """Your rows: a file, a saved folder or a hub name."""
    model: str | None = None
    """Model that the recipe tunes; rows are held to its token contract and measured in its tokens.
    Without one the recipe names tunesmith/tiny and lengths are words."""
    task: TaskName | None = None
    """Kind of work; chosen from the rows, with the reason, if unset."""
    output: str = "recipe.yaml"
    """The recipe to write."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Names of fields: prompt=Frage,completion=Antwort; also a.b or a template of {fields}."""
    encoding: str | None = None
    """Encoding of text files that are not UTF-8, such as windows-1252."""
    split: str = "train"
    """Split of a saved folder or hub data set."""
    overwrite: bool = False
    """Replace a recipe that is there."""


class SplitOptions(Options):
    """Split keys"""

    dataset: str = Field(min_length=1)
    """A file, a saved folder, a hub name or a short name; its rows are kept as they are."""
    task: TaskName = "instruct"
    """Kind of work: a row that it cannot read is refused here, by file and line."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Names of fields: {prompt: Frage, completion: Antwort}; written under those names."""
    encoding: str | None = None
    """Encoding of a text file that is not UTF-8, such as windows-1252."""
    split: str = "train"
    """Split of a saved folder or hub data set."""
    validation: float = Field(default=0.1, gt=0, lt=1)
    """Share held out; equal prompts stay on one side, and of a single text it is the end."""
    seed: int = 42
    """Decides which rows are held out."""
    allow_refused: float = Field(default=0.0, ge=0, le=1)
    """Share of rows that may be refused; they go to rows-rejects.jsonl with their reason."""
