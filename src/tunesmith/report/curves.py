"""The curves of a training run, from its ``metrics.jsonl``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.report.charts import BEHIND, TUNED, Chart, Series


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Return the records of a ``metrics.jsonl``, with or without checksums, in order of steps.

    A step that was made again after a resume counts once, as it was made last. A line that is no
    record (one that was being written) is left out: the curves are for the eye.
    """
    with Path(path).open("rb") as file:
        return in_order(map(read_record, file))


def read_record(line: bytes) -> dict[str, Any] | None:
    """Return the record of one line of a ``metrics.jsonl``; None for what is none."""
    try:
        record = json.loads(line.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    if isinstance(record, dict) and isinstance(record.get("r"), dict):
        record = record["r"]
    known = isinstance(record, dict) and isinstance(record.get("step"), int)
    return record if known else None


def in_order(records: Iterable[dict[str, Any] | None]) -> list[dict[str, Any]]:
    """Return the records in the order of steps, of each kind the last one of a step."""
    found = {(str(one.get("kind")), one["step"]): one for one in records if one is not None}
    return sorted(found.values(), key=lambda record: record["step"])


def training_charts(label: str, records: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Return the charts of one run: loss and accuracy (training and held-out), rate, gradient.

    A run that was rewarded has its reward first; its loss is no measure of what it can do.
    """

    def points(kind: str, key: str) -> list[tuple[float, float]]:
        return [
            (float(record["step"]), float(record[key]))
            for record in records
            if record.get("kind") == kind and isinstance(record.get(key), int | float)
        ]

    def alone(name: str, key: str) -> list[Series]:
        return [Series(name, points("train", key), TUNED)]

    head = f"{label}: " if label else ""
    loss = [
        Series("training", points("train", "loss"), BEHIND),
        Series("held-out", points("eval", "loss"), TUNED),
    ]
    right = [
        Series(name, [(x, 100 * y) for x, y in points(kind, "accuracy")], colour)
        for name, kind, colour in (("training", "train", BEHIND), ("held-out", "eval", TUNED))
    ]
    reward = [s for s in alone("mean of a step's answers", "reward") if s.points]
    what = "loss of the policy" if reward else "loss (nats per token)"
    charts = [
        Chart(f"{head}reward", reward),
        Chart(f"{head}{what}", [s for s in loss if s.points]),
        Chart(f"{head}tokens right (%)", [s for s in right if s.points]),
        Chart(f"{head}learning rate", [s for s in alone("learning rate", "lr") if s.points]),
        Chart(
            f"{head}norm of the gradient",
            [s for s in alone("before it is clipped", "grad_norm") if s.points],
        ),
    ]
    return [chart for chart in charts if chart.series]
