"""The units task: factors, splits, graders, and what the base model was pretrained on."""

from __future__ import annotations

import itertools
import sys
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.errors import UsageError
from tunesmith.tasks import units_questions as uq
from tunesmith.tasks.units import UnitsTask
from tunesmith.tasks.units_table import CONVERSIONS
from tunesmith.types import Problem, Segment

TASK = UnitsTask()
BY_UNITS = {(c.source, c.target): c for c in CONVERSIONS}


def worked_gold(problem: Problem) -> str:
    conversion = BY_UNITS[problem.meta["source"], problem.meta["target"]]
    return uq.worked(Decimal(problem.meta["number"]), conversion)


def test_factors_are_those_of_pint() -> None:
    import pint

    registry = pint.UnitRegistry(non_int_type=Fraction)
    for conversion in CONVERSIONS:
        one = registry.Quantity(Fraction(1), conversion.source)
        assert one.to(conversion.target).magnitude == conversion.factor, conversion


@pytest.mark.parametrize("split", uq.SPLITS)
def test_gold_is_right_and_shuffled_gold_is_not(split: str) -> None:
    problems = TASK.problems(split, seed=5, limit=300)
    assert len({problem.id for problem in problems}) == 300
    answers = [TASK.answer_example(problem).segments[-1].text for problem in problems]
    assert all(TASK.grade(p, a).score == 1 for p, a in zip(problems, answers, strict=True))
    shuffled = answers[7:] + answers[:7]
    right = sum(TASK.grade(p, a).score or 0 for p, a in zip(problems, shuffled, strict=True))
    assert right < 0.05 * 300
    assert all(TASK.verify(p, worked_gold(p)).score == 1 for p in problems)
    assert all(TASK.grade(p, worked_gold(p)).score == 1 for p in problems)


def test_seeds_draw_other_questions_and_equal_seeds_the_same() -> None:
    assert TASK.problems("test", seed=1, limit=50) == TASK.problems("test", seed=1, limit=50)
    assert TASK.problems("test", seed=1, limit=50) != TASK.problems("test", seed=2, limit=50)


def test_splits_are_disjoint_by_number_and_factor() -> None:
    pairs = {
        split: {
            (p.meta["number"], p.meta["factor"]) for p in TASK.problems(split, seed=3, limit=400)
        }
        for split in ("train", "dev", "test")
    }
    for first, second in itertools.combinations(pairs, 2):
        assert not pairs[first] & pairs[second]


@given(st.decimals("0.1", 99, places=1), st.sampled_from(CONVERSIONS))
def test_a_pair_has_one_split_whatever_its_writing(number: Decimal, conversion: object) -> None:
    factor = conversion.factor  # type: ignore[attr-defined]
    assert uq.split_of(number, factor) == uq.split_of(number.normalize(), factor)
    assert uq.split_of(number * 1, factor) == uq.split_of(number, factor)


def test_worked_examples_come_from_the_training_split() -> None:
    turns = TASK.messages(TASK.problems("test", limit=1)[0], "cot")
    questions = {s.text for s in turns[:-1] if s.role == "user"}
    assert len(questions) == 2
    tested = {p.prompt[-1].text for p in TASK.problems("test", seed=0, limit=1000)}
    assert not questions & tested


@pytest.mark.slow
def test_base_corpus_never_holds_a_held_out_pair() -> None:
    scripts = Path(__file__).parent.parent / "scripts"
    sys.path.insert(0, str(scripts))
    try:
        from base_corpus import documents
    finally:
        sys.path.remove(str(scripts))
    seen = 0
    for document in itertools.islice(documents(21), 4000):
        for number, factor in document.pairs:
            assert uq.split_of(number, factor) == "pretrain"
            seen += 1
    asked = {p.prompt[-1].text for p in TASK.problems("test", seed=0, limit=1500)}
    for document in itertools.islice(documents(21), 4000):
        assert not asked & {text for _, text in document.turns}
    assert seen > 4000


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("<answer>104.9</answer>", 1.0),
        ("<answer>105.1</answer>", 0.0),
        ("<answer>1e2</answer>", 1.0),
        ("<answer>100 feet</answer>", 1.0),
        ("<answer>100", 0.0),
        ("100", 0.0),
        ("<answer>nan</answer>", 0.0),
        ("<answer></answer>", 0.0),
    ],
)
def test_grading_rule(text: str, score: float) -> None:
    problem = Problem("x", "units", (Segment("user", "?"),), "100")
    assert TASK.grade(problem, text).score == score


def test_a_gold_that_rounds_to_zero() -> None:
    problem = Problem("x", "units", (Segment("user", "?"),), "0.0001")
    assert TASK.grade(problem, "<answer>0.0002</answer>").score == 1
    assert TASK.grade(problem, "<answer>0.01</answer>").score == 0


def test_verification_is_stricter_than_grading() -> None:
    problem = Problem("x", "units", (Segment("user", "?"),), "100")
    verify = TASK.verify
    assert verify(problem, "50 * 2 = 100\n<answer>100</answer>").score == 1
    assert verify(problem, "<answer>100</answer>").reason == "no equation"
    assert verify(problem, "50 * 2 = 101\n<answer>100</answer>").reason == "a false equation"
    assert verify(problem, "50 * 2 = 100\n<answer>101</answer>").reason == "wrong answer"


@pytest.mark.slow
def test_too_many_questions_is_a_sentence() -> None:
    with pytest.raises(UsageError, match="different questions"):
        TASK.problems("dev", limit=1000)
