"""What a task is: one object that serves training rows, prompts, reward and evaluation.

To add a task: one file here, one row in ``tasks/registry.py``, one test.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import Any, ClassVar

from tunesmith.errors import UsageError
from tunesmith.grading.thinking import split_thinking
from tunesmith.types import Example, Problem, Segment, Verdict

UNCLOSED = Verdict(0.0, None, "the thinking is not closed")


def telling(sentence: str) -> str:
    """Return a hint of a sentence that tells the answer."""
    return f"({sentence} Write the steps that lead to it, as if you had not been told.)"


class Task(abc.ABC):
    """A named kind of work: how rows are read, what is asked, and what counts as right."""

    name: ClassVar[str]
    summary: ClassVar[str]
    """One line for ``--help``."""
    defaults: ClassVar[Mapping[str, Any]] = {}
    """Settings of ``FineTuningConfig`` that this task overrides."""
    context: ClassVar[str] = ""
    """Figures of others on such questions, to be shown beside ours; a sentence, or nothing."""


@dataclass(frozen=True, slots=True)
class QuestionSettings:
    """What a person says of how questions are read; a task names in ``uses`` what it heeds."""

    columns: Mapping[str, str] = field(default_factory=dict)
    """Names of fields, as ``--columns`` has them."""
    checker: str | None = None
    """How answers are checked, for a task with several rules."""
    examples: str | None = None
    """A file of worked examples for the ``cot`` prompt."""
    unsafe_exec: bool = False
    """Whether programs may run where they cannot be confined."""
    abstain_phrases: tuple[str, ...] = ()
    """Further phrases by which an answer says that it is not told."""

    def given(self) -> list[str]:
        """Return the names of the settings that are not left empty."""
        return [one.name for one in fields(self) if getattr(self, one.name)]


class GradedTask(Task):
    """A task whose answers can be checked, so that it can be sampled, selected and evaluated."""

    settings: QuestionSettings = QuestionSettings()
    uses: ClassVar[tuple[str, ...]] = ()
    """Settings of ``QuestionSettings`` that change something here; others are refused."""
    generates: ClassVar[bool] = False
    """Whether it makes its own questions, so that training needs no file."""

    prompts: ClassVar[tuple[str, ...]] = ("direct", "cot")
    """Prompt styles; the first is the default."""
    splits: ClassVar[tuple[str, ...]] = ("train", "dev", "test")
    max_new_tokens: ClassVar[int] = 256
    """Enough for a worked answer."""
    problems_called: ClassVar[str] = "questions with worked answers"
    """What its rows of a file are, for people."""
    score_called: ClassVar[str] = "right"
    """What its mean score is, in percent, for people."""

    @property
    def graders(self) -> int:
        """How many answers may be graded at once; more than one where grading waits."""
        return 1

    def ready(self) -> str:
        """Get ready to grade, and say what is worth saying; ``UsageError`` where it cannot."""
        return ""

    def told(self) -> str:
        """Say what grading took; nothing where that is nothing."""
        return ""

    @classmethod
    def reads(cls, fields: Mapping[str, Any]) -> bool:
        """Say whether it makes problems of rows with these fields, so that they can be asked."""
        del fields
        return False

    @abc.abstractmethod
    def problems(
        self, split: str, *, seed: int = 0, limit: int | None = None, source: str | None = None
    ) -> list[Problem]:
        """Return problems of one split, the same ones for the same arguments on every machine.

        ``source`` is a file with questions, for tasks that make none themselves.
        """

    @abc.abstractmethod
    def messages(self, problem: Problem, style: str) -> tuple[Segment, ...]:
        """Return the whole prompt in one of ``prompts``, worked examples included."""

    def grade(self, problem: Problem, text: str) -> Verdict:
        """Grade by the task's own rule, the one that scores are reported with.

        What is judged stands behind the last ``</think>``; an unclosed block is no answer.
        """
        answer = split_thinking(text).answer
        return UNCLOSED if answer is None else self.judge(problem, answer)

    def verify(self, problem: Problem, text: str) -> Verdict:
        """Grade strictly: only what scores 1 here may become training data."""
        answer = split_thinking(text).answer
        return UNCLOSED if answer is None else self.judge_strictly(problem, answer)

    @abc.abstractmethod
    def judge(self, problem: Problem, text: str) -> Verdict:
        """Return ``grade``'s verdict on a text without thinking."""

    @abc.abstractmethod
    def judge_strictly(self, problem: Problem, text: str) -> Verdict:
        """Return ``verify``'s verdict on a text without thinking."""

    @abc.abstractmethod
    def answer_example(self, problem: Problem) -> Example:
        """Return the training row that teaches the gold answer."""

    def hint(self, problem: Problem) -> str | None:
        """Return the sentence that tells the gold answer (STaR, arXiv 2203.14465); None without.

        It stands at the end of the question in a hinted prompt, and in no training row. A task
        whose answers are no numbers has to word one of its own, or cannot be hinted; ``telling``
        puts it into its frame.
        """
        try:
            Fraction(problem.reference)
        except (ValueError, ZeroDivisionError):
            return None
        return telling(f"The answer is {problem.reference}.")

    def path_example(self, problem: Problem, text: str, item: str) -> Example:
        """Return the training row that teaches a sampled path to the plain question."""
        from tunesmith.types import Origin

        answer = Segment("assistant", text, 1.0)
        return Example((*problem.prompt, answer), Origin(problem.task, item=item))

    def chance(self, problem: Problem) -> float | None:
        """Return the score that guessing brings; None where nobody can say."""
        del problem
        return None

    def continuations(self, problem: Problem, style: str) -> list[str]:
        """Return the answers that can be scored by likelihood; none where there are no options."""
        del problem, style
        return []

    def check_style(self, style: str) -> str:
        """Return ``style`` or say which ones there are."""
        if style not in self.prompts:
            raise UsageError(
                f"Task {self.name!r} has no prompt style {style!r}.",
                expected=f"one of {', '.join(self.prompts)}",
                hint=f"--prompt {self.prompts[0]}",
            )
        return style
