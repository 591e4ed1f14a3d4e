"""What there is to judge in stored sets, the questions to the judge, and what its verdicts show."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast

from tunesmith.errors import DataError, UsageError
from tunesmith.evaluate.compare import format_p
from tunesmith.evaluate.flips import sign_flip_test
from tunesmith.evaluate.judge_prompts import (
    HIGHEST,
    LOWEST,
    TIE,
    pair_prompt,
    rating_prompt,
    read_rating,
    read_verdict,
)
from tunesmith.evaluate.metrics import MAX_UNGRADED, SEED
from tunesmith.evaluate.records import ResultSet
from tunesmith.evaluate.statistics import (
    Interval,
    bootstrap_mean,
    mcnemar_exact,
    wilson,
)
from tunesmith.generate.backends import Backend, Question
from tunesmith.generate.requests import Sampling, attempt_seed
from tunesmith.grading.thinking import split_thinking
from tunesmith.tasks.replies import REPLY_TASKS
from tunesmith.types import Attempt, Problem, Segment, StopReason, Verdict

TASK = "judge"
"""The task's name in logs of judgements."""
CLUSTER = "question"
"""Key of a problem's meta: problems that share it are no independent ones, such as two turns."""
CUT = (StopReason.LENGTH, StopReason.FILTERED, StopReason.CANCELLED)


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to judge: two conversations that end with a reply each, or one."""

    id: str
    cluster: str
    """Items that share it are counted together."""
    first: tuple[Segment, ...]
    second: tuple[Segment, ...] | None
    reference: str = ""
    group: Mapping[str, str] = field(default_factory=dict)
    """Ways to group it by, such as category and turn."""

    @property
    def lengths(self) -> tuple[int, int]:
        """Characters of the two replies."""
        return len(self.first[-1].text), len((self.second or self.first)[-1].text)


def items_of(sets: Sequence[ResultSet]) -> list[Item]:
    """Return what two sets, or one, have to judge, in the order of the problems.

    Thinking is left out of the replies. Two sets are joined by problem and index of the attempt.
    ``UsageError`` for an unfinished set, different tasks, equal names or nothing shared;
    ``DataError`` where the same problem asks two different things.
    """
    for one in sets:
        if one.missing:
            raise UsageError(
                f"{one.name!r} is not finished: {one.missing} of {one.header.planned} attempts are "
                "missing.",
                expected="complete sets",
                hint="run the same tunesmith eval again; it makes only what is missing",
            )
    sets = [one.first_round() for one in sets]
    if len(sets) == 2:
        _check_two(*sets)
    found: list[dict[tuple[str, int], Attempt]] = [
        {(attempt.problem_id, attempt.index): attempt for attempt in one.attempts} for one in sets
    ]
    shared = [key for key in found[0] if all(key in other for other in found)]
    if not shared:
        raise UsageError("The two sets share no problem.", expected="attempts at the same problems")
    return [_item(sets, [one[key] for one in found], key) for key in shared]


def _check_two(first: ResultSet, second: ResultSet) -> None:
    if first.header.task != second.header.task:
        raise UsageError(
            f"The sets belong to different tasks: {first.header.task}, {second.header.task}.",
            expected="attempts at the same problems",
        )
    if first.name == second.name:
        raise UsageError(
            f"Both sets are called {first.name!r}.", expected="a name of its own for each set"
        )


def _item(sets: Sequence[ResultSet], attempts: Sequence[Attempt], key: tuple[str, int]) -> Item:
    problem_id, index = key
    problems = [one.problems[problem_id] for one in sets]
    asked = [[s.text for s in p.prompt if s.role != "assistant"] for p in problems]
    if asked[0] != asked[-1] or problems[0].reference != problems[-1].reference:
        raise DataError(
            f"Problem {problem_id!r} asks one thing in {sets[0].name!r} and another in "
            f"{sets[-1].name!r}.",
            expected="the same data on both sides",
        )
    meta = problems[0].meta
    said = [
        (*problem.prompt, Segment("assistant", split_thinking(attempt.text).answer or ""))
        for problem, attempt in zip(problems, attempts, strict=True)
    ]
    # What a row of a conversation says is one reply of many, and no right answer.
    right = "" if problems[0].task in REPLY_TASKS else problems[0].reference
    return Item(
        f"{problem_id}#{index}" if index else problem_id,
        str(meta.get(CLUSTER, problem_id)),
        said[0],
        said[1] if len(said) == 2 else None,
        right,
        {name: str(meta[name]) for name in ("category", "turn") if name in meta},
    )


def questions_of(items: Sequence[Item], max_new_tokens: int) -> list[Question]:
    """Return what the judge is asked: each pair in both orders, a single reply once; greedy."""
    sampling = Sampling(max_new_tokens)
    questions = []
    for item in items:
        prompts = (
            (rating_prompt(item.first, item.reference),)
            if item.second is None
            else (
                pair_prompt(item.first, item.second, item.reference),
                pair_prompt(item.second, item.first, item.reference),
            )
        )
        questions += [
            Question((item.id, order), prompt, sampling, attempt_seed(0, item.id, order))
            for order, prompt in enumerate(prompts)
        ]
    return questions


def verdict_of(text: str, stop: StopReason, order: int, *, rating: bool) -> Verdict:
    """Return what an answer of the judge says; ungraded (score None) where it says nothing.

    A pair's score is that of the second set, so 1 is «b», 0 is «a» and a half a tie; a rating lies
    between 1 and 10 and its score between 0 and 1.
    """
    if stop in CUT:
        return Verdict(None, None, f"the answer was cut off ({stop.value})")
    if rating:
        value = read_rating(text)
        if value is None:
            return Verdict(None, None, "the last line is no rating")
        return Verdict((value - 1) / 9, f"{value:g}", "rating")
    place = read_verdict(text)
    if place is None:
        return Verdict(None, None, "the last line is no verdict")
    winner = TIE if place == TIE else "ab"[(place == "B") ^ bool(order)]
    return Verdict({"a": 0.0, TIE: 0.5, "b": 1.0}[winner], winner, f"{place} in order {order + 1}")


def stream_judgements(
    backend: Backend,
    questions: Sequence[Question],
    *,
    rating: bool,
    done: Collection[tuple[str, int]] = (),
    should_stop: Callable[[], bool] | None = None,
) -> Iterator[tuple[Problem, Attempt]]:
    """Yield each judgement as it is made, as an attempt at a problem; those in ``done`` are not."""
    by_key = {cast(tuple[str, int], one.key): one for one in questions}
    asked = {key: one for key, one in by_key.items() if stored_as(key) not in done}
    for completion in backend.answers([*asked.values()], should_stop=should_stop):
        question = asked[completion.key]
        name, order = stored_as(completion.key)
        verdict = verdict_of(completion.text, completion.stop, order, rating=rating)
        yield (
            Problem(name, TASK, question.messages, ""),
            Attempt(
                name,
                order,
                question.seed,
                completion.text,
                completion.tokens,
                completion.stop,
                verdict,
            ),
        )


def stored_as(key: tuple[str, int]) -> tuple[str, int]:
    """Return the problem id and index of a judgement: the two orders are two questions."""
    return f"{key[0]}/{key[1]}", key[1]


@dataclass(frozen=True, slots=True)
class Share:
    """A share with its 95% interval (Wilson)."""

    count: float
    n: int
    share: float | None
    interval: Interval

    @classmethod
    def of(cls, count: float, n: int) -> Share:
        """Return ``count`` of ``n``; no share of nothing."""
        return cls(count, n, count / n if n else None, wilson(count, n))

    def text(self) -> str:
        """Say it in words."""
        if self.share is None:
            return "–"
        ends = f"{100 * self.interval.low:.1f} to {100 * self.interval.high:.1f}"
        return f"{100 * self.share:.1f}% (95% interval {ends})"


@dataclass(frozen=True, slots=True)
class Pairwise:
    """What both orders of all pairs show; ``a`` is the first set and ``b`` the second."""

    items: int
    ungraded: int
    """Pairs of which an order has no verdict; in no figure below but this one."""
    wins: int
    """Pairs that b wins in both orders."""
    ties: int
    """Pairs without a winner, those among them whose two orders disagree."""
    losses: int
    win_rate: Share
    """Of b, a tie as half a win; over clusters."""
    p: float | None
    """Two-sided; None where too much is ungraded or nothing was decided."""
    test: str
    split: Share
    """Pairs whose two orders disagree."""
    first_place: Share
    """Pairs whose first place won in both orders: position bias."""
    second_place: Share
    longer: Share
    """Decided pairs of unequal length that the longer reply won."""

    def sentence(self, first: str, second: str) -> str:
        """Say in words what it shows."""
        if not self.win_rate.n:
            return f"No pair of {first} and {second} was judged."
        what = (
            f"{second} wins {self.win_rate.text()} against {first} "
            f"({self.wins} won, {self.ties} tied, {self.losses} lost"
        )
        if self.p is None:
            if self.ungraded > MAX_UNGRADED * self.items:
                return f"{what}), but more than {MAX_UNGRADED:.0%} is ungraded: no p-value."
            return f"{what}): nothing was decided."
        clear = "" if self.p < 0.05 else "No clear difference: "
        return f"{clear}{what}; {self.test}, {format_p(self.p)})."


def pairwise(items: Sequence[Item], verdicts: Mapping[tuple[str, int], Verdict]) -> Pairwise:
    """Return what the judge's verdicts show; a key is an item's id and the order (0 or 1).

    The win rate is the mean over clusters, with Wilson's interval for that many trials: scores in
    [0, 1] spread no more than right-or-wrong ones, so it is not too narrow. Where every cluster is
    one pair the test is the exact sign test on the decided pairs, else a sign-flip test of the
    clusters' means.
    """
    winners = winners_of(items, verdicts)
    graded = [item for item in items if winners[item.id] is not None]
    counts = {kind: sum(winners[i.id] == kind for i in graded) for kind in ("a", TIE, "b")}
    clusters: dict[str, list[float]] = {}
    for item in graded:
        score = {"a": 0.0, TIE: 0.5, "b": 1.0}[winners[item.id] or TIE]
        clusters.setdefault(item.cluster, []).append(score)
    means = [math.fsum(scores) / len(scores) for scores in clusters.values()]
    if len(clusters) == len(graded):
        test, p = "exact sign test", mcnemar_exact(counts["b"], counts["a"])
    else:
        test, p = "sign-flip test", sign_flip_test([m - 0.5 for m in means], seed=SEED)
    decided = counts["a"] + counts["b"] > 0
    orders = [[(verdicts[i.id, order].answer or TIE) for order in (0, 1)] for i in graded]
    unequal = [
        (winners[i.id], "ab"[i.lengths[1] > i.lengths[0]])
        for i in graded
        if winners[i.id] != TIE and i.lengths[0] != i.lengths[1]
    ]
    n = len(graded)
    return Pairwise(
        items=len(items),
        ungraded=len(items) - n,
        wins=counts["b"],
        ties=counts[TIE],
        losses=counts["a"],
        win_rate=Share.of(math.fsum(means), len(means)),
        p=p if decided and len(items) - n <= MAX_UNGRADED * len(items) else None,
        test=test,
        split=Share.of(sum(one != other for one, other in orders), n),
        first_place=Share.of(sum(both == ["a", "b"] for both in orders), n),
        second_place=Share.of(sum(both == ["b", "a"] for both in orders), n),
        longer=Share.of(sum(won == longer for won, longer in unequal), len(unequal)),
    )


def winners_of(
    items: Sequence[Item], verdicts: Mapping[tuple[str, int], Verdict]
) -> dict[str, str | None]:
    """Return a, b or tie for each pair; a tie where the orders disagree, None where one is not."""
    found: dict[str, str | None] = {}
    for item in items:
        both = [verdicts[item.id, order].answer for order in (0, 1)]
        if None in both:
            found[item.id] = None
        else:
            found[item.id] = both[0] if both[0] == both[1] else TIE
    return found


@dataclass(frozen=True, slots=True)
class Rated:
    """Ratings of one set."""

    items: int
    ungraded: int
    mean: float | None
    interval: Interval | None
    """95%, by a bootstrap over the clusters; None without two of them."""

    def text(self) -> str:
        """Say it in words."""
        if self.mean is None:
            return "–"
        ends = self.interval
        span = f" (95% interval {ends.low:.2f} to {ends.high:.2f})" if ends else ""
        return f"{self.mean:.2f} of 10{span}"


def rated(items: Sequence[Item], verdicts: Mapping[tuple[str, int], Verdict]) -> Rated:
    """Return the mean rating, over clusters' means."""
    clusters: dict[str, list[float]] = {}
    graded = 0
    for item in items:
        rating = verdicts[item.id, 0].answer
        if rating is not None:
            graded += 1
            clusters.setdefault(item.cluster, []).append(float(rating))
    means = [math.fsum(values) / len(values) for values in clusters.values()]
    return Rated(
        items=len(items),
        ungraded=len(items) - graded,
        mean=math.fsum(means) / len(means) if means else None,
        interval=_interval(means),
    )


def _interval(means: Sequence[float]) -> Interval | None:
    if len(means) < 2:
        return None
    ends = bootstrap_mean(means, bound=HIGHEST, seed=SEED)
    return Interval(max(LOWEST, ends.low), ends.high)


def grouped(items: Sequence[Item]) -> dict[str, list[Item]]:
    """Return the items of each category and turn, by a name such as «category writing»."""
    found: dict[str, list[Item]] = {}
    for item in items:
        for kind, value in item.group.items():
            found.setdefault(f"{kind} {value}", []).append(item)
    return {name: found[name] for name in sorted(found) if len(found[name]) < len(items)}


def plain(value: Pairwise | Rated) -> dict[str, Any]:
    """Return figures as JSON knows them."""
    return asdict(value)


def verdicts_of(
    items: Sequence[Item], attempts: Sequence[Attempt], *, rating: bool
) -> dict[tuple[str, int], Verdict]:
    """Return the verdict of each item and order, read anew from the stored answers."""
    stored = {(attempt.problem_id, attempt.index): attempt for attempt in attempts}
    found = {}
    for item in items:
        for order in (0,) if rating else (0, 1):
            one = stored[stored_as((item.id, order))]
            found[item.id, order] = verdict_of(one.text, one.stop, order, rating=rating)
    return found
