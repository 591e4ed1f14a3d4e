"""From attempts to training rows: verified, distinct, capped, every discard counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tunesmith.grading.paths import choose_paths, equation_signature
from tunesmith.tasks.base import GradedTask
from tunesmith.types import Attempt, Example, Problem, StopReason


@dataclass(frozen=True, slots=True)
class Selected:
    """One kept path and the training row made of it."""

    problem: Problem
    attempt: Attempt
    example: Example


@dataclass(frozen=True, slots=True)
class Selection:
    """What was kept of a set of attempts, and why the rest was not."""

    kept: tuple[Selected, ...]
    discards: Mapping[str, int]
    """Reason → attempts; with the kept ones they add up to all."""
    solved: int
    """Problems with at least one kept path."""


def select(
    problems: Mapping[str, Problem], attempts: Iterable[Attempt], task: GradedTask, max_paths: int
) -> Selection:
    """Keep at most ``max_paths`` distinct, strictly verified paths a problem (arXiv 2308.01825).

    Attempts are verified here again, by the strict verifier, whatever verdict they carry; the
    order of the result does not depend on the order in which attempts finished.
    """
    discards: Counter[str] = Counter()
    verified: dict[str, list[Attempt]] = {}
    for attempt in sorted(attempts, key=lambda a: (a.problem_id, a.index)):
        if attempt.stop is StopReason.LENGTH:
            discards["cut off at the token limit"] += 1
            continue
        verdict = task.verify(problems[attempt.problem_id], attempt.text)
        if verdict.score == 1.0:
            verified.setdefault(attempt.problem_id, []).append(attempt)
        else:
            discards[verdict.reason] += 1
    kept: list[Selected] = []
    for problem_id, problem in problems.items():
        found = verified.get(problem_id, [])
        texts = [attempt.text for attempt in found]
        chosen = choose_paths(texts, max_paths)
        distinct = len({equation_signature(text) for text in texts})
        discards["the same path again"] += len(found) - distinct
        discards[f"more than {max_paths} paths"] += distinct - len(chosen)
        for position in chosen:
            attempt = found[position]
            item = f"{problem_id}#{attempt.index}"
            example = task.path_example(problem, attempt.text, item)
            kept.append(Selected(problem, attempt, example))
    return Selection(tuple(kept), {k: n for k, n in discards.items() if n}, len(verified))
