"""A store of tokenised blocks on disk, found by what they were made of.

The name of a file is a hash of all that decides its content, so nothing stale can be met; a file
is written whole or not at all, so a stopped run leaves what it had finished, and two processes at
once at worst do the same work twice. What is unused longest goes first when the store is full.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from tunesmith import __version__
from tunesmith.data.blocks import Block, DamagedBlockError, open_block
from tunesmith.errors import StorageError
from tunesmith.storage import write_bytes
from tunesmith.types import Example

CODE_VERSION = 1
"""Raised with every change of what rendering makes of an example."""
VARIABLE = "TUNESMITH_CACHE"
SUFFIX = ".rows"


def default_folder() -> Path:
    """Return where the cache lies unless a folder is given."""
    return Path(os.environ.get(VARIABLE) or Path.home() / ".cache" / "tunesmith")


class RowCache:
    """Blocks of tokenised rows in one folder.

    ``notes`` collects what a person should know: damaged files, what was removed, why nothing is
    stored. A store that cannot be written costs time, never the run.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder = folder / "rows"
        self._limit = limit_bytes
        self.notes: list[str] = []
        self._used: set[Path] = set()
        self._writes = True

    def load(self, key: str) -> Block | None:
        """Return a stored block; None where there is none, or none that is whole."""
        path = self._path(key)
        try:
            block = open_block(path)
        except FileNotFoundError:
            return None
        except (DamagedBlockError, OSError) as failure:
            self.notes.append(f"{path} is damaged ({failure}); its rows are tokenised again")
            return None
        with contextlib.suppress(OSError):  # a cache that another user wrote
            os.utime(path)
        self._used.add(path)
        return block

    def store(self, key: str, content: bytes) -> None:
        """Keep a block, given as bytes."""
        path = self._path(key)
        self._used.add(path)
        if not self._writes:
            return
        try:
            write_bytes(path, content)
        except StorageError as failure:
            self._writes = False
            self.notes.append(f"tokenised rows are not cached: {failure.found}")

    def prune(self) -> None:
        """Remove what is unused longest until the limit is kept; blocks of this run stay."""
        files = []
        for path in self.folder.glob(f"*/*{SUFFIX}"):
            with contextlib.suppress(OSError):  # another process removed it
                state = path.stat()
                files.append((state.st_mtime_ns, state.st_size, path))
        total, removed, freed = sum(size for _, size, _ in files), 0, 0
        for _, size, path in sorted(files):
            if total <= self._limit:
                break
            if path in self._used:
                continue
            with contextlib.suppress(OSError):
                path.unlink()
                removed, freed, total = removed + 1, freed + size, total - size
        if removed:
            self.notes.append(
                f"removed {removed} files ({freed / 1e6:,.1f} MB) from {self.folder}, unused "
                f"longest, to keep it within {self._limit / 1e9:g} GB"
            )

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}{SUFFIX}"


def settings_key(fingerprint: str, max_length: int, answers_only: bool) -> str:
    """Return a hash of everything but the examples; ``fingerprint`` is the renderer's full one."""
    parts = (CODE_VERSION, __version__, fingerprint, max_length, answers_only)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def block_key(settings: str, examples: Iterable[Example]) -> str:
    """Return the name of the block that these examples give under these settings.

    Origins do not count: the same rows in another file are the same rows, and names are taken
    from the examples at hand.
    """
    digest = hashlib.sha256(settings.encode())
    for example in examples:
        plain = [(s.role, s.text, s.weight, dict(s.extra)) for s in example.segments]
        digest.update(json.dumps(plain, default=repr).encode())
        digest.update(b"\n")
    return digest.hexdigest()
