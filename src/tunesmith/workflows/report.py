"""``tunesmith report``: write the page of a run or of a recipe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tunesmith.config.load import Resolved
from tunesmith.config.schema_results import ReportOptions

PAGE = "report.html"


def command(resolved: Resolved[ReportOptions]) -> int:
    """Handle ``tunesmith report``; the page's path goes to stdout."""
    print(write_report(Path(resolved.options.folder)))
    return 0


def write_report(
    folder: Path, title: str | None = None, *, status: str = "", refresh: int = 0
) -> Path:
    """Gather what a folder holds and write ``report.html`` into it.

    ``status`` says how far a run is that is not finished; ``refresh`` is after how many seconds
    the page reads itself again, 0 for never.
    """
    from tunesmith.report.collect import collect
    from tunesmith.report.page import write

    data = replace(collect(folder, title=title), status=status, refresh=refresh)
    return write(folder / PAGE, data)
