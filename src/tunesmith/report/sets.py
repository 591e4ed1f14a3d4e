"""What a page shows of stored sets and of their comparisons, be it a run's or one asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.evaluate.compare import Comparison
from tunesmith.evaluate.following import following
from tunesmith.evaluate.metrics import summarise
from tunesmith.evaluate.records import ResultSet
from tunesmith.report.evidence import Placed, following_tables, lengths, metric_tables, verdict
from tunesmith.report.examples import both_wrong, flips
from tunesmith.report.groups import by_attempt, group_tables, spread_table
from tunesmith.report.page import GRADED, ScoreRow
from tunesmith.tasks.registry import score_called, task_names

MAX_EXAMPLES = 6
"""Examples of each kind that a page holds; their full number is said."""


def parts_of_sets(
    placed: Placed,
    comparisons: Sequence[Comparison],
    notes: list[str],
    cluster_by: str | None = None,
) -> dict[str, Any]:
    """Return the fields of ``ReportData`` that sets and comparisons decide.

    The verdict and the examples are those of the first comparison's first and last set.
    """
    sets = [result for _, result in placed]
    ends = ends_of(comparisons, {one.name: one for one in sets})
    gained, lost = flips(*ends[0]) if ends else ([], [])
    wrong = both_wrong(*ends[0]) if ends else []
    wanted = [{first.name, last.name} for first, last in ends]
    pairs = [pair for comparison in comparisons for pair in comparison.pairs]
    heads = [pair for pair in pairs if {pair.first, pair.second} in wanted]
    drawn, tables = lengths([s for pair in ends[:1] for s in pair] if ends else sets)
    if ends and len(sets) > len(ends[0]):
        tables = lengths(sets)[1]
    found = {one.name: following(one) for one in sets}
    return {
        "verdict": verdict(heads[0], None) if heads else "",
        "headline": [pair.sentence() for pair in heads],
        "scores": [ScoreRow(s.name, detail(s), summarise(s.attempts)) for s in sets],
        "called": called(sets),
        "pairs": pairs,
        "groups": group_tables(sets, comparisons, cluster_by),
        "spread": spread_table([(one.name, by_attempt(one)) for one in sets]),
        "metrics": [*metric_tables(placed, notes, cluster_by), *following_tables(found)],
        "gained": gained[:MAX_EXAMPLES],
        "gained_total": len(gained),
        "lost": lost[:MAX_EXAMPLES],
        "lost_total": len(lost),
        "both_wrong": wrong[:MAX_EXAMPLES],
        "both_wrong_total": len(wrong),
        "lengths": drawn,
        "ends": tables,
    }


def called(sets: Sequence[ResultSet]) -> str:
    """Return what the score of the sets is; ``score`` where their tasks call it differently."""
    tasks = dict.fromkeys(one.header.task for one in sets)
    names = {score_called(task) if task in task_names() else GRADED for task in tasks}
    return names.pop() if len(names) == 1 else "score" if names else GRADED


def ends_of(
    comparisons: Sequence[Comparison], sets: Mapping[str, ResultSet]
) -> list[tuple[ResultSet, ResultSet]]:
    """Return the first and the last set of each comparison: its baseline and what came of it."""
    names = [list(comparison.summaries) for comparison in comparisons]
    return [(sets[n[0]], sets[n[-1]]) for n in names if n[0] in sets and n[-1] in sets]


def detail(result: ResultSet) -> str:
    """Return model, prompt style and split in a few words."""
    head = result.header
    times = f", {head.samples} attempts a problem" if head.samples > 1 else ""
    return f"{head.model}, {head.prompt} prompt, {head.split}{times}"
