"""The ``mt_bench`` task: questions of several turns, by category, for a judge to look at.

The layout is MT-bench's (arXiv 2306.05685): ``question.jsonl`` with ``{"question_id": 81,
"category": "writing", "turns": ["…", "…"]}``, and beside it, where there are right answers,
``reference_answer/NAME.jsonl`` with ``{"question_id": 81, "choices": [{"turns": ["…", "…"]}]}``;
without that folder a row may hold them itself, as ``reference``.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunesmith.data.readers import Row, read_rows
from tunesmith.errors import DataError, UsageError
from tunesmith.grading.thinking import split_thinking
from tunesmith.tasks.base import GradedTask
from tunesmith.types import Example, Problem, Segment, Verdict

QUESTIONS = "question.jsonl"
REFERENCES = "reference_answer"
LAYOUT = '{"question_id": 81, "category": "writing", "turns": ["…", "…"]}'


class MtBenchTask(GradedTask):
    """Answer turn after turn, one's own answers in the context; nothing is right or wrong."""

    name = "mt_bench"
    summary = "questions of several turns, for a judge"
    prompts = ("direct",)
    max_new_tokens = 1024
    problems_called = "questions of several turns"

    def problems(
        self, split: str, *, seed: int = 0, limit: int | None = None, source: str | None = None
    ) -> list[Problem]:
        """Return a problem for each turn of each question; ``limit`` questions, drawn by ``seed``.

        The prompt holds the user's turns up to this one; ``after`` puts the answers between them.
        ``DataError`` names a row that is none.
        """
        del split
        if source is None:
            raise UsageError(
                "The mt_bench task has no questions of its own.",
                expected=f"a folder with {QUESTIONS}, or such a file",
                hint=f"--dataset mt_bench/{QUESTIONS}",
            )
        path = Path(source) / QUESTIONS if Path(source).is_dir() else Path(source)
        folder = path.parent / REFERENCES
        beside = _references(folder) if folder.is_dir() else None
        questions: dict[str, list[Problem]] = {}
        for row in read_rows(str(path)):
            number = str(row.fields.get("question_id", ""))
            if not number or number in questions:
                what = "two questions have the id" if number else "no question_id"
                raise DataError(f"{row.origin}: {what} {number}".rstrip() + ".", expected=LAYOUT)
            right = row.fields.get("reference") if beside is None else beside.get(number)
            questions[number] = _turns(row, number, right or [])
        chosen = list(questions)
        if limit is not None and limit < len(chosen):
            drawn = random.Random(f"{self.name}/{seed}").sample(range(len(chosen)), limit)
            chosen = [chosen[at] for at in sorted(drawn)]
        return [problem for number in chosen for problem in questions[number]]

    def after(self, problem: Problem, answers: Sequence[str]) -> Problem:
        """Return a problem with the model's own answers to the turns before, without thinking."""
        prompt: list[Segment] = []
        for turn, answer in zip(problem.prompt, [*answers, None], strict=True):
            prompt.append(turn)
            if answer is not None:
                prompt.append(Segment("assistant", split_thinking(answer).answer or ""))
        return replace(problem, prompt=tuple(prompt))

    def messages(self, problem: Problem, style: str) -> tuple[Segment, ...]:
        """Return the conversation so far."""
        self.check_style(style)
        return problem.prompt

    def grade(self, problem: Problem, text: str) -> Verdict:
        """Grade nothing: that is for a judge to do."""
        return self.judge(problem, text)

    def judge(self, problem: Problem, text: str) -> Verdict:
        """Return that it is ungraded."""
        del problem
        return Verdict(None, text.strip() or None, "for a judge: tunesmith judge")

    def judge_strictly(self, problem: Problem, text: str) -> Verdict:
        """Return that it is ungraded."""
        return self.judge(problem, text)

    def answer_example(self, problem: Problem) -> Example:
        """Refuse: these questions are for evaluation."""
        raise UsageError(f"{problem.id!r} is a question of mt_bench, which is not trained on.")


def _turns(row: Row, number: str, given: Any) -> list[Problem]:
    turns = row.fields.get("turns")
    if not _texts(turns) or not turns:
        raise DataError(f"{row.origin}: no list of turns.", expected=LAYOUT)
    if not _texts(given) or len(given) not in (0, len(turns)):
        raise DataError(
            f"{row.origin}: {len(turns)} turns, but not as many reference answers.",
            expected="a reference answer for each turn, or none",
        )
    category = row.fields.get("category")
    return [
        Problem(
            f"{MtBenchTask.name}-{number}-{turn}",
            MtBenchTask.name,
            tuple(Segment("user", text) for text in turns[:turn]),
            given[turn - 1] if given else "",
            {"question": number, "turn": turn, **({"category": category} if category else {})},
        )
        for turn in range(1, len(turns) + 1)
    ]


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _references(folder: Path) -> Mapping[str, list[str]]:
    """Return the reference answers of a folder, by question."""
    files = sorted(folder.glob("*.jsonl"))
    if len(files) > 1:
        raise DataError(
            f"{str(folder)!r} holds several files of reference answers: "
            f"{', '.join(file.name for file in files)}.",
            expected="one of them",
        )
    found: dict[str, list[str]] = {}
    for row in read_rows(str(files[0])) if files else ():
        try:
            turns = row.fields["choices"][0]["turns"]
            number = row.fields["question_id"]
        except (KeyError, IndexError, TypeError):
            turns, number = None, None
        if not _texts(turns) or number is None:
            raise DataError(
                f"{row.origin}: no reference answer.",
                expected='{"question_id": 101, "choices": [{"turns": ["…", "…"]}]}',
            )
        found[str(number)] = list(turns)
    return found
