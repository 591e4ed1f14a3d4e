"""All pages together: the routes that go beside the server's own, behind its guard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Scope

from tunesmith.serve.faults import Fault
from tunesmith.serve.service import Service
from tunesmith.studio import pages
from tunesmith.studio.chat_pages import ChatPages
from tunesmith.studio.compare_pages import ComparePages
from tunesmith.studio.frame import Frame
from tunesmith.studio.jobs import Jobs
from tunesmith.studio.login import Logins
from tunesmith.studio.run_pages import Rows, RunPages
from tunesmith.studio.runs import Runs
from tunesmith.studio.sign_in import SignIn
from tunesmith.studio.start_pages import StartPages


@dataclass(frozen=True, slots=True)
class Hooks:
    """What lies above the pages: each raises ``TunesmithError`` with a sentence for them."""

    rows: Rows
    """Of a run with its settings: so many examples from one on."""
    compared: Callable[[Sequence[Path]], str]
    """The page of stored sets, the baseline first."""
    load: Callable[[str], Sequence[str]]
    """Load a model, or a run with its base; returns the names that answer."""
    unload: Callable[[str], None]


class Studio:
    """The pages over one parent of runs."""

    def __init__(self, parent: Path, service: Service, logins: Logins, hooks: Hooks) -> None:
        runs, jobs = Runs(parent), Jobs(parent)
        self._frame = Frame(service, logins)
        self._parts = (
            RunPages(self._frame, parent, runs, jobs, hooks.rows),
            StartPages(self._frame, parent, runs, jobs),
            ComparePages(self._frame, parent, runs, hooks.compared),
            ChatPages(self._frame, service, runs, hooks.load, hooks.unload),
            SignIn(self._frame, logins),
        )

    def routes(self) -> list[BaseRoute]:
        """Return every route of the pages."""
        get = ["GET"]
        own = [
            Route("/studio.css", self.stylesheet, methods=get),
            Route("/studio.js", self.script, methods=get),
        ]
        return [*(route for part in self._parts for route in part.routes()), *own]

    def shown(self, scope: Scope, fault: Fault) -> ASGIApp | None:
        """Return a refusal as a page, for a browser that wants one."""
        return self._frame.shown(scope, fault)

    def stylesheet(self, request: Request) -> Response:
        """Return the one stylesheet."""
        del request
        return Response(pages.style(), media_type="text/css")

    def script(self, request: Request) -> Response:
        """Return the one script."""
        del request
        return Response(pages.script(), media_type="text/javascript")
