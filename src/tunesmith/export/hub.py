"""Putting an export on a hub: its token and name first, then the files, then what arrived."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunesmith.data.hub import unreachable
from tunesmith.errors import ModelError, UsageError
from tunesmith.storage import hash_file

ATTEMPTS = 3
"""Of an upload that breaks off; the hub's client has tried each call several times before."""


class Hub:
    """One repository of one hub, as the usual variables name the hub and the token."""

    def __init__(self, name: str) -> None:
        from huggingface_hub import HfApi, get_token
        from huggingface_hub.utils import HFValidationError, validate_repo_id

        try:
            validate_repo_id(name)
        except HFValidationError:
            name = ""
        if name.count("/") != 1:
            raise UsageError("--push-to-hub takes the name of a repository.", expected="user/name")
        self.name = name
        self.address = os.environ.get("HF_ENDPOINT") or None
        if reason := unreachable(self.address):
            raise UsageError(
                f"Nothing can be pushed to {name!r}: {reason}.",
                hint="the same command without --push-to-hub; the folder can be uploaded later",
            )
        token = get_token()
        if not token:
            raise UsageError(
                f"Pushing to {name!r} needs a token, and there is none.",
                hint="HF_TOKEN=... with a token that may write, from the settings of your account",
            )
        self._api = HfApi(endpoint=self.address, token=token)

    def check(self) -> str:
        """Return whom the token belongs to; ``UsageError`` where the hub does not know it."""
        found = self._asked(lambda: self._api.whoami())
        return str(found.get("name", "unknown"))

    def push(self, folder: Path, *, private: bool, say: Callable[[str], None]) -> str:
        """Upload a folder's files and return the page of the repository.

        What arrived is compared with the folder, file by file, by the hashes that the hub tells.
        """
        self._asked(
            lambda: self._api.create_repo(self.name, private=private or None, exist_ok=True)
        )
        if private and not self._asked(lambda: self._api.model_info(self.name)).private:
            raise UsageError(
                f"{self.name!r} is there already and public, so nothing was uploaded.",
                hint="another name, or without --private",
            )
        done: Any = None
        for attempt in range(1, ATTEMPTS + 1):
            try:
                done = self._asked(lambda: self._api.upload_folder(
                    repo_id=self.name, folder_path=folder,
                    commit_message="Upload an export of tunesmith",
                ))  # fmt: skip
                break
            except _BrokenOffError as broken:
                if attempt == ATTEMPTS:
                    raise ModelError(
                        f"The upload to {self.name!r} broke off {ATTEMPTS} times: {broken}.",
                        hint=f"hf upload {self.name} {folder}, when the network is back",
                    ) from None
                say(f"The upload broke off ({broken}); once more, {attempt + 1} of {ATTEMPTS}.")
        self._compare(folder, done.oid, say)
        return str(self._api.endpoint) + f"/{self.name}"

    def _compare(self, folder: Path, revision: str, say: Callable[[str], None]) -> None:
        """Hold what the hub has against the folder."""
        listed = self._asked(
            lambda: list(
                self._api.list_repo_tree(self.name, recursive=True, revision=revision or None)
            )
        )
        there = {one.path: one for one in listed if hasattr(one, "blob_id")}
        here = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
        differing = [
            name for name, path in here.items() if name not in there or not _same(path, there[name])
        ]
        if differing:
            raise ModelError(
                f"{len(differing)} of {len(here)} files on the hub are not those of the folder: "
                f"{', '.join(sorted(differing)[:3])}.",
                hint=f"hf upload {self.name} {folder}",
            )
        others = sorted({*there} - {*here} - {".gitattributes"})
        if others:
            say(f"Other files lie in {self.name} as before: {', '.join(others[:5])}.")

    def _asked(self, call: Callable[[], Any]) -> Any:
        """Make a call; refusals become sentences, a connection that breaks ``_BrokenOffError``."""
        from huggingface_hub.errors import HfHubHTTPError

        try:
            return call()
        except HfHubHTTPError as failure:
            code = failure.response.status_code if failure.response is not None else 0
            said = str(failure.server_message or "").strip().splitlines()[:1]
            if code in (401, 403):
                may = "does not know the token" if code == 401 else "does not let the token write"
                raise UsageError(
                    f"The hub {may} for {self.name!r} (error {code}).",
                    hint="HF_TOKEN=... with a token that may write there",
                ) from None
            if 400 <= code < 500:
                why = f": {said[0][:200]}" if said else ""
                raise ModelError(f"The hub refuses {self.name!r} (error {code}){why}.") from None
            raise _BrokenOffError(f"error {code} of the hub") from None
        except ValueError as failure:
            odd = (str(failure).strip().splitlines() or [type(failure).__name__])[0][:200]
            raise ModelError(f"The hub answers oddly for {self.name!r}: {odd}") from None
        except (OSError, RuntimeError, _network_errors()) as failure:
            lines = str(failure).strip().splitlines() or [type(failure).__name__]
            raise _BrokenOffError(lines[0][:200]) from None


class _BrokenOffError(ModelError):
    """A call that may succeed when it is made again."""


def _network_errors() -> type[Exception]:
    import httpx2

    found: type[Exception] = httpx2.HTTPError
    return found


def _same(path: Path, entry: Any) -> bool:
    """Compare a file with what the hub says of it: SHA-256 of a large one, else git's own hash."""
    if entry.lfs is not None:
        return bool(entry.lfs.sha256 == hash_file(path))
    data = path.read_bytes()
    git = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False)
    return bool(entry.blob_id == git.hexdigest())
