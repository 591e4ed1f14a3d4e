"""Paired comparison of result sets on the problems they share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tunesmith.errors import DataError, UsageError
from tunesmith.evaluate.betting import anytime
from tunesmith.evaluate.flips import flip_interval, sign_flip_test
from tunesmith.evaluate.grouped import Groups, groups_of
from tunesmith.evaluate.metrics import MAX_UNGRADED, SEED, Summary, problem_scores, summarise
from tunesmith.evaluate.needed import detectable_sum, needed_pairs, needed_sums
from tunesmith.evaluate.records import STOP_RULE, ResultSet
from tunesmith.evaluate.statistics import (
    Interval,
    bootstrap_mean,
    holm,
    mcnemar_exact,
    paired_difference,
    smallest_detectable,
)
from tunesmith.evaluate.stopping import asked_order

ALPHA = 0.05
NAMED = 5
"""How many missing problems are named; all of them are counted."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two sets on the problems that both have and both have graded; differences are second − first.

    All shares are of ``n``; every interval is a 95% one.
    """

    first: str
    second: str
    n: int
    ungraded: int
    """Shared problems that one side could not grade; left out."""
    missing: Mapping[str, int]
    """How many problems of the other set each side lacks, by the name of the side."""
    missing_ids: Mapping[str, Sequence[str]]
    """The first few of them."""
    first_accuracy: float
    second_accuracy: float
    gained: int
    """Problems on which the second scores higher: wrong before, right now."""
    lost: int
    """Problems on which the second scores lower."""
    difference: float
    interval: Interval
    interval_method: str
    test: str
    p: float | None
    """Two-sided; None when too much is ungraded."""
    p_holm: float | None
    """Adjusted for all pairs of the comparison."""
    detectable: float | None
    """Smallest true difference that ``n`` pairs show with 80% power at the 5% level."""
    needed: int | None = None
    """Problems, or groups of them, that show a difference of the size found with that power."""
    groups: int | None = None
    """Groups that the problems come in; None where each stands for itself."""
    grouped_by: str = ""
    bootstrap: Interval | None = None
    """The studentised paired bootstrap's interval of scores, beside that of the permutation."""
    sequential: bool = False
    """A side was stopped when clear: interval and p-value hold at every time."""

    @property
    def significant(self) -> bool:
        """Whether the adjusted p-value is below 5%."""
        return self.p_holm is not None and self.p_holm < ALPHA

    def left_out(self) -> str:
        """Say which problems the pair does not count, or nothing."""
        found = [
            f"{name} lacks {number} of the other's problems (such as {self.missing_ids[name][0]})"
            for name, number in self.missing.items()
            if number
        ]
        found += [f"{self.ungraded} could not be graded"] if self.ungraded else []
        if not found:
            return ""
        return f"{self.first} and {self.second}: {'; '.join(found)}. Counted are {self.n}."

    def sentence(self) -> str:
        """Say in words what the pair shows and how sure that is."""
        if self.n == 0:
            return f"{self.first} and {self.second} share no graded problem."
        change = f"{abs(self.difference) * 100:.1f} points"
        span = f"95% interval {self.interval.low * 100:+.1f} to {self.interval.high * 100:+.1f}"
        gained = f"{self.gained} problem{'' if self.gained == 1 else 's'} gained"
        flips = f"{gained}, {self.lost} lost, of {self.n}"
        flips += f" in {self.groups} {self._group(self.groups)}" if self.groups is not None else ""
        flips += ", asked until clear" if self.sequential else ""
        if self.p is None:
            return (
                f"{self.second} scores {self.difference * 100:+.1f} points against {self.first} "
                f"({span}; {flips}), but more than {MAX_UNGRADED:.0%} is ungraded: no p-value."
            )
        p = format_p(self.p_holm if self.p_holm is not None else self.p)
        if self.significant:
            word = "above" if self.difference > 0 else "below"
            return f"{self.second} scores {change} {word} {self.first} ({span}; {flips}; {p})."
        what = "problems" if self.groups is None else self._group(2)
        reach = (
            f"this many {what} reliably show {self.detectable * 100:.1f} points or more"
            if self.detectable is not None
            else f"too few {what} to show any difference reliably"
        )
        if self.sequential:
            reach = "more problems may yet show one"
        elif self.needed is not None:
            reach += f", and {self.needed:,} of them one of this size"
        return (
            f"No clear difference between {self.first} and {self.second}: "
            f"{self.difference * 100:+.1f} points ({span}; {flips}; {p}); {reach}."
        )

    def _group(self, count: int) -> str:
        """Return what the groups are called: rows, or groups by a field."""
        name = "row" if self.grouped_by == "row" else f"group by {self.grouped_by}"
        return name if count == 1 else name.replace("row", "rows").replace("group", "groups")


@dataclass(frozen=True, slots=True)
class Comparison:
    """All sets with their summaries, and every pair of them in the order given."""

    task: str
    summaries: Mapping[str, Summary]
    pairs: Sequence[Pair]

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as JSON knows it; sentences are added for readers."""
        return {
            "task": self.task,
            "summaries": {name: summary.to_json() for name, summary in self.summaries.items()},
            "pairs": [asdict(pair) | {"sentence": pair.sentence()} for pair in self.pairs],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Comparison:
        """Read what ``to_json`` returned."""
        pairs = []
        for stored in values["pairs"]:
            fields = {key: value for key, value in stored.items() if key != "sentence"}
            ends = {
                name: Interval(**fields[name])
                for name in ("interval", "bootstrap")
                if fields.get(name) is not None
            }
            pairs.append(Pair(**{**fields, **ends}))
        summaries = {name: Summary.from_json(s) for name, s in values["summaries"].items()}
        return cls(values["task"], summaries, pairs)


def compare(
    sets: Sequence[ResultSet], cluster_by: str | None = None, *, with_first: bool = False
) -> Comparison:
    """Compare every pair of sets on the problems that both hold; or each one with the first only.

    Right-or-wrong single attempts get the exact McNemar test and Newcombe's paired interval;
    several attempts a problem or partial scores get a sign-flip permutation test with the interval
    that belongs to it. Problems that come in groups, by the field ``cluster_by`` of their meta or
    because several are of one row, have the signs of whole groups flipped. A set that was stopped
    when clear gets a test and an interval that hold at every time. P-values are adjusted by Holm
    over all pairs. Raises ``UsageError`` for fewer than two sets, equal names, different tasks, no
    shared problem or an unfinished set, and ``DataError`` where a shared problem has two gold
    answers.
    """
    names = [result.name for result in sets]
    if len(sets) < 2:
        raise UsageError(f"{len(sets)} set of attempts was given.", expected="at least two")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(
            f"Several sets are called {twice[0]!r}.", expected="a name of its own for each set"
        )
    _check_sets(sets)
    sets = [result.first_round() for result in sets]
    both = itertools.combinations(sets, 2)
    pairs = [
        _pair(one, other, cluster_by) for one, other in both if not with_first or one is sets[0]
    ]
    return Comparison(
        sets[0].header.task, {r.name: summarise(r.attempts) for r in sets}, adjusted([pairs])[0]
    )


def adjusted(families: Sequence[Sequence[Pair]]) -> list[list[Pair]]:
    """Return the pairs of several comparisons with their p-values adjusted for all of them."""
    p_values = iter(holm([pair.p for pairs in families for pair in pairs]))
    return [[replace(pair, p_holm=next(p_values)) for pair in pairs] for pairs in families]


def matched(sets: Sequence[ResultSet]) -> list[str]:
    """Return the problems that all sets hold, in order; raises as ``compare`` does."""
    _check_sets(sets)
    shared = sorted(set.intersection(*(set(result.problems) for result in sets)))
    if not shared:
        raise UsageError("The sets share no problem.", expected="sets of the same questions")
    for other in sets[1:]:
        _check_references(sets[0], other, shared)
    return shared


def _check_sets(sets: Sequence[ResultSet]) -> None:
    tasks = sorted({result.header.task for result in sets})
    if len(tasks) > 1:
        raise UsageError(
            f"The sets belong to different tasks: {', '.join(tasks)}.",
            expected="attempts at the same problems",
        )
    for result in sets:
        # The attempts that finish first are the short ones: half a set is a biased set.
        if result.missing:
            raise UsageError(
                f"{result.name!r} is not finished: {result.missing} of {result.header.planned} "
                "attempts are missing.",
                expected="complete sets",
                hint="run the same tunesmith eval again; it makes only what is missing",
            )


def _pair(first: ResultSet, second: ResultSet, cluster_by: str | None) -> Pair:
    shared = sorted(first.problems.keys() & second.problems.keys())
    if not shared:
        raise UsageError(
            f"{first.name!r} and {second.name!r} share no problem.",
            expected="sets of the same task, split and seed",
            hint="run tunesmith eval for both with the same --dataset, --split and --question-seed",
        )
    _check_references(first, second, shared)
    absent = {
        first.name: sorted(second.problems.keys() - first.problems.keys()),
        second.name: sorted(first.problems.keys() - second.problems.keys()),
    }
    ours, theirs = problem_scores(first.attempts), problem_scores(second.attempts)
    graded = [key for key in shared if key in ours and key in theirs]
    scores = [(ours[key], theirs[key]) for key in graded]
    share_ungraded = max(_ungraded_share(result, shared) for result in (first, second))
    pair = Pair(
        first=first.name,
        second=second.name,
        n=len(scores),
        ungraded=len(shared) - len(scores),
        missing={name: len(ids) for name, ids in absent.items()},
        missing_ids={name: ids[:NAMED] for name, ids in absent.items()},
        first_accuracy=_mean([a for a, _ in scores]),
        second_accuracy=_mean([b for _, b in scores]),
        gained=sum(b > a for a, b in scores),
        lost=sum(b < a for a, b in scores),
        difference=_mean([b - a for a, b in scores]),
        interval=Interval(-1.0, 1.0),
        interval_method="none",
        test="none",
        p=None,
        p_holm=None,
        detectable=None,
    )
    if not scores:
        return pair
    single = all(
        result.header.samples == 1 or len(result.attempts) == len(result.problems)
        for result in (first, second)
    )
    groups = groups_of({key: second.problems[key] for key in graded}, cluster_by)
    if any(STOP_RULE in result.header.details for result in (first, second)):
        tested = _tested_anytime(
            pair, {key: b - a for key, (a, b) in zip(graded, scores, strict=True)}, groups
        )
    elif groups is not None:
        tested = _tested_groups(pair, [b - a for a, b in scores], groups)
    elif single and all(score in (0, 1) for both in scores for score in both):
        tested = _tested_binary(pair, scores)
    else:
        tested = _tested_scores(pair, [b - a for a, b in scores])
    return replace(tested, p=None) if share_ungraded > MAX_UNGRADED else tested


def _check_references(first: ResultSet, second: ResultSet, shared: Sequence[str]) -> None:
    for key in shared:
        if first.problems[key].reference != second.problems[key].reference:
            raise DataError(
                f"Problem {key!r} has the gold answer {first.problems[key].reference!r} in "
                f"{first.name!r} and {second.problems[key].reference!r} in {second.name!r}.",
                expected="the same data on both sides",
            )


def _tested_binary(pair: Pair, scores: Sequence[tuple[float, float]]) -> Pair:
    both = sum(a == b == 1 for a, b in scores)
    neither = pair.n - both - pair.gained - pair.lost
    discordance = (pair.gained + pair.lost) / pair.n
    return replace(
        pair,
        interval=paired_difference(both, pair.gained, pair.lost, neither),
        interval_method="Newcombe's paired interval (method 10)",
        test="exact McNemar test",
        p=mcnemar_exact(pair.gained, pair.lost),
        detectable=smallest_detectable(pair.n, discordance),
        needed=needed_pairs(discordance, abs(pair.difference)),
    )


def _tested_scores(pair: Pair, differences: Sequence[float]) -> Pair:
    return replace(
        pair,
        interval=flip_interval(differences, seed=SEED),
        interval_method="sign-flip permutation over problems",
        test="paired sign-flip permutation test",
        p=sign_flip_test(differences, seed=SEED),
        detectable=detectable_sum(differences),
        needed=needed_sums(differences),
        bootstrap=bootstrap_mean(differences, seed=SEED),
    )


def _tested_groups(pair: Pair, differences: Sequence[float], groups: Groups) -> Pair:
    sums, sizes = groups.sums(differences)
    return replace(
        pair,
        interval=flip_interval(sums, sizes, seed=SEED),
        interval_method=f"sign-flip permutation over {groups.called}",
        test=f"sign-flip permutation test over {groups.called}",
        p=sign_flip_test(sums, seed=SEED),
        detectable=detectable_sum(sums, sizes),
        needed=needed_sums(sums, sizes),
        groups=len(sums),
        grouped_by=groups.by,
    )


def _tested_anytime(pair: Pair, differences: Mapping[str, float], groups: Groups | None) -> Pair:
    if groups is not None:
        raise UsageError(
            f"{pair.first!r} and {pair.second!r} come in {groups.called}, and one of them was "
            "stopped when clear, which takes every problem for itself.",
            expected="sets of all questions",
            hint="run tunesmith eval without --stop-when-clear",
        )
    found = anytime([differences[key] for key in asked_order(differences)])
    return replace(
        pair,
        interval=found.interval,
        interval_method="confidence sequence by betting, at every time",
        test="test by betting, at every time",
        p=found.p,
        sequential=True,
    )


def _ungraded_share(result: ResultSet, shared: Sequence[str]) -> float:
    wanted = set(shared)
    here = [attempt for attempt in result.attempts if attempt.problem_id in wanted]
    ungraded = sum(a.verdict is None or a.verdict.score is None for a in here)
    return ungraded / len(here) if here else 0.0


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def format_p(p: float) -> str:
    """Return ``p = 0.034`` or ``p < 0.0001``."""
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.4f}" if p < 0.01 else f"p = {p:.3f}"
