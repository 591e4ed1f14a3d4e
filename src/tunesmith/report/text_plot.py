"""A curve drawn with characters, for a terminal of 80 columns."""

from __future__ import annotations

import math
from collections.abc import Sequence

WIDTH = 80
HEIGHT = 14
_LABEL = 9
"""Columns of the labels on the left, the axis included."""


def text_plot(
    xs: Sequence[float],
    ys: Sequence[float],
    marks: Sequence[tuple[float, str]] = (),
    *,
    width: int = WIDTH,
    height: int = HEIGHT,
) -> str:
    """Draw y over log10 of x; ``marks`` are upright lines with a one-letter name below.

    Points that are not finite are left out; the text is plain ASCII. Without a point it is empty.
    """
    points = [(math.log10(x), y) for x, y in zip(xs, ys, strict=True) if x > 0 and math.isfinite(y)]
    if not points:
        return ""
    left, right = _reach([x for x, _ in points])
    low, high = _reach([y for _, y in points])
    columns = width - _LABEL
    grid = [[" "] * columns for _ in range(height)]

    def across(x: float) -> int:
        return round((columns - 1) * (x - left) / (right - left))

    feet = [" "] * columns
    for x, name in marks:
        place = across(math.log10(x))
        if 0 <= place < columns:
            for line in grid:
                line[place] = ":"
            feet[place] = name
    for x, y in points:
        grid[round((height - 1) * (high - y) / (high - low))][across(x)] = "*"
    lines = []
    for number, line in enumerate(grid):
        value = high - (high - low) * number / (height - 1)
        label = f"{value:.3g}" if number % 4 == 0 or number == height - 1 else ""
        lines.append(f"{label:>{_LABEL - 2}} |{''.join(line)}".rstrip())
    scale = [" "] * columns
    for power in range(math.ceil(left), math.floor(right) + 1):
        text = f"1e{power}"
        place = min(across(power), columns - len(text))
        if all(c == " " for c in scale[max(0, place - 1) : place + len(text)]):
            scale[place : place + len(text)] = text
    edge = " " * (_LABEL - 1)
    lines += [f"{edge}+{'-' * (columns - 1)}", f"{edge} {''.join(scale)}".rstrip()]
    if marks:
        lines.append(f"{edge} {''.join(feet)}".rstrip())
    # The axis takes a column of its own.
    return "\n".join(line[:width] for line in lines)


def _reach(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
