"""The ``qa`` task: somebody's own questions and answers, checked by a rule.

A row is ``{"question": …, "answer": …}``, where the answer may be a list of right ones, perhaps
with a ``checker`` (or ``rule``) of its own; for ``regex`` the answer is the pattern, and
``example`` an answer that can be trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tunesmith.errors import DataError, UsageError
from tunesmith.grading.arithmetic import equations
from tunesmith.tasks.base import telling
from tunesmith.tasks.files import FileTask
from tunesmith.tasks.rules import RULES, check_gold, judge, parse_rule
from tunesmith.types import Problem, Segment, Verdict

if TYPE_CHECKING:
    from tunesmith.data.readers import Row

INSTRUCTION = (
    "Think step by step, then write the answer, and nothing but it, behind «The answer is»."
)
WORKED = (
    (
        "Which of the months with 30 days comes last in the year?",
        "April, June, September and November have 30 days. The last of them is November.\n"
        "The answer is November",
    ),
    (
        "A shelf holds 4 boards of 9 books. 5 books are lent. How many are there?",
        "4 * 9 = 36 books belong there, and 36 - 5 = 31 are left.\nThe answer is 31",
    ),
)
"""Questions and answers of the ``cot`` prompt, written for it and in no data set."""


class QaTask(FileTask):
    """Answer a question; a rule says what is right."""

    name = "qa"
    summary = "your own questions and answers, checked by a rule (--checker)"
    problems_called = "questions with answers"
    wants = "a file of rows with question and answer"
    uses = ("columns", "checker")

    @classmethod
    def reads(cls, fields: Mapping[str, Any]) -> bool:
        return "question" in fields

    def problem(self, row: Row) -> Problem:
        """Return the problem of a row; its own rule goes before ``--checker``."""
        question, answer = row.fields.get("question"), row.fields.get("answer")
        golds = [_text(one) for one in (answer if isinstance(answer, list) else [answer])]
        if not isinstance(question, str) or not question.strip():
            raise DataError(
                f"{row.origin}: no question (fields: {', '.join(row.fields)}).",
                expected='{"question": "…", "answer": "…"}',
                hint="--columns question=YOUR_QUESTION,answer=YOUR_ANSWER",
            )
        if not golds or not all(gold.strip() for gold in golds):
            raise DataError(
                f"{row.origin}: no answer (fields: {', '.join(row.fields)}).",
                expected='{"question": "…", "answer": "…"}, or a list of right answers',
                hint="--columns answer=YOUR_ANSWER",
            )
        own = row.fields.get("checker") or row.fields.get("rule")
        said = str(own or self.settings.checker or "exact")
        try:
            rule = parse_rule(said)
        except ValueError as wrong:
            if own is None:
                raise UsageError(f"{wrong}.", expected=RULES, hint="--checker exact") from None
            raise DataError(f"{row.origin}: {wrong}.", expected=RULES) from None
        try:
            for gold in golds:
                check_gold(rule, gold, question)
        except ValueError as wrong:
            raise DataError(
                f"{row.origin}: {wrong}.", expected=f"an answer for the checker {said!r}"
            ) from None
        example = row.fields.get("example")
        trained = example if isinstance(example, str) and example.strip() else golds[0]
        meta = {"rule": said, "golds": golds, "solution": trained}
        prompt = (Segment("user", question.strip()),)
        return Problem(question, self.name, prompt, golds[0], meta)

    def messages(self, problem: Problem, style: str) -> tuple[Segment, ...]:
        """Return the question alone, or behind a request to think and two worked examples."""
        if self.check_style(style) == "direct":
            return problem.prompt
        turns = [
            (Segment("user", f"{asked}\n\n{INSTRUCTION}"), Segment("assistant", answer))
            for asked, answer in WORKED
        ]
        last = Segment("user", f"{problem.prompt[-1].text}\n\n{INSTRUCTION}")
        return (*(segment for turn in turns for segment in turn), last)

    def judge(self, problem: Problem, text: str) -> Verdict:
        """Grade by the problem's rule, what the text marks as its answer or its last line."""
        rule = parse_rule(str(problem.meta["rule"]))
        return judge(rule, list(problem.meta["golds"]), problem.prompt[-1].text, text)

    def judge_strictly(self, problem: Problem, text: str) -> Verdict:
        """Grade by the rule, and ask that no equation on the way is false."""
        verdict = self.judge(problem, text)
        if verdict.score == 1 and any(step.holds is False for step in equations(text)):
            return Verdict(0.0, verdict.answer, "a false equation")
        return verdict

    def hint(self, problem: Problem) -> str | None:
        """Tell the answer, a letter as a choice; a pattern without an example tells nothing."""
        rule = parse_rule(str(problem.meta["rule"]))
        answer = str(problem.meta["solution"]).strip()
        if rule.kind == "regex" and answer == problem.reference:
            return None
        if rule.kind == "choice" and len(answer.strip("()")) == 1:
            return telling(f"The correct choice is ({answer.strip('()')}).")
        return telling(f"The answer is {answer.rstrip('.')}.")


def _text(value: Any) -> str:
    return "" if value is None or isinstance(value, Mapping | list) else str(value)
