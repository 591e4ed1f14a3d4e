"""OpenAI-compatible servers: which one is asked next, when, and with which key."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx2

from tunesmith.errors import UsageError

OLDER, NEWER = "max_tokens", "max_completion_tokens"
"""Names of an answer's limit: every server but OpenAI's newer models takes the first."""
_LOCAL = {"localhost", "127.0.0.1", "::1"}


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """How servers are asked."""

    addresses: tuple[str, ...]
    """Each up to and with its ``/v1``."""
    model: str
    """Their name of the model."""
    key: str = field(default="", repr=False)
    connections: int = 16
    """Requests under way at once, on all servers together."""
    requests_per_minute: float | None = None
    timeout: float = 300.0
    """Seconds without a byte."""
    retries: int = 8
    """Times that a question is asked again."""
    first_wait: float = 1.0
    """Seconds before a question is asked again; they double each time."""
    proxies: bool = False
    """Whether proxies are taken from the environment."""


def keeps_secrets(address: str) -> bool:
    """Say whether a key may be sent there: encrypted, or to this very machine."""
    parts = urlsplit(address)
    return parts.scheme == "https" or parts.hostname in _LOCAL


def check_address(address: str) -> str:
    """Return an address without a last slash; ``UsageError`` for what is none.

    One with a name and password is refused: addresses stand in logs.
    """
    try:
        parts = urlsplit(address)
        url = httpx2.URL(address)
        whole = parts.scheme in ("http", "https") and bool(url.host) and parts.port != 0
    except (ValueError, httpx2.InvalidURL):
        whole = False
    if whole and not set("@?# \t\r\n") & set(address):
        return address.rstrip("/")
    shown = "The value of --address" if "@" in address else f"--address {address!r}"
    raise UsageError(
        f"{shown} is no plain address.",
        expected="http://host:port/v1 or https://host/v1, without a password, ? or #",
        hint="a key goes into an environment variable: --api-key-env NAME",
    )


@dataclass(slots=True)
class Server:
    """One address and what is known of it."""

    address: str
    key: str = field(default="", repr=False)
    under_way: int = 0
    answered: int = 0
    failures: int = 0
    """Since its last answer."""
    reached: bool = False
    """Whether it ever sent anything."""
    rests_until: float = 0.0
    """Time of the event loop before which it wants no request."""
    limit: str = OLDER
    """Its name for the limit of an answer."""

    def renames(self, sent: str, said: str) -> bool:
        """Say whether a request that it refused is to be sent again, under the newer name.

        ``sent`` is the name that the request had. A refusal that names only the older one means
        its value; a server that does not know the newer one would answer without a limit.
        """
        if sent == NEWER or OLDER not in said or NEWER not in said:
            return False
        self.limit = NEWER
        return True

    def rest(self, until: float) -> None:
        """Leave it alone until then."""
        self.rests_until = max(self.rests_until, until)


class Servers:
    """Spreads requests: to the server with the fewest under way, none faster than allowed."""

    def __init__(self, settings: ServerSettings) -> None:
        self.all = [
            Server(address, settings.key if keeps_secrets(address) else "")
            for address in settings.addresses
        ]
        rate = settings.requests_per_minute
        self._spacing = 60 / rate if rate else 0.0
        self._next = 0.0

    async def take(self, failed: Server | None = None) -> Server:
        """Wait for a turn and return a server; ``failed`` is taken only where there is no other.

        It counts as under way until it is given back.
        """
        loop = asyncio.get_running_loop()
        if self._spacing:
            turn = max(loop.time(), self._next)
            self._next = turn + self._spacing
            await asyncio.sleep(turn - loop.time())
        while True:
            now = loop.time()
            free = [server for server in self.all if server.rests_until <= now]
            if free:
                chosen = min(free, key=lambda s: (s is failed, s.under_way, s.answered))
                chosen.under_way += 1
                return chosen
            await asyncio.sleep(min(server.rests_until for server in self.all) - now)

    def give_back(self, server: Server) -> None:
        """Say that a request to it has ended."""
        server.under_way -= 1


def told(servers: Sequence[Server], again: Counter[str]) -> str:
    """Say in a sentence who answered how much, and what had to be asked again."""
    parts = [f"{server.address} {server.answered:,}" for server in servers if server.answered]
    if not parts:
        return ""
    text = f"Answers: {', '.join(parts)}."
    if again:
        reasons = ", ".join(f"{why} {n:,}" for why, n in again.most_common())
        text += f" Asked again: {again.total():,} ({reasons})."
    return text
