"""Problems that come in groups: several of one passage, document or conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.errors import UsageError
from tunesmith.types import Problem

ROW = "row"
"""Several problems of one row of a file belong together; nobody has to say so."""


@dataclass(frozen=True, slots=True)
class Groups:
    """Which problem belongs to which group."""

    by: str
    """The field that says so, or ``row``."""
    of: Sequence[str]
    """The group of each problem, in their order."""

    @property
    def called(self) -> str:
        """What they are called, in the plural."""
        return "rows" if self.by == ROW else f"groups by {self.by}"

    def sums(self, values: Sequence[float]) -> tuple[list[float], list[float]]:
        """Return the sum of the values of each group, and how many there are."""
        sums: dict[str, float] = {}
        sizes: dict[str, float] = {}
        for group, value in zip(self.of, values, strict=True):
            sums[group] = sums.get(group, 0.0) + value
            sizes[group] = sizes.get(group, 0.0) + 1
        return list(sums.values()), list(sizes.values())


def groups_of(problems: Mapping[str, Problem], field: str | None) -> Groups | None:
    """Return the groups of problems by a field of their meta; None where each is its own.

    Without a field, problems of one row of a file belong together. ``UsageError`` where a problem
    has no such field.
    """
    if field is None or field == ROW:
        found = [_row(problem) or problem.id for problem in problems.values()]
        grouped = Groups(ROW, found)
    else:
        marks = [_marks(problem) for problem in problems.values()]
        for problem, known in zip(problems.values(), marks, strict=True):
            if field not in known:
                raise UsageError(
                    f"The problem {problem.id!r} does not say to which {field!r} it belongs.",
                    expected=f"one of {', '.join(sorted({*known, ROW}))}",
                    hint="leave --cluster-by out, or name a field that the rows had when asked",
                )
        grouped = Groups(field, [str(known[field]) for known in marks])
    return grouped if field is not None or len(set(grouped.of)) < len(grouped.of) else None


def _marks(problem: Problem) -> dict[str, Any]:
    """Return what is known of a problem besides its texts, the fields of its row first."""
    own = problem.meta.get("fields")
    return {**problem.meta, **(own if isinstance(own, Mapping) else {})}


def _row(problem: Problem) -> str | None:
    source, line = problem.meta.get("source"), problem.meta.get("line")
    if source is None or line is None:
        return None
    # Many rows on one line of a JSON list are told apart by their item.
    return f"{source}:{line}:{problem.meta.get('item', '')}"
