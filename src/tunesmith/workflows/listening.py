"""What ``serve`` and ``studio`` have in common: who may ask, an address, an end by a signal."""

from __future__ import annotations

import os
import secrets
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.config.schema_serve import ListenOptions
from tunesmith.errors import UsageError
from tunesmith.workflows import console
from tunesmith.workflows.idle import refuse_idle
from tunesmith.workflows.signals import stop_on_signals

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from tunesmith.serve.guard import Access
    from tunesmith.serve.service import Service
    from tunesmith.serve.worker import Worker
    from tunesmith.serve.workers import Workers

KEY = "TUNESMITH_API_KEY"
SHORTEST_KEY = 16
SPARE_FILES = 64
"""Open files that are not connections."""


@dataclass(frozen=True, slots=True)
class Door:
    """An address that was taken, and the key of those who may ask there."""

    options: ListenOptions
    key: str | None
    taken: socket.socket
    loopback: bool

    @property
    def port(self) -> int:
        """Return the port."""
        return int(self.taken.getsockname()[1])

    @property
    def url(self) -> str:
        """Return where clients find it."""
        host = self.options.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    def announce(self, freely: str) -> None:
        """Warn of what is open, ``freely`` saying what anybody may do, and show a made key."""
        if not self.loopback:
            console.warn(
                "nothing is encrypted here: put a proxy with TLS in front for other machines"
            )
        if self.key is None:
            console.warn(f"no key is asked for: whoever is on this machine may {freely}")
        elif self.options.api_key_file is None and not os.environ.get(KEY, "").strip():
            print(f"Key, made now and kept nowhere:\n  {self.key}", file=sys.stderr)

    def listen(self, app: ASGIApp, service: Service, ready: Callable[[], None]) -> None:
        """Answer until a signal; ``ready`` is called once connections are taken."""
        from tunesmith.serve.listen import Listener

        with stop_on_signals() as stop:
            listener = Listener(
                app,
                service.worker,
                service.metrics,
                connections=_connections_of(self.options.connections),
                grace_s=self.options.grace,
                should_stop=stop,
                ready=ready,
            )
            listener.run([self.taken])


@contextmanager
def opened_door(options: ListenOptions) -> Iterator[Door]:
    """Find out who may ask, and take the address; ``UsageError`` where that is not safe."""
    console.set_level(options.log_level)
    _require_server()
    from tunesmith.serve.listen import bind, is_loopback

    refuse_idle(options, (("api_key_file", "a key (--no-key)", lambda o: o.key),))
    loopback = is_loopback(options.host)
    key = _key_of(options, loopback=loopback)
    with bind(options.host, options.port) as taken:
        yield Door(options, key, taken, loopback)


def access_of(options: ListenOptions, key: str | None) -> Access:
    """Return who may ask the server, and by which names."""
    from tunesmith.serve.guard import Access, host_name
    from tunesmith.serve.listen import is_everywhere

    names = {"localhost", "127.0.0.1", "::1", options.host, *options.allowed_hosts}
    return Access(key, frozenset(map(host_name, names)), any_address=is_everywhere(options.host))


def service_of(worker: Worker | Workers, options: ListenOptions, **more: int) -> Service:
    """Return what answers by these models; ``more`` are limits that the settings do not hold."""
    from tunesmith.serve.metrics import Metrics
    from tunesmith.serve.plan import Limits
    from tunesmith.serve.service import Service

    metrics = Metrics(
        {
            "running": ("Answers that are being decoded.", lambda: worker.running),
            "waiting": ("Answers that wait for their turn.", lambda: worker.waiting),
            "steps": ("Decoding steps so far.", lambda: worker.steps),
        }
    )
    limits = Limits(
        body_bytes=options.max_body_kb << 10,
        max_new_tokens=options.max_new_tokens,
        request_s=options.request_timeout,
        body_s=min(options.request_timeout, Limits().body_s),
        **more,
    )
    return Service(worker, limits, metrics)


def _require_server() -> None:
    """Raise ``UsageError`` where what a server is made of is not installed."""
    missing = [name for name in ("starlette", "uvicorn") if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"The server needs {' and '.join(missing)}, not installed here.",
            expected="the extra of that name",
            hint="pip install 'tunesmith[serve]'",
        )


def _key_of(options: ListenOptions, *, loopback: bool) -> str | None:
    """Return the key that clients need; one that is made is shown by ``announce``."""
    if not options.key:
        if not loopback:
            raise UsageError(
                f"--no-key would let everybody in who reaches {options.host}.",
                expected="a key, or an address that only this machine reaches",
                hint="--host 127.0.0.1, or --api-key-file FILE",
            )
        return None
    given, where = os.environ.get(KEY, ""), f"The key in {KEY}"
    if options.api_key_file is not None:
        where = f"The key in {options.api_key_file!r}"
        try:
            given = Path(options.api_key_file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as failure:
            said = getattr(failure, "strerror", None) or "it is no text"
            raise UsageError(
                f"The key file {options.api_key_file!r} cannot be read: {said}.",
                expected="a file that holds the key and nothing else",
            ) from None
    key = given.strip()
    if key or options.api_key_file is not None:
        if len(key) < SHORTEST_KEY or not (key.isascii() and key.isprintable()) or " " in key:
            raise UsageError(
                f"{where} is no good one: it has {len(key)} characters.",
                expected=f"at least {SHORTEST_KEY} letters, digits or signs without a space",
                hint="python3 -c 'import secrets; print(secrets.token_urlsafe(32))' > FILE",
            )
        return key
    if not loopback:
        raise UsageError(
            f"{options.host} can be reached from other machines, and there is no key.",
            expected=f"a key in a file or in {KEY}",
            hint="--api-key-file FILE, or --host 127.0.0.1",
        )
    if not sys.stderr.isatty():
        raise UsageError(
            "There is no key, and no terminal to show one on that is made now.",
            expected=f"a key in a file or in {KEY}",
            hint="--api-key-file FILE; or --no-key, for whoever is on this machine",
        )
    return secrets.token_urlsafe(32)


def _connections_of(wanted: int) -> int:
    """Return how many connections there may be; the system's limit is raised where it can be."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        if most < needed:
            allowed = max(1, most - SPARE_FILES)
            console.warn(f"the system allows {most} open files: at most {allowed} connections")
            return allowed
    return wanted
