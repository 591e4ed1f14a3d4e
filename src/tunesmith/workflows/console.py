"""What a person sees while a workflow runs: messages and progress on stderr, data on stdout."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from tunesmith.workflows.terminal import visible

LINE_EVERY_S = 15.0
"""Without a terminal a long stage says where it is this often, in seconds."""

ROOMY = 100
"""Columns from which on a progress bar has all its parts."""

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}

_console = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
_level = LEVELS["info"]


def set_level(name: str) -> None:
    """Show messages of this level and above."""
    global _level
    _level = LEVELS[name]


def keep_quiet() -> None:
    """Show nothing more in this process; another one speaks."""
    _console.quiet = True


def say(text: str = "") -> None:
    """Print one line of plain text to stderr."""
    if _level <= LEVELS["info"]:
        _console.print(visible(text), markup=False)


def title(text: str) -> None:
    """Print the heading of a stage."""
    if _level <= LEVELS["info"]:
        _console.print(f"\n[bold cyan]{escape(visible(text))}[/]")


def warn(text: str) -> None:
    """Print a warning: something was done that the user should know of."""
    if _level <= LEVELS["warning"]:
        _console.print(f"[yellow]warning:[/] {escape(visible(text))}")


def debug(text: str) -> None:
    """Print a detail that only ``--log-level debug`` shows."""
    if _level <= LEVELS["debug"]:
        _console.print(f"[dim]{escape(visible(text))}[/]")


def table(heading: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table; the first column is text, the others are numbers."""
    if _level > LEVELS["info"]:
        return
    grid = Table(title=escape(visible(heading)), title_justify="left", title_style="bold")
    for position, column in enumerate(columns):
        grid.add_column(escape(visible(column)), justify="left" if position == 0 else "right")
    for row in rows:
        grid.add_row(*(escape(visible(cell)) for cell in row))
    _console.print(grid)


class Bar:
    """A progress bar on a terminal, a line now and then elsewhere; both say the time left."""

    def __init__(
        self, description: str, total: int, progress: Progress | None, done: int = 0
    ) -> None:
        self._description, self._total, self._progress = description, total, progress
        self._task = (
            progress.add_task(escape(description), total=total, completed=done, note="")
            if progress
            else None
        )
        self._done = self._first = done
        self._began = time.monotonic()
        self._next_line = self._began + LINE_EVERY_S

    def advance(self, by: int = 1, note: str = "") -> None:
        """Move on by ``by`` and show ``note`` beside the bar."""
        self._done += by
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=self._done, note=escape(visible(note)))
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LINE_EVERY_S
            parts = [f"{self._done}/{self._total}", self._left(), note]
            say(f"  {self._description}: {', '.join(part for part in parts if part)}")

    def _left(self) -> str:
        """Return the time left, going by the pace so far."""
        made = self._done - self._first
        if made <= 0 or self._done >= self._total:
            return ""
        seconds = (time.monotonic() - self._began) / made * (self._total - self._done)
        return f"{clock(seconds)} left"


def clock(seconds: float) -> str:
    """Return 0:07, 12:03 or 1:05:09."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class _TwoLines(Progress):
    """A bar with the note on a line of its own, for notes too long to stand beside it."""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            yield Text(f"  {task.fields['note']}", style="dim", no_wrap=True, overflow="ellipsis")


@contextmanager
def bar(description: str, total: int, done: int = 0, *, two_lines: bool = False) -> Iterator[Bar]:
    """Show how far a long stage is; ``total`` and ``done`` count whatever ``advance`` counts.

    ``done`` was done before, and says nothing about the pace. With ``two_lines`` the notes stand
    below the bar on a terminal, and not beside it.
    """
    if _console.is_terminal and _level <= LEVELS["info"]:
        kind, columns = (_TwoLines, _columns()[:-1]) if two_lines else (Progress, _columns())
        with kind(*columns, console=_console, transient=True) as progress:
            yield Bar(description, total, progress, done)
    else:
        yield Bar(description, total, None, done)


def _columns() -> list[Any]:
    """Return the parts of a bar; in 80 columns what a step notes goes before ornaments."""
    narrow = _console.width < ROOMY
    return [
        *([] if narrow else [SpinnerColumn()]),
        TextColumn("{task.description}"),
        BarColumn(bar_width=4 if narrow else 18),
        MofNCompleteColumn(),
        *([] if narrow else [TimeElapsedColumn()]),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}"),
    ]
