"""What each verb of a recipe does: its settings become those of the command of that name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.load import resolve
from tunesmith.config.schema import EvalOptions, FineTuningConfig, SampleOptions
from tunesmith.config.schema_export import ExportOptions
from tunesmith.config.schema_grpo import GrpoOptions
from tunesmith.config.schema_results import CompareOptions
from tunesmith.errors import UsageError
from tunesmith.storage import write_json
from tunesmith.workflows import console
from tunesmith.workflows.contamination import clean_sentences
from tunesmith.workflows.recipe_data import dataset_of, held_out_of, make_data
from tunesmith.workflows.recipe_file import Recipe, Stage
from tunesmith.workflows.recipe_rft import make_rft, settings_of
from tunesmith.workflows.resuming import going_on

if TYPE_CHECKING:
    from tunesmith.workflows.recipe import StageRecord

Records = Mapping[str, "StageRecord"]


def _model(recipe: Recipe, name: str, records: Records) -> str:
    """Return the path that a stage's model has: the recipe's, an earlier stage's, or a name."""
    if name == "model":
        return recipe.model
    return str(records[name].output) if name in records else name


def _asked(recipe: Recipe, settings: dict[str, Any], records: Records) -> str:
    """Take the model out of the settings of a stage that asks one; servers have names of theirs."""
    name = str(settings.pop("model", "model"))
    return name if settings.get("address") else _model(recipe, name, records)


def _eval(recipe: Recipe, stage: Stage, folder: Path, records: Records) -> Path:
    from tunesmith.workflows.evaluate import evaluate

    settings = dict(stage.settings)
    model = _asked(recipe, settings, records)
    if "decomposer" in settings and not settings.get("address"):
        settings["decomposer"] = _model(recipe, str(settings["decomposer"]), records)
    if str(settings.get("dataset", "")).partition("/")[0] in records:
        rows = dataset_of(str(settings["dataset"]), records)
        settings["dataset"] = held_out_of(rows).get("eval_dataset", rows)
    if "compare_with" in settings:
        settings["compare_with"] = str(_folder(str(settings["compare_with"]), records))
    if "contamination" in settings:
        held = settings["contamination"]
        named = [held] if isinstance(held, str) else held
        settings["contamination"] = [dataset_of(str(name), records) for name in named]
    given = {**settings, "model": model, "name": stage.name, "output_dir": str(folder.parent)}
    result = evaluate(_options(EvalOptions, given, recipe, stage))
    return result.stored


def _sample(recipe: Recipe, stage: Stage, folder: Path, records: Records) -> Path:
    from tunesmith.workflows.sample import sample

    settings = dict(stage.settings)
    model = _asked(recipe, settings, records)
    select = settings.pop("select", None)
    if isinstance(select, dict):
        settings.update(select)
    given = {**settings, "model": model, "output": str(folder / "rows.jsonl")}
    result = sample(_options(SampleOptions, given, recipe, stage))
    counts: dict[str, int] = {"kept": result.rows, **result.discards, "all": result.attempts}
    solved = {"questions": result.questions, "solved": result.solved}
    solved |= {"gold rows": result.gold} if result.gold else {}
    write_json(folder / "manifest.json", {"counts": {"attempts": counts, "questions": solved}})
    return result.output


def _train(recipe: Recipe, stage: Stage, folder: Path, records: Records) -> Path:
    from tunesmith.workflows.train import run_training

    settings = dict(stage.settings)
    model = _model(recipe, str(settings.pop("from", "model")), records)
    data = [str(name) for name in settings.pop("data", [])]
    paths = [dataset_of(name, records) for name in data]
    given: dict[str, Any] = {
        **settings,
        "model": model,
        "output_dir": str(folder.parent),
        "run_name": stage.name,
    }
    if paths:
        given["dataset"] = paths
    made = len(data) == 1 and data[0].partition("/")[0] in records
    if made and not {"eval_dataset", "dataset_test_split", "validation_split"} & settings.keys():
        given |= held_out_of(paths[0])
    given |= going_on(folder)
    origin = f"{recipe.path} stage {stage.name}"
    # With their sources: a task's default must not pass for something that was asked for.
    return run_training(resolve(FineTuningConfig, given, origin=origin)).final_model


def _grpo(recipe: Recipe, stage: Stage, folder: Path, records: Records) -> Path:
    from tunesmith.workflows.grpo import run_grpo

    settings = dict(stage.settings)
    model = _model(recipe, str(settings.pop("from", "model")), records)
    given = {
        **settings,
        "model": model,
        "output_dir": str(folder.parent),
        "run_name": stage.name,
        **going_on(folder),
    }
    origin = f"{recipe.path} stage {stage.name}"
    return run_grpo(resolve(GrpoOptions, given, origin=origin)).final_model


def _rft(recipe: Recipe, stage: Stage, folder: Path, records: Records) -> Path:
    model = _model(recipe, str(stage.settings.get("from", "model")), records)
    return make_rft(settings_of(recipe, stage), model, folder)


def _compare(recipe: Recipe, stage: Stage, folder: Path, records: Records) -> Path:
    from tunesmith.workflows.compare import compare_all, show, show_metrics

    folders = [str(_folder(str(name), records)) for name in stage.settings["of"]]
    settings = {"results": folders, **{k: v for k, v in stage.settings.items() if k != "of"}}
    if isinstance(settings.get("metric"), str):
        settings["metric"] = [settings["metric"]]
    options = _options(CompareOptions, settings, recipe, stage)
    if options.seeds or options.output or options.report:
        raise UsageError(
            f"{recipe.path} stage {stage.name}: a stage «compare» has no seeds, output or report.",
            expected="of, metric, cluster_by",
        )
    found = compare_all(options.results, options.metric, options.cluster_by)
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / "comparison.json"
    write_json(output, found.to_json())
    if len(found.by) > 1:
        show_metrics(found)
    else:
        show(found.first)
    for sentence in clean_sentences(found.clean):
        console.say(sentence)
    return output


def _folder(name: str, records: Records) -> Path:
    """Return the folder of a set: a stage's, or with «asked/majority» that of a vote below it."""
    head, _, rest = name.partition("/")
    return records[head].folder / rest if head in records else Path(head, rest)


def _export(recipe: Recipe, stage: Stage, folder: Path, records: Records) -> Path:
    from tunesmith.workflows.export import export

    settings = dict(stage.settings)
    model = _asked(recipe, settings, records)
    # Beside the stage's own record, which is no part of what is delivered.
    given = {**settings, "model": model, "output_dir": str(folder / "export"), "overwrite": True}
    options = _options(ExportOptions, given, recipe, stage)
    return export(**options.model_dump()).folder


def _report(recipe: Recipe, _: Stage, folder: Path, __: Records) -> Path:
    from tunesmith.workflows.report import write_report

    folder.mkdir(parents=True, exist_ok=True)
    page = write_report(folder.parent, title=recipe.name)
    console.say(f"Report: {page}")
    kept = folder / "report.json"
    write_json(kept, {"page": page.name})
    return kept


def _options(kind: Any, given: Mapping[str, Any], recipe: Recipe, stage: Stage) -> Any:
    return resolve(kind, given, origin=f"{recipe.path} stage {stage.name}").options


STAGES: dict[str, Callable[[Recipe, Stage, Path, Records], Path]] = {
    "data": make_data,
    "eval": _eval,
    "sample": _sample,
    "train": _train,
    "grpo": _grpo,
    "rft": _rft,
    "compare": _compare,
    "export": _export,
    "report": _report,
}
