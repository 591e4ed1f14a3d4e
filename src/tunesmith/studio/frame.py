"""What every page has: its frame, the token of its forms, and how a refusal looks."""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Scope

from tunesmith.errors import TunesmithError
from tunesmith.serve.faults import Fault
from tunesmith.serve.service import Service
from tunesmith.studio import pages
from tunesmith.studio.login import Logins

FORM = "application/x-www-form-urlencoded"
MOST_FIELDS = 1000


class Frame:
    """Makes pages, and reads what their forms send."""

    def __init__(self, service: Service, logins: Logins) -> None:
        self._service, self._logins = service, logins

    def page(
        self,
        request: Request,
        name: str,
        values: Mapping[str, Any],
        here: str = "",
        status: int = 200,
    ) -> Response:
        """Return a page; ``here`` is its place among those that are always named."""
        frame = {
            "here": here,
            "live": "",
            "mark": "",
            "signed_in": self._logins.has_key,
            "token": self.token(request),
        }
        return pages.page(name, {**frame, **values}, status)

    def token(self, request: Request) -> str:
        """Return what the forms of this page have to bring along."""
        return self._logins.form_token(request.scope)

    async def given(self, request: Request) -> dict[str, list[str]]:
        """Return the fields of a form that one of our own pages has sent."""
        given = await self.form_of(request)
        if not self._logins.is_own_form(request.scope, given.get("token", [""])[-1]):
            raise Fault(
                403, "This form was not sent by a page of this server; open it again.", code="token"
            )
        return given

    async def form_of(self, request: Request) -> dict[str, list[str]]:
        """Return the fields of a form, whoever has sent it."""
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
        return self.page(Request(scope), "problem.html", values, status=fault.status)


def told(mistake: TunesmithError) -> Fault:
    """Return a user's mistake as a refusal; the user is the server's own."""
    return Fault(422, str(mistake), code="mistake")


def named(given: Mapping[str, Sequence[str]], name: str) -> str:
    """Return a field that names a run or a job."""
    return unquoted(given.get(name, [""])[-1])


def unquoted(text: str) -> str:
    """Return a name as it is; in forms it goes quoted, since it may hold any character."""
    return urllib.parse.unquote(text)
