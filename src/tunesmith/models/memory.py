"""How PyTorch asks for memory, how much a process holds, and what it says when there is none."""

from __future__ import annotations

import gc
import os
import sys
from typing import Any

_SAID = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "MPS backend out of memory",
)


def use_huge_pages() -> None:
    """Let PyTorch put large CPU tensors on huge pages, where the system offers them (Linux).

    Activations of some megabytes are freed and taken anew in every layer; with pages of 4 KiB
    their page faults cost a tenth of a training step (see ``bench/LOG.md``). PyTorch reads the
    variable at its first allocation; a value that the user has set stays.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def is_out_of_memory(failure: BaseException) -> bool:
    """Say whether an error means that memory ran out, on whichever device."""
    import torch

    if isinstance(failure, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(failure, RuntimeError) and any(said in str(failure) for said in _SAID)


def give_back(device: Any) -> None:
    """Free what nobody holds any more; call it where the error that held frames is gone."""
    gc.collect()
    if device.type == "cuda":
        import torch

        torch.cuda.empty_cache()


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


def free_bytes(device: Any) -> int:
    """Return what may still be taken: of a GPU, or of this machine within the process's limits."""
    if device.type == "cuda":
        import torch

        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + kept)
    import psutil

    return int(max(0, min(psutil.virtual_memory().available, *_limits_left())))


def _limits_left() -> list[float]:
    """Return what is left of the limits of the process and of its control group, Linux only."""
    import resource
    from pathlib import Path

    import psutil

    left = [float("inf"), float("inf")]
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    if most != resource.RLIM_INFINITY:
        left.append(most - psutil.Process().memory_info().vms)
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        facts = dict(map(str.split, (group / "memory.stat").read_text().splitlines()))
        if limit != "max":
            # Pages of files that nobody uses are given back before anything fails.
            used = int((group / "memory.current").read_text()) - int(facts["inactive_file"])
            left.append(int(limit) - used)
    except (OSError, ValueError, KeyError):
        pass
    return left
