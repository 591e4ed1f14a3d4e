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
BASE, TUNED, BEHIND = 0, 1, 6
"""Colours of the style: the base model, the tuned one, and what stands behind them."""
MAX_ROWS = 12
"""Rows of the table of a chart's figures."""
BINS = 20
"""Bars of a histogram."""


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart."""

    name: str
    points: Sequence[tuple[float, float]]
    """(x, y) in the order of x; a point that is not finite is a gap."""
    colour: int | None = None
    """Its colour in the style; its place among the series if unset."""


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
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    """Some of the figures as a table, for those who do not see the picture."""


def draw(chart: Chart) -> Drawn | None:
    """Return the chart as SVG and labels; None when it has no point to show."""
    series = [
        Series(s.name, [p for p in s.points if all(map(math.isfinite, p))], s.colour)
        for s in chart.series
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
        colour = place % COLOURS if line.colour is None else line.colour
        shape = '<polyline class="line c{}" points="{}"/>'
        parts.append(Markup(shape).format(colour, path))
        legend.append((colour, line.name, number(line.points[-1][1])))
    ends = ", ".join(f"{name} ends at {value}" for _, name, value in legend)
    return Drawn(
        chart.title,
        chart.x_label,
        _svg(chart.title, Markup("").join(parts), f"Over {chart.x_label}: {ends}."),
        [Tick(number(x), across(x)) for x in x_ticks],
        [Tick(number(y), down(y)) for y in y_ticks],
        legend,
        f"Each point is the mean of {averaged} entries." if averaged > 1 else "",
        [chart.x_label, *(line.name for line in series)],
        _figures(series),
    )


def _figures(series: Sequence[Series]) -> list[list[str]]:
    """Return at most ``MAX_ROWS`` evenly spread points, the last one among them."""
    known = [dict(line.points) for line in series]
    places = sorted(set().union(*known))
    step = max(1.0, (len(places) - 1) / (MAX_ROWS - 1))
    chosen = sorted({round(step * at) for at in range(min(MAX_ROWS, len(places)))})
    return [
        [number(x), *(number(one[x]) if x in one else "–" for one in known)]
        for x in (places[at] for at in chosen if at < len(places))
    ]


def histogram(
    title: str, unit: str, samples: Sequence[tuple[str, Sequence[float]]]
) -> Drawn | None:
    """Return how often each length occurs, in percent of each sample; None without any.

    Samples are (name, values), the base first; what lies beyond the 99th percentile of all stands
    in the last bar.
    """
    samples = [(name, values) for name, values in samples if values]
    if not samples:
        return None
    every = sorted(value for _, values in samples for value in values)
    top = max(1.0, every[min(len(every) - 1, int(0.99 * len(every)))])
    x_ticks = ticks(0, top, 5)
    width = x_ticks[-1] / BINS
    heights: list[list[float]] = []
    for _, values in samples:
        found = [0] * BINS
        for value in values:
            found[min(BINS - 1, int(value / width))] += 1
        heights.append([100 * n / len(values) for n in found])
    y_ticks = ticks(0, max(map(max, heights)))
    parts = [_line("grid", 0, y, 100, y) for y in (100 - 100 * t / y_ticks[-1] for t in y_ticks)]
    legend = []
    for place, ((name, values), bars) in enumerate(zip(samples, heights, strict=True)):
        corners = ["0.00,100.00"]
        for at, height in enumerate(bars):
            y = 100 - 100 * height / y_ticks[-1]
            corners += [f"{100 * at / BINS:.2f},{y:.2f}", f"{100 * (at + 1) / BINS:.2f},{y:.2f}"]
        shape = (
            '<polygon class="area f{0}" points="{1}"/><polyline class="line c{0}" points="{1}"/>'
        )
        colour = place % COLOURS
        parts.append(Markup(shape).format(colour, " ".join([*corners, "100.00,100.00"])))
        legend.append((colour, name, f"{len(values):,} replies"))
    rows = [
        [f"{number(width * at)} to {number(width * (at + 1))}", *(f"{b[at]:.1f}" for b in heights)]
        for at in range(BINS)
        if any(b[at] for b in heights)
    ]
    said = "; ".join(f"{name}: {len(values):,} replies" for name, values in samples)
    return Drawn(
        title,
        f"{unit}; height: share of replies in %",
        _svg(title, Markup("").join(parts), f"{said}."),
        [Tick(number(x), 100 * x / x_ticks[-1]) for x in x_ticks],
        [Tick(number(y), 100 - 100 * y / y_ticks[-1]) for y in y_ticks],
        legend,
        "",
        [unit, *(f"{name}, %" for name, _ in samples)],
        rows,
    )


def interval_bar(value: float, low: float, high: float, label: str, colour: int = TUNED) -> Markup:
    """Return a share (0 to 1) as a dot with its interval, on a scale from 0 to 100%."""
    at, left, right = (100 * min(1.0, max(0.0, part)) for part in (value, low, high))
    parts = [_line("grid", x, 0, x, 100) for x in (0, 25, 50, 75, 100)]
    parts.append(_line(f"reach c{colour}", left, 50, right, 50))
    parts.append(_line(f"dot c{colour}", at, 50, at, 50))
    return _svg(label, Markup("").join(parts))


def difference_bar(value: float, low: float, high: float, reach: float, label: str) -> Markup:
    """Return a signed number as a dot with its interval around zero, to ``reach`` either way."""
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


def _svg(label: str, inner: Markup, said: str = "") -> Markup:
    """Return a picture with its title, and with a description where the title does not say all."""
    frame = (
        '<svg role="img" aria-label="{0}" viewBox="0 0 100 100" preserveAspectRatio="none">'
        "<title>{0}</title>{1}{2}</svg>"
    )
    described = Markup("<desc>{}</desc>").format(plain_text(said)) if said else Markup()
    return Markup(frame).format(plain_text(label), described, inner)
