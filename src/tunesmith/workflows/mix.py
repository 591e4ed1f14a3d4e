"""``tunesmith data mix``: from a recipe of sources to training and validation rows with lineage."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.config.load import Resolved
from tunesmith.config.schema_mix import MixOptions, MixRecipe, MixSource, MixStage, load_mix
from tunesmith.data.erasure import CAUTIOUS, Finding
from tunesmith.data.mix_rows import MixRow, Pool, Spec, Treatment, with_examples
from tunesmith.data.mixture import Allotment, Ask, copies, plan, rank
from tunesmith.errors import DataError, UsageError
from tunesmith.storage import hash_file, hash_tree, write_json
from tunesmith.workflows import console
from tunesmith.workflows.mix_report import say_stage, say_whole, summary_of
from tunesmith.workflows.mix_strategies import assignment_of
from tunesmith.workflows.targets import check_output

WHOLE = 2**64
"""Ranks lie below this."""


@dataclass(frozen=True, slots=True)
class MixResult:
    """What a mix leaves."""

    outputs: Mapping[str, Path]
    """Stage → its rows; the stage "" where the recipe has none."""
    summary: Mapping[str, Any]
    """What the JSON beside the output holds."""


@dataclass(slots=True)
class StageRows:
    """What one stage is made of."""

    stage: MixStage
    allotted: dict[str, Allotment]
    train: list[tuple[MixRow, int]] = field(default_factory=list)
    """Row and number of the copy, from 0."""
    validation: list[tuple[MixRow, int]] = field(default_factory=list)

    @property
    def sources(self) -> list[MixSource]:
        return [*self.stage.sources, *([self.stage.replay] if self.stage.replay else [])]

    def distinct(self) -> list[MixRow]:
        """Return every row once."""
        return [row for row, copy in [*self.train, *self.validation] if copy == 0]


def command(resolved: Resolved[MixOptions]) -> int:
    """Handle ``tunesmith data mix``; the counts go to stdout as JSON."""
    options = resolved.options
    console.set_level(options.log_level)
    recipe = load_mix(Path(options.recipe))
    if options.rows is not None and recipe.stages:
        raise UsageError("--rows is for a mix without stages.", hint="set rows in each stage")
    output = options.output or recipe.output
    if output is None:
        raise UsageError(
            f"{options.recipe} names no output.",
            expected="a .jsonl or .parquet file, or a name without suffix for a datasets folder",
            hint="--output mixed.jsonl",
        )
    given = {"rows": options.rows, "seed": options.seed}
    changed = {name: value for name, value in given.items() if value is not None}
    result = mix(recipe.model_copy(update=changed), output, overwrite=options.overwrite)
    print(json.dumps({**result.summary, "audit": result.summary["audit"]["counts"]}))
    return 0


def mix(recipe: MixRecipe, output: str | Path, *, overwrite: bool = False) -> MixResult:
    """Make the rows of a mix and write them, their counts and their audit.

    ``NAME.jsonl`` holds the training rows, ``NAME-validation.jsonl`` the held-out ones,
    ``NAME.mix.json`` targets and what was realised, ``NAME.audit.jsonl`` every finding. With
    stages each has files of its own.
    """
    target = Path(output)
    stages = recipe.all_stages()
    outputs = {stage.name: stage_path(target, stage.name) for stage in stages}
    for path in outputs.values():
        check_output(path, recipe.inputs(), "validation", overwrite=overwrite)
    chosen = assignment_of(recipe)
    erasure = recipe.erasure
    treatment = Treatment(
        seed=recipe.seed,
        assignment=chosen.assignment if chosen else None,
        mode=erasure.mode if erasure else None,
        messages=(erasure.messages if erasure else None) or CAUTIOUS,
        ngram=recipe.audit.ngram,
        refuse=frozenset(recipe.audit.refuse),
        allow_refused=recipe.allow_refused,
    )
    pools = _pools(stages, treatment)
    made = [StageRows(stage, plan(_asks(stage, pools), stage.rows)) for stage in stages]
    _fill(made, pools, recipe)
    taught = {name for one in made for row in one.distinct() for name in (row.category, row.source)}
    unused = sorted(set(chosen.choices) - taught) if chosen else []
    if unused:
        console.warn(f"measured, but no category or source of the mix: {', '.join(unused)}")
    findings = [f for pool in pools.values() for f in pool.findings]
    left: dict[tuple[str, str], Finding] = {}
    for one in made:
        for row in one.distinct():
            left |= {(f.kind, f.origin): f for f in row.findings(treatment.ngram)}
    summary = summary_of(recipe, made, pools, chosen, outputs, findings, list(left.values()))
    for one, figures in zip(made, summary["stages"], strict=True):
        figures["sha256"] = _write(one, outputs[one.stage.name])
        say_stage(one, outputs[one.stage.name], recipe.name)
    write_json(beside(target, ".mix.json"), summary)
    _write_findings(beside(target, ".audit.jsonl"), findings, list(left.values()))
    say_whole(summary, beside(target, ".mix.json"), beside(target, ".audit.jsonl"))
    return MixResult(outputs, summary)


def stage_path(target: Path, stage: str) -> Path:
    """Return where a stage's rows go: ``mixed-stage-1.jsonl``, or ``mixed/stage-1``."""
    if not stage:
        return target
    if target.suffix:
        return target.with_name(f"{target.stem}-{stage}{target.suffix}")
    return target / stage


def beside(target: Path, ending: str) -> Path:
    """Return the path of a file that accompanies the output."""
    return target.with_name((target.stem if target.suffix else target.name) + ending)


def _pools(stages: list[MixStage], treatment: Treatment) -> dict[str, Pool]:
    """Scan every source once, whichever stages use it."""
    pools: dict[str, Pool] = {}
    for stage in stages:
        for source in [*stage.sources, *([stage.replay] if stage.replay else [])]:
            if source.name in pools:
                continue
            pool = Pool(_spec(source), treatment)
            pools[source.name] = pool
            left_out = sum(pool.refused.values())
            console.debug(
                f"{source.name}: {pool.read} rows read, {pool.available} usable, "
                f"{pool.repeated} repeated, {left_out} refused, {len(pool.unreadable)} unreadable"
            )
            if not pool.available:
                raise DataError(
                    f"{source.name} ({source.dataset}) has no usable row: {pool.read} read, "
                    f"{left_out} refused by the audit.",
                    hint="audit: {refuse: []} keeps them and reports what was found",
                )
    return pools


def _spec(source: MixSource) -> Spec:
    return Spec(
        source.name,
        source.dataset,
        source.split,
        source.columns,
        source.category,
        source.category_field,
        source.strategy,
        source.erase,
        source.gold,
        tuple(source.clean),
        source.only_assigned,
        source.encoding,
    )


def _asks(stage: MixStage, pools: Mapping[str, Pool]) -> list[Ask]:
    """Return what a stage wants; replay takes its share first, the others share the rest."""
    replay = stage.replay
    rest = 1.0 - (replay.share or 0.0) if replay else 1.0
    asks = []
    sizes = sum(pools[source.name].available for source in stage.sources)
    for source in [*stage.sources, *([replay] if replay else [])]:
        available = pools[source.name].available
        share = source.share
        if source is not replay and (share is not None or replay):
            share = rest * (available / sizes if share is None else share)
        asks.append(Ask(source.name, share, available, source.when_short, source.max_repeat))
    return asks


def _fill(made: list[StageRows], pools: Mapping[str, Pool], recipe: MixRecipe) -> None:
    """Take the rows, split them once for all stages, and repeat those of short sources."""
    from tunesmith.data.groups import group, held_out

    most = {
        name: max((one.allotted[name].unique for one in made if name in one.allotted), default=0)
        for name in sorted(pools)
    }
    taken = {name: pools[name].take(count) for name, count in most.items()}
    flat = [row for name in sorted(taken) for row in taken[name]]
    groups = group([row.prompt for row in flat], recipe.near_duplicates)
    planned = sum(a.planned for one in made for a in one.allotted.values())
    unique = sum(a.unique for one in made for a in one.allotted.values())
    wanted = round(recipe.validation * planned * len(flat) / unique) if unique else 0
    names = [f"{row.fingerprint}/{row.source}" for row in flat]
    held = held_out(groups, names, min(wanted, len(flat) - 1), recipe.seed)
    group_of = dict(zip(names, groups, strict=True))
    outside = {names[position] for position in held}
    if recipe.validation and not held:
        console.warn("every prompt nearly equals every other one, so nothing is held out")
    for one in made:
        for source in one.sources:
            allotted = one.allotted[source.name]
            own = taken[source.name][: allotted.unique]
            sides = [f"{row.fingerprint}/{row.source}" in outside for row in own]
            train = [row for row, out in zip(own, sides, strict=True) if not out]
            shown = [(row, group_of[f"{row.fingerprint}/{row.source}"]) for row in train]
            made_of = {row.fingerprint: _shown(row, source, shown, group_of, recipe) for row in own}
            times = copies(len(train), allotted.repeats, source.max_repeat)
            lost = allotted.repeats - (sum(times) - len(train))
            if lost:
                allotted.notes.append(
                    f"{lost} rows fewer: held-out rows are not repeated and the cap of "
                    f"{source.max_repeat} holds"
                )
            one.train += [
                (made_of[row.fingerprint], copy)
                for row, count in zip(train, times, strict=True)
                for copy in range(count)
            ]
            held_rows = [row for row, out in zip(own, sides, strict=True) if out]
            one.validation += [(made_of[row.fingerprint], 0) for row in held_rows]
        for rows in (one.train, one.validation):
            rows.sort(key=lambda pair: _place(pair[0], pair[1], recipe.seed))


def _shown(
    row: MixRow,
    source: MixSource,
    others: list[tuple[MixRow, int]],
    group_of: Mapping[str, int],
    recipe: MixRecipe,
) -> MixRow:
    """Return a row as it is shown, with solved examples where its source asks for them."""
    if not source.few_shot:
        return row
    drawn = rank(recipe.seed, row.source, row.fingerprint, "few-shot")
    if drawn >= source.few_shot_share * WHOLE:
        return row
    own = group_of[f"{row.fingerprint}/{row.source}"]
    ngram = recipe.audit.ngram
    shown = with_examples(row, own, others, source.few_shot, recipe.seed, ngram)
    # The row alone passed the audit; what its examples add must not undo that.
    spoilt = any(finding.kind in recipe.audit.refuse for finding in shown.findings(ngram))
    return row if spoilt else shown


def _place(row: MixRow, copy: int, seed: int) -> tuple[int, str, int]:
    """Return where a row stands in the output, the same whatever the order of the sources."""
    name = f"{row.fingerprint}/{copy}"
    return rank(seed, row.source, name, "order"), f"{row.source}/{name}", copy


def _write(one: StageRows, path: Path) -> dict[str, str]:
    """Write a stage's splits and return their hashes."""
    from tunesmith.data.writers import split_path, write_splits

    uniform = path.suffix != ".jsonl"

    def fields(rows: list[tuple[MixRow, int]]) -> Iterator[dict[str, Any]]:
        for row, copy in rows:
            more = sorted({str(key) for turn in row.turns for key in turn.extra})
            if uniform and more:
                raise DataError(
                    f"{row.origin}: a turn carries {', '.join(more)} besides its text, which "
                    "columns of one type cannot hold.",
                    hint="an output that ends in .jsonl",
                )
            yield row.fields(copy)

    splits = {"train": fields(one.train)}
    beside_it = split_path(path, "validation")
    if one.validation:
        splits["validation"] = fields(one.validation)
    elif path.suffix and beside_it.exists():
        console.warn(f"{beside_it} is of an earlier mix; this one holds nothing out")
    write_splits(path, splits)
    if not path.suffix:
        return {"all": hash_tree(path)}
    return {split: hash_file(split_path(path, split)) for split in splits}


def _write_findings(path: Path, refused: list[Finding], left: list[Finding]) -> None:
    from tunesmith.data.writers import write_rows

    rows = [(True, finding) for finding in refused] + [(False, finding) for finding in left]
    write_rows(
        path,
        (
            {"kind": f.kind, "origin": f.origin, "refused": gone, "detail": f.detail}
            for gone, f in rows
        ),
    )
