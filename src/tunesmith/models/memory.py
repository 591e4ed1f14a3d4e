"""How PyTorch asks the system for memory on a CPU, and how much a process holds."""

from __future__ import annotations

import os
import sys
from typing import Any


def use_huge_pages() -> None:
    """Let PyTorch put large CPU tensors on huge pages, where the system offers them (Linux).

    Activations of some megabytes are freed and taken anew in every layer; with pages of 4 KiB
    their page faults cost a tenth of a training step (see ``bench/LOG.md``). PyTorch reads the
    variable at its first allocation; a value that the user has set stays.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def resident_bytes() -> int:
    """Return the memory that this process holds now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def peak_bytes(device: Any) -> int:
    """Return the most memory held so far: allocated on a GPU, or by this process on a CPU."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def gpu_percent(device: Any) -> int | None:
    """Return the share of the last second in which the GPU was at work; None where none is told.

    It is read from the driver and does not wait for the GPU.
    """
    if device.type != "cuda":
        return None
    import torch

    try:
        return int(torch.cuda.utilization(device))
    except Exception:
        return None
