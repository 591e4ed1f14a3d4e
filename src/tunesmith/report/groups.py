"""What a page shows of groups of problems, and of several seeds, where the records hold any."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tunesmith.errors import UsageError
from tunesmith.evaluate.compare import Comparison
from tunesmith.evaluate.grouped import ROW, groups_of
from tunesmith.evaluate.metrics import problem_scores, summarise
from tunesmith.evaluate.records import ResultSet
from tunesmith.evaluate.seeds import SeedEffect
from tunesmith.report.page import Forest, Measure, Table
from tunesmith.types import Attempt

SHOWN = 20
"""Groups that stand on a page; how many there are is said."""
OWN = ("subtask", "family")
"""Fields that tasks of several parts give their problems: bbh its subtasks, units its families."""


def group_tables(
    sets: Sequence[ResultSet], comparisons: Sequence[Comparison], cluster_by: str | None = None
) -> list[Table]:
    """Return the scores of each group of problems, of each task in the sets.

    The groups are those that the sets were compared by, or else the task's own parts. Several
    problems of one row make no table: rows have no names.
    """
    by_task: dict[str, list[ResultSet]] = {}
    for one in sets:
        by_task.setdefault(one.header.task, []).append(one.first_round())
    tables = []
    for task, ones in by_task.items():
        told = [p.grouped_by for c in comparisons if c.task == task for p in c.pairs]
        for field in dict.fromkeys([cluster_by, *told, *OWN]):
            if field and field != ROW and (table := _groups(ones, field)):
                tables.append(table)
    return tables


def _groups(sets: Sequence[ResultSet], field: str) -> Table | None:
    """Return the table of one field; None where a set does not know it or each has its own."""
    found: list[dict[str, list[Attempt]]] = []
    sizes: Counter[str] = Counter()
    for one in sets:
        try:
            groups = groups_of(one.problems, field)
        except UsageError:
            return None
        assert groups is not None
        of = dict(zip(one.problems, groups.of, strict=True))
        parts: dict[str, list[Attempt]] = {}
        for attempt in one.attempts:
            parts.setdefault(of[attempt.problem_id], []).append(attempt)
        found.append(parts)
        for group, size in Counter(of.values()).items():
            sizes[group] = max(sizes[group], size)
    if not sizes or max(sizes.values()) < 2:
        return None
    largest = sorted(sizes, key=lambda group: (-sizes[group], group))[:SHOWN]
    rows = [
        [
            group,
            f"{sizes[group]:,}",
            *(_score(parts.get(group, ()), sizes[group]) for parts in found),
        ]
        for group in largest
    ]
    note = (
        "In brackets the 95% interval, of each group by itself; none is adjusted for looking at "
        "several groups."
    )
    if len(sizes) > SHOWN:
        note = f"The {SHOWN} largest of {len(sizes):,} groups. {note}"
    return Table(f"Scores by {field}", [field, "Problems", *(one.name for one in sets)], rows, note)


def _score(attempts: Sequence[Attempt], problems: int) -> str:
    told = summarise(attempts)
    if not told.graded:
        return "–"
    ends = told.accuracy_interval
    fewer = f" of {told.problems:,}" if told.problems < problems else ""
    return f"{100 * told.accuracy:.1f}% ({100 * ends.low:.1f} to {100 * ends.high:.1f}){fewer}"


def spread_table(named: Sequence[tuple[str, Sequence[float]]]) -> list[Table]:
    """Return how far the scores of the same questions under several seeds lie apart."""
    rows = [[name, *_spread(scores)] for name, scores in named if len(scores) > 1]
    columns = ["Evaluation", "Seeds", "Mean", "Standard deviation", "Lowest", "Highest"]
    note = "In percent, of the same questions under each seed; the deviation is that of one seed."
    return [Table("Spread over seeds", columns, rows, note)] if rows else []


def _spread(scores: Sequence[float]) -> list[str]:
    mean = math.fsum(scores) / len(scores)
    deviation = math.sqrt(math.fsum((one - mean) ** 2 for one in scores) / (len(scores) - 1))
    shares = [mean, deviation, min(scores), max(scores)]
    return [str(len(scores)), *(f"{100 * one:.1f}" for one in shares)]


def by_attempt(result: ResultSet) -> list[float]:
    """Return the score of each pass over the questions, of a set that asked each several times.

    Every attempt has a seed of its own, so the passes are runs under several seeds. Nothing where
    a question was asked once, or some attempt of it has no score.
    """
    one = result.first_round()
    passes: dict[int, list[Attempt]] = {}
    for attempt in one.attempts:
        passes.setdefault(attempt.index, []).append(attempt)
    scores = [problem_scores(attempts) for attempts in passes.values()]
    if len(scores) < 2 or any(found.keys() != one.problems.keys() for found in scores):
        return []
    return [math.fsum(found.values()) / len(found) for found in scores]


def seeds_forest(effect: SeedEffect, better: str = "higher") -> Forest:
    """Return the difference over all seeds, with its interval, and that under each seed."""
    ends = effect.interval
    sides = list(zip(effect.first_by_seed, effect.second_by_seed, strict=True))
    rows = [
        Measure(
            f"all {effect.seeds} seeds" if effect.seeds > 1 else "one seed",
            better,
            _share(effect.first_by_seed),
            _share(effect.second_by_seed),
            100 * effect.difference,
            100 * ends.low if ends else None,
            100 * ends.high if ends else None,
            _points(effect.difference),
        )
    ]
    for at, difference in enumerate(effect.by_seed if effect.seeds > 1 else ()):
        first, second = ([one] for one in sides[at]) if sides else ([], [])
        rows.append(
            Measure(
                f"seed {at + 1}", "neither", _share(first), _share(second),
                100 * difference, None, None, _points(difference),
            )
        )  # fmt: skip
    return Forest(effect.first, effect.second, rows, [effect.sentence()], one_scale=True)


def _share(scores: Sequence[float]) -> str:
    return f"{100 * math.fsum(scores) / len(scores):.1f}%" if scores else "–"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")


def read_seeds(content: Any) -> SeedEffect | None:
    """Return the effect over seeds that ``tunesmith compare --seeds --output`` wrote."""
    try:
        return SeedEffect.from_json(content)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
