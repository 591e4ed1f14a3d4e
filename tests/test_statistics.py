from __future__ import annotations

import itertools
import random
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from tunesmith.evaluate.flips import flip_interval, sign_flip_test
from tunesmith.evaluate.statistics import (
    Interval,
    bootstrap_mean,
    holm,
    jackknife_ratio,
    majority,
    mcnemar_exact,
    mcnemar_power,
    paired_difference,
    pass_at_k,
    smallest_detectable,
    wilson,
)


@given(st.integers(0, 400), st.integers(1, 400))
@settings(max_examples=60, deadline=None)
def test_wilson_equals_scipy(k, n):
    k = min(k, n)
    theirs = binomtest(k, n).proportion_ci(method="wilson")
    ours = wilson(k, n)
    assert ours.low == pytest.approx(theirs.low, abs=1e-9)
    assert ours.high == pytest.approx(theirs.high, abs=1e-9)
    assert k / n in ours


def test_wilson_at_the_edges():
    assert wilson(0, 0) == Interval(0.0, 1.0)
    assert wilson(0, 10).low == 0.0
    assert wilson(10, 10).high == 1.0
    with pytest.raises(ValueError):
        wilson(3, 2)


@given(st.integers(0, 300), st.integers(0, 300))
@settings(max_examples=80, deadline=None)
def test_mcnemar_equals_scipys_binomial_test(b, c):
    theirs = binomtest(b, b + c).pvalue if b + c else 1.0
    assert mcnemar_exact(b, c) == pytest.approx(theirs, rel=1e-9)
    assert mcnemar_exact(b, c) == mcnemar_exact(c, b)


def test_mcnemar_by_hand_and_with_very_many_pairs():
    assert mcnemar_exact(5, 0) == 2 / 32
    assert mcnemar_exact(0, 0) == 1.0
    assert 0 < mcnemar_exact(1500, 1300) < 0.001
    with pytest.raises(ValueError):
        mcnemar_exact(-1, 2)


def test_newcombes_worked_example():
    # Newcombe 1998, table II, method 10, the contrast of the pairs 36, 12, 2, 0.
    interval = paired_difference(both=36, gained=12, lost=2, neither=0)
    assert interval.low == pytest.approx(0.0569, abs=5e-4)
    assert interval.high == pytest.approx(0.3404, abs=5e-4)
    # Agreement beyond chance, where the continuity correction counts.
    corrected = paired_difference(both=20, gained=12, lost=2, neither=16)
    assert corrected.low == pytest.approx(0.0562, abs=5e-4)
    assert corrected.high == pytest.approx(0.3292, abs=5e-4)


@given(*[st.integers(0, 60)] * 4)
@settings(max_examples=100, deadline=None)
def test_paired_difference_contains_the_estimate_and_mirrors(both, gained, lost, neither):
    n = both + gained + lost + neither
    ours = paired_difference(both, gained, lost, neither)
    other = paired_difference(both, lost, gained, neither)
    assert ours.low == pytest.approx(-other.high)
    assert -1 <= ours.low <= ours.high <= 1
    if n:
        assert ours.low <= (gained - lost) / n + 1e-12
        assert ours.high >= (gained - lost) / n - 1e-12


@pytest.mark.parametrize("shares", [(0.5, 0.2, 0.1, 0.2), (0.1, 0.08, 0.02, 0.8)])
def test_paired_difference_covers_the_truth_95_times_of_100(shares):
    tables = np.random.default_rng(1).multinomial(120, shares, size=3000)
    truth = shares[1] - shares[2]
    covered = np.mean([truth in paired_difference(*map(int, table)) for table in tables])
    assert 0.935 <= covered <= 0.975


def test_power_and_error_rate_match_a_simulation():
    rng = np.random.default_rng(3)
    n, discordance = 150, 0.3
    for difference in (0.0, 0.12):
        shares = [(discordance + difference) / 2, (discordance - difference) / 2, 1 - discordance]
        tables = rng.multinomial(n, shares, size=3000)
        rejected = np.mean([mcnemar_exact(int(b), int(c)) <= 0.05 for b, c, _ in tables])
        assert mcnemar_power(n, discordance, difference) == pytest.approx(rejected, abs=0.025)
    assert mcnemar_power(n, discordance, 0.0) <= 0.05


def test_smallest_detectable_reaches_its_power_and_no_less():
    effect = smallest_detectable(400, 0.25)
    assert mcnemar_power(400, 0.25, effect) >= 0.8
    assert mcnemar_power(400, 0.25, effect - 0.01) < 0.8
    assert 0.05 < effect < 0.1
    assert smallest_detectable(1600, 0.25) < effect
    # Without any discordance seen, an effect brings its own.
    assert smallest_detectable(400, 0.0) == pytest.approx(8 / 400, abs=0.012)
    assert smallest_detectable(5, 0.5) is None


def test_holm_by_hand_and_with_missing_values():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([None, 0.02, 0.5]) == [None, 0.04, 0.5]
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_bootstrap_agrees_with_the_normal_interval_and_with_itself():
    values = np.random.default_rng(0).normal(0.3, 1.0, 400).tolist()
    interval = bootstrap_mean(values, seed=5)
    half = 1.96 * np.std(values, ddof=1) / 20
    assert interval.low == pytest.approx(np.mean(values) - half, abs=0.015)
    assert interval.high == pytest.approx(np.mean(values) + half, abs=0.015)
    assert interval == bootstrap_mean(values, seed=5)
    assert interval != bootstrap_mean(values, seed=6)
    with pytest.raises(ValueError):
        bootstrap_mean([])


@pytest.mark.parametrize("resampled", [bootstrap_mean, flip_interval])
def test_resampling_in_blocks_changes_nothing_but_the_draws(resampled, monkeypatch):
    monkeypatch.setattr(sys.modules[resampled.__module__], "_BLOCK", 1000)
    interval = resampled([float(n) for n in range(100)], bound=100.0)
    assert interval.low == pytest.approx(49.5 - 1.98 * 2.89, abs=0.4)


def test_a_bootstrap_interval_of_skewed_values_leans_to_their_tail():
    interval = bootstrap_mean([0.0] * 15 + [1.0] * 3)
    assert interval.high - 1 / 6 > 1.3 * (1 / 6 - interval.low)
    assert bootstrap_mean([0.5, 0.5]) == Interval(0.5, 0.5)


def test_jackknife_of_a_ratio_covers_the_truth():
    covered = 0
    for trial in range(60):
        rng = np.random.default_rng(trial)
        sizes = rng.integers(20, 400, 80)
        change = sizes * rng.normal(-0.02, 0.05, 80)
        covered += -0.02 in jackknife_ratio(change.tolist(), sizes.tolist())
    assert covered >= 51
    assert jackknife_ratio([1.0], [2.0]) is None
    assert jackknife_ratio([1.0, 0.0], [2.0, 0.0]) is None
    assert jackknife_ratio([0.0, 1.0], [1.0, 1.0], 0.0, 1.0) == Interval(0.0, 1.0)


def test_sign_flips_equal_the_full_enumeration():
    differences = [0.5, -0.25, 0.75, 0.25, 0.0, 0.5, 0.25, -0.5]
    observed = abs(sum(differences))
    signs = itertools.product((1, -1), repeat=len(differences))
    exact = np.mean([abs(np.dot(flip, differences)) >= observed - 1e-12 for flip in signs])
    assert sign_flip_test(differences) == pytest.approx(exact, abs=0.015)
    assert sign_flip_test([0.0, 0.0]) == 1.0
    assert sign_flip_test([1.0] * 40) == pytest.approx(1e-4, rel=0.01)


def test_pass_at_k_equals_drawing_without_replacement():
    rng = random.Random(0)
    results = [True] * 3 + [False] * 7
    drawn = np.mean([any(rng.sample(results, 4)) for _ in range(20_000)])
    assert pass_at_k(10, 3, 4) == pytest.approx(drawn, abs=0.012)
    assert pass_at_k(10, 0, 5) == 0.0
    assert pass_at_k(10, 10, 1) == 1.0
    with pytest.raises(ValueError):
        pass_at_k(3, 1, 4)


def test_majority_takes_the_earliest_among_equals():
    assert majority(["2", "3", None, "3", "2"]) == "2"
    assert majority([None, None]) is None
