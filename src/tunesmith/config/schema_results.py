"""Settings of the verbs that run several others, or show what others have left."""

from __future__ import annotations

from pydantic import Field

from tunesmith.config.options import Options


class CompareOptions(Options):
    """Everything that ``tunesmith compare`` knows."""

    results: list[str] = Field(min_length=1)
    """Folders or files of attempts, the baseline first."""
    metric: list[str] = Field(default_factory=list)
    """Values of each reply to compare by, such as rouge_l, chrf or turn_coherence, for sets of
    tunesmith eval --task chat, code, instruct, domain or custom; the stored score if unset.
    P-values are adjusted for all of them together (Holm)."""
    cluster_by: str | None = None
    """Field of the questions that says which belong together, such as a document; several of one
    row of a file do so anyway. Whole groups are then tested, and their number counts."""
    seeds: list[str] = Field(default_factory=list)
    """Runs of the second model, in the order of seeds of the results, which are then runs of the
    first (or one baseline): the effect over seeds and questions."""
    output: str | None = None
    """Write the comparison as JSON; with several metrics, each by its name."""
    report: str | None = None
    """Write the comparison as a page (HTML) with every pair, examples and lengths; with --seeds,
    the effect and how far the seeds lie apart."""


class RegradeOptions(Options):
    """Everything that ``tunesmith regrade`` knows."""

    results: str
    """Folder or file of stored attempts."""
    output: str | None = None
    """Folder of the new set; RESULTS-regraded if unset."""
    overwrite: bool = False
    """Replace what stands there, also the very results."""
    unsafe_exec: bool = False
    """Run programs of tasks humaneval and mbpp even where they cannot be confined."""


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
