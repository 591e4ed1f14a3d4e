"""``tunesmith eval --compare-with``: compare with a stored set, and stop when that is clear."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.config.schema import EvalOptions
from tunesmith.errors import UsageError
from tunesmith.storage import write_json
from tunesmith.workflows import console

if TYPE_CHECKING:
    from tunesmith.evaluate.stopping import StopRule
    from tunesmith.types import Problem
    from tunesmith.workflows.evaluate import EvalResult


def stop_rule(
    options: EvalOptions, problems: Sequence[Problem], name: str, folder: Path
) -> StopRule | None:
    """Return the rule that stops an evaluation, None where all questions are asked.

    Raises ``UsageError`` for a baseline that cannot be compared with, before anything is asked or
    removed from the evaluation's ``folder``.
    """
    from tunesmith.evaluate.metrics import problem_scores
    from tunesmith.evaluate.records import load
    from tunesmith.evaluate.stopping import StopRule

    if options.clear_width is not None and not options.stop_when_clear:
        raise UsageError("--clear-width does nothing without --stop-when-clear.")
    if options.compare_with is None:
        if options.stop_when_clear:
            raise UsageError(
                "--stop-when-clear needs a set to be clear of.", hint="--compare-with RESULTS"
            )
        return None
    baseline = load(Path(options.compare_with)).first_round()
    if baseline.missing:
        raise UsageError(
            f"{baseline.name!r} is not finished: {baseline.missing} attempts are missing.",
            hint="finish it first: the same tunesmith eval again makes what is missing",
        )
    if baseline.name == name:
        raise UsageError(f"Both sets are called {name!r}.", hint="--name another")
    if options.overwrite and Path(options.compare_with).resolve().is_relative_to(folder.resolve()):
        raise UsageError(
            f"--overwrite would remove {options.compare_with!r}, which is compared with.",
            hint="--name another",
        )
    unknown = [problem.id for problem in problems if problem.id not in baseline.problems]
    if unknown and (options.stop_when_clear or len(unknown) == len(problems)):
        raise UsageError(
            f"{len(unknown)} of {len(problems)} questions are not in {baseline.name!r}, such as "
            f"{unknown[0]!r}.",
            expected="results of the same questions",
            hint="the same --task, --split, --question-seed and --limit as those results",
        )
    if not options.stop_when_clear:
        return None
    scores = problem_scores(baseline.attempts)
    return StopRule(baseline.name, baseline.header.fingerprint, scores, options.clear_width)


def tell_stop(rule: StopRule, folder: Path) -> None:
    """Say where an evaluation stopped, and write it down beside its attempts."""
    from tunesmith.evaluate.records import STOPPED

    forget_stop(folder)
    if rule.stopped is None:
        console.say(f"All questions were asked before the difference to {rule.name} was clear.")
        return
    write_json(folder / f"{STOPPED}.json", rule.stopped.to_json())
    console.say(rule.stopped.sentence())


def forget_stop(folder: Path) -> None:
    """Take away what an earlier stop has written: asking goes on, and may be stopped halfway."""
    from tunesmith.evaluate.records import STOPPED

    (folder / f"{STOPPED}.json").unlink(missing_ok=True)


def tell_compared(options: EvalOptions, result: EvalResult) -> None:
    """Compare a finished evaluation with the set it is held against."""
    from tunesmith.evaluate.compare import compare
    from tunesmith.evaluate.records import load

    baseline = load(Path(str(options.compare_with)))
    for pair in compare([baseline, result.results]).pairs:
        console.say(pair.sentence())
