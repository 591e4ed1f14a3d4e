"""The server process: connections with limits of their own, and an end that takes care."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from tunesmith.errors import UsageError
from tunesmith.serve.guard import HEADER_BYTES
from tunesmith.serve.metrics import Metrics
from tunesmith.serve.worker import Worker
from tunesmith.serve.workers import Workers

IDLE_S = 10.0
"""How long a connection may take to send a request's header, or be without a request."""
UNREAD_S = 30.0
"""How long a client may leave what was sent to it unread."""
SEND_BYTES = 128 << 10
"""What the system holds for a client that does not read."""
KEEP_ALIVE_S = 5
LEAVING_S = 2.0
"""Beyond the grace time: until connections that do not end are cut."""
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n"
    b"Connection: close\r\n\r\n"
)


class Connection(H11Protocol):
    """A connection that knows since when it has kept the server waiting."""

    most = 1024
    """Connections at once; one more is told so and closed."""
    metrics: Metrics

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._idle_since = time.monotonic()
        self._unread_since: float | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.most:
            self.metrics.add("dropped_connections_total")
            transport.write(_FULL)
            transport.close()

    def on_response_complete(self) -> None:
        self._idle_since = time.monotonic()
        super().on_response_complete()

    def pause_writing(self) -> None:
        self._unread_since = time.monotonic()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._unread_since = None
        super().resume_writing()

    def drop_if_late(self, now: float) -> None:
        """Close the connection where its client has taken too long."""
        between = self.cycle is None or self.cycle.response_complete
        idle = between and now - self._idle_since > IDLE_S
        unread = self._unread_since is not None and now - self._unread_since > UNREAD_S
        if idle or unread:
            self.metrics.add("dropped_connections_total")
            self.transport.abort()


class Listener(uvicorn.Server):
    """Serves until it is told to stop, then lets what runs end within a grace time."""

    def __init__(
        self,
        app: ASGIApp,
        worker: Worker | Workers,
        metrics: Metrics,
        *,
        connections: int,
        grace_s: float,
        should_stop: Callable[[], bool],
        ready: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare; ``ready`` is called once connections are taken."""
        kind = type("Limited", (Connection,), {"most": connections, "metrics": metrics})
        super().__init__(
            uvicorn.Config(
                app,
                http=kind,
                ws="none",
                lifespan="off",
                loop="asyncio",
                log_config=None,
                log_level="critical",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                h11_max_incomplete_event_size=HEADER_BYTES,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=int(grace_s + LEAVING_S + 1),
            )
        )
        self._worker, self._grace_s = worker, grace_s
        self._stop, self._ready = should_stop, ready

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the workflow."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to take connections."""
        await super().startup(sockets)
        self._ready()

    async def on_tick(self, counter: int) -> bool:
        """Look for a stop, and at connections that keep the server waiting."""
        if counter % 10 == 0:
            now = time.monotonic()
            for one in list(self.server_state.connections):
                if isinstance(one, Connection):
                    one.drop_if_late(now)
        self.should_exit = self.should_exit or self._stop()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections, and cut off what has not ended after the grace time."""
        loop = asyncio.get_running_loop()
        ending = loop.call_later(self._grace_s, self._worker.cancel_all)
        cutting = loop.call_later(self._grace_s + LEAVING_S, self._cut)
        await super().shutdown(sockets)
        ending.cancel()
        cutting.cancel()

    def _cut(self) -> None:
        for one in list(self.server_state.connections):
            if isinstance(one, Connection):
                one.transport.abort()


def is_loopback(host: str) -> bool:
    """Say whether only this machine can reach a server on that address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_everywhere(host: str) -> bool:
    """Say whether an address stands for all of the machine's."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def bind(host: str, port: int) -> socket.socket:
    """Take an address, without listening yet; ``UsageError`` where it cannot be had."""
    try:
        [family, kind, _, _, address] = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        taken = socket.socket(family, kind)
    except OSError as failure:
        raise UsageError(
            f"{host!r} is no address of this machine: {failure.strerror or failure}.",
            expected="an address such as 127.0.0.1",
            hint="--host 127.0.0.1",
        ) from None
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
        taken.bind(address)
    except OSError as failure:
        taken.close()
        raise UsageError(
            f"Port {port} of {host} cannot be had: {failure.strerror or failure}.",
            expected="an address of this machine, and a port that nobody else listens on",
            hint="--port another, or --port 0 for any free one",
        ) from None
    taken.set_inheritable(False)
    return taken
