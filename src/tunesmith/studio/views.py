"""What the pages show of a run, and which parts of it have changed since the last look."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.report.charts import TUNED, Chart, Drawn, Series, draw
from tunesmith.report.curves import training_charts
from tunesmith.report.watched import SampleCourse, sample_courses
from tunesmith.studio.jobs import Jobs
from tunesmith.studio.pages import part
from tunesmith.studio.runs import LARGEST_FILE, RunFacts, Runs

MOST_SAMPLES = 8
MOST_EVENTS = 200
LETTERS = 200_000
"""Of a config that is shown."""
RUN_PARTS = ("head", "curves", "samples", "events")


def run_values(runs: Runs, jobs: Jobs, run: RunFacts, token: str) -> dict[str, Any]:
    """Return what a run's page is made of."""
    records = runs.records(run.path)
    job = jobs.of(run.name)
    return {
        "run": run,
        "job": job,
        "token": token,
        "charts": curves(records),
        "samples": _samples(run.path),
        "events": _events(records),
        "log": None if job is None else jobs.log(job),
        "has_report": own_file(run.path, "report.html") is not None,
        "config": _text(own_file(run.path, "config.yaml")),
    }


def curves(records: Sequence[Mapping[str, Any]]) -> list[Drawn]:
    """Return the charts of a run, with its throughput."""
    pace = [
        (float(one["step"]), float(one["tokens_per_s"]))
        for one in records
        if one.get("kind") == "train" and isinstance(one.get("tokens_per_s"), int | float)
    ]
    charts = training_charts("", records)
    charts.append(Chart("tokens a second", [Series("training", pace, TUNED)] if pace else []))
    return [drawn for drawn in map(draw, charts) if drawn is not None]


def run_parts(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the parts of a run's page that change while it goes on."""
    parts = {name: part(f"part_{name}", values) for name in RUN_PARTS}
    return {**parts, "report": part("report_frame.html", values)}


def news(parts: Mapping[str, str], seen: str) -> dict[str, Any]:
    """Return the parts that a page has not seen, and the mark that says what it has then."""
    marks = {name: hashlib.sha256(html.encode()).hexdigest()[:12] for name, html in parts.items()}
    known = dict(pair.split(":", 1) for pair in seen.split(",") if ":" in pair)
    fresh = {name: html for name, html in parts.items() if known.get(name) != marks[name]}
    return {"mark": ",".join(f"{name}:{mark}" for name, mark in marks.items()), "parts": fresh}


def own_file(folder: Path, name: str) -> Path | None:
    """Return a file of a run's folder, none that a link leads to outside of it."""
    path = folder / name
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
        return path if inside and path.is_file() else None
    except OSError:
        return None


def _samples(folder: Path) -> list[SampleCourse]:
    file = own_file(folder, "samples.jsonl")
    if file is None or file.stat().st_size > LARGEST_FILE:
        return []
    return sample_courses(folder, [])[:MOST_SAMPLES]


def _events(records: Sequence[Mapping[str, Any]]) -> list[tuple[int, str]]:
    found = []
    for one in records:
        if one.get("kind") == "eval":
            loss, right = one.get("loss"), one.get("accuracy")
            if isinstance(loss, int | float):
                share = f", {right:.1%} of tokens right" if isinstance(right, int | float) else ""
                found.append((one["step"], f"held-out loss {loss:.4f}{share}"))
        elif one.get("kind") != "train":
            found.append((one["step"], str(one.get("text") or one.get("kind"))))
    return found[-MOST_EVENTS:]


def _text(file: Path | None) -> str:
    if file is None:
        return ""
    try:
        with file.open(encoding="utf-8", errors="replace") as opened:
            return opened.read(LETTERS)
    except OSError:
        return ""
