"""Asking until a comparison is clear: in a random order, with an interval for every time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from tunesmith.evaluate.betting import anytime
from tunesmith.evaluate.metrics import SEED, problem_scores
from tunesmith.evaluate.statistics import Interval

if TYPE_CHECKING:
    from tunesmith.evaluate.attempts import Plan
    from tunesmith.types import Attempt

LOOK = 32
"""Questions between two looks; all of them are answered before one looks, so that short answers,
which end first, are not preferred."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Where asking stopped because the comparison was clear."""

    why: str
    """zero: the interval leaves it out; width: it is as narrow as was asked for."""
    questions: int
    of: int
    attempts: int
    difference: float
    interval: Interval
    against: str
    tokens: int | None
    """Generated so far; None where nobody counted."""
    tokens_saved: int | None
    """What the other questions would have taken at the mean of those asked."""

    def sentence(self) -> str:
        """Say where it stopped and what that saved."""
        left = self.of - self.questions
        saved = "" if self.tokens_saved is None else f" and about {self.tokens_saved:,} tokens"
        why = "clear" if self.why == "zero" else "narrow enough"
        return (
            f"Stopped after {self.questions} of {self.of} questions: {self.difference * 100:+.1f} "
            f"points against {self.against} is {why} (95% interval {self.interval.low * 100:+.1f} "
            f"to {self.interval.high * 100:+.1f}, which holds at every time). {left} questions"
            f"{saved} were not needed. The score of this set alone has an interval for a fixed "
            "number of questions, which does not hold where the result decided the number."
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON knows it."""
        return asdict(self) | {"sentence": self.sentence()}


class StopRule:
    """Stops a plan once the difference to a baseline is clear."""

    def __init__(
        self, name: str, fingerprint: str, baseline: Mapping[str, float], width: float | None
    ) -> None:
        self.name, self.baseline, self.width = name, baseline, width
        self._fingerprint = fingerprint
        self.stopped: Stop | None = None
        """Set when the comparison is clear before all questions are asked."""

    def described(self) -> dict[str, Any]:
        """Return what a header says of the rule."""
        return {"against": self.name, "width": self.width, "baseline": self._fingerprint}

    def planned(self, plan: Plan) -> Plan:
        """Return the plan in the order of the rule; another rule does not go on with its log."""
        by_id = {problem.id: problem for problem in plan.problems}
        problems = tuple(by_id[problem_id] for problem_id in asked_order(by_id))
        rule = f"{plan.variant} until clear of {self._fingerprint}, width {self.width}"
        return replace(plan, problems=problems, variant=rule)

    def attempts(
        self,
        ask: Callable[[Plan], Iterator[Attempt]],
        plan: Plan,
        stored: Iterable[Attempt],
        should_stop: Callable[[], bool],
    ) -> Iterator[Attempt]:
        """Yield the attempts of a plan that are not stored until the comparison is clear."""
        known = list(stored)
        for start in range(0, len(plan.problems), LOOK):
            part = replace(plan, problems=plan.problems[start : start + LOOK])
            for attempt in ask(part):
                known.append(attempt)
                yield attempt
            if should_stop():
                return
            asked = [problem.id for problem in plan.problems[: start + LOOK]]
            if any(attempt.problem_id not in asked for attempt in known):
                continue  # more is stored: it was not clear here, or by another grader
            self.stopped = self._clear(asked, known, plan)
            if self.stopped is not None:
                return

    def _clear(self, asked: Sequence[str], known: Sequence[Attempt], plan: Plan) -> Stop | None:
        scores = problem_scores(known)
        differences = [
            scores[key] - self.baseline[key]
            for key in asked
            if key in scores and key in self.baseline
        ]
        if not differences:
            return None
        ends = anytime(differences).interval
        wide = self.width is None or ends.high - ends.low > self.width
        if len(asked) == len(plan.problems) or (0.0 in ends and wide):
            return None
        tokens = sum(len(attempt.tokens) for attempt in known) or None
        left = len(plan.problems) - len(asked)
        return Stop(
            "width" if 0.0 in ends else "zero",
            len(asked),
            len(plan.problems),
            len(known),
            sum(differences) / len(differences),
            ends,
            self.name,
            tokens,
            None if tokens is None else round(tokens * left / len(asked)),
        )


def asked_order(ids: Iterable[str]) -> list[str]:
    """Return ids in a random order that is the same for every model and run."""
    return sorted(ids, key=lambda one: hashlib.sha256(f"{SEED}/{one}".encode()).digest())
