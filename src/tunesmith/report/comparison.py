"""The page of a comparison that was asked for: stored sets only, every pair, several metrics."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from tunesmith.evaluate.compare import Comparison, format_p
from tunesmith.evaluate.records import ResultSet, load_all
from tunesmith.evaluate.scores.stored import scored_by
from tunesmith.evaluate.seeds import SeedEffect
from tunesmith.report.evidence import SIGNS, figure, verdict
from tunesmith.report.groups import seeds_forest, spread_table
from tunesmith.report.page import Command, ReportData, Table
from tunesmith.report.sets import parts_of_sets


def collect_comparison(
    places: Sequence[str],
    comparisons: Mapping[str | None, Comparison],
    lower: Collection[str] = (),
    losses: Sequence[str] = (),
    clean: Sequence[str] = (),
    cluster_by: str | None = None,
) -> ReportData:
    """Return what the page of a comparison shows; the baseline stands first.

    ``comparisons`` are by metric, None for the stored score; the first of them decides verdict,
    scores and examples. Of the metrics in ``lower`` the lower value is the better one. ``losses``
    and ``clean`` are sentences on the held-out loss and on the questions that no training row has.
    """
    notes: list[str] = []
    (metric, first), *others = comparisons.items()
    placed = list(zip(map(Path, places), load_all(places), strict=True))
    shown = [(place, _scored(place, one, metric)) for place, one in placed]
    parts = parts_of_sets(shown, [first], notes, cluster_by)
    better = "lower" if metric in lower else "higher"
    ends = [p for p in first.pairs if (p.first, p.second) == (shown[0][1].name, shown[-1][1].name)]
    parts["verdict"] = verdict(ends[0], None, better) if ends else ""
    if metric is not None:
        parts["called"] = metric
    tables = [_by_metric(str(name), one, name in lower) for name, one in others]
    parts["metrics"] = [*tables, *parts["metrics"]]
    named = [name for name in comparisons if name]
    flags = [*(["--metric", *named] if named else [])]
    flags += ["--cluster-by", cluster_by] if cluster_by else []
    command = shlex.join(["tunesmith", "compare", *map(str, places), *flags])
    return ReportData(
        title=f"{shown[-1][1].name} against {shown[0][1].name}",
        subtitle=f"Task {first.task}: {len(shown)} evaluations",
        **parts,
        better=better,
        losses=losses,
        contamination=clean,
        facts=_facts(placed),
        notes=notes,
        commands=[Command("Compare the stored attempts again:", command)],
    )


def collect_seeds(
    first: Sequence[str],
    second: Sequence[str],
    effect: SeedEffect,
    metric: str | None = None,
    lower: bool = False,
    cluster_by: str | None = None,
) -> ReportData:
    """Return what the page of an effect over seeds shows: it, and the score of every run."""
    places = [*first, *second]
    placed = list(zip(map(Path, places), load_all(places), strict=True))
    shown = [(place, _scored(place, one, metric)) for place, one in placed]
    parts = parts_of_sets(shown, [], [], cluster_by)
    better = "lower" if lower else "higher"
    said = "" if effect.p is None else "no clear difference"
    if effect.significant:
        said = "better" if (effect.difference > 0) != lower else "worse"
    # A single baseline is one run, however often it is paired.
    runs = [(effect.first, effect.first_by_seed)] if len(first) > 1 else []
    runs.append((effect.second, effect.second_by_seed))
    flags = [*(["--metric", metric] if metric else [])]
    flags += ["--cluster-by", cluster_by] if cluster_by else []
    command = shlex.join(["tunesmith", "compare", *first, "--seeds", *second, *flags])
    return ReportData(
        title=f"{effect.second} against {effect.first} over {effect.seeds} seeds",
        subtitle=f"Task {shown[0][1].header.task}: {len(shown)} evaluations",
        **{
            **parts,
            "verdict": said,
            "headline": [effect.sentence()],
            "called": metric or parts["called"],
            "spread": [*spread_table(runs), *parts["spread"]],
        },
        seeds=[seeds_forest(effect, better)],
        better=better,
        facts=_facts(shown),
        commands=[Command("Compare the stored attempts again:", command)],
    )


def _facts(placed: Sequence[tuple[Path, ResultSet]]) -> list[tuple[str, str]]:
    return [
        (f"{one.name}, {name}", str(value))
        for _, one in placed
        for name, value in (("model", one.header.model), ("seed", one.header.seed))
    ]


def _scored(place: Path, result: ResultSet, metric: str | None) -> ResultSet:
    return result if metric is None else scored_by(result, place, metric)


def _by_metric(name: str, comparison: Comparison, lower: bool) -> Table:
    rows = [
        [
            f"{pair.second} against {pair.first}",
            figure(pair.first_accuracy),
            figure(pair.second_accuracy),
            f"{figure(pair.difference, sign=True)} ({figure(pair.interval.low, sign=True)} to "
            f"{figure(pair.interval.high, sign=True)})",
            "not given" if pair.p_holm is None else format_p(pair.p_holm),
            f"{pair.n:,}",
        ]
        for pair in comparison.pairs
    ]
    columns = ["Pair", "First", "Second", "Difference", "p (Holm)", "Rows"]
    sign = SIGNS["lower" if lower else "higher"]
    note = "P-values are adjusted for all pairs of all metrics that are compared (Holm)."
    return Table(f"Compared by {name} {sign}", columns, rows, note)
