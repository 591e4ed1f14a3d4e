"""The pages that show runs: all of them, one, its report, its training examples."""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from tunesmith.errors import TunesmithError
from tunesmith.serve.faults import Fault
from tunesmith.studio import pages, views
from tunesmith.studio.frame import Frame
from tunesmith.studio.jobs import Jobs
from tunesmith.studio.runs import RunFacts, Runs

LARGEST_REPORT = 64 << 20
ROWS = 20
"""Examples on a page."""


@dataclass(frozen=True, slots=True)
class SeenRow:
    """One training example as the model sees it."""

    summary: str
    spans: Sequence[tuple[str, bool]] = ()
    """Parts of its text, and whether they are trained on."""
    refused: str = ""


@dataclass(frozen=True, slots=True)
class SeenRows:
    """One page of a run's training examples."""

    rows: Sequence[SeenRow]
    total: int
    source: str


Rows = Callable[[RunFacts, Mapping[str, Any], int, int], SeenRows]
"""Examples of a run with its settings: so many from one on; ``TunesmithError`` says why not."""


class RunName(Convertor[str]):
    """Any text at all: a folder's name may hold slashes of its path, and even ends of lines."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        """Return the name as it is."""
        return value

    def to_string(self, value: str) -> str:
        """Return the name as it is."""
        return value


register_url_convertor("run", RunName())


class RunPages:
    """Shows the runs below one parent."""

    def __init__(self, frame: Frame, parent: Path, runs: Runs, jobs: Jobs, rows: Rows) -> None:
        self.runs, self.jobs = runs, jobs
        self._frame, self._parent, self._rows = frame, parent, rows

    def routes(self) -> list[BaseRoute]:
        """Return the routes."""
        get = ["GET"]
        return [
            Route("/", self.front, methods=get),
            Route("/live/runs", self.front_live, methods=get),
            Route("/run/{name:run}", self.run, methods=get),
            Route("/live/run/{name:run}", self.run_live, methods=get),
            Route("/report/{name:run}", self.report, methods=get),
            Route("/rows/{name:run}", self.rows, methods=get),
        ]

    def front(self, request: Request) -> Response:
        """Show every run."""
        values = self._front_values(request)
        mark = views.news({"runs": pages.part("part_runs", values)}, "")["mark"]
        live = {"live": "/live/runs", "mark": mark}
        return self._frame.page(request, "runs.html", {**values, **live}, "/")

    def front_live(self, request: Request) -> Response:
        """Tell what has changed on the front page."""
        values = self._front_values(request)
        parts = {"runs": pages.part("part_runs", values)}
        return JSONResponse(views.news(parts, request.query_params.get("mark", "")))

    def _front_values(self, request: Request) -> dict[str, Any]:
        self.jobs.settle(self.runs.names())
        return {
            "found": self.runs.all(),
            "jobs": [job for job in self.jobs.all() if not job.folder and job.code != 0][:10],
            "parent": str(self._parent),
            "token": self._frame.token(request),
        }

    def run(self, request: Request) -> Response:
        """Show one run."""
        run = self._run(request)
        values = views.run_values(self.runs, self.jobs, run, self._frame.token(request))
        mark = views.news(views.run_parts(values), "")["mark"]
        live = "/live/run/" + urllib.parse.quote(run.name)
        return self._frame.page(request, "run.html", {**values, "live": live, "mark": mark})

    def run_live(self, request: Request) -> Response:
        """Tell what has changed in one run."""
        token = self._frame.token(request)
        parts = views.run_parts(views.run_values(self.runs, self.jobs, self._run(request), token))
        return JSONResponse(views.news(parts, request.query_params.get("mark", "")))

    def report(self, request: Request) -> Response:
        """Show a run's report, whoever wrote it, without script or origin."""
        file = views.own_file(self._run(request).path, "report.html")
        if file is None or file.stat().st_size > LARGEST_REPORT:
            raise Fault(404, "This run has no report that can be shown.", code="not_found")
        return pages.report_page(file.read_text(encoding="utf-8", errors="replace"))

    def rows(self, request: Request) -> Response:
        """Show the training examples with what of them is trained on."""
        run = self._run(request)
        wanted = request.query_params.get("page", "1")
        page = int(wanted[:9]) if wanted.isdecimal() and int(wanted[:9]) else 1
        values: dict[str, Any] = {"run": run, "page": page, "pages": 1, "fault": "", "seen": None}
        try:
            seen = self._rows(run, self.runs.config(run.path), (page - 1) * ROWS, ROWS)
            values |= {"seen": seen, "pages": max(1, -(-seen.total // ROWS))}
        except TunesmithError as mistake:
            values["fault"] = str(mistake)
        return self._frame.page(request, "rows.html", values)

    def _run(self, request: Request) -> RunFacts:
        found = self.runs.one(request.path_params["name"])
        if found is None:
            raise Fault(404, "There is no such run.", code="not_found")
        return found
