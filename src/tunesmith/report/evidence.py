"""What stored replies show besides their scores: metrics, constraints, lengths, how they end."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.errors import TunesmithError
from tunesmith.evaluate.compare import Comparison, Pair, compare
from tunesmith.evaluate.following import Both, Following, Share
from tunesmith.evaluate.losses import LossComparison
from tunesmith.evaluate.records import ResultSet
from tunesmith.evaluate.scores.stored import METRICS, items, scored_by
from tunesmith.evaluate.statistics import Interval
from tunesmith.report.charts import Drawn, histogram
from tunesmith.report.page import Forest, Measure, Table
from tunesmith.types import StopReason

SIGNS = {"higher": "↑", "lower": "↓"}
STOPS = {
    StopReason.STOP_TOKEN: "came to an end",
    StopReason.STOP_STRING: "stop text",
    StopReason.LENGTH: "cut at the limit",
    StopReason.CANCELLED: "given up",
    StopReason.SCORED: "options scored",
    StopReason.FILTERED: "filtered",
}

Placed = Sequence[tuple[Path, ResultSet]]
"""Sets with the folders that they lie in."""


def figure(value: Any, *, sign: bool = False) -> str:
    """Return a number for a table: 0.123, 12.3, 1,234; a dash for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return "–"
    plus = "+" if sign else ""
    size = abs(value)
    if size >= 1000:
        return f"{value:{plus},.0f}".replace("-", "−")
    return f"{value:{plus}.{3 if size < 10 else 1}f}".replace("-", "−")


def metric_tables(sets: Placed, notes: list[str], cluster_by: str | None = None) -> list[Table]:
    """Return the metrics of replies of each task, with intervals, and how the last differs."""
    stored: dict[str, list[tuple[Path, ResultSet, Mapping[str, Any]]]] = {}
    for folder, result in sets:
        found = _metrics(folder, notes)
        if found:
            stored.setdefault(result.header.task, []).append((folder, result, found))
    return [_metric_table(task, ones, cluster_by) for task, ones in stored.items()]


def _metrics(folder: Path, notes: list[str]) -> Mapping[str, Any]:
    file = folder / METRICS
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {str(name): one for name, one in content["metrics"].items() if "title" in one}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as failure:
        notes.append(f"{file} cannot be read: {failure!r}")
        return {}


def _metric_table(
    task: str,
    ones: Sequence[tuple[Path, ResultSet, Mapping[str, Any]]],
    cluster_by: str | None,
) -> Table:
    titles = {name: one for _, _, found in ones for name, one in found.items()}
    rows = []
    for name, told in titles.items():
        sign = SIGNS.get(str(told.get("better")), "")
        cells = [_with_interval(found.get(name)) for _, _, found in ones]
        change = [_change(ones[0], ones[-1], name, cluster_by)] if len(ones) > 1 else []
        rows.append([f"{sign} {told['title']}".strip(), *cells, *change])
    names = [result.name for _, result, _ in ones]
    last = [f"{names[-1]} − {names[0]}"] if len(names) > 1 else []
    return Table(
        f"Metrics of the replies, task {task}",
        ["Metric", *names, *last],
        rows,
        "↑ higher is better, ↓ lower is better; in brackets the 95% interval. Differences are on "
        "the same rows, where a metric has a value of each reply; no p-value is adjusted here for "
        "looking at several metrics.",
    )


def _with_interval(one: Any) -> str:
    if not isinstance(one, Mapping):
        return "–"
    ends = one.get("interval")
    value = figure(one.get("value"))
    if value == "–" or not isinstance(ends, Mapping):
        return value
    return f"{value} ({figure(ends.get('low'))} to {figure(ends.get('high'))})"


def _change(
    first: tuple[Path, ResultSet, Any],
    last: tuple[Path, ResultSet, Any],
    name: str,
    cluster_by: str | None,
) -> str:
    """Return the paired difference by a metric, nothing where it has no value of each reply."""
    try:
        if not all(name in items(folder)["metrics"] for folder, _, _ in (first, last)):
            return "–"
        sets = [scored_by(one, place, name) for place, one, _ in (first, last)]
        pair = compare(sets, cluster_by).pairs[0]
    except TunesmithError:
        return "–"
    low, high = (figure(end, sign=True) for end in (pair.interval.low, pair.interval.high))
    return f"{figure(pair.difference, sign=True)} ({low} to {high})"


def following_tables(sets: Mapping[str, Following | None]) -> list[Table]:
    """Return how far constraints are followed, by level and by kind, of the sets that have any."""
    known = {name: one for name, one in sets.items() if one is not None}
    if not known:
        return []
    kinds = sorted({kind for one in known.values() for kind in one.kinds})

    def cells(level: str, how: str) -> list[str]:
        return [_share(_level(one, level), how) for one in known.values()]

    rows = [
        [f"{title}, {how}ly" if how == "strict" else f"{title}, loosely", *cells(level, how)]
        for level, title in (("prompts", "all of a prompt"), ("instructions", "each constraint"))
        for how in ("strict", "loose")
    ]
    rows += [[kind, *cells(kind, "strict")] for kind in kinds]
    return [
        Table(
            "Constraints that are followed",
            ["Constraint", *known],
            rows,
            "With 95% intervals; single kinds are judged strictly. Loosely, an answer may also be "
            "read without its first or last line or its asterisks.",
        )
    ]


def _level(one: Following, level: str) -> Both | None:
    return {"prompts": one.prompts, "instructions": one.instructions}.get(level) or one.kinds.get(
        level
    )


def _share(both: Both | None, how: str) -> str:
    if both is None:
        return "–"
    one: Share = both.strict if how == "strict" else both.loose
    low, high = 100 * one.interval.low, 100 * one.interval.high
    return f"{100 * one.value:.1f}% ({low:.1f} to {high:.1f}), {one.met:,} of {one.of:,}"


def lengths(sets: Sequence[ResultSet]) -> tuple[Drawn | None, list[Table]]:
    """Return a histogram of the lengths of first and last set, and every set's in figures.

    In tokens, or in letters where nobody counted tokens; nothing where nothing was generated.
    """
    written = [one for one in sets if any(a.stop is not StopReason.SCORED for a in one.attempts)]
    if not written:
        return None, []
    counted = all(a.tokens or not a.text for one in written for a in one.attempts)
    unit = "tokens" if counted else "letters"
    sizes = {
        one.name: sorted(len(a.tokens) if counted else len(a.text) for a in one.attempts)
        for one in written
    }
    ends = [written[0], written[-1]] if len(written) > 1 else written
    drawn = histogram(
        f"Length of the replies ({unit})",
        unit,
        [(one.name, [float(size) for size in sizes[one.name]]) for one in ends],
    )
    reasons = [why for why in STOPS if any(a.stop is why for one in written for a in one.attempts)]
    rows = []
    for one in written:
        found, stops = sizes[one.name], Counter(a.stop for a in one.attempts)
        parts = [f"{stops[why]:,} ({stops[why] / len(found):.1%})" for why in reasons]
        middle, most = found[len(found) // 2], found[min(len(found) - 1, int(0.9 * len(found)))]
        rows.append([one.name, f"{middle:,}", f"{most:,}", f"{found[-1]:,}", *parts])
    columns = ["Evaluation", f"Median ({unit})", "90% at most", "Longest"]
    return drawn, [
        Table("Lengths and ends", [*columns, *(STOPS[why].capitalize() for why in reasons)], rows)
    ]


def loss_forest(content: Any, first: str = "base", second: str = "tuned") -> Forest | None:
    """Return a stored comparison of losses (``LossComparison.to_json``) as a row around zero."""
    measure = loss_measure(content)
    return None if measure is None else Forest(first, second, [measure])


def loss_measure(content: Any, name: str = "loss, nats per byte") -> Measure | None:
    """Return one comparison of losses; None for what is none or is not finite."""
    found = read_loss(content)
    if found is None or not all(map(math.isfinite, (found.first, found.second, found.difference))):
        return None
    ends = found.interval
    return Measure(
        name,
        "lower",
        f"{found.first:.4f}",
        f"{found.second:.4f}",
        found.difference,
        ends.low if ends else None,
        ends.high if ends else None,
        f"{found.difference:+.4f}".replace("-", "−"),
    )


def read_loss(content: Any) -> LossComparison | None:
    """Return the comparison that ``to_json`` wrote; None for anything else."""
    try:
        ends = content["interval"]
        names = LossComparison.__dataclass_fields__
        fields = {name: value for name, value in content.items() if name in names}
        told = [value for name, value in fields.items() if name != "interval"]
        if not all(type(value) in (int, float) for value in (*told, *(ends or {}).values())):
            return None
        return LossComparison(**{**fields, "interval": Interval(**ends) if ends else None})
    except (KeyError, TypeError, AttributeError):
        return None


def share_measure(name: str, pair: Pair) -> Measure | None:
    """Return two shares and their difference; None without anything graded on both sides."""
    if not pair.n:
        return None
    return Measure(
        name,
        "higher",
        f"{100 * pair.first_accuracy:.1f}%",
        f"{100 * pair.second_accuracy:.1f}%",
        100 * pair.difference,
        100 * pair.interval.low,
        100 * pair.interval.high,
        f"{100 * pair.difference:+.1f}".replace("-", "−"),
    )


def forgetting_forest(found: Sequence[tuple[str, Mapping[str, Any]]]) -> Forest | None:
    """Return what the general suite shows of one run or of several, by their labels."""
    rows: list[Measure | None] = []
    sentences = []
    for label, content in found:
        head = f"{label}: " if label else ""
        rows.append(loss_measure(content.get("loss"), f"{head}general texts, nats per byte"))
        try:
            pair = Comparison.from_json(content["comparison"]).pairs[0]
            rows.append(share_measure(f"{head}short questions, share right", pair))
        except (KeyError, TypeError, ValueError, IndexError):
            pass
        if content.get("sentence"):
            sentences.append(f"{head}{content['sentence']}")
        kinds = content.get("kinds")
        if isinstance(kinds, Mapping) and kinds:
            listed = (
                f"{kind} {n[0]} → {n[1]} of {n[2]}"
                for kind, n in kinds.items()
                if isinstance(n, list) and len(n) == 3
            )
            sentences.append(f"{head}right before → after: {', '.join(listed)}.")
    measures = [row for row in rows if row is not None]
    return Forest("base", "tuned", measures, sentences) if measures else None


def verdict(pair: Pair | None, loss: LossComparison | None, better: str = "higher") -> str:
    """Return what was found in one word; nothing where nothing was tested."""
    if pair is not None:
        if pair.p is None and pair.p_holm is None:
            return ""
        if not pair.significant:
            return "no clear difference"
        return "better" if (pair.difference > 0) == (better == "higher") else "worse"
    if loss is None or loss.interval is None:
        return ""
    if not loss.significant:
        return "no clear difference"
    return "better" if loss.difference < 0 else "worse"
