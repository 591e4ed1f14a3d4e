"""``tunesmith compare``: stored results against each other on the same questions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.config.load import Resolved
from tunesmith.config.schema_results import CompareOptions
from tunesmith.storage import write_json
from tunesmith.workflows import console
from tunesmith.workflows.evaluate import score_line

if TYPE_CHECKING:
    from tunesmith.evaluate.compare import Comparison


def command(resolved: Resolved[CompareOptions]) -> int:
    """Handle ``tunesmith compare``; the sentences go to stdout."""
    comparison = compare(resolved.options.results, resolved.options.output)
    for name, summary in comparison.summaries.items():
        print(f"{name}: {score_line(summary)}")
    for pair in comparison.pairs:
        print(pair.sentence())
    return 0


def compare(results: list[str], output: str | None = None) -> Comparison:
    """Compare stored sets of attempts, the baseline first; write JSON if ``output`` is given."""
    from tunesmith.evaluate.compare import compare as compare_sets
    from tunesmith.evaluate.records import load

    comparison = compare_sets([load(Path(path)) for path in results])
    if output is not None:
        write_json(output, comparison.to_json())
    return comparison


def show(comparison: Comparison) -> None:
    """Print a comparison for people."""
    from tunesmith.tasks.registry import get_task, task_names

    console.table(
        "Scores on the same questions",
        ["", "right", "95% interval", "answered"],
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
