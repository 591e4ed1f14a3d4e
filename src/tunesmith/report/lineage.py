"""Where a run's rows come from, what it cost, and which of its settings are no defaults."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.config.options import Options
from tunesmith.config.presets import TASK_DEFAULTS
from tunesmith.config.schema import FineTuningConfig
from tunesmith.config.schema_grpo import GrpoOptions
from tunesmith.report.page import Table, duration
from tunesmith.rundir import parse_config

MAX_OVERLAPS = 20
"""Overlaps that a page holds; their full number is said."""
SHORT = 12
"""Letters of a hash that a table shows."""


def source_tables(label: str, manifest: Mapping[str, Any]) -> list[Table]:
    """Return the sources of a run's rows with their shares and hashes."""
    rows = []
    found = [one for one in _list(manifest, "sources") if isinstance(one, Mapping)]
    total = sum(_whole(one.get("rows")) for one in found)
    for one in found:
        used, held = _whole(one.get("rows")), _whole(one.get("held_out"))
        digest = str(one.get("sha256") or "–")
        share = f"{used / total:.1%}" if total else "–"
        rows.append([str(one.get("source")), f"{used:,}", share, f"{held:,}", digest[:SHORT]])
    if not rows:
        return []
    title = _titled(label, "Sources of the rows")
    columns = ["Source", "Training rows", "Share", "Held out", "SHA-256"]
    return [
        Table(title, columns, rows, "Of each hash the first letters; all are in manifest.json.")
    ]


def mix_tables(name: str, content: Mapping[str, Any]) -> list[Table]:
    """Return what a mix says of itself: rows read and left out, shares, erasure."""
    tables = []
    pools = content.get("sources")
    rows = []
    for source, pool in pools.items() if isinstance(pools, Mapping) else ():
        if isinstance(pool, Mapping):
            refused = pool.get("refused")
            gone = sum(map(_whole, refused.values())) if isinstance(refused, Mapping) else 0
            reads = [pool.get(key) for key in ("read", "unreadable")]
            numbers = [*reads, gone, pool.get("repeated"), pool.get("usable")]
            rows.append([str(source), *(f"{_whole(n):,}" for n in numbers)])
    if rows:
        columns = ["Source", "Read", "Unreadable", "Refused", "Repeated", "Usable"]
        tables.append(Table(_titled(name, "Rows of each source"), columns, rows))
    for stage in _list(content, "stages"):
        if not isinstance(stage, Mapping) or not isinstance(stage.get("sources"), Mapping):
            continue
        shares = [
            [
                str(source),
                f"{_share(one.get('target_share'))} ({_whole(one.get('target_rows')):,})",
                f"{_share(one.get('share'))} ({_whole(one.get('rows')):,})",
                f"{_whole(one.get('copies')):,}",
                f"{_whole(one.get('validation')):,}",
            ]
            for source, one in stage["sources"].items()
            if isinstance(one, Mapping)
        ]
        title = _titled(name, f"Shares of the mixture {stage.get('name') or ''}".strip())
        tables.append(Table(title, ["Source", "Wanted", "Realised", "Copies", "Held out"], shares))
    audit = content.get("audit")
    if isinstance(audit, Mapping) and _whole(audit.get("erased rows")):
        counts = audit.get("counts")
        left = counts.get("left") if isinstance(counts, Mapping) else None
        traces = _whole(left.get("instruction")) if isinstance(left, Mapping) else 0
        tables.append(
            Table(
                _titled(name, "Erased instructions"),
                [],
                [
                    ["rows whose instruction is erased", f"{_whole(audit['erased rows']):,}"],
                    ["rows with traces of it", f"{traces:,}"],
                ],
            )
        )
    return tables


def overlap_tables(label: str, manifest: Mapping[str, Any]) -> list[Table]:
    """Return which test questions stand in which training rows."""
    found = [one for one in _list(manifest, "overlaps") if isinstance(one, Mapping)]
    if not found:
        return []
    rows = [
        [str(one.get(key, "–")) for key in ("question", "row", "kind", "shared")]
        for one in found[:MAX_OVERLAPS]
    ]
    more = len(found) - len(rows)
    note = f"{more:,} more are in manifest.json." if more > 0 else ""
    columns = ["Test question", "Training row", "How", "What both have"]
    return [Table(_titled(label, "Where they overlap"), columns, rows, note, long=1)]


def cost_table(
    label: str, manifest: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
) -> list[Table]:
    """Return what the training took: time, tokens, speed, memory, device."""
    measured = manifest.get("measured")
    measured = measured if isinstance(measured, Mapping) else {}
    if not measured:
        return []

    def numbers(key: str) -> list[float]:
        kept = (one.get(key) for one in records if one.get("kind") == "train")
        return [float(value) for value in kept if isinstance(value, int | float)]

    rows = []
    seconds, steps = measured.get("seconds"), measured.get("steps")
    if isinstance(seconds, int | float):
        rows.append(["time of the training steps", duration(float(seconds))])
    if isinstance(steps, int):
        all_steps = _whole(manifest.get("steps"))
        resumed = f" (of {all_steps:,}; the others before a resume)" if steps < all_steps else ""
        rows.append(["steps in that time", f"{steps:,}{resumed}"])
    counts = manifest.get("counts")
    training = counts.get("training") if isinstance(counts, Mapping) else None
    epochs = max(numbers("epoch"), default=0.0)
    if isinstance(training, Mapping) and epochs:
        for name in ("tokens", "trained tokens"):
            rows.append([f"{name}, about", f"{epochs * _whole(training.get(name)):,.0f}"])
    if speeds := numbers("tokens_per_s"):
        rows.append(
            ["tokens per second (median of the steps)", f"{statistics.median(speeds):,.0f}"]
        )
    if busy := numbers("gpu_percent"):
        rows.append(["GPU at work (median)", f"{statistics.median(busy):.0f}%"])
    peak = measured.get("peak_bytes")
    if isinstance(peak, int | float) and peak:
        rows.append(["most memory held", f"{peak / 1e9:.2f} GB"])
    if measured.get("device"):
        rows.append(["device", str(measured["device"])])
    title = _titled(label, "What the training took")
    return [Table(title, [], rows, "Without loading and evaluation. Energy was not measured.")]


def settings_table(label: str, config: Mapping[str, Any]) -> list[Table]:
    """Return the settings that are neither a default nor the task's own."""
    kinds: tuple[type[Options], ...] = (FineTuningConfig, GrpoOptions)
    kind = min(kinds, key=lambda one: len(config.keys() - one.model_fields.keys()))
    usual = kind.model_construct().model_dump(mode="json")
    if kind is FineTuningConfig:
        usual |= TASK_DEFAULTS.get(str(config.get("task")), {})
    rows = [
        [str(name), _brief(value), _brief(usual.get(name))]
        for name, value in config.items()
        if name in kind.model_fields and name != "task" and value != usual.get(name)
    ]
    if not rows:
        return []
    title = _titled(label, "Settings that differ from the defaults")
    note = "The defaults are those of the task. All settings lie in config.yaml."
    return [Table(title, ["Setting", "Here", "Default"], rows, note, long=1)]


def configs(root: Path, notes: list[str]) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Yield the settings of the folder and of the runs right below it."""
    import yaml

    for file in [root / "config.yaml", *sorted(root.glob("*/config.yaml"))]:
        if not file.is_file():
            continue
        try:
            content = parse_config(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as failure:
            notes.append(f"{file} cannot be read: {failure}")
            continue
        if isinstance(content, Mapping):
            yield file, content


def _brief(value: Any) -> str:
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={item}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return str(value)


def _titled(label: str, title: str) -> str:
    return f"{label}: {title[0].lower()}{title[1:]}" if label else title


def _list(content: Mapping[str, Any], key: str) -> Sequence[Any]:
    value = content.get(key)
    return value if isinstance(value, list) else []


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _share(value: Any) -> str:
    return f"{value:.1%}" if isinstance(value, int | float) else "–"
