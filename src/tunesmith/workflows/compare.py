"""``tunesmith compare``: stored results against each other on the same questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.load import Resolved
from tunesmith.config.schema_results import CompareOptions
from tunesmith.errors import DataError, UsageError
from tunesmith.storage import write_json
from tunesmith.tasks.registry import score_called
from tunesmith.workflows import console
from tunesmith.workflows.contamination import clean_json, clean_sentences, compare_clean
from tunesmith.workflows.evaluate import score_line

if TYPE_CHECKING:
    from tunesmith.evaluate.compare import Comparison
    from tunesmith.evaluate.seeds import SeedEffect
    from tunesmith.report.page import ReportData


@dataclass(frozen=True, slots=True)
class Compared:
    """Comparisons of the same sets: by their score or by metrics, and on the clean subset."""

    by: Mapping[str, Comparison]
    """Metric → comparison; the stored score has no name."""
    clean: Comparison | None = None
    """By the stored score, without questions that overlap with training rows."""

    @property
    def first(self) -> Comparison:
        """The comparison by the stored score, or by the first metric."""
        return next(iter(self.by.values()))

    def to_json(self) -> dict[str, Any]:
        """Return the first comparison as JSON knows it, with the others as entries of it."""
        named = {name: one.to_json() for name, one in self.by.items() if name}
        found = self.first.to_json()
        found |= {"metric": next(iter(named))} if named else {}
        found |= {"metrics": named} if len(named) > 1 else {}
        return found | clean_json(self.clean)


def command(resolved: Resolved[CompareOptions]) -> int:
    """Handle ``tunesmith compare``; the sentences go to stdout, and the page's path to stderr."""
    options = resolved.options
    if options.seeds:
        print(_over_seeds(options).sentence())
        return 0
    found = compare_all(options.results, options.metric, options.cluster_by)
    if options.output is not None:
        write_json(options.output, found.to_json())
    if len(found.by) > 1:
        show_metrics(found)
    for metric, comparison in found.by.items():
        head = f"{metric}, " if len(found.by) > 1 else ""
        for name, summary in comparison.summaries.items():
            called = metric or score_called(comparison.task)
            print(f"{head}{name}: {score_line(summary, called)}")
        for pair in comparison.pairs:
            print(f"{head}{pair.sentence()}")
            if pair.left_out():
                print(pair.left_out())
        if metric and lower_is_better(metric):
            print(f"Of {metric} lower is better.")
    clean = clean_scores(options.results)
    if clean and "" not in found.by:
        clean = ["The clean subset is compared by the stored score only: leave --metric out."]
    clean += clean_sentences(found.clean)
    for sentence in clean:
        print(sentence)
    losses = _losses(options)
    for sentence in losses:
        print(sentence)
    if options.report is not None:
        console.say(f"Report: {_write_page(options, found, losses, clean)}")
    return 0


def comparison_page(results: Sequence[str]) -> str:
    """Return the page of ``--report`` for stored sets, the baseline first, as HTML."""
    from tunesmith.report.page import render

    options = CompareOptions(results=list(results))
    found = compare_all(options.results)
    clean = clean_scores(options.results) + clean_sentences(found.clean)
    return render(_page(options, found, _losses(options), clean))


def _write_page(
    options: CompareOptions, found: Compared, losses: list[str], clean: list[str]
) -> Path:
    from tunesmith.report.page import write

    assert options.report is not None
    return write(options.report, _page(options, found, losses, clean))


def _losses(options: CompareOptions) -> list[str]:
    try:
        return loss_sentences(options)
    except DataError as failure:
        return [f"The held-out losses are not compared. {failure.found}"]


def _page(
    options: CompareOptions, found: Compared, losses: list[str], clean: list[str]
) -> ReportData:
    from tunesmith.report.comparison import collect_comparison

    done = {metric or None: comparison for metric, comparison in found.by.items()}
    lower = frozenset(metric for metric in done if metric and lower_is_better(metric))
    return collect_comparison(options.results, done, lower, losses, clean, options.cluster_by)


def compare(
    results: list[str],
    output: str | None = None,
    metric: str | Sequence[str] | None = None,
    cluster_by: str | None = None,
) -> Comparison:
    """Compare stored sets of attempts, the baseline first; write JSON if ``output`` is given.

    With ``metric`` they are compared by a value of each reply in place of the stored score; of
    several, whose p-values are adjusted together, the first one's comparison is returned.
    """
    metrics = [metric] if isinstance(metric, str) else list(metric or ())
    found = compare_all(results, metrics, cluster_by)
    if output is not None:
        write_json(output, found.to_json())
    return found.first


def compare_all(
    results: Sequence[str], metrics: Sequence[str] = (), cluster_by: str | None = None
) -> Compared:
    """Compare stored sets by their score, or by each of several metrics.

    P-values are adjusted by Holm over all metrics and pairs. The clean subset is a comparison of
    its own: it looks at the same question again.
    """
    from tunesmith.evaluate.compare import adjusted
    from tunesmith.evaluate.compare import compare as compare_sets
    from tunesmith.evaluate.records import load_all
    from tunesmith.evaluate.scores.stored import scored_by

    if len(results) < 2:
        raise UsageError(
            "1 set of attempts was given.",
            expected="at least two, or --seeds",
            hint="tunesmith compare runs/base runs/tuned",
        )
    places = [Path(path).resolve() for path in results]
    twice = [path for at, path in enumerate(results) if places[at] in places[:at]]
    if twice:
        raise UsageError(
            f"The set {twice[0]!r} is named twice; it cannot differ from itself.",
            expected="another set of attempts at the same questions",
            hint="tunesmith compare runs/base runs/tuned",
        )
    sets = load_all(results)
    if len({one.header.details.get("grader") for one in sets}) > 1 and not metrics:
        console.warn(
            "not all of these sets were judged by the same version of the grader: tunesmith "
            "regrade each of them"
        )
    if not metrics:
        return Compared(
            {"": compare_sets(sets, cluster_by)}, compare_clean(sets, results, cluster_by)
        )
    if any(result.missing for result in sets):
        compare_sets(sets)  # says which one is not finished
    comparisons = {
        metric: compare_sets(
            [scored_by(one, path, metric) for one, path in zip(sets, results, strict=True)],
            cluster_by,
        )
        for metric in dict.fromkeys(metrics)
    }
    pairs = adjusted([comparison.pairs for comparison in comparisons.values()])
    return Compared(
        {
            metric: replace(comparison, pairs=family)
            for (metric, comparison), family in zip(comparisons.items(), pairs, strict=True)
        }
    )


def _over_seeds(options: CompareOptions) -> SeedEffect:
    """Compare runs of two models over seeds, and write that down where it is asked for."""
    from tunesmith.evaluate.records import load
    from tunesmith.evaluate.scores.stored import scored_by
    from tunesmith.evaluate.seeds import seed_effect

    for side in (options.results, options.seeds):
        places = [str(Path(path).resolve()) for path in side]
        if len(set(places)) < len(places):
            raise UsageError(
                "The same run is named twice; it is no other seed.", expected="a run of each seed"
            )
    if len(options.metric) > 1:
        raise UsageError("--seeds takes one --metric.", hint=f"--metric {options.metric[0]}")
    sides = [[load(Path(path)) for path in paths] for paths in (options.results, options.seeds)]
    if options.metric:
        sides = [
            [scored_by(one, path, options.metric[0]) for one, path in zip(side, paths, strict=True)]
            for side, paths in zip(sides, (options.results, options.seeds), strict=True)
        ]
    found = seed_effect(sides[0], sides[1], options.cluster_by)
    if options.output is not None:
        write_json(options.output, found.to_json())
    if options.report is not None:
        console.say(f"Report: {_write_seeds_page(options, found)}")
    return found


def _write_seeds_page(options: CompareOptions, effect: SeedEffect) -> Path:
    from tunesmith.report.comparison import collect_seeds
    from tunesmith.report.page import write

    assert options.report is not None
    metric = next(iter(options.metric), None)
    page = collect_seeds(
        options.results,
        options.seeds,
        effect,
        metric,
        bool(metric) and lower_is_better(str(metric)),
        options.cluster_by,
    )
    return write(options.report, page)


def clean_scores(results: Sequence[str]) -> list[str]:
    """Return what is stored of each set's score on its clean subset, where there are overlaps."""
    from tunesmith.evaluate.clean import stored_contamination
    from tunesmith.evaluate.records import load_all

    found = []
    for path, one in zip(results, load_all(results), strict=True):
        stored = stored_contamination(path)
        if stored and stored["overlaps"]:
            found.append(f"{one.name}: {stored['sentence']}")
    return found


def lower_is_better(metric: str) -> bool:
    """Say whether of two models the one with the lower value does better."""
    from tunesmith.evaluate.scores.table import metrics_of
    from tunesmith.tasks.replies import REPLY_TASKS

    every = (one for task in REPLY_TASKS for _, found in metrics_of(task) for one in found)
    return any(one.name == metric and one.better == "lower" for one in every)


def loss_sentences(options: CompareOptions) -> list[str]:
    """Say how the held-out losses differ that lie beside two sets of replies to the same rows."""
    from tunesmith.evaluate.losses import compare_losses
    from tunesmith.evaluate.records import load_all
    from tunesmith.evaluate.scores.stored import losses

    first, *others = [
        (one.name, losses(path))
        for path, one in zip(options.results, load_all(options.results), strict=True)
    ]
    return [
        compare_losses(first[1], other).sentence(first[0], name)
        for name, other in others
        if first[1] and other
    ]


def show_metrics(found: Compared) -> None:
    """Print one table of several metrics; their p-values are adjusted together."""
    from tunesmith.evaluate.compare import format_p

    console.table(
        "Differences by metric, p adjusted over all rows (Holm)",
        ["", "against", "points", "95% interval", "p"],
        [
            [
                f"{metric}: {pair.second}",
                pair.first,
                f"{100 * pair.difference:+.1f}",
                f"{100 * pair.interval.low:+.1f} to {100 * pair.interval.high:+.1f}",
                "–" if pair.p_holm is None else format_p(pair.p_holm).removeprefix("p = "),
            ]
            for metric, comparison in found.by.items()
            for pair in comparison.pairs
        ],
    )


def show(comparison: Comparison) -> None:
    """Print a comparison for people."""
    from tunesmith.tasks.registry import get_task, task_names

    console.table(
        "Scores on the same questions",
        ["", score_called(comparison.task), "95% interval", "answered"],
        [
            [
                name,
                f"{100 * s.accuracy:.1f}%",
                f"{100 * s.accuracy_interval.low:.1f} to {100 * s.accuracy_interval.high:.1f}",
                f"{100 * s.answer_rate:.1f}%",
            ]
            for name, s in comparison.summaries.items()
        ],
    )
    for pair in comparison.pairs:
        console.say(pair.sentence())
        if pair.left_out():
            console.say(pair.left_out())
    context = get_task(comparison.task).context if comparison.task in task_names() else ""
    if context:
        console.say(f"For context, not to be compared: {context}.")
