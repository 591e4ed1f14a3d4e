"""How far answers follow verifiable constraints: strictly and loosely, by prompt and by kind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunesmith.evaluate.statistics import Interval, jackknife_ratio, wilson
from tunesmith.grading.constraints.checks import stored_constraints
from tunesmith.grading.thinking import split_thinking

if TYPE_CHECKING:
    from tunesmith.evaluate.records import ResultSet


@dataclass(frozen=True, slots=True)
class Share:
    """A share of things that are met, with its 95% interval."""

    met: int
    of: int
    value: float
    interval: Interval
    interval_method: str

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Share:
        """Read what ``dataclasses.asdict`` made of one."""
        return cls(**{**values, "interval": Interval(**values["interval"])})


@dataclass(frozen=True, slots=True)
class Both:
    """One level, judged strictly and loosely."""

    strict: Share
    """Met by the answer as it stands."""
    loose: Share
    """Met by it, or by it without its first or last line or asterisks."""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Both:
        """Read what ``dataclasses.asdict`` made of one."""
        return cls(Share.from_json(values["strict"]), Share.from_json(values["loose"]))


@dataclass(frozen=True, slots=True)
class Following:
    """IFEval's figures of one set of answers (arXiv 2311.07911, section 2.2)."""

    prompts: Both
    """Answers that follow all constraints of their prompt."""
    instructions: Both
    """Constraints that are followed, over all answers."""
    kinds: Mapping[str, Both]
    """The same for each kind of constraint, by name."""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Following:
        """Read what ``dataclasses.asdict`` made of one."""
        kinds = {kind: Both.from_json(both) for kind, both in values["kinds"].items()}
        return cls(Both.from_json(values["prompts"]), Both.from_json(values["instructions"]), kinds)


@dataclass(frozen=True, slots=True)
class _One:
    """Whether one constraint of one attempt is met."""

    problem: str
    kind: str
    strict: bool
    loose: bool


def following(results: ResultSet) -> Following | None:
    """Return the figures of a set from its stored texts; None where no question has constraints.

    What is judged stands behind the last ``</think>``; an unclosed block follows nothing. Attempts
    that were made with a hint are left out, and so are those that nobody could grade.
    """
    prompts: list[_One] = []
    found: list[_One] = []
    for attempt in results.attempts:
        ungraded = attempt.verdict is None or attempt.verdict.score is None
        constraints = stored_constraints(results.problems[attempt.problem_id].meta)
        if attempt.hinted or ungraded or not constraints:
            continue
        answer = split_thinking(attempt.text).answer or ""
        own = [
            _One(
                attempt.problem_id,
                one.kind,
                strict := one.strict(answer),
                strict or one.loose(answer),
            )
            for one in constraints
        ]
        found += own
        strict, loose = all(one.strict for one in own), all(one.loose for one in own)
        prompts.append(_One(attempt.problem_id, "", strict, loose))
    if not found:
        return None
    names = sorted({one.kind for one in found})
    kinds = {name: _both([one for one in found if one.kind == name]) for name in names}
    return Following(_both(prompts), _both(found), kinds)


def _both(ones: Sequence[_One]) -> Both:
    return Both(
        _share((one.problem, one.strict) for one in ones),
        _share((one.problem, one.loose) for one in ones),
    )


def _share(verdicts: Iterable[tuple[str, bool]]) -> Share:
    """Return the share of what is met.

    One verdict a problem gets Wilson's interval. Several of one problem are no independent trials,
    so each problem is left out in turn; where all verdicts agree that shows no spread, and Wilson's
    interval counts each problem once.
    """
    by_problem: dict[str, list[bool]] = {}
    for problem, one in verdicts:
        by_problem.setdefault(problem, []).append(one)
    sums = [sum(each) for each in by_problem.values()]
    sizes = [len(each) for each in by_problem.values()]
    met, of = sum(sums), sum(sizes)
    ends = jackknife_ratio(sums, sizes, 0.0, 1.0)
    if ends is None or met in (0, of) or of == len(sizes):
        count = len(sizes)
        method, interval = "Wilson", wilson(round(count * met / of), count)
    else:
        method, interval = "jackknife over prompts", ends
    return Share(met, of, met / of, interval, method)
