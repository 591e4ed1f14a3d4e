"""Rounds of attempts: more at the problems that have too few verified ones, perhaps with a hint."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tunesmith.errors import UsageError
from tunesmith.generate.requests import Sampling
from tunesmith.tasks.base import GradedTask
from tunesmith.types import Problem, Segment


@dataclass(frozen=True, slots=True)
class Rounds:
    """How attempts are spread over rounds; one round asks every problem equally often."""

    count: int = 1
    enough: int = 4
    """A round after the first asks only problems with fewer verified attempts than this."""
    temperature: float | None = None
    """Temperature of the last round; those between rise to it evenly. None keeps it the same."""
    hint_last: bool = False
    """The last round tells the gold answer, at problems of which no attempt is verified."""

    def hinted(self, number: int) -> bool:
        """Return whether round ``number`` (from 0) tells the answer."""
        return self.hint_last and number == self.count - 1

    def sampling(self, first: Sampling, number: int) -> Sampling:
        """Return how round ``number`` (from 0) samples; ``first`` is how the first one does."""
        if self.temperature is None or not number:
            return first
        risen = (self.temperature - first.temperature) * number / (self.count - 1)
        return replace(first, temperature=first.temperature + risen)


ONE_ROUND = Rounds()


def with_hint(task: GradedTask, problem: Problem, question: Segment) -> Segment:
    """Return the last turn of a prompt with the task's hint; ``UsageError`` if it has none."""
    hint = task.hint(problem)
    if hint is None:
        raise UsageError(
            f"The task {task.name!r} has no hint for {problem.id!r}.",
            expected="an answer that can be told in a sentence, such as a number",
            hint="leave --hint-last out",
        )
    return replace(question, text=f"{question.text}\n{hint}")
