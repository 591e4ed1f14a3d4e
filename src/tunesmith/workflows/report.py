"""``tunesmith report``: write the page of a run or of a recipe."""

from __future__ import annotations

from pathlib import Path

from tunesmith.config.load import Resolved
from tunesmith.config.schema import ReportOptions

PAGE = "report.html"


def command(resolved: Resolved[ReportOptions]) -> int:
    """Handle ``tunesmith report``; the page's path goes to stdout."""
    print(write_report(Path(resolved.options.folder)))
    return 0


def write_report(folder: Path, title: str | None = None) -> Path:
    """Gather what a folder holds and write ``report.html`` into it."""
    from tunesmith.report.collect import collect
    from tunesmith.report.page import write

    return write(folder / PAGE, collect(folder, title=title))
