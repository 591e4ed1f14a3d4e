"""What a run saw of its rows while it trained: spikes, rows to look at, answers on the way."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_ROWS = 10
"""Rows of a kind, and spikes, that a page holds; their full number is said."""
KINDS = {
    "never learnt": "In no pass had the labels over half of the probability (mean loss under "
    "0.69). Of texts that cannot be foreseen most rows are of this kind.",
    "forgotten": "Learnt in one pass, and less than half as probable in the last one.",
    "suspect label": "Over all passes, the costliest token surprised the model far more than those "
    "of the other rows: the label may be wrong.",
}
"""Kinds of rows in ``rows.json``, and what each one means."""


@dataclass(frozen=True, slots=True)
class RowList:
    """Rows of one kind."""

    kind: str
    about: str
    total: int
    rows: Sequence[tuple[str, str]]
    """(place, course of its losses)."""


@dataclass(frozen=True, slots=True)
class SampleCourse:
    """What the model answered to one prompt, in order of steps."""

    prompt: str
    reference: str
    answers: Sequence[tuple[int, str]]


def spike_sentences(records: Sequence[Mapping[str, Any]]) -> tuple[list[str], int]:
    """Return what is said of the first spikes, and how many there are."""
    found = [str(record.get("text")) for record in records if record.get("kind") == "spike"]
    return found[:MAX_ROWS], len(found)


def course_sentences(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what the training took: memory, speed, and the use of a GPU where it was told."""

    def numbers(key: str) -> list[float]:
        return [
            float(record[key])
            for record in records
            if record.get("kind") == "train" and isinstance(record.get(key), int | float)
        ]

    parts = []
    if speeds := numbers("tokens_per_s"):
        parts.append(f"{statistics.median(speeds):,.0f} tokens/s (median)")
    if peaks := numbers("peak_bytes"):
        parts.append(f"{max(peaks) / 1e9:.2f} GB of memory at most")
    if busy := numbers("gpu_percent"):
        parts.append(f"GPU at work {statistics.median(busy):.0f}% of the time (median)")
    return [", ".join(parts) + "."] if parts else []


def row_lists(root: Path, notes: list[str]) -> list[RowList]:
    """Return the rows that a run's ``rows.json`` names; what cannot be read becomes a note."""
    file = root / "rows.json"
    if not file.is_file():
        return []
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return [
            RowList(
                kind,
                about,
                int(content[kind]["count"]),
                [
                    (str(row["origin"]), " → ".join(f"{loss:.2f}" for loss in row["losses"][-8:]))
                    for row in content[kind]["rows"][:MAX_ROWS]
                ],
            )
            for kind, about in KINDS.items()
            if content[kind]["count"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as failure:
        notes.append(f"{file} cannot be read: {failure!r}")
        return []


def sample_courses(root: Path, notes: list[str]) -> list[SampleCourse]:
    """Return the answers of a run's ``samples.jsonl`` by prompt, each in order of steps."""
    file = root / "samples.jsonl"
    if not file.is_file():
        return []
    courses: dict[tuple[str, str], tuple[str, dict[int, str]]] = {}
    try:
        # Not splitlines: texts may hold separators that it takes for ends of lines.
        for line in filter(None, file.read_text(encoding="utf-8").split("\n")):
            one = json.loads(line)
            key = str(one["origin"]), str(one["prompt"])
            _, answers = courses.setdefault(key, (str(one["reference"]), {}))
            answers[int(one["step"])] = str(one["answer"])
    except (OSError, ValueError, KeyError, TypeError) as failure:
        notes.append(f"{file} cannot be read: {failure!r}")
        return []
    return [
        SampleCourse(prompt, reference, sorted(answers.items()))
        for (_, prompt), (reference, answers) in courses.items()
    ]
