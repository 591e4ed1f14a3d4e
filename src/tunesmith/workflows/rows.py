"""The rows of a training run: from files or from the task, and what is held out of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

from tunesmith.config.schema import FineTuningConfig
from tunesmith.data.columns import renamed
from tunesmith.data.mixture import Ask, plan, rank
from tunesmith.data.prepare import prompt_key, split_document, split_holdout
from tunesmith.data.spool import Spool, joined, pick
from tunesmith.data.thinking import ThinkingMode
from tunesmith.errors import DataError, UsageError
from tunesmith.tasks.base import GradedTask, QuestionSettings, Task
from tunesmith.workflows import console
from tunesmith.workflows.idle import has_splits, refuse_idle_split
from tunesmith.workflows.validate import validate_words

if TYPE_CHECKING:
    from tunesmith.data.readers import Row
    from tunesmith.types import Example, Problem


_SHARE = re.compile(r"(?P<name>.+):(?P<share>\d*\.?\d+)")


@dataclass(slots=True)
class Data:
    """Examples to train on, examples held out, and questions to ask at the end."""

    train: Sequence[Example]
    held_out: Sequence[Example]
    questions: list[Problem] = field(default_factory=list)
    repeated: int = 0
    """Held-out examples whose prompt, or whole text, is also in training; left out of the set."""
    thinking: Mapping[str, int] = field(default_factory=dict)
    """Answers with thinking, by what was done with it."""


def gather(config: FineTuningConfig, task: Task) -> Data:
    """Return a run's data, announcing what was found and what is held out."""
    if not config.dataset:
        return _generated(config, task)
    thinking = ThinkingMode(config.thinking)
    names, shares = split_shares(config.dataset)
    _check_splits(config, names)
    by_example: dict[str, Problem] = {}
    read = partial(_read, config, task, by_example=by_example, thinking=thinking)
    parts = [read(name, config.dataset_train_split) for name in names]
    examples = joined(_shared(parts, names, shares, config.seed))
    repeated = 0
    if config.eval_dataset or config.dataset_test_split:
        sources = _held_sources(config, names)
        split = config.dataset_test_split or "train"
        held_out = joined([read(name, split) for name in sources])
        known = {_sameness(example) for example in examples}
        fresh = pick(held_out, [at for at, e in enumerate(held_out) if _sameness(e) not in known])
        repeated, held_out = len(held_out) - len(fresh), fresh
        if repeated:
            console.warn(f"{repeated} held-out rows are also trained on and are left out")
        if not held_out:
            listed = " and ".join(sources)
            raise DataError(f"Every held-out row of {listed} is also a training row.")
    else:
        examples, held_out = _hold_out(examples, config)
    questions = [by_example[str(e.origin)] for e in held_out if str(e.origin) in by_example]
    if isinstance(task, GradedTask) and task.generates:
        questions = task.problems("test", limit=config.eval_questions or 1)
    questions = questions[: config.eval_questions]
    if questions and isinstance(task, GradedTask) and (ready := task.ready()):
        console.say(ready)
    tell_thinking(thinking)
    return Data(examples, held_out, questions, repeated, thinking.counts())


def tell_thinking(thinking: ThinkingMode) -> None:
    """Say what was done with thinking, or that there was none to do it with."""
    if told := thinking.told():
        console.say(told)
    elif thinking.mode != "keep":
        console.warn(f"no answer has a <think> block, so --thinking {thinking.mode} does nothing")


def _sameness(example: Example) -> int:
    """Return a hash of what makes a row one that was trained on: its prompt, or its whole text."""
    return hash((example.segments[0].role is None, prompt_key(example)))


def _check_splits(config: FineTuningConfig, names: Sequence[str]) -> None:
    """Refuse splits that no source has; a test split of a plain file would be the training rows."""
    if config.dataset_train_split != "train":
        refuse_idle_split(names, config.dataset_train_split, "--dataset-train-split")
    if config.dataset_test_split:
        held, flag = _held_sources(config, names), "--dataset-test-split"
        refuse_idle_split(held, config.dataset_test_split, flag)
        if bare := [name for name in held if not has_splits(name)]:
            whole = next(name for name in held if has_splits(name))
            raise UsageError(
                f"{flag} {config.dataset_test_split}, but {', '.join(bare)} has no splits; its "
                "training rows would be held out.",
                expected="splits in every source, or the one to hold out by name",
                hint=f"{flag} {config.dataset_test_split} --eval-dataset {whole}",
            )


def _held_sources(config: FineTuningConfig, names: Sequence[str]) -> Sequence[str]:
    """Return what the held-out rows are read from: one that was named, or all that is trained."""
    return [config.eval_dataset] if config.eval_dataset else names


def split_shares(sources: Sequence[str]) -> tuple[list[str], list[float] | None]:
    """Return the names of sources such as ``a.jsonl:0.3`` and their shares, None without any."""
    found = [_SHARE.fullmatch(source) for source in sources]
    if not any(found):
        return list(sources), None
    if not all(found):
        bare = next(source for source, match in zip(sources, found, strict=True) if not match)
        raise UsageError(
            f"{bare!r} has no share, but other sources have one.",
            expected="a share behind every source, or behind none",
            hint=f"{bare}:0.5",
        )
    matches = [match for match in found if match]
    shares = [float(match["share"]) for match in matches]
    if not all(shares):
        raise UsageError("A share of 0 takes nothing.", hint="leave that source out")
    return [match["name"] for match in matches], shares


def _shared(
    parts: Sequence[Sequence[Example]],
    names: Sequence[str],
    shares: list[float] | None,
    seed: int,
) -> Sequence[Sequence[Example]]:
    """Cut sources to their shares: as many rows as there can be without repeating any."""
    if shares is None:
        return parts
    asks = [
        Ask(f"{at}", share, len(part))
        for at, (part, share) in enumerate(zip(parts, shares, strict=True))
    ]
    allotted = plan(
        [replace(ask, share=ask.share / sum(shares)) for ask in asks if ask.share], None
    )
    kept = []
    for at, part in enumerate(parts):
        wanted = allotted[f"{at}"].unique
        order = sorted(range(len(part)), key=lambda i: rank(seed, names[at], str(part[i].origin)))
        kept.append(pick(part, sorted(order[:wanted])))
        console.say(
            f"{names[at]}: {wanted:,} of {len(part):,} rows, for a share of "
            f"{shares[at] / sum(shares):.1%}; {len(part) - wanted:,} are left out."
        )
    return kept


def _hold_out(
    examples: Sequence[Example], config: FineTuningConfig
) -> tuple[Sequence[Example], Sequence[Example]]:
    """Split off the held-out share and say what it is."""
    share = config.validation_split
    if len(examples) == 1 and examples[0].segments[0].role is None:
        begin, end = split_document(examples[0], share)
        if end:
            console.say(
                f"Held out: the end of the one document, from line {end[0].origin.line} on "
                f"({share:.0%} of its length, measured in {len(end)} parts)."
            )
            return begin, end
    inside, outside = split_holdout(examples, share, config.seed)
    if outside:
        console.say(
            f"Held out: {len(outside)} of {len(examples)} rows "
            f"({share:.0%}, seed {config.seed}, equal prompts together)."
        )
    elif share:
        console.warn("rows with one and the same prompt cannot be split, so nothing is held out")
    return inside, outside


def _generated(config: FineTuningConfig, task: Task) -> Data:
    if not isinstance(task, GradedTask) or not task.generates:
        raise UsageError(
            f"--dataset is missing; the task {task.name!r} has no rows of its own.",
            hint="--dataset rows.jsonl",
        )
    tell_thinking(ThinkingMode(config.thinking))
    problems = task.problems("train", seed=config.seed, limit=config.max_rows or 1500)
    held_out = task.problems("dev", seed=config.seed, limit=200)
    console.say(f"Rows: {len(problems)} generated answers, {len(held_out)} held out.")
    return Data(
        [task.answer_example(problem) for problem in problems],
        [task.answer_example(problem) for problem in held_out],
        task.problems("test", limit=config.eval_questions) if config.eval_questions else [],
    )


def _read(
    config: FineTuningConfig,
    task: Task,
    source: str,
    split: str,
    by_example: dict[str, Problem],
    thinking: ThinkingMode,
) -> Sequence[Example]:
    from tunesmith.data.formats import Examples
    from tunesmith.data.readers import Fault, read_rows

    rows = read_rows(source, split=split, max_rows=config.max_rows, encoding=config.encoding)
    first = next(rows)
    if isinstance(task, GradedTask) and _asks(task, first, config.columns):
        problems = task.problems(split, limit=config.max_rows, source=source)
        examples = [thinking(task.answer_example(problem)) for problem in problems]
        by_example.update(
            {str(e.origin): problem for e, problem in zip(examples, problems, strict=True)}
        )
        console.say(f"{source}: {len(examples)} {task.problems_called}.")
        return examples
    found = Examples(chain([first], rows), config.columns)
    held: Spool | list[Example] = Spool() if config.streaming else []
    for item in found:
        if isinstance(item, Fault):
            raise item.error(validate_words(source, config, "--fix", "clean.jsonl"))
        held.append(thinking(item))
    assert found.layout is not None
    note = f" Fields that are not used: {', '.join(found.unused)}." if found.unused else ""
    console.say(f"{source}: {len(held):,} rows, read as {found.layout.name}.{note}")
    return held


def _asks(task: GradedTask, first: Row, columns: dict[str, str]) -> bool:
    """Say whether a task makes problems of a source's rows, and have it read those columns."""
    if columns and "columns" not in task.uses:
        return False
    task.settings = QuestionSettings(columns)
    return task.reads(renamed(first, columns).fields)
