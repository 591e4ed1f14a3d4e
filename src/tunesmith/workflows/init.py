"""``tunesmith init``: a commented recipe made from the user's own rows, and what they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.config.load import Resolved
from tunesmith.config.schema_start import InitOptions
from tunesmith.errors import DataError, UsageError
from tunesmith.storage import storage_errors, write_text
from tunesmith.tasks.replies import REPLY_TASKS
from tunesmith.workflows import console
from tunesmith.workflows.first_recipe import Measured, recipe_text
from tunesmith.workflows.idle import refuse_idle_split
from tunesmith.workflows.own_rows import OwnRows
from tunesmith.workflows.task_choice import Choice, choose
from tunesmith.workflows.validate import validate_words

if TYPE_CHECKING:
    from tunesmith.data.own_rows import Source
    from tunesmith.data.validate import Judgement

SUFFIXES = (".yaml", ".yml")
UNASKED = "leave --task out, and the rows decide"
WRITTEN_ODD = 5
"""Kinds of findings that the recipe's head repeats."""


@dataclass(frozen=True, slots=True)
class Begun:
    """What ``init`` leaves."""

    path: Path
    task: str
    judgement: Judgement


def command(resolved: Resolved[InitOptions]) -> int:
    """Handle ``tunesmith init``."""
    made = init(resolved.options)
    console.say(f"Recipe: {made.path}")
    console.say(f"Run it: tunesmith run {made.path}")
    return 0


def init(options: InitOptions) -> Begun:
    """Look at the rows, choose a task and write the recipe."""
    from tunesmith.data.own_rows import Source

    target = _target(options)
    if options.split != "train":
        refuse_idle_split([options.dataset], options.split, "--split")
    source = Source(options.dataset, options.columns, options.encoding, options.split)
    if options.task is None:
        choice = choose(source)
    else:
        choice = Choice(options.task, "it was asked for")
        _check_task(source, choice.task)
    judgement, measured = _measure(options, source, choice.task)
    _say(judgement, choice)
    text = recipe_text(options, choice, measured)
    _check(text, target)
    write_text(target, text)
    return Begun(target, choice.task, judgement)


def _target(options: InitOptions) -> Path:
    target = Path(options.output)
    if target.suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"--output {options.output} is no YAML file.",
            expected=f"a name that ends in {' or '.join(SUFFIXES)}",
            hint=f"--output {target.with_suffix('.yaml')}",
        )
    with storage_errors(target):
        there = target.exists()
    if target.is_dir():
        raise UsageError(f"--output {options.output} is a folder.", hint="--output recipe.yaml")
    if there and not options.overwrite:
        raise UsageError(f"{str(target)!r} is there already.", hint="--overwrite replaces it")
    return target


def _check_task(source: Source, task: str) -> None:
    """Refuse a task that could not ask the rows afterwards."""
    if task in ("units", "countdown", "ifeval"):
        own = "is graded, but has no answers to train on" if task == "ifeval" else "makes its own"
        raise UsageError(
            f"--task {task} is not for rows of your own: it {own}.",
            hint=UNASKED,
        )
    from tunesmith.data.readers import Row
    from tunesmith.tasks.base import GradedTask
    from tunesmith.tasks.registry import get_task

    graded = get_task(task)
    first = next((item for item in source.rows() if isinstance(item, Row)), None)
    if first is not None and isinstance(graded, GradedTask) and not graded.reads(first.fields):
        raise DataError(
            f"{first.origin}: no question of the task {task}; the fields are "
            f"{', '.join(first.fields)}.",
            expected=f"{graded.problems_called}, laid out as {task} reads them",
            hint=UNASKED,
        )


def _measure(options: InitOptions, source: Source, task: str) -> tuple[Judgement, Measured]:
    """Judge every row, as ``tunesmith data validate`` does, and count what the recipe says."""
    from tunesmith.data.prepare import prompt_key
    from tunesmith.data.readers import Fault
    from tunesmith.data.validate import Checker, Judgement

    judgement = Judgement(options.dataset)
    renderer, limit = None, 0
    if options.model is not None:
        from tunesmith.config.schema import TokenizerOptions
        from tunesmith.workflows.opening import open_renderer

        renderer, limit = open_renderer(TokenizerOptions(), options.model, None)
    rows = OwnRows(source, task)
    judgement.layout, judgement.unused = rows.read_as, rows.unused
    checker = Checker(judgement, renderer, limit, task, None, None)
    prompts: set[int] = set()
    examples, plain, unreadable = 0, False, 0
    with console.bar("reading", 0) as bar:
        for item in rows:
            bar.advance(1)
            if isinstance(item, Fault):
                judgement.refuse(item)
                unreadable += 1
                continue
            prompts.add(hash(prompt_key(item.examples[0])))
            for example in item.examples:
                checker.check(example)
                examples += 1
                plain = example.segments[0].role is None
    if not examples and not judgement.refused:
        raise DataError(f"{options.dataset} holds no rows.", expected="at least one row")
    if judgement.cut_short:
        raise next(fault for fault in judgement.faults if fault.rest).error()
    if not judgement.accepted:
        first = judgement.faults[0]
        raise DataError(
            f"None of the {judgement.refused:,} rows of {options.dataset} can be used; the first: "
            f"{first.origin}: {first.reason}.",
            expected=first.expected,
            hint=first.hint or validate_words(options.dataset, options, "--task", task),
        )
    if plain and task in REPLY_TASKS and not REPLY_TASKS[task].takes_plain:
        raise DataError(
            f"{options.dataset} holds plain text, which --task {task} cannot reply to.",
            expected="a conversation, or a prompt with its answer",
            hint="--task domain",
        )
    measured = Measured(
        rows.read_as,
        judgement.accepted,
        unreadable,
        judgement.refused - unreadable,
        len(prompts),
        judgement.tokens or judgement.lengths,
        limit or None,
        [
            (what, kind.count, kind.places[0])
            for what, kind in sorted(judgement.warnings.items(), key=lambda one: -one[1].count)
        ][:WRITTEN_ODD],
        plain,
    )
    if len(prompts) < 2 and not (plain and examples == 1):
        raise DataError(
            f"{options.dataset}: nothing can be held out, since all rows that can be used have "
            "one and the same prompt.",
            expected="rows with at least two different prompts",
        )
    return judgement, measured


def _say(judgement: Judgement, choice: Choice) -> None:
    total = judgement.accepted + judgement.refused
    console.title(f"{judgement.source}: {total:,} rows, read as {judgement.layout}")
    if judgement.unused:
        console.say(f"Fields that are not used: {', '.join(judgement.unused)}")
    found = judgement.tokens or judgement.lengths
    if found.rows:
        mean = found.total / found.rows
        console.say(
            f"Length: {mean:,.0f} {found.unit} on average, {found.longest:,} at most "
            f"({found.longest_at})."
        )
    for reason, kind in judgement.reasons.items():
        console.warn(f"{kind.count:,} refused: {reason} (first {kind.places[0]})")
    for what, kind in judgement.warnings.items():
        console.say(f"Odd: {kind.count:,} x {what} (first {kind.places[0]})")
    console.say(f"Task: {choice.task}, because {choice.why}.")


def _check(text: str, target: Path) -> None:
    """Hold the recipe to what ``tunesmith run`` asks of one before it is written."""
    import tempfile

    from tunesmith.workflows.recipe import check_references
    from tunesmith.workflows.recipe_file import load_recipe

    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / target.name
        draft.write_text(text, encoding="utf-8")
        check_references(load_recipe(draft))
