"""Stored attempts under another grader: new verdicts, and how they differ from the old ones."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tunesmith import __version__
from tunesmith.evaluate.attempts import graded, in_order
from tunesmith.evaluate.records import ResultSet
from tunesmith.types import Attempt, Problem, Verdict

END = 60
"""Letters of the end of a text that are shown."""


@dataclass(frozen=True, slots=True)
class Changed:
    """One attempt whose verdict is another one now."""

    problem_id: str
    index: int
    text: str
    before: Verdict | None
    now: Verdict | None

    @property
    def kind(self) -> str:
        """Which way it changed, such as ``right to wrong``."""
        return f"{_word(self.before)} to {_word(self.now)}"

    def sentence(self) -> str:
        """Say what changed, with the end of the text and the reasons."""
        end = " ".join(self.text.split())[-END:]
        reasons = [f"«{one.reason}»" if one else "never graded" for one in (self.before, self.now)]
        return f"{self.problem_id}, attempt {self.index}: {self.kind}; …{end}: " + ", now ".join(
            reasons
        )


def regraded(
    result: ResultSet, grader: Callable[[Problem, str], Verdict], workers: int = 1
) -> Iterator[Attempt]:
    """Yield every attempt with a new verdict; a grader that fails leaves its attempt ungraded."""

    def judge(attempt: Attempt) -> Verdict:
        return graded(grader, result.problems[attempt.problem_id], attempt.text)

    for attempt, verdict in in_order(result.attempts, judge, workers):
        yield replace(attempt, verdict=verdict)


def changes(old: ResultSet, new: ResultSet) -> tuple[Changed, ...]:
    """Return the attempts whose score is another one now, in the order of the set."""
    return tuple(
        Changed(one.problem_id, one.index, one.text, one.verdict, other.verdict)
        for one, other in zip(old.attempts, new.attempts, strict=True)
        if _score(one.verdict) != _score(other.verdict)
    )


def count_changes(found: Iterable[Changed]) -> Mapping[str, int]:
    """Return how many verdicts changed which way, the most frequent first."""
    return dict(Counter(one.kind for one in found).most_common())


def grader_version(task: str) -> str:
    """Return a hash of the code that grades a task's answers, and the version of the package."""
    import tunesmith.grading
    import tunesmith.tasks

    folders = [Path(str(module.__file__)).parent for module in (tunesmith.grading, tunesmith.tasks)]
    digest = hashlib.sha256(task.encode())
    for file in sorted(file for folder in folders for file in folder.rglob("*.py")):
        digest.update(file.name.encode() + file.read_bytes())
    return f"{__version__} {digest.hexdigest()[:16]}"


def _score(verdict: Verdict | None) -> float | None:
    return None if verdict is None else verdict.score


def _word(verdict: Verdict | None) -> str:
    score = _score(verdict)
    if score is None:
        return "ungraded"
    return "right" if score == 1 else "wrong" if score == 0 else f"{score:.2f}"
