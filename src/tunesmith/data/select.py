"""From attempts to training rows: verified, distinct, capped, every discard counted."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from tunesmith.grading.arithmetic import equations
from tunesmith.grading.paths import Preference, choose_paths, equation_signature
from tunesmith.tasks.base import GradedTask
from tunesmith.types import Attempt, Example, Problem, StopReason

CUT_OFF = "cut off at the token limit"
FILTERED = "cut off by a content filter"
NOT_SHOWN = "hinted, and no equation leads to the answer"
SOLVED_WITHOUT = "hinted, where a path without a hint was verified"
SAME = "the same path again"
SAME_AS_GOLD = "the same path as the gold row"


@dataclass(frozen=True, slots=True)
class Rule:
    """Which of the verified paths of a problem are kept."""

    max_paths: int = 4
    """Distinct paths kept for a problem."""
    prefer: Preference = "farthest"
    """Which ones stay of several with the same equations, and of more than ``max_paths``."""
    max_tokens: int | None = None
    """Longest path in tokens of the answer."""
    keep_gold: bool = False
    """Add the task's own row of every problem, and keep no path with its equations."""

    @property
    def too_long(self) -> str:
        """Return the reason why a long path is not kept."""
        return f"longer than {self.max_tokens} tokens"


@dataclass(frozen=True, slots=True)
class Selected:
    """One kept path and the training row made of it; a gold row has no attempt."""

    problem: Problem
    attempt: Attempt | None
    example: Example


@dataclass(frozen=True, slots=True)
class Selection:
    """What was kept of a set of attempts, and why the rest was not."""

    kept: tuple[Selected, ...]
    """Paths in the order of the problems; they hold nothing of a hint."""
    gold: tuple[Selected, ...]
    """The tasks' own rows, where they were asked for."""
    discards: Mapping[str, int]
    """Reason → attempts; with the kept ones they add up to all."""
    solved: int
    """Problems with at least one path that could be kept."""

    def rows(self) -> list[Selected]:
        """Return all rows, each problem's gold row in front of its paths."""
        paths: dict[str, list[Selected]] = {}
        for one in self.kept:
            paths.setdefault(one.problem.id, []).append(one)
        if not self.gold:
            return list(self.kept)
        return [row for one in self.gold for row in (one, *paths.get(one.problem.id, []))]


def select(
    problems: Mapping[str, Problem], attempts: Iterable[Attempt], task: GradedTask, rule: Rule
) -> Selection:
    """Keep distinct, strictly verified paths of each problem (arXiv 2308.01825).

    Attempts are verified here again, by the strict verifier, whatever verdict they carry; the
    order of the result does not depend on the order in which attempts finished. A path that was
    made with a hint is kept only where it shows an equation, and none without one was verified.
    """
    discards: Counter[str] = Counter()
    verified: dict[str, list[Attempt]] = {}
    unaided: set[str] = set()
    for attempt in sorted(attempts, key=lambda a: (a.problem_id, a.index)):
        reason = _fault(attempt, problems[attempt.problem_id], task, rule)
        if not attempt.hinted and reason in ("", rule.too_long):
            unaided.add(attempt.problem_id)
        if reason:
            discards[reason] += 1
        else:
            verified.setdefault(attempt.problem_id, []).append(attempt)
    kept: list[Selected] = []
    gold: list[Selected] = []
    for problem_id, problem in problems.items():
        found = verified.get(problem_id, [])
        if problem_id in unaided:
            own = [attempt for attempt in found if not attempt.hinted]
            discards[SOLVED_WITHOUT] += len(found) - len(own)
            found = own
        if rule.keep_gold:
            row = Selected(problem, None, task.answer_example(problem))
            gold.append(row)
            found = _unlike(row.example.segments[-1].text, found, discards)
        texts = [attempt.text for attempt in found]
        lengths = [len(attempt.tokens) for attempt in found]
        chosen = choose_paths(texts, rule.max_paths, rule.prefer, lengths)
        distinct = len({equation_signature(text) for text in texts})
        discards[SAME] += len(found) - distinct
        discards[f"more than {rule.max_paths} paths"] += distinct - len(chosen)
        for position in chosen:
            attempt = found[position]
            item = f"{problem_id}#{attempt.index}"
            example = task.path_example(problem, attempt.text, item)
            kept.append(Selected(problem, attempt, example))
    left = {reason: n for reason, n in discards.items() if n}
    return Selection(tuple(kept), tuple(gold), left, len(verified))


def _fault(attempt: Attempt, problem: Problem, task: GradedTask, rule: Rule) -> str:
    """Return why an attempt cannot be kept whatever the others are; nothing if it can."""
    if attempt.stop is StopReason.LENGTH:
        return CUT_OFF
    if attempt.stop is StopReason.FILTERED:
        return FILTERED
    verdict = task.verify(problem, attempt.text)
    if verdict.score != 1.0:
        return verdict.reason or "not verified"
    if rule.max_tokens is not None and len(attempt.tokens) > rule.max_tokens:
        return rule.too_long
    # Whoever is told the answer can repeat it; only steps that lead to it are a path.
    if attempt.hinted and not equations(attempt.text):
        return NOT_SHOWN
    return ""


def _unlike(gold: str, found: list[Attempt], discards: Counter[str]) -> list[Attempt]:
    """Return the paths whose equations, or words where there are none, are not the gold row's."""
    known = equation_signature(gold)
    unlike = [attempt for attempt in found if equation_signature(attempt.text) != known]
    discards[SAME_AS_GOLD] += len(found) - len(unlike)
    return unlike


@dataclass(frozen=True, slots=True)
class Pool:
    """The attempts of several rounds as one set, each with an index of its own."""

    attempts: tuple[Attempt, ...]
    starts: tuple[int, ...]
    """Index that the first attempt of each round got."""

    def place(self, index: int) -> tuple[int, int]:
        """Return round (from 1) and own index of the attempt that has this index here."""
        number = bisect_right(self.starts, index)
        return number, index - self.starts[number - 1]


def pool(rounds: Iterable[Iterable[Attempt]]) -> Pool:
    """Put the attempts of several rounds, by several models, into one set for ``select``.

    Then its rules hold over all rounds: distinct paths, the cap for a problem, and that a hinted
    path gives way to one that any round has found without.
    """
    found: list[Attempt] = []
    starts: list[int] = []
    start = 0
    for attempts in rounds:
        own = [replace(attempt, index=start + attempt.index) for attempt in attempts]
        starts.append(start)
        start = max([start, *(attempt.index + 1 for attempt in own)])
        found += own
    return Pool(tuple(found), tuple(starts))
