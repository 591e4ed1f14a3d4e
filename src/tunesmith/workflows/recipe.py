"""``tunesmith run``: carry out a recipe, stage by stage, each resumable and keyed by content."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import __version__
from tunesmith.config.load import Resolved
from tunesmith.errors import UsageError
from tunesmith.rundir import hash_file, hash_json, hash_tree, write_json
from tunesmith.workflows import console, recipe_data, recipe_rft
from tunesmith.workflows.asking import OF_SERVERS
from tunesmith.workflows.recipe_file import Recipe, Stage, load_recipe

if TYPE_CHECKING:
    from tunesmith.config.schema_results import RunRecipeOptions

BEGUN = ".{}.begun.json"
"""The key that a stage was started under: a stopped one goes on only under the same."""
STARTS_FROM = ("train", "grpo", "rft")
"""Verbs that make another model of the one named ``from``."""
RECORD = "stage.json"
"""In each stage's folder: the key it was run under, what that key was made of, its output."""


@dataclass(frozen=True, slots=True)
class StageRecord:
    """What a finished stage left behind."""

    stage: Stage
    folder: Path
    output: Path
    """What later stages take from it: a model, a data set, a set of attempts, a page."""
    output_hash: str
    ran: bool
    """False when the output of an earlier run was still valid."""
    seconds: float


def command(resolved: Resolved[RunRecipeOptions]) -> int:
    """Handle ``tunesmith run``."""
    options = resolved.options
    run(options.recipe, options.overrides, output_dir=options.output_dir)
    return 0


def run(
    recipe_path: str | Path, overrides: Sequence[str] = (), *, output_dir: str | Path
) -> list[StageRecord]:
    """Run every stage of a recipe in order; a stage whose inputs are unchanged is not run again."""
    recipe = load_recipe(Path(recipe_path), overrides)
    root = Path(output_dir) / recipe.name
    check_references(recipe)
    console.title(f"Recipe {recipe.name}: {len(recipe.stages)} stages into {root}")
    if recipe.about:
        console.say(recipe.about.strip())
    records: dict[str, StageRecord] = {}
    for position, stage in enumerate(recipe.stages, 1):
        heading = f"[{position}/{len(recipe.stages)}] {stage.verb} {stage.name}"
        records[stage.name] = _run_stage(recipe, stage, heading, root, records, position)
    return list(records.values())


def check_references(recipe: Recipe) -> None:
    """Refuse a stage that refers to a later or unknown one, before anything is run."""
    faults, known = [], {"model"}
    for stage in recipe.stages:
        faults += [
            f"{recipe.path}: stage {stage.name!r} refers to {name!r}, which is no earlier stage"
            for name in _references(recipe, stage)
            if name not in known
        ]
        known.add(stage.name)
    if faults:
        raise UsageError("\n".join(faults), expected="names of stages above it, or a path")


def _references(recipe: Recipe, stage: Stage) -> list[str]:
    """Return the names of earlier stages that this one reads (paths are not names)."""
    wanted: list[Any] = []
    if stage.verb == "compare":
        wanted += [_head(recipe, name) for name in stage.settings.get("of", [])]
    if stage.verb == "train":
        wanted += [_head(recipe, name) for name in stage.settings.get("data", [])]
    if stage.verb in STARTS_FROM:
        wanted.append(stage.settings.get("from", "model"))
    if stage.verb == "export":
        wanted.append(stage.settings.get("model", "model"))
    if stage.verb in ("eval", "sample") and not stage.settings.get("address"):
        wanted += [stage.settings.get(key, "model") for key in ("model", "decomposer")]
    if stage.verb == "eval" and "dataset" in stage.settings:
        own = _head(recipe, stage.settings["dataset"])
        wanted += [own] if any(own == other.name for other in recipe.stages) else []
    if stage.verb == "eval":
        held = stage.settings.get("contamination", [])
        held = [held] if isinstance(held, str) else held
        held = [stage.settings.get("compare_with", "model"), *held]
        wanted += [_head(recipe, name) for name in held]
    if stage.verb == "rft":
        recipe_rft.settings_of(recipe, stage)  # faults are found before anything is run
    if stage.verb == "data":
        wanted += recipe_data.references(recipe, stage)
    return [str(name) for name in wanted if "/" not in str(name) and "." not in str(name)]


def _head(recipe: Recipe, name: Any) -> str:
    """Return the stage of ``mixed/stage-1``; any other name, a path too, stays as it is."""
    head, slash, _ = str(name).partition("/")
    return head if slash and any(head == stage.name for stage in recipe.stages) else str(name)


def _run_stage(
    recipe: Recipe,
    stage: Stage,
    heading: str,
    root: Path,
    records: Mapping[str, StageRecord],
    position: int,
) -> StageRecord:
    from tunesmith.workflows.recipe_stages import STAGES

    folder = root / stage.name
    inputs = _inputs(recipe, stage, records)
    key = hash_json(inputs)
    before = _read_json(folder / RECORD)
    if before and before.get("key") == key:
        output = folder / before["output"]
        if output.exists() and _hash(output) == before["output_hash"]:
            console.title(f"{heading}: unchanged, not run again")
            return StageRecord(stage, folder, output, before["output_hash"], False, 0.0)
        why = "its output is missing or was changed"
    elif before:
        why = "changed: " + ", ".join(_changed(before.get("inputs", {}), inputs))
    else:
        why = ""
    console.title(heading + (f" (run again, {why})" if why else ""))
    started = time.monotonic()
    # A record must not vouch for what is about to be written.
    (folder / RECORD).unlink(missing_ok=True)
    # What a stage left half-done under the same key it goes on with; anything else starts over.
    mark = root / BEGUN.format(stage.name)
    begun = _read_json(mark)
    same = begun is not None and begun.get("key") == key
    if not same and folder.exists():
        shutil.rmtree(folder)
    root.mkdir(parents=True, exist_ok=True)
    write_json(mark, {"key": key})
    output = STAGES[stage.verb](recipe, stage, folder, dict(records))
    seconds = time.monotonic() - started
    record: dict[str, Any] = {
        "verb": stage.verb,
        "position": position,
        "key": key,
        "inputs": inputs,
        "output": str(output.relative_to(folder)),
        "output_hash": _hash(output),
        "seconds": round(seconds, 2),
    }
    write_json(folder / RECORD, record)
    return StageRecord(stage, folder, output, record["output_hash"], True, seconds)


def _inputs(recipe: Recipe, stage: Stage, records: Mapping[str, StageRecord]) -> dict[str, Any]:
    """Return all that decides a stage's output: its settings, what it reads, the version."""
    reads: dict[str, Any] = {}
    for name in _references(recipe, stage):
        if name in records:
            reads[name] = records[name].output_hash
            held_out = recipe_data.held_out_of(str(records[name].output)).get("eval_dataset")
            if held_out:
                reads[f"{name} (held out)"] = hash_file(Path(held_out))
    if stage.verb == "data":
        reads |= recipe_data.contents(recipe, stage)
    verbs = ("eval", "sample", "export", *STARTS_FROM)
    if stage.verb in verbs and not stage.settings.get("address"):
        own = stage.settings.get("from" if stage.verb in STARTS_FROM else "model", "model")
        if own not in records:
            reads["model"] = _weights(recipe.model if own == "model" else str(own))
        other = str(stage.settings.get("decomposer", "model"))
        if other != "model" and other not in records:
            reads["decomposer"] = _weights(other)
    if stage.verb == "report":
        reads = {name: record.output_hash for name, record in records.items()}
    for name in stage.settings.get("data", []) if stage.verb == "train" else []:
        if name not in records and Path(str(name)).is_file():
            reads[str(name)] = hash_file(Path(str(name)))
    named = ("dataset", "test_dataset_path", "terms", "terms_from", "contamination", "documents")
    for name in named:
        given = stage.settings.get(name) if name != "documents" or stage.verb == "eval" else None
        for source in given if isinstance(given, list) else [given]:
            known = recipe_data.content_hash(source) if isinstance(source, str) else None
            reads |= {} if known is None else {str(source): known}
    # Which server answers, and how fast it is asked, decides no answer that was paid for.
    how = {"address", *OF_SERVERS} if stage.settings.get("address") else set()
    settings = {name: value for name, value in stage.settings.items() if name not in how}
    return {"settings": settings, "reads": reads, "version": __version__}


def _weights(name: str) -> str:
    """Return a hash of a local model and of its adapter, or the name of one on a hub."""
    from tunesmith.models.load import resolve_model

    found = resolve_model(name)
    base = Path(found.path)
    known = hash_tree(base) if base.is_dir() else str(found.path)
    return hash_json([known, hash_tree(Path(found.adapter))]) if found.adapter else known


def _hash(output: Path) -> str:
    return hash_tree(output) if output.is_dir() else hash_file(output)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Name the inputs that differ, such as ``settings.samples`` or ``reads.paths``."""
    names: list[str] = []
    for group in ("settings", "reads"):
        old, new = before.get(group, {}), now.get(group, {})
        names += [f"{group}.{key}" for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    if before.get("version") != now.get("version"):
        names.append("version")
    return names or ["its key"]
