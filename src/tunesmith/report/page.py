"""The report: one HTML page that loads nothing, runs nothing and shows every text as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.evaluate.compare import Pair, format_p
from tunesmith.evaluate.metrics import Summary
from tunesmith.report.template import TEMPLATE
from tunesmith.report.text import plain_text
from tunesmith.storage import write_text

if TYPE_CHECKING:
    import jinja2

    from tunesmith.report.charts import Chart
    from tunesmith.report.watched import RowList, SampleCourse

SHOWN_EXAMPLES = 4
"""Examples in the open; the others are folded away."""
SHOWN_ANSWERS = 6
"""Answers of one prompt in the open: the first and the latest; those between are folded away."""


@dataclass(frozen=True, slots=True)
class StageLine:
    """One step of what was done."""

    verb: str
    name: str
    text: str
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """One row of the score table."""

    name: str
    detail: str
    """Model, prompt style and split in a few words."""
    summary: Summary


@dataclass(frozen=True, slots=True)
class ExamplePair:
    """One problem that came out differently for two models."""

    question: str
    reference: str
    before_name: str
    before: str
    after_name: str
    after: str


@dataclass(frozen=True, slots=True)
class Counts:
    """How many rows went where; what was discarded stands beside what was kept."""

    title: str
    rows: Mapping[str, int | float | str]


@dataclass(frozen=True, slots=True)
class Command:
    """Something to type next."""

    why: str
    line: str


@dataclass(frozen=True, slots=True)
class ReportData:
    """All that the page shows; every text may be hostile. Empty parts are left out of the page."""

    title: str
    subtitle: str = ""
    headline: Sequence[str] = ()
    """The result in one or two sentences."""
    stages: Sequence[StageLine] = ()
    scores: Sequence[ScoreRow] = ()
    pairs: Sequence[Pair] = ()
    losses: Sequence[str] = ()
    """Comparisons of held-out losses in words."""
    charts: Sequence[Chart] = ()
    course: Sequence[str] = ()
    """What the training took."""
    spikes: Sequence[str] = ()
    spikes_total: int = 0
    row_lists: Sequence[RowList] = ()
    samples: Sequence[SampleCourse] = ()
    gained: Sequence[ExamplePair] = ()
    gained_total: int = 0
    lost: Sequence[ExamplePair] = ()
    lost_total: int = 0
    counts: Sequence[Counts] = ()
    contamination: Sequence[str] = ()
    facts: Sequence[tuple[str, str]] = ()
    """Versions, hashes and settings."""
    notes: Sequence[str] = ()
    """What the reader should be warned of."""
    commands: Sequence[Command] = field(default_factory=tuple)
    status: str = ""
    """How far a run is that is not finished."""
    refresh: int = 0
    """Seconds after which the page reads itself again; 0 for never."""


def render(data: ReportData) -> str:
    """Return the page as HTML."""
    from tunesmith.report.charts import difference_bar, draw, interval_bar

    ends = [end for pair in data.pairs for end in (pair.interval.low, pair.interval.high)]
    reach = max((abs(end) for end in ends), default=0.0)
    return _template().render(
        data=data,
        charts=[drawn for drawn in map(draw, data.charts) if drawn is not None],
        interval_bar=interval_bar,
        difference_bar=difference_bar,
        reach=reach,
        shown=SHOWN_EXAMPLES,
        answers=SHOWN_ANSWERS,
    )


def write(path: str | Path, data: ReportData) -> Path:
    """Write the page atomically and return its path."""
    write_text(path, render(data))
    return Path(path)


@cache
def _template() -> jinja2.Template:
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        finalize=plain_text,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda share: f"{100 * share:.1f}%"
    environment.filters["points"] = lambda share: f"{100 * share:+.1f}".replace("-", "−")
    environment.filters["p"] = lambda p: "not given" if p is None else format_p(p)
    environment.filters["duration"] = duration
    environment.filters["count"] = lambda n: f"{n:,}" if isinstance(n, int | float) else n
    return environment.from_string(TEMPLATE)


def duration(seconds: float | None) -> str:
    """Return 8 s, 2 min 5 s or 1 h 20 min; nothing for None."""
    if seconds is None:
        return ""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
