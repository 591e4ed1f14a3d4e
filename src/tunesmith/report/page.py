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

    from tunesmith.report.charts import Chart, Drawn
    from tunesmith.report.watched import RowList, SampleCourse

FOLDED = 110
"""Letters of a question that stand for it where it is folded away."""
GRADED = "right"
"""What the score of an answer is called that is right or wrong."""
RIGHT = ("Wrong before, right now", "Right before, wrong now", "Wrong both times")
SCORED = ("Higher than before", "Lower than before", "Nothing scored both times")
"""What examples are called whose score rose, fell, or was nothing on both sides."""
VERDICTS = {
    "better": ("Better", "up"),
    "worse": ("Worse", "down"),
    "no clear difference": ("No clear difference", "soft"),
}
"""What a verdict is called on the page, and how it is coloured."""
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
class Table:
    """Figures in rows, as they are to be read."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    """The first cell of each names it."""
    note: str = ""
    long: int = 0
    """From which column on cells are texts and no figures; 0 for none."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One thing measured of two models; the difference is second − first."""

    name: str
    better: str
    """Which direction is: higher, lower or neither."""
    first: str
    second: str
    difference: float
    low: float | None
    high: float | None
    """Ends of the 95% interval of the difference, if there is one."""
    text: str
    """The difference as it is to be read."""

    @property
    def reach(self) -> float:
        """How far the scale has to go either way."""
        return max(abs(end) for end in (self.difference, self.low or 0.0, self.high or 0.0))

    @property
    def tone(self) -> str:
        """``up`` or ``down`` where the interval leaves out zero and the direction has a meaning."""
        if self.low is None or self.high is None or self.better == "neither":
            return ""
        if self.low <= 0 <= self.high:
            return ""
        return "up" if (self.low > 0) == (self.better == "higher") else "down"


@dataclass(frozen=True, slots=True)
class Forest:
    """Things measured of two models, each with the interval of its difference around zero."""

    first: str
    second: str
    rows: Sequence[Measure]
    sentences: Sequence[str] = ()
    one_scale: bool = False
    """Whether all rows are measured alike, so that one scale holds for them and each has a dot."""

    def reach(self, row: Measure) -> float:
        """Return how far a row's scale goes either way."""
        return max(one.reach for one in self.rows) if self.one_scale else row.reach


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
    verdict: str = ""
    """``better``, ``worse`` or ``no clear difference`` where something was compared."""
    headline: Sequence[str] = ()
    """The result in one or two sentences."""
    stages: Sequence[StageLine] = ()
    scores: Sequence[ScoreRow] = ()
    pairs: Sequence[Pair] = ()
    seeds: Sequence[Forest] = ()
    """Two ways of training over several seeds."""
    spread: Sequence[Table] = ()
    """Scores of one model under several seeds."""
    groups: Sequence[Table] = ()
    """Scores of groups of problems."""
    called: str = GRADED
    """What the score is, such as right."""
    better: str = "higher"
    """Which of two scores is: the higher or the lower one."""
    losses: Sequence[str] = ()
    """Comparisons of held-out losses in words."""
    loss: Forest | None = None
    metrics: Sequence[Table] = ()
    """Metrics of replies, and of how far constraints are followed."""
    forgetting: Forest | None = None
    """The general suite, before and after."""
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
    both_wrong: Sequence[ExamplePair] = ()
    both_wrong_total: int = 0
    lengths: Drawn | None = None
    """How long the replies are."""
    ends: Sequence[Table] = ()
    """Lengths in figures, and why replies ended."""
    sources: Sequence[Table] = ()
    """Where the rows come from."""
    counts: Sequence[Counts] = ()
    contamination: Sequence[str] = ()
    overlaps: Sequence[Table] = ()
    cost: Sequence[Table] = ()
    settings: Sequence[Table] = ()
    """What differs from the defaults."""
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
        colours=_colours([row.name for row in data.scores]),
        verdicts=VERDICTS,
        lower=data.better == "lower",
        examples_called=RIGHT if data.called == GRADED else SCORED,
        reference_called="Gold answer" if data.called == GRADED else "The row's own answer",
        answers=SHOWN_ANSWERS,
    )


def _colours(names: Sequence[str]) -> dict[str, int]:
    """Return the colour of each set: the first is the base, the last what came of it."""
    from tunesmith.report.charts import BASE, COLOURS, TUNED

    found = {name: 2 + at % (COLOURS - 2) for at, name in enumerate(names)}
    if names:
        found |= {names[-1]: TUNED, names[0]: BASE}
    return found


def write(path: str | Path, data: ReportData) -> Path:
    """Write the page atomically and return its path."""
    write_text(path, render(data))
    return Path(path)


@cache
def _template() -> jinja2.Template:
    return environment().from_string(TEMPLATE)


def environment(loader: jinja2.BaseLoader | None = None) -> jinja2.Environment:
    """Return what renders pages: all that is put into a template is escaped and showable."""
    import jinja2

    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        finalize=plain_text,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda share: f"{100 * share:.1f}%"
    environment.filters["points"] = lambda share: f"{100 * share:+.1f}".replace("-", "−")
    environment.filters["first_line"] = first_line
    environment.filters["signed"] = lambda n: f"{n:+.3g}".replace("-", "−")
    environment.filters["p"] = lambda p: "not given" if p is None else format_p(p)
    environment.filters["duration"] = duration
    environment.filters["count"] = lambda n: f"{n:,}" if isinstance(n, int | float) else n
    return environment


def first_line(text: str) -> str:
    """Return the beginning of a text, to fold it under."""
    line = " ".join(text[: 4 * FOLDED].split())
    return line if len(line) <= FOLDED else line[: FOLDED - 1].rstrip() + "…"


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
