"""``tunesmith compare``: stored results against each other on the same questions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.config.load import Resolved
from tunesmith.config.schema_results import CompareOptions
from tunesmith.errors import DataError
from tunesmith.storage import write_json
from tunesmith.tasks.registry import score_called
from tunesmith.workflows import console
from tunesmith.workflows.evaluate import score_line

if TYPE_CHECKING:
    from tunesmith.evaluate.compare import Comparison


def command(resolved: Resolved[CompareOptions]) -> int:
    """Handle ``tunesmith compare``; the sentences go to stdout."""
    options = resolved.options
    comparison = compare(options.results, options.output, options.metric)
    called = options.metric or score_called(comparison.task)
    for name, summary in comparison.summaries.items():
        print(f"{name}: {score_line(summary, called)}")
    for pair in comparison.pairs:
        print(pair.sentence())
    if options.metric and lower_is_better(options.metric):
        print(f"Of {options.metric} lower is better.")
    try:
        for sentence in loss_sentences(options):
            print(sentence)
    except DataError as failure:
        print(f"The held-out losses are not compared. {failure.found}")
    return 0


def compare(results: list[str], output: str | None = None, metric: str | None = None) -> Comparison:
    """Compare stored sets of attempts, the baseline first; write JSON if ``output`` is given.

    With ``metric`` they are compared by a value of each reply in place of the stored score.
    """
    from tunesmith.evaluate.compare import compare as compare_sets
    from tunesmith.evaluate.records import load
    from tunesmith.evaluate.scores.stored import scored_by

    sets = [load(Path(path)) for path in results]
    if metric is not None:
        sets = [
            scored_by(one, path, metric) if not one.missing else one
            for one, path in zip(sets, results, strict=True)
        ]
    comparison = compare_sets(sets)
    if output is not None:
        by = {} if metric is None else {"metric": metric}
        write_json(output, {**comparison.to_json(), **by})
    return comparison


def lower_is_better(metric: str) -> bool:
    """Say whether of two models the one with the lower value does better."""
    from tunesmith.evaluate.scores.table import metrics_of
    from tunesmith.tasks.replies import REPLY_TASKS

    every = (one for task in REPLY_TASKS for _, found in metrics_of(task) for one in found)
    return any(one.name == metric and one.better == "lower" for one in every)


def loss_sentences(options: CompareOptions) -> list[str]:
    """Say how the held-out losses differ that lie beside two sets of replies to the same rows."""
    from tunesmith.evaluate.compare import compare_losses
    from tunesmith.evaluate.records import load
    from tunesmith.evaluate.scores.stored import losses

    first, *others = [(load(Path(path)).name, losses(path)) for path in options.results]
    return [
        compare_losses(first[1], other).sentence(first[0], name)
        for name, other in others
        if first[1] and other
    ]


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
    context = get_task(comparison.task).context if comparison.task in task_names() else ""
    if context:
        console.say(f"For context, not to be compared: {context}.")
