"""The curves of a training run, from its ``metrics.jsonl``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.report.charts import BEHIND, TUNED, Chart, Series


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Return the records of a ``metrics.jsonl``, with or without checksums, in order of steps.

    A step that was made again after a resume counts once, as it was made last. A line that is no
    record (one that was being written) is left out: the curves are for the eye.
    """
    found: dict[tuple[str, int], dict[str, Any]] = {}
    with Path(path).open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and isinstance(record.get("r"), dict):
                record = record["r"]
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                found[str(record.get("kind")), record["step"]] = record
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
