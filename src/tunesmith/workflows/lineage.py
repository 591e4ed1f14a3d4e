"""Where a run's rows came from: what its manifest says of sources and of overlaps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.schema import FineTuningConfig
from tunesmith.rundir import hash_file
from tunesmith.workflows.rows import Data

if TYPE_CHECKING:
    from tunesmith.data.overlap import Overlap

MAX_OVERLAPS = 1000
"""Overlaps that a manifest names; all of them are counted."""
MAX_HASHED = 1 << 30
"""Bytes of all sources together above which none is hashed: a large set is read once, not twice."""


def sources_of(config: FineTuningConfig, data: Data) -> list[dict[str, Any]]:
    """Return each source of rows, how many were trained on and held out, and the file's hash.

    Rows that are kept on the disk (``streaming``) are not read again for it.
    """
    if config.streaming:
        return []
    used = Counter(example.origin.source for example in data.train)
    held = Counter(example.origin.source for example in data.held_out)
    names = list(dict.fromkeys([*used, *held]))
    files = {name: Path(name) for name in names if config.dataset and Path(name).is_file()}
    small = sum(file.stat().st_size for file in files.values()) <= MAX_HASHED
    return [
        {
            "source": name,
            "rows": used[name],
            "held_out": held[name],
            "sha256": hash_file(files[name]) if small and name in files else None,
        }
        for name in names
    ]


def overlaps_found(found: Sequence[Overlap]) -> list[dict[str, str]]:
    """Return which test questions stand in which training rows, at most ``MAX_OVERLAPS``."""
    from tunesmith.data.overlap import KINDS

    return [
        {"question": o.place, "row": o.origin, "kind": KINDS[o.kind], "shared": o.shared}
        for o in found[:MAX_OVERLAPS]
    ]
