"""``tunesmith eval --contamination``: which questions stand in training rows, and the rest's score.

What is found lies as ``contamination.json`` beside the attempts: every overlapping pair with the
place of the row and of the question, and the scores of all questions and of the clean ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.schema import EvalOptions
from tunesmith.data.overlap import KINDS, Overlap, count_kinds, find_overlaps
from tunesmith.errors import UsageError
from tunesmith.storage import write_json
from tunesmith.workflows import console

if TYPE_CHECKING:
    from tunesmith.evaluate.compare import Comparison
    from tunesmith.evaluate.records import ResultSet
    from tunesmith.tasks.base import GradedTask, Task
    from tunesmith.types import Example
    from tunesmith.workflows.evaluate import EvalResult

NAMED = 3
"""Overlaps that a sentence shows; all of them are stored."""


def score_clean(options: EvalOptions, task: GradedTask, result: EvalResult) -> dict[str, Any]:
    """Look for the questions of an evaluation in training rows; return what is stored of it."""
    rows = list(chain.from_iterable(training_rows(name, task) for name in options.contamination))
    problems = list(result.results.problems.values())
    found = find_overlaps(rows, problems)
    stored = store_clean(result.folder, found, options.contamination)
    console.say(overlap_sentence(found, len(problems)))
    if found:
        console.say(stored["sentence"])
    return stored


def training_rows(name: str, task: Task) -> list[Example]:
    """Return the rows of a file, or those that a run's folder says it was trained on."""
    # A run's folder, or the model in it.
    for run in (Path(name), Path(name).parent) if Path(name).is_dir() else ():
        if (run / "config.yaml").is_file():
            return _rows_of_run(run / "config.yaml", task)
    from tunesmith.data.formats import Examples
    from tunesmith.data.readers import Fault, read_rows
    from tunesmith.tasks.base import GradedTask

    rows = read_rows(name)
    first = next(rows)
    if isinstance(task, GradedTask) and not isinstance(first, Fault) and task.reads(first.fields):
        return [task.answer_example(problem) for problem in task.problems("train", source=name)]
    found = []
    for item in Examples(chain([first], rows)):
        if isinstance(item, Fault):
            raise item.error()
        found.append(item)
    return found


def _rows_of_run(config: Path, task: Task) -> list[Example]:
    from tunesmith.config.yaml_file import read_yaml
    from tunesmith.tasks.base import GradedTask
    from tunesmith.tasks.registry import get_task
    from tunesmith.workflows.rows import split_shares

    values = read_yaml(config).values
    sources = values.get("dataset") or []
    names, _ = split_shares([sources] if isinstance(sources, str) else [*map(str, sources)])
    if names:
        return list(chain.from_iterable(training_rows(one, task) for one in names))
    own = get_task(str(values.get("task")))
    if isinstance(own, GradedTask) and own.generates:
        limit = values.get("max_rows") or 1500
        problems = own.problems("train", seed=int(values.get("seed") or 0), limit=int(limit))
        return [own.answer_example(problem) for problem in problems]
    raise UsageError(
        f"{str(config)!r} does not say what was trained on.",
        expected="a run of tunesmith train",
        hint="--contamination FILE with its training rows",
    )


def store_clean(folder: Path, found: Sequence[Overlap], training: Sequence[str]) -> dict[str, Any]:
    """Write the overlaps of a stored set and its scores with and without them; return that."""
    from tunesmith.evaluate.clean import CONTAMINATION

    stored: dict[str, Any] = {
        "training": list(training),
        "kinds": dict(count_kinds(found)),
        **_clean_scores(folder, {overlap.problem_id for overlap in found}),
        "overlaps": [
            {"problem": o.problem_id, "place": o.place, "row": o.origin, **_how(o)} for o in found
        ],
    }
    write_json(folder / CONTAMINATION, stored)
    return stored


def rescore_clean(source: Path, folder: Path) -> None:
    """Write the overlaps that are stored beside a set beside another one of the same answers."""
    from tunesmith.evaluate.clean import CONTAMINATION, stored_contamination

    stored = stored_contamination(source)
    if stored is not None:
        flagged = {str(overlap["problem"]) for overlap in stored["overlaps"]}
        write_json(folder / CONTAMINATION, {**stored, **_clean_scores(folder, flagged)})


def _clean_scores(folder: Path, flagged: set[str]) -> dict[str, Any]:
    from tunesmith.evaluate.clean import clean
    from tunesmith.evaluate.metrics import summarise
    from tunesmith.evaluate.records import load
    from tunesmith.tasks.registry import score_called
    from tunesmith.workflows.evaluate import score_line

    results = load(folder)
    rest = clean(results, flagged)
    summary = summarise(rest.attempts) if rest.attempts else None
    questions = f"{len(rest.problems)} of {len(results.problems)} questions"
    said = (
        f"Clean subset, {questions}: {score_line(summary, score_called(results.header.task))}"
        if summary
        else f"Clean subset, {questions}: no score"
    )
    return {
        "questions": len(results.problems),
        "all": summarise(results.attempts).to_json(),
        "clean": None if summary is None else summary.to_json(),
        "sentence": said,
    }


def _how(overlap: Overlap) -> dict[str, str]:
    return {key: value for key, value in asdict(overlap).items() if key in ("kind", "shared")}


def overlap_sentence(found: Sequence[Overlap], questions: int) -> str:
    """Say how many test questions the training rows hold, with the first places."""
    if not found:
        return f"None of the {questions} test questions occurs in the training rows."
    shown = "; ".join(f"{o.place} in {o.origin} («{o.shared}»)" for o in found[:NAMED])
    kinds = ", ".join(f"{number} {KINDS[kind]}" for kind, number in count_kinds(found).items())
    more = f"; and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return (
        f"{len(found)} of {questions} test questions occur in training rows "
        f"({kinds}): {shown}{more}."
    )


def compare_clean(
    sets: Sequence[ResultSet], places: Sequence[str | Path], cluster_by: str | None = None
) -> Comparison | None:
    """Compare sets on the problems that no set's training rows hold.

    None where no overlap is stored beside them, and where nothing clean is left.
    """
    from tunesmith.evaluate.clean import clean, stored_contamination
    from tunesmith.evaluate.compare import compare

    flagged: set[str] = set()
    for place in places:
        stored = stored_contamination(place)
        flagged |= {str(overlap["problem"]) for overlap in (stored or {}).get("overlaps", ())}
    if not any(flagged & result.problems.keys() for result in sets):
        return None
    rest = [clean(result, flagged) for result in sets]
    if not set.intersection(*(set(result.problems) for result in rest)):
        return None
    return compare(rest, cluster_by)


def clean_json(comparison: Comparison | None) -> dict[str, Any]:
    """Return a clean comparison as an entry of the whole one's JSON; nothing without one."""
    return {} if comparison is None else {"clean": comparison.to_json()}


def clean_sentences(comparison: Comparison | None) -> list[str]:
    """Say what the clean subset shows."""
    pairs = [] if comparison is None else comparison.pairs
    return [f"On the clean subset: {pair.sentence()}" for pair in pairs]
