"""Scores beside stored attempts: ``metrics.json`` for people, ``items.json`` to compare by."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunesmith.errors import DataError, UsageError
from tunesmith.evaluate.losses import RowLoss
from tunesmith.evaluate.records import ResultSet
from tunesmith.evaluate.scores.base import Measured, Replies
from tunesmith.storage import write_json
from tunesmith.types import Verdict

METRICS = "metrics.json"
ITEMS = "items.json"


def write_items(folder: Path, measured: Iterable[Measured], replies: Replies) -> None:
    """Write each question's mean value of each metric that can be compared, and its loss."""
    found = {one.name: one.by_question for one in measured if one.by_question is not None}
    losses = {
        reply.problem_id: [reply.loss.loss, reply.loss.bytes] for reply in replies if reply.loss
    }
    write_json(folder / ITEMS, {"metrics": found, "losses": losses})


def items(place: str | Path) -> Mapping[str, Any]:
    """Return what ``write_items`` wrote beside a set of attempts; nothing where it wrote none."""
    place = Path(place)
    file = (place if place.is_dir() else place.parent) / ITEMS
    if not file.is_file():
        return {"metrics": {}, "losses": {}}
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return {"metrics": dict(found["metrics"]), "losses": dict(found["losses"])}
    except (OSError, ValueError, KeyError, TypeError) as failure:
        raise DataError(
            f"{file} cannot be read as the scores of a set: {failure}.",
            hint="the same tunesmith eval again writes it anew",
        ) from None


def scored_by(result: ResultSet, place: str | Path, metric: str) -> ResultSet:
    """Return a set with a metric's values as its scores; questions without one are left out.

    ``UsageError`` where the set has no such metric, or none that is a value of each reply.
    """
    known = items(place)["metrics"]
    if metric not in known:
        raise UsageError(
            f"{result.name!r} has no scores {metric!r} of its replies.",
            expected=", ".join(sorted(known)) or "a set of tunesmith eval --task chat, code, …",
            hint=f"--metric {min(known)}" if known else "leave --metric out",
        )
    scores: Mapping[str, float] = known[metric]
    attempts = tuple(
        replace(
            one, index=0, verdict=Verdict(scores[one.problem_id], one.text.strip() or None, metric)
        )
        for one in {a.problem_id: a for a in reversed(result.attempts)}.values()
        if one.problem_id in scores
    )
    header = replace(result.header, planned=len(attempts), samples=1)
    kept = {a.problem_id: result.problems[a.problem_id] for a in attempts}
    return replace(result, header=header, attempts=attempts, problems=kept)


def losses(place: str | Path) -> list[RowLoss]:
    """Return the losses of the held-out rows that lie beside a set; none where there are none."""
    return [
        RowLoss(key, float(loss), int(size)) for key, (loss, size) in items(place)["losses"].items()
    ]
