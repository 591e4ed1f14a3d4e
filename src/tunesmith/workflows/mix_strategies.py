"""Which strategy a mix teaches each category by: what a person said, or what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.config.schema_mix import MixRecipe, StrategyOptions
from tunesmith.data.strategies import (
    AgainstOne,
    Assignment,
    Choice,
    against_single,
    choose,
    halves,
)
from tunesmith.errors import DataError
from tunesmith.workflows import console


@dataclass(frozen=True, slots=True)
class Chosen:
    """The assignment of a mix, and the measurement behind it if there is one."""

    assignment: Assignment
    choices: Mapping[str, Choice]
    against: Sequence[AgainstOne]

    def to_json(self) -> dict[str, Any] | None:
        """Return the measurement as JSON knows it."""
        if not self.choices:
            return None
        return {
            "choices": {name: choice.strategy for name, choice in self.choices.items()},
            "because": [choice.sentence() for choice in self.choices.values()],
            "held out": [one.sentence() for one in self.against],
        }


def assignment_of(recipe: MixRecipe) -> Chosen | None:
    """Return how strategies are assigned, None where the recipe has no such section."""
    options = recipe.strategies
    if options is None:
        return None
    choices, against = _measured(options, recipe.seed) if options.measured else ({}, [])
    for choice in choices.values():
        console.say(f"Strategy for {choice.sentence()}.")
    for one in against:
        console.say(f"{one.sentence()}.")
    assignment = Assignment(
        default=_named(options.default),
        mapping={name: _named(strategy) for name, strategy in options.map.items()},
        measured={name: choice.strategy for name, choice in choices.items()},
        rules=options.rules,
    )
    return Chosen(assignment, choices, against)


def _named(strategy: str) -> str | None:
    return None if strategy == "none" else strategy


def _measured(
    options: StrategyOptions, seed: int
) -> tuple[Mapping[str, Choice], Sequence[AgainstOne]]:
    """Choose from stored attempts: on one half for the comparison, on all for the mix."""
    from tunesmith.evaluate.metrics import problem_scores
    from tunesmith.evaluate.records import load
    from tunesmith.evaluate.statistics import mcnemar_exact

    sets = {name: load(path) for name, path in options.measured.items()}
    tasks = sorted({result.header.task for result in sets.values()})
    if len(tasks) > 1:
        raise DataError(
            f"The measured runs belong to different tasks: {', '.join(tasks)}.",
            expected="the same graded problems asked with each strategy",
        )
    for name, result in sets.items():
        if result.missing:
            raise DataError(
                f"The run of {name!r} is not finished: {result.missing} attempts are missing.",
                hint="run the same tunesmith eval again; it makes only what is missing",
            )
    runs = {name: problem_scores(result.attempts) for name, result in sets.items()}
    categories = {
        key: str(problem.meta.get(options.measured_by) or problem.task)
        for result in sets.values()
        for key, problem in result.problems.items()
    }
    shared = set.intersection(*(set(scores) for scores in runs.values()))
    if not shared:
        raise DataError(
            "The measured runs share no graded problem.",
            expected="the same problems asked with each strategy (same split and seed)",
        )
    first, second = halves(shared, seed)
    trial = choose(runs, categories, mcnemar_exact, items=first, alpha=options.alpha)
    assigned = {name: choice.strategy for name, choice in trial.items()}
    against = against_single(assigned, runs, categories, mcnemar_exact, second)
    return choose(runs, categories, mcnemar_exact, alpha=options.alpha), against
