"""What every request passes before any route sees it: host, origin, key, size."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunesmith.serve.faults import BROKEN, Fault, encoded, new_id
from tunesmith.serve.metrics import Metrics

HEADER_BYTES = 16 << 10
"""Largest header of a request."""


@dataclass(frozen=True, slots=True)
class Access:
    """Who may ask, and by which name."""

    key: str | None
    """None lets everybody in who reaches the server."""
    hosts: frozenset[str]
    """Names of the server in the Host header, in lower case and without a port."""
    any_address: bool = False
    """Whether a plain IP address is a name of the server, too."""
    otherwise: Callable[[Scope], bool] | None = None
    """Whether a request without the key may pass, such as one with the cookie of a page."""


class Guard:
    """ASGI middleware around the whole application, so that no route can forget it."""

    def __init__(
        self,
        router: Router,
        access: Access,
        body_bytes: int,
        metrics: Metrics,
        report: Callable[[str], None],
        shown: Callable[[Scope, Fault], ASGIApp | None] | None = None,
    ) -> None:
        """Prepare; ``shown`` makes a page of a refusal for who wants one, and else says None."""
        self.router, self._body_bytes = router, body_bytes
        self._shown, self._otherwise = shown, access.otherwise
        self._hosts, self._any_address = access.hosts, access.any_address
        self._key = None if access.key is None else _digest(access.key.encode())
        self._metrics, self._report = metrics, report

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it with a fixed text."""
        if scope["type"] != "http":
            return
        scope["app"] = self.router  # so that the router raises what it has to say
        request_id = new_id()
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", request_id.encode()),
                    (b"cache-control", b"no-store"),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        try:
            self._check(scope)
            await self.router(scope, receive, told)
        except (Fault, HTTPException) as failure:
            fault = failure if isinstance(failure, Fault) else _of_router(failure)
            if fault.detail:
                self._report(f"{request_id}: {fault.status}: {fault.detail}")
            if not status:
                await self._refuse(scope, receive, told, fault)
        except ClientDisconnect:
            status = status or 499
        except Exception as failure:
            self._report(f"{request_id}: {type(failure).__name__}: {failure}")
            if status:
                raise  # a reply that was begun can only be broken off
            await self._refuse(scope, receive, told, Fault(500, BROKEN, code="internal_error"))
        finally:
            route = getattr(scope.get("endpoint"), "__name__", "other")
            self._metrics.add("requests_total", route=route, status=str(status or 499))

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, fault: Fault) -> None:
        page = self._shown(scope, fault) if self._shown is not None else None
        if page is not None:
            await page(scope, receive, send)
        else:
            await _answer(send, fault, scope["state"]["request_id"])

    def _check(self, scope: Scope) -> None:
        headers = scope["headers"]
        if sum(len(name) + len(value) for name, value in headers) > HEADER_BYTES:
            raise Fault(
                431, f"The header is larger than {HEADER_BYTES} bytes.", code="large_header"
            )
        hosts = _all(headers, b"host")
        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            raise Fault(421, "This server is not known by that name.", code="wrong_host")
        for origin in _all(headers, b"origin"):
            # A page may ask the server that it came from, and no other one.
            if origin.partition("://")[2].lower() != hosts[0].lower():
                raise Fault(403, "Pages of other origins are not answered.", code="wrong_origin")
        if self._key is not None:
            given = _all(headers, b"authorization")
            word, _, key = (given[0] if len(given) == 1 else "").partition(" ")
            right = hmac.compare_digest(_digest(key.strip().encode("latin-1")), self._key)
            passes = word.lower() == "bearer" and right
            passes = passes or (self._otherwise is not None and self._otherwise(scope))
            if not passes:
                raise Fault(
                    401,
                    "The key is missing or wrong: it goes into the header Authorization, behind "
                    "Bearer.",
                    code="invalid_api_key",
                    headers={"www-authenticate": "Bearer"},
                )
        for length in _all(headers, b"content-length"):
            if length.isdecimal() and int(length[:20]) > self._body_bytes:
                raise too_large(self._body_bytes)

    def _is_ours(self, host: str) -> bool:
        name = host_name(host)
        if name in self._hosts:
            return True
        if not self._any_address:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _of_router(failure: HTTPException) -> Fault:
    """Return in OpenAI's form what the router says."""
    wrong = failure.status_code == 405
    return Fault(
        failure.status_code,
        "This address does not take that method." if wrong else "There is no such address here.",
        code="method_not_allowed" if wrong else "not_found",
        headers=failure.headers,
    )


def too_large(limit: int) -> Fault:
    """Return the refusal of a body that is too large; its connection is closed."""
    return Fault(
        413,
        f"The body is larger than {limit} bytes.",
        code="body_too_large",
        headers={"connection": "close"},
    )


def host_name(host: str) -> str:
    """Return the name of a Host header, in lower case and without its port."""
    name = host.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.rpartition(":")[0] if name.count(":") == 1 else name


def _digest(key: bytes) -> bytes:
    """Return what is compared: of the same length whatever was sent."""
    return hashlib.sha256(key).digest()


def _all(headers: Collection[tuple[bytes, bytes]], name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in headers if key == name]


async def _answer(send: Callable[[Message], Any], fault: Fault, request_id: str) -> None:
    body = encoded(fault.body(request_id))
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *((k.encode(), v.encode()) for k, v in fault.headers.items()),
    ]
    await send({"type": "http.response.start", "status": fault.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
