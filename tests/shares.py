"""How much of a long test is done: a share of it, or all of it at night."""

from __future__ import annotations

import os

NIGHTLY = bool(os.environ.get("TUNESMITH_NIGHTLY"))


def share(full: int, part: int) -> int:
    """Return how many of ``full`` trials are to be made now."""
    return full if NIGHTLY else part


def tell(what: str, done: int, full: int) -> None:
    """Print what was done against the full figure."""
    print(f"{what}: {done:,} of {full:,}")
