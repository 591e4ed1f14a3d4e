"""Gathering a report's data from a folder: one run's, or a recipe's with a folder a stage.

What is looked for, at any depth: ``metrics.jsonl``, ``manifest.json``, sets of attempts,
``comparison.json``, ``seeds.json`` (of ``compare --seeds --output``) and the ``stage.json`` records
of a recipe. Of a manifest the page shows ``counts`` (title → label → number), ``contamination``
(sentences), ``losses`` (sentences), ``versions`` and ``hashes`` (name → text). What a training run
inside a recipe has evaluated for itself stays on that run's own page.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.errors import TunesmithError, UsageError
from tunesmith.evaluate.compare import Comparison, compare
from tunesmith.evaluate.metrics import Summary, summarise
from tunesmith.evaluate.records import ResultSet, load, stored_sets
from tunesmith.evaluate.seeds import SeedEffect
from tunesmith.report import evidence, lineage
from tunesmith.report.curves import read_metrics, training_charts
from tunesmith.report.groups import read_seeds, seeds_forest
from tunesmith.report.page import Command, Counts, Forest, ReportData, StageLine, Table
from tunesmith.report.sets import parts_of_sets
from tunesmith.report.watched import (
    course_sentences,
    row_lists,
    sample_courses,
    spike_sentences,
)
from tunesmith.tasks.registry import get_task, task_names

GENERAL = "general"
"""Folder beside a run's own evaluations that holds those of the general suite."""
EXPORT = "tunesmith.export"
"""What an exported model's manifest says that it is."""
FORGETTING = "forgetting.json"
"""In that folder: what the suite shows before and after."""


def collect(folder: str | Path, *, title: str | None = None) -> ReportData:
    """Return all that a folder holds for a report.

    Raises ``UsageError`` when there is nothing to report. A file that cannot be read is named in
    the page's notes, and the rest is shown.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UsageError(
            f"There is no folder {str(root)!r}.", expected="the folder of a run or a recipe"
        )
    notes: list[str] = []
    manifests = _named(root, "manifest.json", notes)
    stages = _stages(root, notes)
    order = {stage.name: place for place, stage in enumerate(stages)}
    found = _sets(root, notes)
    stored = _stored_comparisons(root, {s.name: s for _, s in found.values()}, notes)
    compared = [name for one in stored for name in one.summaries] or list(order)
    sets = sorted(
        (result for _, result in found.values()),
        key=lambda s: compared.index(s.name) if s.name in compared else len(compared),
    )
    runs = sorted(
        ((_label(root, file), read_metrics(file)) for file in root.rglob("metrics.jsonl")),
        key=lambda run: (order.get(run[0].partition("/")[0], len(order)), run[0]),
    )
    if not (sets or runs or manifests or stages):
        raise UsageError(
            f"{str(root)!r} holds neither metrics nor attempts nor a manifest.",
            expected="the folder of a run or a recipe",
            hint="tunesmith report path/to/run",
        )
    comparisons = stored or _comparisons(sets, notes)
    parts = parts_of_sets([found[s.name] for s in sets], comparisons, notes)
    losses = list(_sentences(manifests, "losses", notes))
    own = manifests.get("", {})
    loss = evidence.read_loss(own.get("loss"))
    parts["headline"] = parts["headline"] or losses[:1]
    parts["verdict"] = parts["verdict"] or (
        evidence.verdict(None, loss) if not parts["pairs"] else ""
    )
    unfinished = [s for s in sets if s.missing]
    notes += [f"{s.name} is not finished: {s.missing} attempts are missing." for s in unfinished]
    records = [record for label, ones in runs if not label for record in ones]
    spikes, spikes_total = spike_sentences(records)
    return ReportData(
        title=title or root.resolve().name,
        subtitle=_subtitle(sets, runs),
        **parts,
        seeds=[seeds_forest(effect) for effect in _over_seeds(root, notes)],
        stages=stages,
        losses=losses,
        loss=evidence.loss_forest(own.get("loss")),
        forgetting=_forgetting(root, notes),
        charts=[chart for label, ones in runs for chart in training_charts(label, ones)],
        course=[] if "measured" in own else course_sentences(records),
        spikes=spikes,
        spikes_total=spikes_total,
        row_lists=row_lists(root, notes),
        samples=sample_courses(root, notes),
        sources=[
            *_of_each(manifests, lineage.source_tables),
            *(
                table
                for name, mix in _mixes(root, notes)
                for table in lineage.mix_tables(name, mix)
            ),
        ],
        counts=[
            Counts(name if len(manifests) == 1 else f"{label}: {name}", rows)
            for label, manifest in manifests.items()
            for name, rows in _mapping(manifest, "counts").items()
            if isinstance(rows, Mapping)
        ],
        contamination=list(_sentences(manifests, "contamination", notes)),
        overlaps=_of_each(manifests, lineage.overlap_tables),
        cost=[
            table
            for label, manifest in manifests.items()
            for table in lineage.cost_table(label, manifest, dict(runs).get(label, []))
        ],
        settings=[
            table
            for file, config in lineage.configs(root, notes)
            for table in lineage.settings_table(_label(root, file), config)
        ],
        facts=_facts(sets, manifests),
        notes=notes,
        commands=_commands([folder for folder, _ in found.values()]),
    )


def _of_each(
    manifests: Mapping[str, Mapping[str, Any]],
    make: Callable[[str, Mapping[str, Any]], list[Table]],
) -> list[Table]:
    return [table for label, manifest in manifests.items() for table in make(label, manifest)]


def _mixes(root: Path, notes: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what the mixtures below a folder say of themselves."""
    for file in sorted(root.rglob("*.mix.json")):
        content = _json(file, notes)
        if content is not None:
            yield file.name.removesuffix(".mix.json"), content


def _forgetting(root: Path, notes: list[str]) -> Forest | None:
    """Return what the general suite shows of the run, or of each run of a recipe."""
    found = []
    for file in sorted(root.rglob(f"{GENERAL}/{FORGETTING}")):
        content = _json(file, notes)
        if content is not None:
            found.append((_label(root, file.parent.parent.parent / FORGETTING), content))
    return evidence.forgetting_forest(found)


def _sets(root: Path, notes: list[str]) -> dict[str, tuple[Path, ResultSet]]:
    """Return the sets below a folder by name, those of runs in it and of the general suite not."""
    found: dict[str, tuple[Path, ResultSet]] = {}
    for folder in stored_sets(root):
        if _inside_a_run(root, folder) or GENERAL in folder.relative_to(root).parts[:-1]:
            continue
        try:
            result = load(folder)
        except TunesmithError as failure:
            notes.append(failure.found)
            continue
        if result.name in found:
            notes.append(f"Two sets are called {result.name!r}; {folder} is left out.")
        else:
            found[result.name] = folder, result
    return found


def _stored_comparisons(
    root: Path, sets: Mapping[str, ResultSet], notes: list[str]
) -> list[Comparison]:
    """Return the stored comparisons, the largest first, without those that are part of another.

    Nor one that tells other scores of the sets than they have now.
    """
    found: list[Comparison] = []
    for file in sorted(root.rglob("comparison.json")):
        apart = _inside_a_run(root, file.parent) or file.parent.name == GENERAL
        content = None if apart else _json(file, notes)
        if content is None:
            continue
        try:
            one = Comparison.from_json(content)
        except (KeyError, TypeError, ValueError, AttributeError):
            notes.append(f"{file} is no comparison; it is left out.")
            continue
        old = [n for n, told in one.summaries.items() if n in sets and not _is_of(told, sets[n])]
        if old:
            notes.append(f"{file} tells other scores of {old[0]!r} than are stored; left out.")
        else:
            found.append(one)
    found.sort(key=lambda comparison: -len(comparison.summaries))
    kept: list[Comparison] = []
    for one in found:
        if not any(one.summaries.keys() <= other.summaries.keys() for other in kept):
            kept.append(one)
    return kept


def _over_seeds(root: Path, notes: list[str]) -> Iterator[SeedEffect]:
    """Yield the effects over seeds that ``tunesmith compare --seeds --output`` wrote there."""
    for file in sorted(root.rglob("seeds.json")):
        content = _json(file, notes)
        effect = None if content is None else read_seeds(content)
        if effect is not None:
            yield effect
        elif content is not None:
            notes.append(f"{file} tells of no effect over seeds; it is left out.")


def _is_of(summary: Summary, result: ResultSet) -> bool:
    now = summarise(result.first_round().attempts)
    counts = [(one.n, one.graded, one.correct) for one in (summary, now)]
    return counts[0] == counts[1] and math.isclose(summary.accuracy, now.accuracy, abs_tol=1e-9)


def _inside_a_run(root: Path, folder: Path) -> bool:
    """Whether a folder belongs to a run (which has a manifest) somewhere below the root."""
    above = itertools.takewhile(lambda parent: parent != root, folder.parents)
    return any((parent / "manifest.json").is_file() for parent in above)


def _comparisons(sets: Sequence[ResultSet], notes: list[str]) -> list[Comparison]:
    finished = [s for s in sets if not s.missing]
    if len(finished) < 2:
        return []
    try:
        return [compare(finished)]
    except TunesmithError as failure:
        notes.append(f"The sets were not compared: {failure.found}")
        return []


def _stages(root: Path, notes: list[str]) -> list[StageLine]:
    found = [(file, _json(file, notes)) for file in root.glob("*/stage.json")]
    records = [(file, record) for file, record in found if record is not None]
    # Without a position in the recipe, the order in which the stages ended.
    records.sort(key=lambda one: (one[1].get("position", 0), one[0].stat().st_mtime_ns))
    stages = []
    for file, record in records:
        settings = _mapping(_mapping(record, "inputs"), "settings")
        text = ", ".join(
            f"{key} {_brief(value)}" for key, value in settings.items() if key != "name"
        )
        seconds = record.get("seconds")
        stages.append(
            StageLine(
                str(record.get("verb", "")),
                file.parent.name,
                text,
                float(seconds) if isinstance(seconds, int | float) else None,
            )
        )
    return stages


def _brief(value: Any) -> str:
    if isinstance(value, Mapping):
        return "(" + ", ".join(f"{key} {_brief(item)}" for key, item in value.items()) + ")"
    if isinstance(value, list):
        return " + ".join(map(_brief, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _facts(
    sets: Sequence[ResultSet], manifests: Mapping[str, Mapping[str, Any]]
) -> list[tuple[str, str]]:
    facts: dict[tuple[str, str], None] = {}
    for label, manifest in manifests.items():
        if "tunesmith" in manifest:
            facts["tunesmith", str(manifest["tunesmith"])] = None
        for name, value in _mapping(manifest, "versions").items():
            facts[str(name), str(value)] = None
        for name, value in _mapping(manifest, "hashes").items():
            facts[f"{label} {name}".strip(), str(value)] = None
    for result in sets:
        for name, value in _mapping(result.header.details, "versions").items():
            facts[str(name), str(value)] = None
        for name, value in _mapping(result.header.details, "hashes").items():
            facts[f"{result.name} {name}", str(value)] = None
        facts[f"{result.name} seed", str(result.header.seed)] = None
    for name in dict.fromkeys(result.header.task for result in sets):
        context = get_task(name).context if name in task_names() else ""
        if context:
            facts[f"{name}, for context", context] = None
    return list(facts)


def _commands(own: Sequence[Path]) -> list[Command]:
    """Return what to type next; ``own`` are the folders of the sets on the page."""
    import shlex

    commands = []
    if len(own) > 1:
        folders = " ".join(shlex.quote(str(folder)) for folder in own)
        commands.append(
            Command("Compare the stored attempts again:", f"tunesmith compare {folders}")
        )
    commands.append(
        Command(
            "Do the same with your own model and data:",
            "tunesmith train --task custom --model path/or/hub-name --dataset rows.jsonl --lora",
        )
    )
    return commands


def _subtitle(sets: Sequence[ResultSet], runs: Sequence[tuple[str, Sequence[Any]]]) -> str:
    parts = []
    if sets:
        tasks = dict.fromkeys(s.header.task for s in sets)
        problems = len(set(itertools.chain.from_iterable(s.problems for s in sets)))
        parts.append(f"Task {', '.join(tasks)}: {len(sets)} evaluations on {problems:,} problems")
    steps = [max((r["step"] for r in records), default=0) for _, records in runs]
    if steps:
        parts.append(
            f"{len(steps)} training run{'s' if len(steps) > 1 else ''}, {sum(steps):,} steps"
        )
    return "; ".join(parts)


def _named(root: Path, name: str, notes: list[str]) -> dict[str, dict[str, Any]]:
    """Return the readable JSON mappings of one file name, by the folder they lie in."""
    found = {}
    for file in sorted(root.rglob(name)):
        # A checkpoint and an exported model have manifests of their own.
        if any(part.startswith("checkpoint") for part in file.relative_to(root).parts):
            continue
        content = _json(file, notes)
        if content is not None and content.get("kind") != EXPORT:
            found[_label(root, file)] = content
    return found


def _label(root: Path, file: Path) -> str:
    """Return the stage, and its round, that a file belongs to, or nothing for the folder itself."""
    parts = file.parent.relative_to(root).parts
    return "/".join([*parts[:1], *(part for part in parts[1:2] if part.startswith("round-"))])


def _json(file: Path, notes: list[str]) -> dict[str, Any] | None:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as failure:
        notes.append(f"{file} cannot be read: {failure}")
        return None
    if isinstance(content, dict):
        return content
    notes.append(f"{file} is no JSON object.")
    return None


def _mapping(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = content.get(key)
    return value if isinstance(value, Mapping) else {}


def _sentences(
    manifests: Mapping[str, Mapping[str, Any]], key: str, notes: list[str]
) -> Iterable[str]:
    for label, manifest in manifests.items():
        value = manifest.get(key)
        if not isinstance(value, str | list | None):
            notes.append(f"{Path(label, 'manifest.json')} holds no sentences as {key!r}.")
            continue
        for sentence in [value] if isinstance(value, str) else value or ():
            yield f"{label}: {sentence}" if label and len(manifests) > 1 else str(sentence)
