"""Questions from a model behind an OpenAI-compatible address, with the standard library alone."""

from __future__ import annotations

import http.client
import json
import os
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from tunesmith.errors import ModelError, UsageError

_AGAIN = {408, 409, 429, 500, 502, 503, 504}
"""Answers after which the same request may succeed."""
_LARGEST = 4 << 20
"""Bytes of a reply that are read at most."""


class Address:
    """Asks ``<address>/chat/completions``; the key comes from an environment variable."""

    def __init__(
        self,
        address: str,
        model: str,
        *,
        key_variable: str = "OPENAI_API_KEY",
        timeout: float = 60.0,
        retries: int = 3,
        wait: float = 1.0,
        max_tokens: int = 400,
    ) -> None:
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(
                f"--address {address!r} is no address.",
                expected="http://host:port/v1 or https://host/v1",
            )
        self._parts, self._path = parts, parts.path.rstrip("/") + "/chat/completions"
        self._key = os.environ.get(key_variable, "")
        # A key must not cross a network in the clear; on this very machine it may.
        if self._key and parts.scheme == "http" and parts.hostname not in _LOCAL:
            raise UsageError(
                f"The key in {key_variable} would be sent unencrypted to {parts.hostname}.",
                expected="an https:// address, or no key",
                hint=f"unset {key_variable}",
            )
        self._model, self._timeout = model, timeout
        self._retries, self._wait, self._tokens = retries, wait, max_tokens

    def replies(self, prompts: Sequence[str]) -> list[str]:
        """Return the reply to each prompt; raises ``ModelError`` when the address fails."""
        return [self._reply(prompt) for prompt in prompts]

    def _reply(self, prompt: str) -> str:
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": self._tokens,
        }
        said = ""
        for attempt in range(self._retries + 1):
            if attempt:
                time.sleep(self._wait * 2 ** (attempt - 1))
            try:
                status, content = self._send(json.dumps(body).encode())
            except (OSError, http.client.HTTPException) as failure:
                said = f"{type(failure).__name__}: {failure}"
                continue
            if status == 200:
                return self._text(content)
            said = f"HTTP {status}: {content[:200].decode('utf-8', 'replace')}"
            if status not in _AGAIN:
                break
        raise ModelError(
            f"{self._parts.geturl()} gave no reply: {said.strip()}",
            expected="an OpenAI-compatible server",
            hint="check the address, the model's name and the key",
        )

    def _send(self, body: bytes) -> tuple[int, bytes]:
        host, port = self._parts.hostname or "", self._parts.port
        link = http.client.HTTPConnection(host, port, timeout=self._timeout)
        if self._parts.scheme == "https":
            link = http.client.HTTPSConnection(host, port, timeout=self._timeout)
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        try:
            link.request("POST", self._path, body, headers)
            answer = link.getresponse()
            return answer.status, answer.read(_LARGEST)
        finally:
            link.close()

    def _text(self, content: bytes) -> str:
        try:
            found: Any = json.loads(content)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError):
            found = None
        if not isinstance(found, str):
            raise ModelError(
                f"{self._parts.geturl()} replied without choices[0].message.content.",
                expected="the layout of OpenAI's chat completions",
            )
        return found


_LOCAL = {"localhost", "127.0.0.1", "::1"}
