"""What a metric is, what it measures, and the interval of each kind."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from tunesmith.evaluate.betting import betting_interval
from tunesmith.evaluate.records import ResultSet
from tunesmith.evaluate.statistics import Interval, jackknife, jackknife_ratio, wilson
from tunesmith.grading.thinking import split_thinking
from tunesmith.tasks.replies import compared
from tunesmith.types import StopReason

SEED = 20260101
"""Seed of shuffling and resampling; it has nothing to do with the run's seed."""
GROUPS = 50
"""Parts that a metric of the whole set is measured without, one at a time, for its interval."""
Better = Literal["higher", "lower", "neither"]


@dataclass(frozen=True, slots=True)
class TextLoss:
    """What a model makes of the trained tokens of one held-out row."""

    loss: float
    """Weighted sum, in nats."""
    weight: float
    tokens: int
    right: int
    """Tokens that are the model's likeliest one."""
    bytes: int
    """UTF-8 bytes that the trained tokens spell."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One generated reply with all that metrics look at."""

    problem_id: str
    prompt: tuple[tuple[str | None, str], ...]
    """(role, text) of the turns before it; the role is None for the opening of a plain text."""
    reference: str
    text: str
    """What stands behind the last ``</think>``; nothing where a block is unclosed."""
    stop: StopReason
    tokens: int | None
    """None where nobody counted, as with a server."""
    loss: TextLoss | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    """What the question's task knows of it, such as the documents that were shown."""

    @property
    def before(self) -> str:
        """The turn that it replies to."""
        return self.prompt[-1][1]


Replies = Sequence[Reply]
Values = Sequence[float | None]
"""One value a reply; None where the metric says nothing of it."""
Parts = Sequence[tuple[float, float] | None]
"""Numerator and denominator of each reply, added up before they are divided."""
Sums = dict[str, tuple[float, float]]
"""The same of each question."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: exactly one of ``each``, ``parts`` and ``whole`` computes it."""

    name: str
    title: str
    """What tables call it, at most 22 letters."""
    better: Better
    low: float
    high: float
    """Ends of its range; infinity where it has none."""
    each: Callable[[Replies], Values] | None = None
    """A value for each reply; the metric is their mean."""
    parts: Callable[[Replies], Parts] | None = None
    """The metric is a sum over a sum."""
    whole: Callable[[Replies], float | None] | None = None
    """The metric is one of the whole set."""
    outer: Callable[[float], float] = float
    """Rising function of the mean or ratio, such as the exponential of a perplexity."""
    paired: bool = False
    """Whether it matters which question a reply belongs to, so that shuffled replies are a chance
    level."""
    of_text: bool = True
    """Whether the references themselves can be measured by it."""

    @property
    def formula(self) -> str:
        """The first paragraph of what computes it: the formula, and where it comes from."""
        found = self.each or self.parts or self.whole
        return " ".join(((found and found.__doc__) or "").split("\n\n")[0].split())

    @property
    def comparable(self) -> bool:
        """Whether two models can be compared by its value for each reply, in [0, 1]."""
        return self.each is not None and (self.low, self.high) == (0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Measured:
    """What a metric found; every interval is a 95% one, over questions."""

    name: str
    title: str
    better: Better
    range: tuple[float, float | None]
    formula: str
    value: float | None
    """None where nothing could be measured."""
    interval: Interval | None
    interval_method: str
    n: int
    """Replies that it says something of."""
    shuffled: float | None
    """The same replies, each at another question: what chance brings."""
    reference: float | None
    """The references in place of the replies: what people wrote."""
    by_question: Mapping[str, float] | None = None
    """Its mean value at each question, where two models can be compared by that."""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON knows it, without the single questions."""
        return {key: value for key, value in asdict(self).items() if key != "by_question"}


def replies_of(result: ResultSet, losses: Mapping[str, TextLoss] | None = None) -> list[Reply]:
    """Return the replies of a stored set in its order; ``losses`` by problem id."""
    found = []
    for attempt in result.attempts:
        problem = result.problems[attempt.problem_id]
        found.append(
            Reply(
                problem.id,
                tuple((segment.role, segment.text) for segment in problem.prompt),
                problem.reference,
                compared(problem, split_thinking(attempt.text).answer or ""),
                attempt.stop,
                len(attempt.tokens) if attempt.tokens or not attempt.text else None,
                (losses or {}).get(problem.id),
                problem.meta,
            )
        )
    return found


def values(metric: Metric, replies: Replies) -> Values:
    """Return the metric's value for each reply; all None where it has none."""
    return metric.each(replies) if metric.each and replies else [None] * len(replies)


def value(metric: Metric, replies: Replies) -> float | None:
    """Return the metric of a set of replies; None where it says nothing."""
    if metric.whole is not None:
        return metric.whole(replies) if replies else None
    return _ratio(metric, _sums(metric, replies))


def _ratio(metric: Metric, sums: Sums) -> float | None:
    size = math.fsum(denominator for _, denominator in sums.values())
    return metric.outer(math.fsum(top for top, _ in sums.values()) / size) if size else None


def measure(metric: Metric, replies: Replies) -> Measured:
    """Return a metric with its interval, its chance level and its value for the references."""
    if metric.whole is not None:
        sums: Sums = {}
        found = value(metric, replies)
        interval = _left_out(metric.whole, metric, replies)
        method, n = "jackknife over questions", len(replies) if found is not None else 0
    else:
        sums = _sums(metric, replies)
        found = _ratio(metric, sums)
        interval, method = _interval(metric, sums)
        n = sum(reply.problem_id in sums for reply in replies)
        if metric.each is not None:
            n = round(math.fsum(size for _, size in sums.values()))
    high = None if math.isinf(metric.high) else metric.high
    return Measured(
        metric.name,
        metric.title,
        metric.better,
        (metric.low, high),
        metric.formula,
        found,
        interval,
        method,
        n,
        value(metric, shuffled(replies))
        if metric.paired and len({reply.problem_id for reply in replies}) > 1
        else None,
        value(metric, as_references(replies)) if metric.of_text else None,
        {key: top / size for key, (top, size) in sums.items()} if metric.comparable else None,
    )


def shuffled(replies: Replies) -> list[Reply]:
    """Return the replies, each at another question, the same way every time."""
    of_question: dict[str, list[Reply]] = {}
    for reply in replies:
        of_question.setdefault(reply.problem_id, []).append(reply)
    order = list(of_question)
    random.Random(SEED).shuffle(order)
    # One step along a random circle: nobody stays at home.
    others = dict(zip(order, [*order[1:], *order[:1]], strict=True))
    found = []
    for problem_id, own in of_question.items():
        guests = of_question[others[problem_id]]
        for at, reply in enumerate(own):
            guest = guests[at % len(guests)]
            found.append(replace(reply, text=guest.text, stop=guest.stop))
    return found


def as_references(replies: Replies) -> list[Reply]:
    """Return what a model would have said that repeats every reference, once a question."""
    first = {reply.problem_id: reply for reply in reversed(replies)}
    return [
        replace(one, text=one.reference, stop=StopReason.STOP_TOKEN, tokens=None)
        for one in reversed(first.values())
    ]


def _sums(metric: Metric, replies: Replies) -> Sums:
    """Return numerator and denominator of each question; questions without any are out."""
    if metric.parts is not None:
        found: Parts = metric.parts(replies) if replies else []
    else:
        found = [None if one is None else (one, 1.0) for one in values(metric, replies)]
    sums: Sums = {}
    for reply, part in zip(replies, found, strict=True):
        if part is not None and part[1]:
            before = sums.get(reply.problem_id, (0.0, 0.0))
            sums[reply.problem_id] = (before[0] + part[0], before[1] + part[1])
    return sums


def _interval(metric: Metric, sums: Sums) -> tuple[Interval | None, str]:
    if len(sums) < 2:
        return None, "none"
    tops, sizes = ([one[side] for one in sums.values()] for side in (0, 1))
    means = [top / size for top, size in zip(tops, sizes, strict=True)]
    binary = metric.each is not None and all(mean in (0.0, 1.0) for mean in means)
    if binary and (len(set(means)) == 1 or set(sizes) == {1.0}):
        # Equal values show no spread.
        ends = wilson(int(sum(means)), len(means))
        return Interval(metric.outer(ends.low), metric.outer(ends.high)), "Wilson"
    if metric.comparable and len(set(sizes)) == 1:
        return betting_interval(means, seed=SEED), "betting over questions"
    found = jackknife_ratio(tops, sizes)
    if found is None:
        return None, "none"
    ends = Interval(*(metric.outer(end) for end in (found.low, found.high)))
    ends = Interval(max(metric.low, ends.low), min(metric.high, ends.high))
    return ends, "jackknife over questions"


def _left_out(
    whole: Callable[[Replies], float | None], metric: Metric, replies: Replies
) -> Interval | None:
    """Return the jackknife interval of a metric of the set, within the metric's range.

    A bootstrap draws replies twice, which no metric of repetition survives; leaving out does not.
    """
    ids = list(dict.fromkeys(reply.problem_id for reply in replies))
    group = {problem_id: at % GROUPS for at, problem_id in enumerate(ids)}
    estimates = [
        whole([reply for reply in replies if group[reply.problem_id] != left])
        for left in range(min(GROUPS, len(ids)))
    ]
    found = whole(replies) if replies else None
    known = [one for one in estimates if one is not None]
    if found is None or len(known) < max(2, len(estimates)):
        return None
    ends = jackknife(found, known)
    return Interval(max(metric.low, ends.low), min(metric.high, ends.high))
