"""No test's false-alarm rate exceeds its nominal 5% beyond the simulation's error."""

from __future__ import annotations

import numpy as np
import pytest

from false_alarms import ALL, NOMINAL, error
from tunesmith.evaluate.statistics import mcnemar_power

FEW, MANY = 200, 10_000


def check(make, draws: int) -> None:
    for cell in make(draws, np.random.default_rng(7)):
        power = "" if cell.power is None else f", power {cell.power:.1%}"
        print(f"{cell.test} ({cell.data}): {cell.rate:.2%}{power}")
        if cell.held:
            assert cell.rate <= NOMINAL + error(draws), cell
        if cell.power is not None:
            assert cell.power > cell.rate, cell


@pytest.mark.parametrize("make", ALL, ids=lambda make: make.__name__)
def test_false_alarms_of_a_share(make):
    check(make, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("make", ALL, ids=lambda make: make.__name__)
def test_false_alarms(make):
    check(make, MANY)


def test_mcnemars_power_in_the_table_is_the_exact_one():
    (cell, *_) = ALL[0](4000, np.random.default_rng(7))
    assert cell.power == pytest.approx(mcnemar_power(20, 0.3, 0.25), abs=0.025)
