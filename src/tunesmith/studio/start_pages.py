"""The pages that start runs, stop them and go on with them."""

from __future__ import annotations

import getpass
import os
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from tunesmith.errors import TunesmithError
from tunesmith.serve.faults import Fault
from tunesmith.studio import form, pages, views
from tunesmith.studio.frame import Frame, named, told
from tunesmith.studio.jobs import Jobs
from tunesmith.studio.runs import Runs


class StartPages:
    """Starts runs below one parent, each as a child of its own."""

    def __init__(self, frame: Frame, parent: Path, runs: Runs, jobs: Jobs) -> None:
        self.runs, self.jobs = runs, jobs
        self._frame, self._parent = frame, parent

    def routes(self) -> list[BaseRoute]:
        """Return the routes."""
        get, post = ["GET"], ["POST"]
        return [
            Route("/start", self.start, methods=get),
            Route("/start", self.start_now, methods=post),
            Route("/job/{id}", self.job, methods=get),
            Route("/live/job/{id}", self.job_live, methods=get),
            Route("/stop", self.stop, methods=post),
            Route("/resume", self.resume, methods=post),
        ]

    def start(self, request: Request) -> Response:
        """Show the form, filled in as another run was where that is asked for."""
        like = self.runs.one(request.query_params.get("like", ""))
        filled = form.Filled()
        if like is not None:
            filled = form.like(self.runs.config(like.path))
        return self._form(request, filled)

    async def start_now(self, request: Request) -> Response:
        """Start a run, or say beside each field what is wrong with it."""
        given = await self._frame.given(request)
        filled = await run_in_threadpool(form.read, given, str(self._parent))
        if not filled.is_right:
            return self._form(request, filled, 422)
        return await run_in_threadpool(self._begin, filled.arguments())

    def _begin(self, arguments: Sequence[str]) -> Response:
        try:
            job = self.jobs.start(arguments)
        except TunesmithError as mistake:
            raise told(mistake) from None
        return RedirectResponse(f"/job/{job.id}", 303)

    def _form(self, request: Request, filled: form.Filled, status: int = 200) -> Response:
        common, others = form.entries(filled)
        values = {
            "filled": filled,
            "common": common,
            "others": others,
            "open_more": any(one.faults or one.value for _, some in others for one in some),
            "user": _user(),
            "folder": str(Path.cwd()),
            "parent": str(self._parent),
        }
        return self._frame.page(request, "start.html", values, "/start", status)

    def job(self, request: Request) -> Response:
        """Show a child that has no run folder yet, or never got one."""
        values = self._job_values(request)
        mark = views.news({"job": pages.part("job_state.html", values)}, "")["mark"]
        live = f"/live/job/{values['job'].id}"
        return self._frame.page(request, "job.html", {**values, "live": live, "mark": mark})

    def job_live(self, request: Request) -> Response:
        """Tell what a child has said, and where its run is to be seen."""
        values = self._job_values(request)
        parts = {"job": pages.part("job_state.html", values)}
        found = views.news(parts, request.query_params.get("mark", ""))
        if values["job"].folder:
            found["go"] = "/run/" + urllib.parse.quote(values["job"].folder)
        return JSONResponse(found)

    def _job_values(self, request: Request) -> dict[str, Any]:
        self.jobs.settle(self.runs.names())
        job = self.jobs.get(request.path_params["id"])
        if job is None:
            raise Fault(404, "Nothing of that id was started here.", code="not_found")
        return {"job": job, "log": self.jobs.log(job), "token": self._frame.token(request)}

    async def stop(self, request: Request) -> Response:
        """Ask a run to stop at its next safe point."""
        given = await self._frame.given(request)
        return await run_in_threadpool(self._stop, named(given, "run"), named(given, "job"))

    def _stop(self, name: str, job_id: str) -> Response:
        job, run = self.jobs.get(job_id), self.runs.one(name)
        if run is not None and self.jobs.stop_run(run.path):
            return RedirectResponse("/run/" + urllib.parse.quote(run.name), 303)
        if job is not None and self.jobs.stop_job(job):
            return RedirectResponse(f"/job/{job.id}", 303)
        raise Fault(409, "It does not run any more.", code="not_running")

    async def resume(self, request: Request) -> Response:
        """Go on with a run from its newest checkpoint."""
        given = await self._frame.given(request)
        return await run_in_threadpool(self._resume, named(given, "run"))

    def _resume(self, name: str) -> Response:
        run = self.runs.one(name)
        if run is None or not run.is_resumable:
            raise Fault(409, "There is nothing to go on with.", code="not_resumable")
        # A run of so many minutes has stored the steps that it found; the plan finds them again.
        timed = self.runs.config(run.path).get("minutes") is not None
        return self._begin(
            [
                f"--config={run.path / 'config.yaml'}",
                f"--output-dir={run.path.parent}",
                f"--run-name={run.path.name}",
                "--overwrite=false",
                "--resume=auto",
                *(["--max-steps=None"] if timed else []),
            ]
        )


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
