"""The recipe verb ``data``: rows made by a command under ``tunesmith data``, for later stages.

``- data: {name: mixed, mix: {…}}`` or ``mix: path.yaml``. Another kind of data is a row in
``KINDS``.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.load import resolve
from tunesmith.config.schema_mix import MixRecipe, check_mix, load_mix
from tunesmith.config.schema_raft import RaftOptions
from tunesmith.config.schema_start import SplitOptions
from tunesmith.errors import UsageError
from tunesmith.storage import hash_file, hash_json, hash_tree, write_json
from tunesmith.workflows.recipe_file import Recipe, Stage

if TYPE_CHECKING:
    from tunesmith.workflows.recipe import StageRecord

Records = Mapping[str, "StageRecord"]


@dataclass(frozen=True, slots=True)
class DataKind:
    """How one kind of data stage is checked, keyed and run."""

    check: Callable[[Any, str], Any]
    """From what the recipe says (and the stage's place, for messages) to checked settings."""
    inputs: Callable[[Any], list[str]]
    """Files, folders, names of data sets or of earlier stages that checked settings read."""
    run: Callable[[Any, Path, Records], Path]
    """Carry it out in a folder; returns the rows, or a file that stands for several sets."""


def _check_mix(value: Any, where: str) -> MixRecipe:
    if isinstance(value, str):
        return load_mix(Path(value))
    if not isinstance(value, Mapping):
        raise UsageError(
            f"{where}: mix is {type(value).__name__}.", expected="settings, or a path to a YAML"
        )
    return check_mix(value, where=where)


def _run_mix(recipe: MixRecipe, folder: Path, records: Records) -> Path:
    from tunesmith.workflows.mix import beside, mix

    def placed(source: Any) -> Any:
        return source.model_copy(update={"dataset": dataset_of(source.dataset, records)})

    def staged(stage: Any) -> Any:
        sources = [placed(source) for source in stage.sources]
        replay = stage.replay and placed(stage.replay)
        return stage.model_copy(update={"sources": sources, "replay": replay})

    strategies = recipe.strategies
    if strategies:
        measured = {
            name: str(records[run].folder) if run in records else run
            for name, run in strategies.measured.items()
        }
        strategies = strategies.model_copy(update={"measured": measured})
    changed = recipe.model_copy(
        update={
            "sources": [placed(source) for source in recipe.sources],
            "stages": [staged(stage) for stage in recipe.stages],
            "replay": recipe.replay and placed(recipe.replay),
            "strategies": strategies,
        }
    )
    # Of the recipe's own output only the format counts: the rows lie in the stage's folder.
    target = folder / f"rows{Path(recipe.output).suffix if recipe.output else '.jsonl'}"
    result = mix(changed, target, overwrite=True)
    write_json(folder / "manifest.json", {"counts": _counts(result.summary)})
    return target if not recipe.stages else beside(target, ".mix.json")


def _counts(summary: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Return what the report shows of a mix."""
    found: dict[str, dict[str, int]] = {}
    for stage in summary["stages"]:
        head = f"rows {stage['name']}".strip()
        found[f"{head} wanted"] = {n: s["target_rows"] for n, s in stage["sources"].items()}
        found[f"{head} realised"] = {n: s["rows"] for n, s in stage["sources"].items()}
        found[f"{head} held out"] = {n: s["validation"] for n, s in stage["sources"].items()}
    counts = summary["audit"]["counts"]
    found["audit"] = {"erased rows": summary["audit"]["erased rows"]}
    found["audit"] |= {f"refused: {kind}": n for kind, n in counts["refused"].items()}
    found["audit"] |= {f"left: {kind}": n for kind, n in counts["left"].items()}
    return found


def _check_raft(value: Any, where: str) -> RaftOptions:
    if not isinstance(value, Mapping):
        raise UsageError(f"{where}: raft is {type(value).__name__}.", expected="its settings")
    return resolve(RaftOptions, dict(value), origin=where).options


def _raft_inputs(options: RaftOptions) -> list[str]:
    # The built-in documents change with the version only, which is in every stage's key.
    return [*options.documents, *([options.questions] if options.questions else [])]


def _run_raft(options: RaftOptions, folder: Path, _: Records) -> Path:
    from tunesmith.workflows.raft import make_raft

    # Of the recipe's own output only the format counts: the rows lie in the stage's folder.
    target = folder / f"rows{Path(options.output).suffix or '.jsonl'}"
    result = make_raft(options.model_copy(update={"output": str(target), "overwrite": True}))
    counts = {"made": {split: len(rows) for split, rows in result.rows.items()}}
    counts["made"] |= {"documents": result.counts["documents"], "chunks": result.counts["chunks"]}
    counts["discarded"] = result.counts["discarded questions"]
    for split, found in result.counts["splits"].items():
        of_rows = {n: ends for n, ends in found["shares"].items() if "," not in n}
        counts[f"{split} rows"] = {
            f"{name} (wanted {wanted:.0%})": round(had * found["rows"])
            for name, (wanted, had) in of_rows.items()
        }
    write_json(folder / "manifest.json", {"counts": counts})
    return target


def _check_split(value: Any, where: str) -> SplitOptions:
    if not isinstance(value, Mapping):
        raise UsageError(f"{where}: split is {type(value).__name__}.", expected="its settings")
    return resolve(SplitOptions, dict(value), origin=where).options


def _run_split(options: SplitOptions, folder: Path, records: Records) -> Path:
    from tunesmith.workflows.own_rows import split

    placed = dataset_of(options.dataset, records)
    return split(options.model_copy(update={"dataset": placed}), folder)


KINDS: dict[str, DataKind] = {
    "mix": DataKind(_check_mix, lambda recipe: list(recipe.inputs()), _run_mix),
    "raft": DataKind(_check_raft, _raft_inputs, _run_raft),
    "split": DataKind(_check_split, lambda options: [options.dataset], _run_split),
}
"""Key of a data stage → what it is."""


def checked(recipe: Recipe, stage: Stage) -> tuple[DataKind, Any]:
    """Return a data stage's kind and checked settings; ``UsageError`` names what is wrong."""
    where = f"{recipe.path} stage {stage.name}"
    unknown = [key for key in stage.settings if key not in KINDS]
    if unknown or len(stage.settings) != 1:
        close = difflib.get_close_matches(str(unknown[0]), KINDS, 1) if unknown else []
        near = f"; did you mean {close[0]!r}?" if close else ""
        found = f"has the key {unknown[0]!r}{near}" if unknown else "does not say what it makes"
        raise UsageError(f"{where} {found}", expected=f"one of {', '.join(KINDS)}")
    [(key, value)] = stage.settings.items()
    kind = KINDS[key]
    return kind, kind.check(value, where)


def references(recipe: Recipe, stage: Stage) -> list[str]:
    """Return the names of the recipe's stages that a data stage reads."""
    kind, settings = checked(recipe, stage)
    names = {other.name for other in recipe.stages}
    heads = [name.partition("/")[0] for name in kind.inputs(settings)]
    return [name for name in heads if name in names]


def contents(recipe: Recipe, stage: Stage) -> dict[str, str]:
    """Return the hash of every file and folder that a data stage reads, by name."""
    kind, settings = checked(recipe, stage)
    names = kind.inputs(settings)
    names += [value for value in stage.settings.values() if isinstance(value, str)]
    hashes = {name: content_hash(name) for name in names}
    return {name: value for name, value in hashes.items() if value is not None}


def content_hash(name: str) -> str | None:
    """Return the hash of a file, a folder or a built-in set; None for what lies on a hub."""
    from tunesmith.data.named_sets import find

    path = Path(name)
    if path.is_dir():
        return hash_tree(path)
    if path.is_file():
        return hash_file(path)
    entry = find(name)
    if not entry or not entry.builtin:
        return None
    return hash_json([hash_file(file) for file in entry.files()])


def make_data(recipe: Recipe, stage: Stage, folder: Path, records: Records) -> Path:
    """Carry out a data stage."""
    kind, settings = checked(recipe, stage)
    folder.mkdir(parents=True, exist_ok=True)
    return kind.run(settings, folder, records)


def dataset_of(name: str, records: Records) -> str:
    """Return the rows that a name stands for: an earlier stage's, one part of it, or itself."""
    from tunesmith.workflows.mix import stage_path

    head, _, part = name.partition("/")
    if head not in records:
        return name
    output = records[head].output
    parts = staged_outputs(output)
    if part in parts:
        return str(stage_path(output.with_name(f"rows{parts[part]}"), part))
    if part or parts:
        raise UsageError(
            f"{name!r} names no rows of the stage {head!r}.",
            expected=", ".join(f"{head}/{known}" for known in parts) or repr(head),
        )
    return str(output)


def staged_outputs(output: Path) -> dict[str, str]:
    """Return stage → suffix of its rows, where an output stands for several sets."""
    import json

    if not output.name.endswith(".mix.json"):
        return {}
    stages = json.loads(output.read_text(encoding="utf-8"))["stages"]
    return {stage["name"]: Path(stage["output"]).suffix for stage in stages}


def held_out_of(dataset: str) -> dict[str, str]:
    """Return the settings by which training evaluates on the rows that a data stage held out."""
    from tunesmith.data.writers import split_path

    path = Path(dataset)
    if path.is_dir():
        return {"dataset_test_split": "validation"} if (path / "validation").is_dir() else {}
    validation = split_path(path, "validation")
    return {"eval_dataset": str(validation)} if validation.is_file() else {}
