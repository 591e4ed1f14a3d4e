"""Scores without the questions that overlap with rows of training."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunesmith.errors import DataError
from tunesmith.evaluate.records import ResultSet, without_stop

CONTAMINATION = "contamination.json"


def only(result: ResultSet, kept: Collection[str]) -> ResultSet:
    """Return a set with these of its problems alone."""
    attempts = tuple(a for a in result.attempts if a.problem_id in kept)
    problems = {key: problem for key, problem in result.problems.items() if key in kept}
    return replace(
        result,
        header=replace(result.header, planned=0, details=without_stop(result.header)),
        attempts=attempts,
        problems=problems,
    )


def clean(result: ResultSet, flagged: Collection[str]) -> ResultSet:
    """Return a set without the problems that are flagged."""
    return only(result, result.problems.keys() - set(flagged))


def stored_contamination(place: str | Path) -> Mapping[str, Any] | None:
    """Return what is stored of a set's overlaps with training rows; None where nobody looked."""
    place = Path(place)
    file = (place if place.is_dir() else place.parent) / CONTAMINATION
    if not file.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        for overlap in found["overlaps"]:
            str(overlap["problem"])
        return found
    except (OSError, ValueError, KeyError, TypeError) as failure:
        raise DataError(
            f"{file} does not say which questions overlap: {failure}.",
            hint="the same tunesmith eval --contamination again writes it anew",
        ) from None
