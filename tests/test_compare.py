from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from tunesmith.errors import DataError, UsageError
from tunesmith.evaluate.compare import Comparison, compare, format_p
from tunesmith.evaluate.losses import RowLoss, compare_losses
from tunesmith.evaluate.records import Header, ResultSet
from tunesmith.evaluate.statistics import mcnemar_exact, paired_difference
from tunesmith.types import Attempt, Problem, Segment, StopReason, Verdict


def results(
    name: str, scores: dict[str, list[float | None]], task: str = "units", planned: int = 0
) -> ResultSet:
    attempts = tuple(
        Attempt(key, i, 0, "", (), StopReason.LENGTH, Verdict(score, None, ""))
        for key, several in scores.items()
        for i, score in enumerate(several)
    )
    problems = {key: Problem(key, task, (Segment("user", key),), "1") for key in scores}
    samples = max(len(several) for several in scores.values())
    head = Header(name, task, "test", "direct", "m", 0, samples=samples, planned=planned)
    return ResultSet(head, attempts, problems)


def table(both: int, gained: int, lost: int, neither: int) -> list[ResultSet]:
    cells = [(1.0, 1.0)] * both + [(0.0, 1.0)] * gained + [(1.0, 0.0)] * lost
    cells += [(0.0, 0.0)] * neither
    return [
        results(name, {f"p{n}": [cell[side]] for n, cell in enumerate(cells)})
        for side, name in enumerate(("base", "tuned"))
    ]


def test_a_pair_by_hand():
    comparison = compare(table(40, 30, 10, 20))
    (pair,) = comparison.pairs
    assert (pair.n, pair.gained, pair.lost) == (100, 30, 10)
    assert (pair.first_accuracy, pair.second_accuracy) == (0.5, 0.7)
    assert pair.difference == pytest.approx(0.2)
    assert pair.p == pair.p_holm == mcnemar_exact(30, 10)
    assert pair.interval == paired_difference(40, 30, 10, 20)
    assert pair.test == "exact McNemar test"
    assert "30 problems gained, 10 lost, of 100" in pair.sentence()
    assert "; 1 problem gained, 0 lost" in compare(table(4, 1, 0, 4)).pairs[0].sentence()
    assert 0.1 < pair.detectable < 0.3
    assert pair.significant
    assert "tuned scores 20.0 points above base" in pair.sentence()
    assert Comparison.from_json(json.loads(json.dumps(comparison.to_json()))) == comparison


def test_no_difference_says_what_could_have_been_seen():
    (pair,) = compare(table(40, 11, 10, 39)).pairs
    assert not pair.significant
    assert "No clear difference" in pair.sentence()
    assert f"{pair.detectable * 100:.1f} points or more" in pair.sentence()


def test_three_sets_give_three_pairs_with_holm():
    base, tuned = table(40, 20, 6, 34)
    third = results("third", {key: [1.0] for key in base.problems})
    comparison = compare([base, tuned, third])
    assert [(p.first, p.second) for p in comparison.pairs] == [
        ("base", "tuned"),
        ("base", "third"),
        ("tuned", "third"),
    ]
    largest = max(comparison.pairs, key=lambda pair: pair.p)
    assert largest.p_holm == largest.p
    smallest = min(comparison.pairs, key=lambda pair: pair.p)
    assert smallest.p_holm == pytest.approx(3 * smallest.p)


def test_problems_missing_on_one_side_are_counted_and_named():
    first = results("a", {"p1": [1.0], "p2": [0.0], "p3": [1.0]})
    second = results("b", {"p2": [1.0], "p3": [1.0], "p4": [0.0]})
    (pair,) = compare([first, second]).pairs
    assert pair.n == 2
    assert pair.missing == {"a": 1, "b": 1}
    assert pair.missing_ids == {"a": ["p4"], "b": ["p1"]}
    assert "a lacks 1 of the other's problems (such as p4)" in pair.left_out()
    assert replace(pair, missing={"a": 0, "b": 0}).left_out() == ""


def test_ungraded_pairs_are_left_out_and_too_many_of_them_take_the_p_value_away():
    for ungraded, has_p in ((1, True), (2, False)):
        scores = {f"p{n}": [None if n < ungraded else 1.0] for n in range(100)}
        other = {f"p{n}": [float(n % 2)] for n in range(100)}
        (pair,) = compare([results("a", scores), results("b", other)]).pairs
        assert (pair.n, pair.ungraded) == (100 - ungraded, ungraded)
        assert (pair.p is not None) is has_p
        assert ("no p-value" in pair.sentence()) is not has_p
        assert pair.significant is has_p


def test_pairs_without_a_graded_problem_say_so():
    (pair,) = compare([results("a", {"p": [None]}), results("b", {"p": [1.0]})]).pairs
    assert pair.n == 0
    assert "no graded problem" in pair.sentence()


def test_several_attempts_are_compared_by_problem():
    rng = np.random.default_rng(0)
    base = {f"p{n}": [float(x) for x in rng.random(4) < 0.3] for n in range(80)}
    tuned = {f"p{n}": [float(x) for x in rng.random(4) < 0.7] for n in range(80)}
    (pair,) = compare([results("base", base), results("tuned", tuned)]).pairs
    assert pair.test == "paired sign-flip permutation test"
    assert pair.n == 80
    assert pair.p < 0.001
    assert pair.interval.low > 0.25
    (none,) = compare([results("base", base), results("same", base)]).pairs
    assert (none.p, none.difference) == (1.0, 0.0)


def test_what_cannot_be_compared_is_a_sentence():
    first, second = table(1, 1, 1, 1)
    with pytest.raises(UsageError, match="1 set"):
        compare([first])
    with pytest.raises(UsageError, match="Several sets are called 'base'"):
        compare([first, first])
    with pytest.raises(UsageError, match="different tasks: maths, units"):
        compare([first, results("m", {"p0": [1.0]}, task="maths")])
    with pytest.raises(UsageError, match="share no problem"):
        compare([first, results("m", {"q0": [1.0]})])
    with pytest.raises(UsageError, match="'half' is not finished: 6 of 10"):
        compare([first, results("half", {f"p{n}": [1.0] for n in range(4)}, planned=10)])
    second.problems["p0"] = Problem("p0", "units", (), "2")
    with pytest.raises(DataError, match="gold answer '1' in 'base' and '2' in 'tuned'"):
        compare([first, second])


def test_false_alarms_stay_below_five_percent():
    rng = np.random.default_rng(5)
    alarms = 0
    for _ in range(200):
        gained, lost, _ = map(int, rng.multinomial(60, [0.15, 0.15, 0.7]))
        alarms += mcnemar_exact(gained, lost) < 0.05
    assert alarms <= 0.05 * 200 + 5


def test_losses_are_compared_per_byte_as_a_ratio_of_sums():
    first = [RowLoss(f"r{n}", 10.0 * n, 100 * n) for n in range(1, 41)]
    second = [RowLoss(f"r{n}", 9.0 * n + (n % 3) * 0.1, 100 * n) for n in range(40, 0, -1)]
    comparison = compare_losses(first, second)
    assert comparison.first == pytest.approx(0.1)
    assert comparison.difference == pytest.approx(comparison.second - comparison.first)
    assert comparison.interval.high < 0
    assert comparison.significant
    assert "lower" in comparison.sentence()
    assert compare_losses(first, second) == comparison
    assert not compare_losses(first, first).significant
    json.dumps(comparison.to_json(), allow_nan=False)


def test_rows_of_one_document_are_resampled_together():
    rng = np.random.default_rng(2)
    first, second, clustered = [], [], []
    for document in range(10):
        shift = rng.normal(0, 1)
        for part in range(20):
            name = f"{document}/{part}"
            first.append(RowLoss(name, 50.0, 50, str(document)))
            second.append(RowLoss(name, 50.0 + shift, 50, str(document)))
            clustered.append(shift)
    narrow = compare_losses(
        [RowLoss(row.row, row.loss, row.bytes) for row in first],
        [RowLoss(row.row, row.loss, row.bytes) for row in second],
    ).interval
    wide = compare_losses(first, second).interval
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)


def test_losses_that_cannot_be_compared():
    row = RowLoss("a", 1.0, 10)
    with pytest.raises(DataError, match="same name"):
        compare_losses([row, row], [row])
    with pytest.raises(DataError, match="10 bytes for one model and 11"):
        compare_losses([row], [RowLoss("a", 1.0, 11)])
    with pytest.raises(DataError, match="no held-out row"):
        compare_losses([row], [RowLoss("b", 1.0, 10)])
    alone = compare_losses([row, RowLoss("x", 1.0, 5)], [row])
    assert (alone.interval, alone.significant, alone.missing) == (None, False, 1)
    assert "no interval" in alone.sentence()


def test_p_values_are_written_plainly():
    assert [format_p(p) for p in (0.5, 0.034, 0.0034, 1e-9)] == [
        "p = 0.500",
        "p = 0.034",
        "p = 0.0034",
        "p < 0.0001",
    ]
