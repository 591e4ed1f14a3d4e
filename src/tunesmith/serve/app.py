"""The application: every route, behind one guard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route, Router
from starlette.types import ASGIApp, Scope

from tunesmith.serve.faults import Fault
from tunesmith.serve.guard import Access, Guard
from tunesmith.serve.openapi import document
from tunesmith.serve.plan import plan_chat, plan_text
from tunesmith.serve.service import Service


def application(
    service: Service,
    access: Access,
    report: Callable[[str], None],
    more: Sequence[BaseRoute] = (),
    shown: Callable[[Scope, Fault], ASGIApp | None] | None = None,
) -> Guard:
    """Return the application; ``more`` routes, such as a page's, stand behind the same guard."""
    inner = Router([*_routes(service), *more], redirect_slashes=False)
    return Guard(inner, access, service.limits.body_bytes, service.metrics, report, shown)


def _routes(service: Service) -> list[BaseRoute]:
    async def chat_completions(request: Request) -> Response:
        return await service.generate(request, plan_chat)

    async def completions(request: Request) -> Response:
        return await service.generate(request, plan_text)

    async def models(request: Request) -> Response:
        del request
        found = [_model(service, name) for name in service.worker.voices]
        return JSONResponse({"object": "list", "data": found})

    async def model(request: Request) -> Response:
        name = request.path_params["model"]
        if name not in service.worker.voices:
            raise Fault(404, "There is no such model.", param="model", code="model_not_found")
        return JSONResponse(_model(service, name))

    async def health(request: Request) -> Response:
        del request
        alive = service.worker.alive
        return JSONResponse({"status": "ok" if alive else "broken"}, 200 if alive else 503)

    async def metrics(request: Request) -> Response:
        del request
        return PlainTextResponse(
            service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8"
        )

    async def openapi(request: Request) -> Response:
        del request
        voices = service.worker.voices
        vocabulary = next(iter(voices.values())).engine.vocabulary
        return JSONResponse(document(list(voices), service.limits, vocabulary))

    return [
        Route("/v1/models", models, methods=["GET"]),
        Route("/v1/models/{model:path}", model, methods=["GET"]),
        Route("/v1/chat/completions", chat_completions, methods=["POST"]),
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/health", health, methods=["GET"]),
        Route("/metrics", metrics, methods=["GET"]),
        Route("/openapi.json", openapi, methods=["GET"]),
    ]


def _model(service: Service, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": service.created, "owned_by": "tunesmith"}
