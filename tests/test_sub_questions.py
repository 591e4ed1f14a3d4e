"""Decomposer and solver: sub-questions are written by one model and answered by one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tunesmith
from tiny_models import tiny_model, tiny_tokenizer
from tunesmith.data.socratic import parse_list
from tunesmith.errors import CheckpointError, UsageError
from tunesmith.evaluate.compare import compare
from tunesmith.evaluate.records import load
from tunesmith.tasks.base import GradedTask
from tunesmith.tasks.maths import MathsTask
from tunesmith.tasks.sub_questions import ASK, QUESTIONS, judge_list
from tunesmith.tasks.units import UnitsTask
from tunesmith.types import Problem, Segment

SHORT = {"limit": 3, "max_new_tokens": 40, "log_level": "error"}
MATHS = Problem("m", "maths", (Segment("user", "What is 3 * 2 + 1?"),), "7")


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("task", "problem"),
    [(UnitsTask(), UnitsTask().problems("test", limit=1)[0]), (MathsTask(), MATHS)],
    ids=["units", "maths"],
)
def test_the_worked_examples_end_in_the_form_of_the_task(
    task: GradedTask, problem: Problem
) -> None:
    asking = task.messages(problem, ASK)
    assert asking[-1] == problem.prompt[-1]
    lists = [parse_list(s.text) for s in asking if s.role == "assistant"]
    assert all(len(found) >= 2 and all(q.endswith("?") for q in found) for found in lists)
    own = ("How many is one?", "What is the product?")
    told = replace(problem, meta={**problem.meta, QUESTIONS: own})
    solving = task.messages(told, "socratic")
    assert solving[-1].text.endswith("1. How many is one?\n2. What is the product?")
    assert solving[-1].text.startswith(problem.prompt[-1].text)
    for one in (s.text for s in solving if s.role == "assistant"):
        # Gold of its own, so that form and equations are what is judged.
        marked = one.rpartition("<answer>")[2].removesuffix("</answer>").rpartition("#### ")[2]
        assert task.verify(replace(problem, reference=marked), one).score == 1.0
    with pytest.raises(UsageError, match="has none"):
        task.messages(problem, "socratic")


def test_where_no_list_can_be_read_the_question_is_the_only_one() -> None:
    told = replace(MATHS, meta={QUESTIONS: ()})
    assert MathsTask().messages(told, "socratic")[-1].text.endswith("\n\n1. What is 3 * 2 + 1?")
    assert judge_list(MATHS, "Seven.").score == 0.0


def evaluate(name: str, **given: Any) -> Any:
    return tunesmith.evaluate(**{**SHORT, "name": name, **given})


def test_sub_questions_are_stored_and_asked_once() -> None:
    first = evaluate("a", prompt="socratic")
    lists = {
        a.problem_id: parse_list(a.text)
        for a in load(first.folder / "sub-questions.jsonl").attempts
    }
    asked = {key: p.meta[QUESTIONS] for key, p in first.results.problems.items()}
    assert asked == lists
    log = (first.folder / "sub-questions.jsonl").read_bytes()
    evaluate("a", prompt="socratic")
    assert (first.folder / "sub-questions.jsonl").read_bytes() == log
    direct = evaluate("b")
    assert compare([direct.results, first.results]).pairs[0].n == 3


def test_another_model_may_write_the_sub_questions() -> None:
    tiny_model("llama", max_position_embeddings=2048).save_pretrained("other")
    tiny_tokenizer().save_pretrained("other")
    own = evaluate("own", prompt="socratic", max_new_tokens=20)
    other = evaluate("other-asks", prompt="socratic", decomposer="other", max_new_tokens=20)
    assert own.results.header.model == other.results.header.model
    models = [load(r.folder / "sub-questions.jsonl").header.model for r in (own, other)]
    assert models == ["the built-in base model", "other"]
    with pytest.raises(CheckpointError, match="another fingerprint"):
        evaluate("own", prompt="socratic", decomposer="other", max_new_tokens=20)
    with pytest.raises(UsageError, match="--decomposer does nothing"):
        evaluate("c", prompt="cot", decomposer="other")
