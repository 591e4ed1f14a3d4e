"""Simulation of every test and interval that scores are reported with: false alarms and power.

``python tests/false_alarms.py`` prints the table of ``docs/proof.md`` from 10,000 draws a cell.
The very functions of the package are run, on models that are equally good by construction (false
alarms; for intervals, how often the truth lies outside) and on ones that are not (power).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from tunesmith.evaluate.betting import ALPHA, log_capital
from tunesmith.evaluate.flips import flip_ends, sign_flip_p
from tunesmith.evaluate.seeds import two_way
from tunesmith.evaluate.statistics import (
    bootstrap_ends,
    holm,
    jackknife_ratio,
    mcnemar_exact,
    paired_difference,
    wilson,
)

Array = Any
NOMINAL = 0.05


@dataclass(frozen=True)
class Cell:
    """One row of the table."""

    test: str
    data: str
    rate: float
    """False alarms, or misses of an interval."""
    power: float | None
    """Share of draws that show a true difference (alternative in ``data``); None of a coverage."""
    held: bool = True
    """Whether 5% is promised here; rows that only show a contrast promise nothing."""


def error(draws: int) -> float:
    """Return three standard errors of a rate of 5% in so many draws."""
    return 3 * math.sqrt(NOMINAL * (1 - NOMINAL) / draws)


def _blocks(ends: Callable[[Array], tuple[Array, Array]], columns: Array) -> tuple[Array, Array]:
    """Return both ends of every column, of which a thousand are looked at together."""
    found = [ends(columns[:, at : at + 1000]) for at in range(0, columns.shape[1], 1000)]
    return np.concatenate([low for low, _ in found]), np.concatenate([high for _, high in found])


mcnemar = cache(mcnemar_exact)
newcombe = cache(paired_difference)
wilsons = cache(wilson)


def _tables(rng: Any, n: int, discordance: float, difference: float, draws: int) -> Array:
    """Return (draws, 4) counts: both, gained, lost, neither."""
    gained, lost = (discordance + difference) / 2, (discordance - difference) / 2
    rest = 1 - discordance
    return rng.multinomial(n, [rest / 2, gained, lost, rest / 2], size=draws)


def mcnemar_cells(draws: int, rng: Any) -> Iterator[Cell]:
    for n, discordance, effect in ((20, 0.3, 0.25), (100, 0.1, 0.08), (100, 0.3, 0.15), (400, 0.3, 0.1)):  # fmt: skip  # noqa: E501
        rates = [
            np.mean([mcnemar(int(b), int(c)) < NOMINAL for _, b, c, _ in tables])
            for tables in (_tables(rng, n, discordance, d, draws) for d in (0.0, effect))
        ]
        yield Cell("exact McNemar", f"n {n}, {discordance:.0%} differ; +{effect:.0%}", *rates)
        for true in (0.0, effect):
            tables = _tables(rng, n, discordance, true, draws)
            missed = np.mean([true not in newcombe(*map(int, row)) for row in tables])
            yield Cell("Newcombe's interval", f"n {n}, {discordance:.0%} differ, true {true:+.0%}", missed, None, held=n >= 100)  # fmt: skip  # noqa: E501


def wilson_cells(draws: int, rng: Any) -> Iterator[Cell]:
    for n, p in ((20, 0.5), (100, 0.1), (100, 0.5), (400, 0.9)):
        counts = rng.binomial(n, p, size=draws)
        missed = np.mean([p not in wilsons(int(k), n) for k in counts])
        yield Cell("Wilson's interval", f"n {n}, true {p:.0%}", missed, None, held=False)


def _score_pairs(kind: str, rng: Any, n: int, draws: int, effect: float) -> Array:
    """Return (n, draws) differences of exchangeable scores; with an effect, of a better second."""
    shape = (n, draws)
    if kind == "4 attempts":
        ability = rng.beta(0.5, 0.5, size=shape)
        better = np.clip(ability + effect, 0, 1)
        return (rng.binomial(4, better) - rng.binomial(4, ability)) / 4
    a, b = {"U-shaped": (0.3, 0.3), "skewed": (0.2, 2.0), "bell-shaped": (8.0, 8.0)}[kind]
    first, second = rng.beta(a, b, size=shape), rng.beta(a, b, size=shape)
    return np.clip(second + effect, 0, 1) - first


def score_cells(draws: int, rng: Any) -> Iterator[Cell]:
    for kind, n, effect in (("4 attempts", 8, 0.3), ("4 attempts", 50, 0.15), ("U-shaped", 20, 0.3), ("skewed", 8, 0.2), ("skewed", 30, 0.1), ("bell-shaped", 30, 0.1)):  # fmt: skip  # noqa: E501
        null, other = (_score_pairs(kind, rng, n, draws, e) for e in (0.0, effect))
        rates = [float(np.mean(sign_flip_p(one) < NOMINAL)) for one in (null, other)]
        yield Cell("sign-flip test", f"{kind}, n {n}; +{effect:.0%}", *rates)
        for name, ends in (("sign-flip interval", _blocks(lambda some: flip_ends(some, np.ones(len(some))), null)), ("bootstrap-t interval", _blocks(bootstrap_ends, null))):  # fmt: skip  # noqa: E501
            missed = np.mean((ends[0] > 0) | (ends[1] < 0))
            yield Cell(name, f"{kind}, n {n}, true +0%", missed, None, held=name[0] == "s")
    uneven = np.where(rng.random((30, draws)) < 0.1, 0.9, -0.1)
    yield Cell("sign-flip test", "n 30, 10% gain 90, 90% lose 10: no exchange", float(np.mean(sign_flip_p(uneven) < NOMINAL)), None, held=False)  # fmt: skip  # noqa: E501


def group_cells(draws: int, rng: Any) -> Iterator[Cell]:
    for groups, size, effect in ((6, 20, 0.5), (12, 10, 0.3), (40, 5, 0.15)):
        sizes = np.maximum(1, np.round(size * np.linspace(0.3, 1.7, groups)))
        sums = {}
        for true in (0.0, effect):
            # Within a group one model is better throughout; over groups neither is.
            tilt = np.clip(rng.normal(true, 0.3, size=(groups, draws)), -0.9, 0.9)
            gained = rng.binomial(sizes.astype(int)[:, None], 0.3 * (1 + tilt) / 2)
            lost = rng.binomial(sizes.astype(int)[:, None], 0.3 * (1 - tilt) / 2)
            sums[true] = (gained, lost)
        rates = [
            float(np.mean(sign_flip_p((g - b).astype(float)) < NOMINAL)) for g, b in sums.values()
        ]
        data = f"{groups} groups of about {size}; +{0.3 * effect:.0%}"
        yield Cell("sign-flip test over groups", data, *rates)
        gained, lost = sums[0.0]
        low, high = _blocks(lambda some: flip_ends(some, sizes), (gained - lost).astype(float))  # noqa: B023
        yield Cell("sign-flip interval over groups", data, np.mean((low > 0) | (high < 0)), None)
        some = (gained - lost).T[: min(draws, 4000)]
        ends = [jackknife_ratio(row.tolist(), sizes.tolist()) for row in some]
        yield Cell("jackknife interval over groups", data, np.mean([0.0 not in e for e in ends if e]), None, held=False)  # fmt: skip  # noqa: E501
        naive = [mcnemar(int(g), int(b)) < NOMINAL for g, b in zip(gained.sum(0), lost.sum(0), strict=True)]  # fmt: skip  # noqa: E501
        yield Cell("(McNemar that ignores groups)", data, np.mean(naive), None, held=False)


def betting_cells(draws: int, rng: Any) -> Iterator[Cell]:
    limit = math.log(2 / ALPHA)
    kinds: dict[str, tuple[Callable[[tuple[int, int]], Array], float]] = {
        "U-shaped": (lambda shape: rng.beta(0.3, 0.3, size=shape), 0.5),
        "skewed": (lambda shape: rng.beta(0.2, 2.0, size=shape), 0.2 / 2.2),
        "2% wrong": (lambda shape: (rng.random(shape) > 0.02).astype(float), 0.98),
        "bell-shaped": (lambda shape: rng.beta(8.0, 8.0, size=shape), 0.5),
    }
    for kind, (draw, mean) in kinds.items():
        for n in (10, 100):
            values = draw((n, draws))
            capital = log_capital(values, np.asarray([mean]), anytime=False)
            yield Cell("betting interval", f"{kind}, n {n}", np.mean(capital >= limit), None)
            reach = 1.96 * values.std(axis=0, ddof=1) / math.sqrt(n)
            missed = np.mean(np.abs(values.mean(axis=0) - mean) > reach)
            yield Cell("(normal interval)", f"{kind}, n {n}", missed, None, held=False)


def anytime_cells(draws: int, rng: Any) -> Iterator[Cell]:
    limit, n = math.log(2 / ALPHA), 400
    for discordance, effect in ((0.3, 0.1), (0.3, 0.2), (0.1, 0.05)):
        rates = []
        for true in (0.0, effect):
            shares = [(discordance - true) / 2, 1 - discordance, (discordance + true) / 2]
            values = rng.choice([0.0, 0.5, 1.0], p=shares, size=(n, draws))
            capital = log_capital(values, np.asarray([0.5]), anytime=True)
            rates.append(float(np.mean(capital >= limit)))
            if not true:
                null = values
        yield Cell("confidence sequence, every time", f"up to n {n}, {discordance:.0%} differ; +{effect:.0%}", *rates)  # fmt: skip  # noqa: E501
        looks = range(31, n, 32)
        gained = np.cumsum(null == 1.0, axis=0)[looks]
        lost = np.cumsum(null == 0.0, axis=0)[looks]
        peeked = [
            any(mcnemar(int(g), int(b)) < NOMINAL for g, b in zip(*both, strict=True))
            for both in zip(gained.T, lost.T, strict=True)
        ]
        yield Cell("(McNemar at every look)", f"up to n {n}, {discordance:.0%} differ", np.mean(peeked), None, held=False)  # fmt: skip  # noqa: E501


def holm_cells(draws: int, rng: Any) -> Iterator[Cell]:
    for effect in (0.12,):
        rates = []
        for true in (0.0, effect):
            found = 0
            # Four models with the same questions and a score of their own: six dependent pairs.
            easy = rng.beta(1, 1, size=(draws, 1, 150))
            skill = np.asarray([0.0, 0.0, 0.0, true])[None, :, None]
            right = rng.random((draws, 4, 150)) < np.clip(easy + skill, 0, 1)
            for one in right:
                p = [
                    mcnemar(int((b & ~a).sum()), int((a & ~b).sum()))
                    for i, a in enumerate(one)
                    for b in one[i + 1 :]
                ]
                found += any(q is not None and q < NOMINAL for q in holm(p))
            rates.append(found / draws)
        yield Cell("Holm over 6 pairs, any", f"n 150, 4 models; one +{effect:.0%}", *rates)


def seed_cells(draws: int, rng: Any) -> Iterator[Cell]:
    for seeds, n, spread, effect in ((2, 100, 0.03, 0.3), (3, 100, 0.03, 0.15), (5, 200, 0.05, 0.15), (5, 200, 0.0, 0.1)):  # fmt: skip  # noqa: E501
        rates = []
        for true in (0.0, effect):
            found = 0
            for _ in range(draws):
                tilt = true + rng.normal(0, spread, (seeds, 1)) + rng.normal(0, 0.2, (1, n))
                p = np.clip([(0.4 + tilt) / 2, (0.4 - tilt) / 2], 0, 1)
                u = rng.random((seeds, n))
                table = (u < p[0]).astype(float) - (u > 1 - p[1])
                found += (two_way(table)[3] or 1.0) < NOMINAL
            rates.append(found / draws)
        yield Cell("two-way t over seeds", f"{seeds} seeds, n {n}, spread {spread:.0%}; +{effect:.0%}", *rates)  # fmt: skip  # noqa: E501


ALL = (mcnemar_cells, wilson_cells, score_cells, group_cells, betting_cells, anytime_cells, holm_cells, seed_cells)  # fmt: skip  # noqa: E501


def main(draws: int = 10_000, names: Sequence[str] = ()) -> None:
    """Print the table as Markdown, of all cells or of those whose functions are named."""
    print("| test | data; alternative | false alarms | power |\n| --- | --- | --- | --- |")
    for make in ALL:
        if names and make.__name__ not in names:
            continue
        for cell in make(draws, np.random.default_rng(7)):
            power = "" if cell.power is None else f"{cell.power:.1%}"
            mark = "" if cell.held else " *"
            over = " EXCEEDS" if cell.held and cell.rate > NOMINAL + error(draws) else ""
            row = (f"{cell.test}{mark}", cell.data, f"{cell.rate:.2%}{over}", power)
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000, sys.argv[2:])
