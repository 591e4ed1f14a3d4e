"""The countdown task: what it draws, and that only honest expressions count."""

from __future__ import annotations

import pytest

from tunesmith.errors import UsageError
from tunesmith.grading.arithmetic import evaluate
from tunesmith.tasks.countdown import WORKED, CountdownTask, draw, family_of
from tunesmith.types import Problem, Segment

TASK = CountdownTask()


def problem(target=16, numbers=(2, 3, 5, 5)):
    meta = {"numbers": list(numbers)}
    return Problem("p", "countdown", (Segment("user", "?"),), str(target), meta)


@pytest.mark.parametrize(
    "text",
    [
        "<answer>(3 + 5) * 2</answer>",
        "<answer>2*(3+5) = 16</answer>",
        "The answer is (3 + 5) × 2.",
        "\\boxed{(3 + 5) \\times 2}",
        "(3 + 5) x 2 = 16",
        "#### (5 + 3) * 2",
        "<think>2 * 2</think>\n<answer>（3 + 5) · ２</answer>",
        "3 + 5 = 8\n8 * 2 = 16\n<answer>(3 + 5) * 2</answer>",
    ],
)
def test_an_honest_expression_counts(text):
    assert TASK.grade(problem(), text).score == 1, TASK.grade(problem(), text)


@pytest.mark.parametrize(
    "text",
    [
        "<answer>16</answer>",
        "<answer>2 * 8</answer>",
        "<answer>3 + 3 + 5 + 5</answer>",
        "<answer>5 * 3 + 2</answer>",
        "<answer>(3 + 5) * 2.01</answer>",
        "<answer>2 ** 3 * 2</answer>",
        "<answer>-2 * -(3 + 5)</answer>",
        "<answer>__import__('os')</answer>",
        "<answer>5 / (5 - 5)</answer>",
        "<answer></answer>",
        "",
        "=16",
        "<think>(3 + 5) * 2",
        "<answer>" + "(" * 5000 + "</answer>",
        "2+" * 100_000,
        "2,3 - 5 - 2",
    ],
)
def test_anything_else_is_wrong(text):
    assert TASK.grade(problem(), text).score == 0


def test_the_strict_verifier_wants_every_equation_to_hold():
    wrong = "3 + 5 = 9\n<answer>(3 + 5) * 2</answer>"
    assert TASK.grade(problem(), wrong).score == 1
    assert TASK.verify(problem(), wrong).score == 0
    assert TASK.verify(problem(), wrong.replace("9", "8")).score == 1


@pytest.mark.parametrize("split", TASK.splits)
def test_gold_scores_one_and_shuffled_gold_nothing(split):
    problems = TASK.problems(split, seed=3, limit=150)
    gold = [TASK.answer_example(p).segments[-1].text for p in problems]
    assert all(TASK.verify(p, t).score == 1 for p, t in zip(problems, gold, strict=True))
    right = sum(TASK.grade(p, t).score for p, t in zip(problems, gold[1:] + gold[:1], strict=True))
    assert right <= 2
    sizes = {len(p.meta["numbers"]) for p in problems}
    assert sizes == ({int(split[-1])} if split[-1].isdecimal() else {3, 4})
    assert all(evaluate(p.meta["solution"]) == int(p.reference) for p in problems)


def test_a_hint_tells_a_way_and_not_the_target_that_is_known():
    for one in TASK.problems("train", limit=20):
        assert one.meta["solution"] in TASK.hint(one)
        assert f"The answer is {one.reference}" not in TASK.hint(one)


def test_problems_follow_from_split_seed_and_index_alone():
    assert draw("train", 5, 17) == draw("train", 5, 17)
    assert len({draw("train", seed, 17).id for seed in range(20)}) > 15
    some, more = (TASK.problems("dev", seed=1, limit=limit) for limit in (20, 60))
    assert more[:20] == some


def test_splits_share_no_problem():
    ids = {s: {p.id for p in TASK.problems(s, seed=9, limit=300)} for s in ("train", "dev", "test")}
    assert len(ids["train"] | ids["dev"] | ids["test"]) == 900
    assert {family_of(tuple(p.meta["numbers"]), int(p.reference))
            for p in TASK.problems("test-4", limit=50)} == {"test"}  # fmt: skip


def test_worked_examples_hold_and_are_in_no_split():
    for numbers, target, answer in WORKED:
        assert TASK.verify(problem(target, numbers), answer).score == 1
        assert family_of(tuple(sorted(numbers)), target) is None
    assert len(TASK.messages(problem(), "cot")) == 2 * len(WORKED) + 1


def test_mistakes_are_sentences():
    with pytest.raises(UsageError, match="no split 'test-9'"):
        TASK.problems("test-9")
    with pytest.raises(UsageError, match="reads no file"):
        TASK.problems("test", source="x.jsonl")
