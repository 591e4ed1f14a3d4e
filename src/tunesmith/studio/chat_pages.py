"""The page that talks with models, and what loads them and gives them back."""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable, Mapping, Sequence

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from tunesmith.errors import TunesmithError
from tunesmith.serve.service import Service
from tunesmith.studio.frame import Frame, named
from tunesmith.studio.runs import Runs


class ChatPages:
    """The chat; its answers come from the server's own API."""

    def __init__(
        self,
        frame: Frame,
        service: Service,
        runs: Runs,
        load: Callable[[str], Sequence[str]],
        unload: Callable[[str], None],
    ) -> None:
        """Prepare; ``load`` takes a model or a run's folder and returns the names that answer."""
        self.runs = runs
        self._frame, self._service = frame, service
        self._take, self._give_back = load, unload

    def routes(self) -> list[BaseRoute]:
        """Return the routes."""
        get, post = ["GET"], ["POST"]
        return [
            Route("/chat", self.chat, methods=get),
            Route("/chat/load", self.load, methods=post),
            Route("/chat/unload", self.unload, methods=post),
        ]

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
        return self._frame.page(request, "chat.html", values, "/chat", status)

    async def load(self, request: Request) -> Response:
        """Load a model, or a run together with the model that it began with."""
        given = await self._frame.given(request)
        return await run_in_threadpool(self._load, request, given)

    def _load(self, request: Request, given: Mapping[str, Sequence[str]]) -> Response:
        run, model = self.runs.one(named(given, "run")), given.get("model", [""])[-1].strip()
        if run is None and not model:
            return self._chat(request, fault="Nothing was chosen.", status=422)
        try:
            names = self._take(str(run.path) if run is not None else model)
        except TunesmithError as mistake:
            return self._chat(request, fault=str(mistake), status=422)
        sides = {"left": names[0], "right": names[-1] if len(names) > 1 else ""}
        return RedirectResponse("/chat?" + urllib.parse.urlencode(sides), 303)

    async def unload(self, request: Request) -> Response:
        """Give back what a model takes."""
        given = await self._frame.given(request)
        await run_in_threadpool(self._give_back, given.get("model", [""])[-1])
        return RedirectResponse("/chat", 303)
