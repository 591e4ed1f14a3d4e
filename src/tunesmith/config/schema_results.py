"""Settings of the verbs that run several others, or show what others have left."""

from __future__ import annotations

from pydantic import Field

from tunesmith.config.options import Options


class CompareOptions(Options):
    """Everything that ``tunesmith compare`` knows."""

    results: list[str] = Field(min_length=2)
    """Folders or files of attempts, the baseline first."""
    metric: str | None = None
    """Value of each reply to compare by, such as rouge_l, chrf or turn_coherence, for sets of
    tunesmith eval --task chat, code, instruct, domain or custom; the stored score if unset."""
    output: str | None = None
    """Write the comparison as JSON."""


class ReportOptions(Options):
    """Everything that ``tunesmith report`` knows."""

    folder: str
    """A run folder or the folder of a recipe."""


class RunRecipeOptions(Options):
    """Everything that ``tunesmith run`` knows."""

    recipe: str
    """A recipe, such as recipes/units-rft.yaml."""
    overrides: list[str] = Field(default_factory=list)
    """model=path, stage.key=value or verb.key=value."""
    output_dir: str = "runs"
    """Folder that the recipe's folder lies in."""


class DemoOptions(Options):
    """Everything that ``tunesmith demo`` knows."""

    output_dir: str = "runs"
    """Folder that the demo's folder lies in."""
    test_seed: int = 0
    """Which held-out questions are drawn; another number, other questions."""
