"""The routes of the pages; each stands behind the server's guard."""

from __future__ import annotations

import getpass
import os
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Scope

from tunesmith.errors import TunesmithError
from tunesmith.evaluate.records import ATTEMPTS, read_header
from tunesmith.serve.faults import Fault
from tunesmith.serve.service import Service
from tunesmith.studio import form, pages, views
from tunesmith.studio.jobs import Jobs
from tunesmith.studio.login import PAGE as LOGIN
from tunesmith.studio.login import Logins
from tunesmith.studio.runs import RunFacts, Runs

FORM = "application/x-www-form-urlencoded"
MOST_FIELDS = 1000
LARGEST_REPORT = 64 << 20
MOST_SETS = 20
"""Sets of answers in one comparison."""


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


@dataclass(frozen=True, slots=True)
class Hooks:
    """What lies above the pages: each raises ``TunesmithError`` with a sentence for them."""

    rows: Callable[[RunFacts, Mapping[str, Any], int, int], SeenRows]
    """Of a run with its settings: so many examples from one on."""
    compared: Callable[[Sequence[Path]], str]
    """The page of stored sets, the baseline first."""
    load: Callable[[str], Sequence[str]]
    """Load a model, or a run with its base; returns the names that answer."""
    unload: Callable[[str], None]


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
ROWS = 20
"""Examples on a page."""


class Studio:
    """The pages over one parent of runs."""

    def __init__(self, parent: Path, service: Service, logins: Logins, hooks: Hooks) -> None:
        self.runs, self.jobs = Runs(parent), Jobs(parent)
        self._service, self._logins, self._hooks = service, logins, hooks
        self._parent = parent
        self._last: tuple[object, str] = (None, "")
        """The comparison that was made last, and of what."""

    def routes(self) -> list[BaseRoute]:
        """Return every route of the pages."""
        get, post = ["GET"], ["POST"]
        return [
            Route("/", self.front, methods=get),
            Route("/live/runs", self.front_live, methods=get),
            Route("/run/{name:run}", self.run, methods=get),
            Route("/live/run/{name:run}", self.run_live, methods=get),
            Route("/report/{name:run}", self.report, methods=get),
            Route("/rows/{name:run}", self.rows, methods=get),
            Route("/start", self.start, methods=get),
            Route("/start", self.start_now, methods=post),
            Route("/job/{id}", self.job, methods=get),
            Route("/live/job/{id}", self.job_live, methods=get),
            Route("/stop", self.stop, methods=post),
            Route("/resume", self.resume, methods=post),
            Route("/compare", self.compare, methods=get),
            Route("/compared", self.compared, methods=get),
            Route("/chat", self.chat, methods=get),
            Route("/chat/load", self.load, methods=post),
            Route("/chat/unload", self.unload, methods=post),
            Route(LOGIN, self.sign_in, methods=get),
            Route(LOGIN, self.sign_in_by_key, methods=post),
            Route("/logout", self.sign_out, methods=post),
            Route("/studio.css", self.stylesheet, methods=get),
            Route("/studio.js", self.script, methods=get),
        ]

    # Runs

    def front(self, request: Request) -> Response:
        """Show every run."""
        values = self._front_values(request)
        mark = views.news({"runs": pages.part("part_runs", values)}, "")["mark"]
        return self._page(request, "runs.html", {**values, "live": "/live/runs", "mark": mark}, "/")

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
            "token": self._token(request),
        }

    def run(self, request: Request) -> Response:
        """Show one run."""
        run = self._run(request)
        values = views.run_values(self.runs, self.jobs, run, self._token(request))
        mark = views.news(views.run_parts(values), "")["mark"]
        live = "/live/run/" + urllib.parse.quote(run.name)
        return self._page(request, "run.html", {**values, "live": live, "mark": mark})

    def run_live(self, request: Request) -> Response:
        """Tell what has changed in one run."""
        values = views.run_values(self.runs, self.jobs, self._run(request), self._token(request))
        parts = views.run_parts(values)
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
            seen = self._hooks.rows(run, self.runs.config(run.path), (page - 1) * ROWS, ROWS)
            values |= {"seen": seen, "pages": max(1, -(-seen.total // ROWS))}
        except TunesmithError as mistake:
            values["fault"] = str(mistake)
        return self._page(request, "rows.html", values)

    def _run(self, request: Request) -> RunFacts:
        found = self.runs.one(request.path_params["name"])
        if found is None:
            raise Fault(404, "There is no such run.", code="not_found")
        return found

    # Starting and stopping

    def start(self, request: Request) -> Response:
        """Show the form, filled in as another run was where that is asked for."""
        like = self.runs.one(request.query_params.get("like", ""))
        filled = form.Filled()
        if like is not None:
            filled = form.like(self.runs.config(like.path))
        return self._form(request, filled)

    async def start_now(self, request: Request) -> Response:
        """Start a run, or say beside each field what is wrong with it."""
        given = await self._given(request)
        filled = await run_in_threadpool(form.read, given, str(self._parent))
        if not filled.is_right:
            return self._form(request, filled, 422)
        return await run_in_threadpool(self._begin, filled.arguments())

    def _begin(self, arguments: Sequence[str]) -> Response:
        try:
            job = self.jobs.start(arguments)
        except TunesmithError as mistake:
            raise _told(mistake) from None
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
        return self._page(request, "start.html", values, "/start", status)

    def job(self, request: Request) -> Response:
        """Show a child that has no run folder yet, or never got one."""
        values = self._job_values(request)
        mark = views.news({"job": pages.part("job_state.html", values)}, "")["mark"]
        live = f"/live/job/{values['job'].id}"
        return self._page(request, "job.html", {**values, "live": live, "mark": mark})

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
        return {"job": job, "log": self.jobs.log(job), "token": self._token(request)}

    async def stop(self, request: Request) -> Response:
        """Ask a run to stop at its next safe point."""
        given = await self._given(request)
        return await run_in_threadpool(self._stop, _one(given, "run"), _one(given, "job"))

    def _stop(self, name: str, job_id: str) -> Response:
        job, run = self.jobs.get(job_id), self.runs.one(name)
        if run is not None and self.jobs.stop_run(run.path):
            return RedirectResponse("/run/" + urllib.parse.quote(run.name), 303)
        if job is not None and self.jobs.stop_job(job):
            return RedirectResponse(f"/job/{job.id}", 303)
        raise Fault(409, "It does not run any more.", code="not_running")

    async def resume(self, request: Request) -> Response:
        """Go on with a run from its newest checkpoint."""
        given = await self._given(request)
        return await run_in_threadpool(self._resume, _one(given, "run"))

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

    # Comparing

    def compare(self, request: Request) -> Response:
        """Show the stored sets of answers, and the comparison of those that were chosen."""
        asked = request.query_params
        base, chosen = _unquoted(asked.get("base", "")), list(map(_unquoted, asked.getlist("with")))
        chosen = [one for one in chosen if one != base]
        known = self.runs.sets()
        values = {
            "sets": [set_ for place, path in known.items() if (set_ := _set(place, path))],
            "base": base,
            "chosen": chosen,
            "parent": str(self._parent),
            "fault": "",
            "shown": "",
        }
        if base and not chosen:
            values["fault"] = "Only one set was chosen.\nExpected: at least one other to hold it to"
        elif base:
            pairs = [("base", base), *(("with", one) for one in chosen)]
            try:
                self._comparison(base, chosen)
                values["shown"] = urllib.parse.urlencode(
                    [(name, urllib.parse.quote(place)) for name, place in pairs]
                )
            except TunesmithError as mistake:
                values["fault"] = str(mistake)
        return self._page(request, "compare.html", values, "/compare")

    def compared(self, request: Request) -> Response:
        """Show the page that ``tunesmith compare --report`` makes."""
        asked = request.query_params
        try:
            html = self._comparison(
                _unquoted(asked.get("base", "")), list(map(_unquoted, asked.getlist("with")))
            )
        except TunesmithError as mistake:
            raise _told(mistake) from None
        return pages.report_page(html)

    def _comparison(self, base: str, chosen: Sequence[str]) -> str:
        known = self.runs.sets()
        places = list(dict.fromkeys([base, *chosen]))[:MOST_SETS]
        if any(place not in known for place in places):
            raise Fault(404, "There is no such set of answers.", code="not_found")
        paths = [known[place] for place in places]
        key = tuple((str(path), (path / ATTEMPTS).stat().st_mtime_ns) for path in paths)
        if self._last[0] != key:  # the page asks, and then the frame in it
            self._last = (key, self._hooks.compared(paths))
        return self._last[1]

    # Chat

    def chat(self, request: Request) -> Response:
        """Show the chat; its answers come from the server's own API."""
        return self._chat(request, load=request.query_params.get("load", ""))

    def _chat(
        self, request: Request, *, load: str = "", fault: str = "", status: int = 200
    ) -> Response:
        voices = list(self._service.worker.voices)
        finished = [run for run in self.runs.all() if run.state == "finished"]
        asked = request.query_params
        values = {
            "voices": voices,
            "left": asked.get("left") or (voices[0] if voices else ""),
            "right": asked.get("right") or (voices[1] if len(voices) > 1 else ""),
            "runs": finished,
            "load": load,
            "fault": fault,
            "most": self._service.limits.max_new_tokens,
        }
        return self._page(request, "chat.html", values, "/chat", status)

    async def load(self, request: Request) -> Response:
        """Load a model, or a run together with the model that it began with."""
        given = await self._given(request)
        return await run_in_threadpool(self._load, request, given)

    def _load(self, request: Request, given: Mapping[str, Sequence[str]]) -> Response:
        run, model = self.runs.one(_one(given, "run")), given.get("model", [""])[-1].strip()
        if run is None and not model:
            return self._chat(request, fault="Nothing was chosen.", status=422)
        try:
            names = self._hooks.load(str(run.path) if run is not None else model)
        except TunesmithError as mistake:
            return self._chat(request, fault=str(mistake), status=422)
        sides = {"left": names[0], "right": names[-1] if len(names) > 1 else ""}
        return RedirectResponse("/chat?" + urllib.parse.urlencode(sides), 303)

    async def unload(self, request: Request) -> Response:
        """Give back what a model takes."""
        given = await self._given(request)
        await run_in_threadpool(self._hooks.unload, given.get("model", [""])[-1])
        return RedirectResponse("/chat", 303)

    # Signing in

    def sign_in(self, request: Request) -> Response:
        """Take the token of the printed link, or ask for the key."""
        token = request.query_params.get("token", "")
        if not token:
            return pages.sign_in_page({"said": "", "go": False}, 200)
        said = "This link has been used already, or is of another server."
        return self._enter(self._logins.enter(token=token), said)

    async def sign_in_by_key(self, request: Request) -> Response:
        """Take the key."""
        given = await self._form_of(request)
        key = given.get("key", [""])[-1].strip()
        return self._enter(self._logins.enter(key=key), "That is not the key.")

    def _enter(self, session: str | None, said: str) -> Response:
        if session is None:
            return pages.sign_in_page({"said": said, "go": False}, 401)
        # No redirect: coming from another site, it would go without the cookie.
        response = pages.sign_in_page({"said": "", "go": True}, 200)
        response.set_cookie(self._logins.cookie, session, httponly=True, samesite="strict")
        return response

    async def sign_out(self, request: Request) -> Response:
        """End the session."""
        await self._given(request)
        self._logins.leave(request.scope)
        response = RedirectResponse(LOGIN, 303)
        response.delete_cookie(self._logins.cookie, httponly=True, samesite="strict")
        return response

    # What all have in common

    def stylesheet(self, request: Request) -> Response:
        """Return the one stylesheet."""
        del request
        return Response(pages.style(), media_type="text/css")

    def script(self, request: Request) -> Response:
        """Return the one script."""
        del request
        return Response(pages.script(), media_type="text/javascript")

    def _page(
        self,
        request: Request,
        name: str,
        values: Mapping[str, Any],
        here: str = "",
        status: int = 200,
    ) -> Response:
        frame = {
            "here": here,
            "live": "",
            "mark": "",
            "signed_in": self._logins.has_key,
            "token": self._token(request),
        }
        return pages.page(name, {**frame, **values}, status)

    def _token(self, request: Request) -> str:
        return self._logins.form_token(request.scope)

    async def _given(self, request: Request) -> dict[str, list[str]]:
        """Return the fields of a form that one of our own pages has sent."""
        given = await self._form_of(request)
        if not self._logins.is_own_form(request.scope, given.get("token", [""])[-1]):
            raise Fault(
                403, "This form was not sent by a page of this server; open it again.", code="token"
            )
        return given

    async def _form_of(self, request: Request) -> dict[str, list[str]]:
        body = await self._service.body(request, FORM)
        try:
            return urllib.parse.parse_qs(
                body.decode("utf-8"), keep_blank_values=True, max_num_fields=MOST_FIELDS
            )
        except ValueError:
            raise Fault(400, "The form cannot be read.", code="bad_form") from None

    def shown(self, scope: Scope, fault: Fault) -> ASGIApp | None:
        """Return a refusal as a page, for a browser that wants one."""
        accepts = b",".join(value for name, value in scope["headers"] if name == b"accept")
        if b"text/html" not in accepts or scope["path"].startswith(("/v1/", "/live/")):
            return None
        if fault.status == 401:
            return pages.sign_in_page({"said": "", "go": False}, 401)
        values = {"title": "That did not work", "text": fault.message, "status": fault.status}
        return self._page(Request(scope), "problem.html", values, status=fault.status)


def _told(mistake: TunesmithError) -> Fault:
    """Return a user's mistake as a refusal; the user is the server's own."""
    return Fault(422, str(mistake), code="mistake")


def _set(place: str, path: Path) -> dict[str, Any] | None:
    """Return what is known of a finished set of answers."""
    header = read_header(path)
    if header is None:
        return None
    return {
        "place": place,
        "name": header.name,
        "task": header.task,
        "prompt": header.prompt,
        "planned": header.planned,
    }


def _one(given: Mapping[str, Sequence[str]], name: str) -> str:
    return _unquoted(given.get(name, [""])[-1])


def _unquoted(text: str) -> str:
    return urllib.parse.unquote(text)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
