"""Strategies: known by name, assigned by rule or by what a student measured."""

from __future__ import annotations

import pytest

from tunesmith.data.strategies import (
    STRATEGIES,
    Assignment,
    against_single,
    by_instruction,
    by_rule,
    choose,
    halves,
    known,
)
from tunesmith.errors import UsageError
from tunesmith.evaluate.statistics import mcnemar_exact

ITEMS = [f"{kind}/{n}" for kind in ("sums", "facts") for n in range(60)]
CATEGORY = {item: item.partition("/")[0] for item in ITEMS}


def student(**right: dict[str, int]) -> dict[str, dict[str, float]]:
    """Return runs: strategy → how many of the 60 items of each category are right."""
    return {
        name.replace("_", "-"): {
            item: float(int(item.partition("/")[2]) < counts[CATEGORY[item]]) for item in ITEMS
        }
        for name, counts in right.items()
    }


STRONG = student(direct={"sums": 20, "facts": 50}, step_by_step={"sums": 50, "facts": 52})
WEAK = student(direct={"sums": 30, "facts": 40}, step_by_step={"sums": 12, "facts": 10})


def assigned(runs: dict[str, dict[str, float]]) -> dict[str, str]:
    return {n: c.strategy for n, c in choose(runs, CATEGORY, mcnemar_exact).items()}


def test_the_six_strategies() -> None:
    assert set(STRATEGIES) == {
        "direct",
        "step-by-step",
        "explain-then-answer",
        "recall-then-generate",
        "recall-reason-generate",
        "extract-then-generate",
    }
    assert len({strategy.instruction for strategy in STRATEGIES.values()}) == 6
    assert all(by_instruction(s.instruction) == s.name for s in STRATEGIES.values())
    with pytest.raises(UsageError, match="guess"):
        known("guess")


@pytest.mark.parametrize(
    ("source", "category", "strategy"),
    [
        ("gsm8k", "", "step-by-step"),
        ("metamathqa", "", "step-by-step"),
        ("squad", "", "extract-then-generate"),
        ("quoref_Guess_Answer", "", "extract-then-generate"),
        ("arc-challenge", "", "recall-then-generate"),
        ("commonsense_qa_question_answering", "", "explain-then-answer"),
        ("kilt_tasks_hotpotqa_complex_question", "", "recall-reason-generate"),
        ("dbpedia_14_pick_one_category", "", "direct"),
        ("gsm8k", "reading comprehension", "extract-then-generate"),
        ("my rows", "", None),
    ],
)
def test_rules(source: str, category: str, strategy: str | None) -> None:
    assert by_rule(source, category) == strategy


def test_reasons_count_in_their_order() -> None:
    everything = Assignment("direct", {"maths": None}, {"maths": "direct", "gsm8k": "direct"})
    assert everything.of("gsm8k", "maths") is None
    assert Assignment("direct", {}, {"maths": "recall-then-generate"}).of("gsm8k", "maths") == (
        "recall-then-generate"
    )
    assert Assignment("direct").of("gsm8k", "") == "step-by-step"
    assert Assignment("direct", rules=False).of("gsm8k", "") == "direct"
    assert Assignment().of("my rows", "") is None


def test_two_students_of_different_ability_get_different_assignments() -> None:
    assert assigned(STRONG) == {"sums": "step-by-step", "facts": "direct"}
    assert assigned(WEAK) == {"sums": "direct", "facts": "direct"}


def test_a_difference_that_chance_explains_keeps_the_shorter_strategy() -> None:
    choice = choose(STRONG, CATEGORY, mcnemar_exact)["facts"]
    assert (choice.strategy, choice.best) == ("direct", "step-by-step")
    assert choice.p is not None
    assert choice.p > 0.05
    assert "not significantly better" in choice.sentence()
    clear = choose(STRONG, CATEGORY, mcnemar_exact)["sums"]
    assert (clear.strategy, clear.best, clear.p) == ("step-by-step", "step-by-step", None)


def test_more_strategies_make_the_test_stricter() -> None:
    gain = {"sums": 7, "facts": 0}
    two = student(direct={"sums": 0, "facts": 0}, step_by_step=gain)
    assert assigned(two)["sums"] == "step-by-step"
    zero = {"sums": 0, "facts": 0}
    more = student(
        direct=zero,
        extract_then_generate=zero,
        explain_then_answer=zero,
        recall_then_generate=zero,
        step_by_step=gain,
    )
    # p = 2 / 2^7 = 0.0156 passes 0.05 but not 0.05 / 4.
    assert assigned(more)["sums"] == "direct"


def test_only_items_that_every_run_graded_count() -> None:
    runs = {name: dict(scores) for name, scores in STRONG.items()}
    for n in range(20, 50):
        del runs["direct"][f"sums/{n}"]
    chosen = choose(runs, CATEGORY, mcnemar_exact)
    assert chosen["sums"].items == 30
    assert chosen["sums"].strategy == "direct"


def test_the_assignment_is_judged_on_items_it_was_not_chosen_on() -> None:
    first, second = halves(ITEMS, 7)
    assert not set(first) & set(second)
    assert sorted(first + second) == sorted(ITEMS)
    assert halves(ITEMS[::-1], 7) == (first, second)
    chosen = choose(STRONG, CATEGORY, mcnemar_exact, items=first)
    names = {name: choice.strategy for name, choice in chosen.items()}
    against = {a.single: a for a in against_single(names, STRONG, CATEGORY, mcnemar_exact, second)}
    assert set(against) == {"direct", "step-by-step"}
    direct = against["direct"]
    assert direct.items == len(second)
    assert (direct.lost, direct.gained > 8) == (0, True)
    assert direct.p < 0.01
    assert f"{direct.gained} gained, 0 lost, of {len(second)} held-out items" in direct.sentence()
