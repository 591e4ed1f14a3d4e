"""What a client is told when it does not get an answer: fixed texts, in OpenAI's form."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Any

BAD = "invalid_request_error"
_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class Fault(Exception):
    """A request that is not answered; ``detail`` is for the server's log alone."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        detail: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.detail = detail
        self.headers = dict(headers or {})

    def body(self, request_id: str) -> dict[str, Any]:
        """Return the JSON that a client gets."""
        kind = _KINDS.get(self.status, BAD if self.status < 500 else "server_error")
        return {
            "error": {
                "message": f"{self.message} (request {request_id})",
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }


def new_id(prefix: str = "req") -> str:
    """Return an id that nobody can guess."""
    return f"{prefix}-{secrets.token_hex(12)}"


def unsupported(param: str) -> Fault:
    """Return the refusal of a parameter that would change the answer, but is not honoured here."""
    return Fault(
        400,
        f"This server does not honour {param} with this value; leave it out.",
        param=param,
        code="unsupported_parameter",
    )


def invalid(param: str | None, message: str, code: str = "invalid_value") -> Fault:
    """Return the refusal of a value."""
    return Fault(400, message, param=param, code=code)


BROKEN = "Something went wrong in the server; its log says what."
STOPPING = "The server is being stopped."
MEMORY = "The server ran out of memory; try again with fewer or shorter answers."
SLOW = "The answer took longer than this server allows for a request."
BUSY = "Too many requests are waiting; try again later."


def encoded(obj: Any) -> bytes:
    """Return JSON in as few bytes as it takes; ASCII, so that any text can be sent."""
    return json.dumps(obj, separators=(",", ":"), allow_nan=False).encode()
