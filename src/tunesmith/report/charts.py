"""Charts as inline SVG without text: labels are HTML beside it, readable at every width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tunesmith.report.text import plain_text

MAX_POINTS = 400
"""A longer series is averaged in buckets: no screen shows more."""
COLOURS = 6
"""Series beyond this many begin with the first colour again."""


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart."""

    name: str
    points: Sequence[tuple[float, float]]
    """(x, y) in the order of x; a point that is not finite is a gap."""


@dataclass(frozen=True, slots=True)
class Chart:
    """A line chart: what is drawn over the training steps."""

    title: str
    series: Sequence[Series]
    x_label: str = "step"


@dataclass(frozen=True, slots=True)
class Tick:
    """A label of an axis and its place in percent of the axis."""

    text: str
    place: float


@dataclass(frozen=True, slots=True)
class Drawn:
    """A chart ready for the page."""

    title: str
    x_label: str
    plot: Markup
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    legend: Sequence[tuple[int, str, str]]
    """(colour, name, last value)."""
    note: str


def draw(chart: Chart) -> Drawn | None:
    """Return the chart as SVG and labels; None when it has no point to show."""
    series = [
        Series(s.name, [p for p in s.points if all(map(math.isfinite, p))]) for s in chart.series
    ]
    series = [s for s in series if s.points]
    if not series:
        return None
    xs = [x for s in series for x, _ in s.points]
    ys = [y for s in series for _, y in s.points]
    x_low, x_high = _span(min(xs), max(xs))
    y_ticks = ticks(*_span(min(ys), max(ys)))
    y_low, y_high = min(y_ticks[0], *ys), max(y_ticks[-1], *ys)
    x_ticks = [x for x in ticks(x_low, x_high, 5) if x_low <= x <= x_high]

    def across(x: float) -> float:
        return 100 * (x - x_low) / (x_high - x_low)

    def down(y: float) -> float:
        return 100 * (y_high - y) / (y_high - y_low)

    parts = [_line("grid", 0, down(y), 100, down(y)) for y in y_ticks]
    averaged = 1
    legend = []
    for place, line in enumerate(series):
        points, size = thinned(line.points)
        averaged = max(averaged, size)
        path = " ".join(f"{across(x):.2f},{down(y):.2f}" for x, y in points)
        # A lone point is drawn as a line of no length, which its round ends make visible.
        path = path if len(points) > 1 else f"{path} {path}"
        shape = '<polyline class="line c{}" points="{}"/>'
        parts.append(Markup(shape).format(place % COLOURS, path))
        legend.append((place % COLOURS, line.name, number(line.points[-1][1])))
    ends = ", ".join(f"{name} ends at {value}" for _, name, value in legend)
    label = f"{chart.title}: {ends}"
    return Drawn(
        chart.title,
        chart.x_label,
        _svg(label, Markup("").join(parts)),
        [Tick(number(x), across(x)) for x in x_ticks],
        [Tick(number(y), down(y)) for y in y_ticks],
        legend,
        f"Each point is the mean of {averaged} entries." if averaged > 1 else "",
    )


def interval_bar(value: float, low: float, high: float, label: str) -> Markup:
    """Return a share (0 to 1) as a dot with its interval, on a scale from 0 to 100%."""
    at, left, right = (100 * min(1.0, max(0.0, part)) for part in (value, low, high))
    parts = [_line("grid", x, 0, x, 100) for x in (0, 25, 50, 75, 100)]
    parts.append(_line("reach", left, 50, right, 50))
    parts.append(_line("dot", at, 50, at, 50))
    return _svg(label, Markup("").join(parts))


def difference_bar(value: float, low: float, high: float, reach: float, label: str) -> Markup:
    """Return a signed share as a dot with its interval around zero, up to ``reach`` either way."""
    at, left, right = (
        50 + 50 * max(-1.0, min(1.0, part / reach if reach else 0.0)) for part in (value, low, high)
    )
    parts = [_line("zero", 50, 0, 50, 100), _line("reach", left, 50, right, 50)]
    parts.append(_line("dot", at, 50, at, 50))
    return _svg(label, Markup("").join(parts))


def ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Return round numbers (1, 2 or 5 times a power of ten apart) that enclose the range."""
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * place for place in range(first, last + 1)]


def thinned(points: Sequence[tuple[float, float]]) -> tuple[Sequence[tuple[float, float]], int]:
    """Return at most ``MAX_POINTS`` points and how many of the given ones each averages."""
    size = -(-len(points) // MAX_POINTS)
    if size <= 1:
        return points, 1
    buckets = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in b) / len(b), sum(y for _, y in b) / len(b)) for b in buckets], size


def number(value: float) -> str:
    """Return a number for an axis: 0.5, 1,200, 2e-05."""
    if value == 0:
        return "0"
    if abs(value) < 1e-3 or abs(value) >= 1e6:
        return f"{value:.3g}"
    return f"{value:,.0f}" if value == round(value) else f"{value:.4g}"


def _span(low: float, high: float) -> tuple[float, float]:
    if high > low:
        return low, high
    margin = abs(low) / 2 or 0.5
    return low - margin, high + margin


def _line(cls: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    shape = '<line class="{}" x1="{:.2f}" y1="{:.2f}" x2="{:.2f}" y2="{:.2f}"/>'
    return Markup(shape.format(cls, x1, y1, x2, y2))


def _svg(label: str, inner: Markup) -> Markup:
    frame = (
        '<svg role="img" aria-label="{}" viewBox="0 0 100 100" preserveAspectRatio="none">{}</svg>'
    )
    return Markup(frame).format(plain_text(label), inner)
