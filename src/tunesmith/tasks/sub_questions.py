"""Decomposer and solver: the prompt that asks for sub-questions, and the one that answers them.

After least-to-most prompting (Zhou et al. 2022, arXiv 2205.10625): a model first writes the
questions that lead to the answer, then a model (the same or another) answers them in turn and ends
in the task's own answer form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.data.socratic import parse_list, render_list
from tunesmith.errors import UsageError
from tunesmith.types import Problem, Segment, Verdict

SOCRATIC = "socratic"
"""The prompt style in which sub-questions are answered."""
ASK = "sub-questions"
"""The style in which they are asked for; it is no style of an evaluation."""
QUESTIONS = "questions"
"""Key of a problem's meta that holds its sub-questions."""
REQUEST = (
    "Write the questions that have to be answered first, in order, as a numbered list. Answer none."
)
INSTRUCTION = "Answer the numbered questions in turn, then give the answer."


@dataclass(frozen=True, slots=True)
class Parts:
    """A worked example: a question, its sub-questions with their answers, and the ending."""

    question: str
    steps: tuple[tuple[str, str], ...]
    ending: str


def messages(examples: Sequence[Parts], problem: Problem, style: str) -> tuple[Segment, ...]:
    """Return the prompt of one of the two styles, its examples as earlier turns of the chat."""
    turns = []
    for one in examples:
        asked = [question for question, _ in one.steps]
        answers = "\n".join([*(answer for _, answer in one.steps), one.ending])
        if style == ASK:
            turns += [Segment("user", one.question), Segment("assistant", render_list(asked))]
        else:
            turns += [Segment("user", _with_list(one.question, asked))]
            turns += [Segment("assistant", answers)]
    if style == ASK:
        return (Segment("system", REQUEST), *turns, *problem.prompt)
    questions = problem.meta.get(QUESTIONS)
    if questions is None:
        raise UsageError(
            f"The prompt style {SOCRATIC} answers sub-questions, and {problem.id!r} has none.",
            expected="tunesmith eval, in which a model writes them first",
            hint="--prompt cot",
        )
    last = problem.prompt[-1]
    asked = [str(question) for question in questions]
    own = Segment(last.role, _with_list(last.text, asked))
    return (Segment("system", INSTRUCTION), *turns, *problem.prompt[:-1], own)


def judge_list(problem: Problem, text: str) -> Verdict:
    """Say whether a list of sub-questions can be read; what they are worth shows in the answers."""
    del problem
    found = parse_list(text)
    if not found:
        return Verdict(0.0, None, "no list of questions")
    return Verdict(1.0, render_list(found), f"{len(found)} sub-questions")


def _with_list(question: str, asked: Sequence[str]) -> str:
    """Return a question with its list; where no list could be read it is the only sub-question."""
    return f"{question}\n\n{render_list(asked or [question])}"
