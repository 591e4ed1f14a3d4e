"""One answer out of several attempts at a problem: votes (arXiv 2203.11171) and best-of-n.

An attempt from which no answer could be read does not vote. Of answers with equal votes the one
that was given first wins.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Literal

from tunesmith.errors import DataError
from tunesmith.evaluate.records import ResultSet, without_stop
from tunesmith.evaluate.statistics import majority
from tunesmith.grading.answers import parse_number
from tunesmith.storage import hash_json
from tunesmith.types import Attempt, Problem

Vote = Literal["majority", "weighted", "best"]
"""The most frequent answer; that of the largest summed probability; that of the likeliest text."""
_SUM = re.compile(r"\d\s*[-+*/×÷·^=]\s*[\d(]")
_SHARE = re.compile(r"\s*[-+]?\d+\s*/\s*\d+\s*")


def ballot(answer: str, *, numeric: bool) -> str:
    """Return what an answer counts as.

    12, 12.0 and 1.2e1 feet are one answer where a number is asked for; 11 * 3 is none of 11.
    """
    value = parse_number(answer) if numeric else None
    several = "\n" in answer.strip() or (_SUM.search(answer) and not _SHARE.fullmatch(answer))
    if value is None or several:
        return " ".join(answer.split())
    return str(value)


def is_numeric(problem: Problem) -> bool:
    """Return whether a problem's gold answer is a number."""
    try:
        Fraction(problem.reference)
    except (ValueError, ZeroDivisionError):
        return False
    return True


def choose(
    answers: Sequence[str | None], how: Vote = "majority", means: Sequence[float | None] = ()
) -> int | None:
    """Return the position of the first attempt with the winning answer; None without answers.

    ``answers`` are ballots. ``means`` are the attempts' mean log-probabilities of a token in nats,
    for the votes that weigh by them: an answer's weight is the sum of their exponentials.
    """
    if how == "majority":
        won = majority(answers)
        return None if won is None else answers.index(won)
    weights = [
        (at, answer, -math.inf if mean is None else mean)
        for at, (answer, mean) in enumerate(zip(answers, means, strict=True))
        if answer is not None
    ]
    if not weights:
        return None
    if how == "best":
        return max(weights, key=lambda one: (one[2], -one[0]))[0]
    sums: dict[str, float] = {}
    for _, answer, mean in weights:
        sums[answer] = sums.get(answer, 0.0) + math.exp(mean)
    return answers.index(max(sums, key=sums.__getitem__))


def mean_logprob(attempt: Attempt) -> float | None:
    """Return the mean log-probability of an attempt's tokens in nats; None if it is not known."""
    if attempt.logprob is None or not attempt.tokens:
        return None
    return attempt.logprob / len(attempt.tokens)


def voted(result: ResultSet, how: Vote) -> ResultSet:
    """Return a set with one attempt at each problem: the first one with the answer that won.

    Where no answer could be read it is the first graded attempt. Raises ``DataError`` where a
    vote by probability lacks the log-probabilities of answers.
    """
    chosen = []
    for problem_id, attempts in result.by_problem().items():
        answered = [a for a in attempts if a.verdict is not None and a.verdict.answer is not None]
        if how != "majority" and any(a.tokens and a.logprob is None for a in answered):
            raise DataError(
                f"The stored attempts of {result.name!r} have no log-probabilities, which a "
                f"{how} vote needs.",
                expected="attempts that were made for such a vote",
                hint="give --overwrite to make them again, or --vote majority",
            )
        numeric = is_numeric(result.problems[problem_id])
        answers = [
            ballot(a.verdict.answer, numeric=numeric)
            if a.verdict is not None and a.verdict.answer is not None
            else None
            for a in attempts
        ]
        at = choose(answers, how, [mean_logprob(a) for a in attempts])
        if at is None:
            graded = (a for a in attempts if a.verdict is not None and a.verdict.score is not None)
            chosen.append(replace(next(graded, attempts[0]), index=0))
            continue
        won, verdict = attempts[at], attempts[at].verdict
        assert verdict is not None
        reason = f"{verdict.reason}; {answers.count(answers[at])} of {len(attempts)} say so"
        chosen.append(replace(won, index=0, verdict=replace(verdict, reason=reason)))
    head = result.header
    header = replace(
        head,
        name=f"{head.name}-{how}",
        samples=1,
        planned=len(chosen),
        fingerprint=hash_json([head.fingerprint, how]),
        details={**without_stop(head), "vote": f"{how} of {head.samples}"},
    )
    return ResultSet(header, tuple(chosen), result.problems)
