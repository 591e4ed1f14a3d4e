"""The YAML of ``tunesmith data mix``: sources and their shares, erasure, strategies, stages."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field

from tunesmith.config.nested import build
from tunesmith.config.schema import Options
from tunesmith.config.yaml_file import YamlFault, read_yaml
from tunesmith.errors import UsageError

StrategyName = Literal[
    "none",
    "direct",
    "step-by-step",
    "explain-then-answer",
    "recall-then-generate",
    "recall-reason-generate",
    "extract-then-generate",
]
StrategyChoice = Literal["auto"] | StrategyName
Fault = Literal["instruction", "escapes", "calculator", "end_of_text", "gold"]
Cleaner = Literal["end_of_text", "calculator_marks", "escaped_newlines"]
ALIASES: Mapping[str, str] = {
    "proportion": "share",
    "validation_split": "validation",
    "dataset_name": "dataset",
}


class MixSource(Options):
    """Source"""

    name: str = Field(min_length=1)
    """Name in tables and in each row's lineage; with the seed it decides which rows are drawn."""
    dataset: str = Field(min_length=1)
    """A file, a saved folder, a hub name or a short name such as gsm8k."""
    split: str = "train"
    """Split of a saved folder or hub data set."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Names of fields: {prompt: Frage, completion: Antwort}."""
    encoding: str | None = None
    """Encoding of a text file that is not UTF-8, such as windows-1252."""
    share: float | None = Field(default=None, gt=0, le=1)
    """Part of all rows, 0.125 for an eighth; without any share all go by their number of rows."""
    when_short: Literal["fail", "upsample", "redistribute"] = "fail"
    """What happens when the source has too few rows: stop, repeat them, or take from the others."""
    max_repeat: int = Field(default=4, ge=1)
    """Up-sampling shows no row more often than this."""
    category: str = ""
    """Kind of task, which decides the strategy; the source's name if unset."""
    category_field: str | None = None
    """Field that holds each row's own category."""
    strategy: StrategyChoice = "auto"
    """auto (rules, mapping or measurement), none, or one of the six."""
    only_assigned: bool = False
    """Leave out rows that a teacher answered by another strategy than their category's."""
    erase: bool = True
    """Erase this source's instructions, where the recipe has an erasure section."""
    gold: str | None = None
    """Field that holds the gold answer, against which the teacher's is checked."""
    clean: list[Cleaner] = Field(default=["end_of_text"])
    """What is taken out of texts: end_of_text, calculator_marks, escaped_newlines."""
    few_shot: int = Field(default=0, ge=0, le=16)
    """Solved examples of the same source put before the question."""
    few_shot_share: float = Field(default=1.0, ge=0, le=1)
    """Part of the rows that gets examples."""


class ReplaySource(MixSource):
    """Replay"""

    name: str = "replay"
    """Name in tables and in each row's lineage."""
    share: float | None = Field(gt=0, lt=1)
    """Part of all rows; the shares of the other sources are of what remains."""
    strategy: StrategyChoice = "none"
    """Replayed rows stay as they are, unless a strategy is named."""


class ErasureOptions(Options):
    """Erasure"""

    mode: Literal["replace", "drop", "rotate"] = "replace"
    """One cautious message for all, none at all, or one of a pool for each row."""
    messages: list[str] = Field(default_factory=list)
    """Cautious messages to use; the built-in ones if unset."""


class StrategyOptions(Options):
    """Strategies"""

    default: StrategyName = "none"
    """Strategy where no rule says anything."""
    map: dict[str, StrategyName] = Field(default_factory=dict)
    """Category or source name → strategy; goes before measurements and rules."""
    rules: bool = True
    """Guess the strategy from words in the names of source and category."""
    measured: dict[str, str] = Field(default_factory=dict)
    """Strategy → stored attempts of the student asked with it, at the same graded problems."""
    measured_by: str = "category"
    """Field of the graded problems that holds their category; the task's name where it is not."""
    alpha: float = Field(default=0.05, gt=0, lt=1)
    """A longer strategy needs a difference significant at this level."""


class AuditOptions(Options):
    """Audit"""

    ngram: int = Field(default=6, ge=2)
    """So many words in a row of the erased instruction count as a trace of it."""
    refuse: list[Fault] = Field(default=["instruction", "end_of_text"])
    """Rows with these findings are left out (counted, named); other findings are reported only."""


class MixStage(Options):
    """Stage"""

    name: str = Field(min_length=1)
    """Part of the output's name, such as stage-1."""
    rows: int | None = Field(default=None, ge=1)
    """Rows wanted, validation included; unset takes the most that the shares allow."""
    sources: list[MixSource] = Field(min_length=1)
    """What the stage is mixed from."""
    replay: ReplaySource | None = None
    """General data mixed in, so that a narrow stage does not unlearn it."""


class MixRecipe(Options):
    """Mix"""

    name: str = "mix"
    """Title of the table."""
    output: str | None = None
    """A .jsonl or .parquet file, or a name without suffix for a datasets folder."""
    rows: int | None = Field(default=None, ge=1)
    """Rows wanted, validation included; unset takes the most that the shares allow."""
    seed: int = 42
    """Decides which rows are drawn, their order, the split and the cautious messages."""
    validation: float = Field(default=0.05, ge=0, le=0.5)
    """Share of rows held out; equal and nearly equal prompts stay on one side."""
    near_duplicates: float = Field(default=0.8, ge=0.5, le=1)
    """Prompts with this Jaccard similarity of word 3-grams count as nearly equal."""
    allow_refused: float = Field(default=0.0, ge=0, le=1)
    """Share of a source's rows that may be unreadable before the mix stops."""
    sources: list[MixSource] = Field(default_factory=list)
    """What is mixed; or use stages."""
    stages: list[MixStage] = Field(default_factory=list)
    """Progressive stages, each with sources of its own and an output of its own."""
    erasure: ErasureOptions | None = None
    """Replace the instructions that a teacher was given."""
    strategies: StrategyOptions | None = None
    """Which strategy each category is taught by."""
    audit: AuditOptions = Field(default_factory=AuditOptions)
    """What is looked for in every row."""
    replay: ReplaySource | None = None
    """General data mixed into every stage that has no replay of its own."""

    def all_stages(self) -> list[MixStage]:
        """Return the stages, one without a name where the recipe has none, replay in place."""
        stages = self.stages or [
            MixStage.model_construct(name="", rows=self.rows, sources=self.sources, replay=None)
        ]
        if self.replay is None:
            return stages
        return [
            stage if stage.replay else stage.model_copy(update={"replay": self.replay})
            for stage in stages
        ]

    def inputs(self) -> list[str]:
        """Return every data set and folder of attempts that the mix reads."""
        found: list[str] = []
        for stage in self.all_stages():
            found += [source.dataset for source in stage.sources]
            found += [stage.replay.dataset] if stage.replay else []
        return [*found, *(self.strategies.measured.values() if self.strategies else ())]


class MixOptions(Options):
    """Everything that ``tunesmith data mix`` knows."""

    recipe: str
    """A YAML file of sources and shares, or a recipe with one such stage (recipes/orca.yaml)."""
    output: str | None = None
    """Where the rows go, instead of the recipe's output."""
    overwrite: bool = False
    """Replace rows that are there."""
    rows: int | None = Field(default=None, ge=1)
    """Rows wanted, instead of the recipe's number."""
    seed: int | None = None
    """Seed, instead of the recipe's."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """What is shown on the terminal."""


def load_mix(path: Path) -> MixRecipe:
    """Read the YAML of a mix, or of a recipe with one data stage that is a mix.

    Every fault is named with its line.
    """
    if not path.is_file():
        raise UsageError(
            f"There is no mix recipe {str(path)!r}.",
            expected="a YAML file with sources and their shares",
            hint="tunesmith data mix recipes/orca.yaml",
        )
    try:
        file = read_yaml(path)
    except YamlFault as fault:
        raise UsageError(str(fault), expected="a YAML mapping") from None
    inside = _mix_stages(file.values)
    if len(inside) > 1:
        raise UsageError(f"{path} has {len(inside)} mixes.", expected="a file with one mix")
    if not inside:
        return check_mix(file.values, where=str(path), lines=file.lines)
    [(number, found)] = inside.items()
    if isinstance(found, str):
        return load_mix(Path(found))
    above = ("stages", str(number), "data", "mix")
    lines = {key[4:]: line for key, line in file.lines.items() if key[:4] == above and key[4:]}
    return check_mix(found, where=str(path), lines=lines)


def _mix_stages(values: Mapping[str, Any]) -> dict[int, Any]:
    """Return the mixes of a whole recipe by the number of their stage, none for other files."""
    stages = values.get("stages")
    found: dict[int, Any] = {}
    for number, stage in enumerate(stages if isinstance(stages, list) else [], 1):
        settings = stage.get("data") if isinstance(stage, Mapping) and len(stage) == 1 else None
        mix = settings.get("mix") if isinstance(settings, Mapping) else None
        if isinstance(mix, Mapping | str):
            found[number] = mix
    return found


def check_mix(
    values: Mapping[str, Any],
    *,
    where: str,
    lines: Mapping[tuple[str, ...], int] | None = None,
) -> MixRecipe:
    """Return the checked settings of a mix, from a file or from a stage of a recipe."""
    recipe = build(MixRecipe, values, where=where, lines=lines, aliases=ALIASES)
    faults = [f"{where}: {fault}" for fault in _contradictions(recipe)]
    if faults:
        raise UsageError("\n".join(faults), hint="docs/reference.md lists every key")
    return recipe


def _contradictions(recipe: MixRecipe) -> list[str]:
    """Return what is wrong between settings that are right one by one."""
    faults: list[str] = []
    if recipe.stages and (recipe.sources or recipe.rows):
        faults.append("with 'stages', sources and rows stand in each stage, not beside them")
    if not recipe.stages and not recipe.sources:
        faults.append("'sources' is missing or empty: the data sets that are mixed")
    names = [stage.name for stage in recipe.stages]
    faults += [f"two stages are called {n!r}" for n in sorted(set(names)) if names.count(n) > 1]
    faults += [
        f"the stage name {name!r} may hold letters, digits, - and _ only"
        for name in names
        if not name.replace("-", "").replace("_", "").isalnum()
    ]
    known: dict[str, dict[str, Any]] = {}
    for stage in recipe.all_stages():
        head = f"stage {stage.name}: " if stage.name else ""
        sources = [*stage.sources, *([stage.replay] if stage.replay else [])]
        called = [source.name for source in sources]
        faults += [
            f"{head}two sources are called {name!r}"
            for name in sorted(set(called))
            if called.count(name) > 1
        ]
        given = [source.share for source in stage.sources if source.share is not None]
        if given and len(given) < len(stage.sources):
            missing = [source.name for source in stage.sources if source.share is None]
            faults.append(f"{head}no share for {', '.join(missing)}; give all sources one, or none")
        elif given and not math.isclose(math.fsum(given), 1.0, abs_tol=1e-6):
            faults.append(f"{head}the shares add up to {math.fsum(given):g}, not to 1")
        for source in {source.name: source for source in sources}.values():
            decides = source.model_dump(exclude={"share", "when_short", "max_repeat"})
            if known.setdefault(source.name, decides) != decides:
                faults.append(f"{head}{source.name!r} is another source in another stage")
    measured = recipe.strategies.measured if recipe.strategies else {}
    unknown = [name for name in measured if name not in get_args(StrategyName)[1:]]
    faults += [f"strategies.measured: there is no strategy {name!r}" for name in unknown]
    if len(measured) == 1:
        faults.append("strategies.measured: one run measures nothing; give two strategies or more")
    return faults
