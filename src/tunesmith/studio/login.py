"""Who may see the pages: a link that works once, then a cookie; and the token of every form."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
from collections import deque

from starlette.types import Scope

PAGE = "/login"
"""The one address that answers without a key: it takes one."""
MOST_SESSIONS = 64
"""Browsers that are signed in at once; one more signs the first one out."""


class Logins:
    """Cookies that stand for the key; kept in memory, so that they end with the server."""

    def __init__(self, key: str | None, port: int) -> None:
        self._key = None if key is None else _digest(key)
        self.cookie = f"tunesmith-{port}"
        """Cookies of one machine know no ports, so the name says which server it is for."""
        self.token = secrets.token_urlsafe(32)
        """Opens the door once, so that a link can be clicked without showing the key."""
        self._token: bytes | None = _digest(self.token)
        self._secret = secrets.token_bytes(32)
        self._sessions: deque[bytes] = deque(maxlen=MOST_SESSIONS)
        self._lock = threading.Lock()

    @property
    def has_key(self) -> bool:
        """Whether there is anything to sign in with."""
        return self._key is not None

    def enter(self, *, token: str = "", key: str = "") -> str | None:
        """Return a new session's cookie for the token or the key; None for a wrong one."""
        with self._lock:
            if token and self._token and hmac.compare_digest(_digest(token), self._token):
                self._token = None
            elif not (key and self._key and hmac.compare_digest(_digest(key), self._key)):
                return None
            session = secrets.token_urlsafe(32)
            self._sessions.append(_digest(session))
            return session

    def leave(self, scope: Scope) -> None:
        """End a session."""
        session = _digest(self._given(scope))
        with self._lock:
            kept = [one for one in self._sessions if one != session]
            self._sessions = deque(kept, maxlen=MOST_SESSIONS)

    def lets_in(self, scope: Scope) -> bool:
        """Say whether a request without the key may pass: by its cookie, or to sign in.

        What changes something has to say that it comes from a page of this server; the guard has
        seen to it that no other origin is named.
        """
        if scope["path"] == PAGE:
            return True
        if not self._is_known(self._given(scope)):
            return False
        safe = scope["method"] in ("GET", "HEAD")
        return safe or any(name == b"origin" for name, _ in scope["headers"])

    def form_token(self, scope: Scope) -> str:
        """Return what the forms of this session's pages have to bring along."""
        session = self._given(scope).encode("utf-8", "replace")
        return hmac.new(self._secret, session, "sha256").hexdigest()

    def is_own_form(self, scope: Scope, given: str) -> bool:
        """Say whether a form comes from a page that this session was shown."""
        return hmac.compare_digest(_digest(given), _digest(self.form_token(scope)))

    def _is_known(self, session: str) -> bool:
        digest = _digest(session)
        with self._lock:
            return any(hmac.compare_digest(digest, one) for one in self._sessions)

    def _given(self, scope: Scope) -> str:
        lines = [value.decode("latin-1") for name, value in scope["headers"] if name == b"cookie"]
        for part in ";".join(lines).split(";"):  # whatever other servers of the machine have set
            name, _, value = part.strip().partition("=")
            if name == self.cookie:
                return value
        return ""


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "replace")).digest()
