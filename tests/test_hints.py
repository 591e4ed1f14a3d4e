"""What each task tells in a hinted round: the gold answer, in the prompt and in no training row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith.data.select import Rule, select
from tunesmith.errors import UsageError
from tunesmith.evaluate.rounds import with_hint
from tunesmith.tasks.base import GradedTask, QuestionSettings
from tunesmith.tasks.registry import get_graded_task, get_task, task_names
from tunesmith.types import Attempt, Problem, StopReason, Verdict

OPTIONS = {"question": "Which floats?", "choices": ["a nail", "a cork."], "answer": 1}
LETTERS = {"input": "Which floats?\nOptions:\n(A) a nail\n(B) a cork", "target": "(B)"}
LISTED = "Which floats?\n(A) a nail\n(B) a cork"
FUNCTION = {"prompt": "def f(x):\n", "entry_point": "f", "canonical_solution": "    return 6 * 2",
            "test": "def check(c):\n    assert c(1) == 12"}  # fmt: skip
WRITTEN = {"text": "Write f.", "code": "def f(x): return 6 * 2", "test_list": ["assert f(1) == 12"]}
PATTERN = {"question": "Who?", "answer": "J.* Gerlach", "checker": "regex"}
TABLE: list[Any] = [
    ("units", None, None),
    ("countdown", None, "One way is {solution}."),
    ("maths", {"question": "3 * 2?", "answer": "3 * 2 = 6\n#### 6"}, "The answer is 6."),
    ("choice", OPTIONS, "The correct choice is (B) a cork."),
    ("bbh", LETTERS, "The correct choice is (B)."),
    ("bbh", {"input": "Is it so?", "target": "No"}, "The answer is No."),
    ("bbh", {"input": "Close ( [", "target": "] )"}, "The answer is ] )."),
    ("qa", {"question": "Who?", "answer": "J. Gerlach"}, "The answer is J. Gerlach."),
    ("qa", {"question": "How many?", "answer": "7", "checker": "number"}, "The answer is 7."),
    ("qa", {"question": LISTED, "answer": "B", "checker": "choice"}, "The correct choice is (B)."),
    ("humaneval", FUNCTION, "return 6 * 2"),
    ("mbpp", WRITTEN, "return 6 * 2"),
    ("raft", {"question": "Who?", "answer": "J. Gerlach"}, "The answer is J. Gerlach."),
    ("qa", {**PATTERN, "example": "Jutta Gerlach"}, "The answer is Jutta Gerlach."),
]


def first(task: GradedTask, row: dict[str, Any] | None, folder: Path) -> Problem:
    if row is None:
        return task.problems("train", limit=1)[0]
    file = folder / "rows.json"
    file.write_text(json.dumps({"examples": [row]} if "target" in row else [row]))
    return task.problems("train", source=str(file))[0]


@pytest.mark.parametrize(("name", "row", "sentence"), TABLE)
def test_a_hint_tells_the_gold_answer_and_no_row_shows_it(
    name: str, row: dict[str, Any] | None, sentence: str | None, tmp_path: Path
) -> None:
    task = get_graded_task(name, QuestionSettings())
    problem = first(task, row, tmp_path)
    hint = task.hint(problem) or ""
    gold = task.answer_example(problem).segments[-1].text
    assert (sentence or gold).format(**problem.meta) in hint
    style = "direct" if "direct" in task.prompts else task.prompts[0]
    asked = with_hint(task, problem, task.messages(problem, style)[-1])
    assert asked.text == f"{problem.prompt[-1].text}\n{hint}"
    assert task.grade(problem, gold).score == 1
    attempt = Attempt(
        problem.id, 0, 0, gold, (1,), StopReason.STOP_TOKEN, Verdict(1.0, None, "right"), True
    )
    chosen = select({problem.id: problem}, [attempt], task, Rule())
    rows = [made.example for made in chosen.rows()] or [task.path_example(problem, gold, "x")]
    for example in rows:
        assert [turn.text for turn in example.segments] == [problem.prompt[-1].text, gold]


def test_every_graded_task_has_a_hint_or_says_that_it_has_none(tmp_path: Path) -> None:
    graded = {name for name in task_names() if isinstance(get_task(name), GradedTask)}
    assert graded == {row[0] for row in TABLE} | {"socratic", "ifeval"}
    task = get_graded_task("qa", QuestionSettings())
    # A pattern is no answer.
    problem = first(task, PATTERN, tmp_path)
    with pytest.raises(UsageError, match="'qa' has no hint for"):
        with_hint(task, problem, problem.prompt[-1])
