"""Signing in by the printed link or with the key, and out again."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from tunesmith.studio import pages
from tunesmith.studio.frame import Frame
from tunesmith.studio.login import PAGE as LOGIN
from tunesmith.studio.login import Logins


class SignIn:
    """The door: what it gives is a cookie."""

    def __init__(self, frame: Frame, logins: Logins) -> None:
        self._frame, self._logins = frame, logins

    def routes(self) -> list[BaseRoute]:
        """Return the routes."""
        get, post = ["GET"], ["POST"]
        return [
            Route(LOGIN, self.sign_in, methods=get),
            Route(LOGIN, self.sign_in_by_key, methods=post),
            Route("/logout", self.sign_out, methods=post),
        ]

    def sign_in(self, request: Request) -> Response:
        """Take the token of the printed link, or ask for the key."""
        token = request.query_params.get("token", "")
        if not token:
            return pages.sign_in_page({"said": "", "go": False}, 200)
        said = "This link has been used already, or is of another server."
        return self._enter(self._logins.enter(token=token), said)

    async def sign_in_by_key(self, request: Request) -> Response:
        """Take the key."""
        given = await self._frame.form_of(request)
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
        await self._frame.given(request)
        self._logins.leave(request.scope)
        response = RedirectResponse(LOGIN, 303)
        response.delete_cookie(self._logins.cookie, httponly=True, samesite="strict")
        return response
