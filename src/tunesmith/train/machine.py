"""What bit identity depends on beside the run itself: the class of machine."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

MISSING = "unknown"


def fingerprint(accelerator: Any, dtype: torch.dtype) -> dict[str, str | int]:
    """Return what must be equal for a resumed run to end with the very same bits."""
    device = accelerator.device
    cuda = device.type == "cuda"
    return {
        "torch": torch.__version__,
        "torch build": str(torch.version.git_version),
        "cuda": str(torch.version.cuda),
        "threads": torch.get_num_threads(),
        "CPU capability": torch.backends.cpu.get_cpu_capability(),
        "processor": _processor(),
        "device": torch.cuda.get_device_name(device) if cuda else device.type,
        "dtype": str(dtype).removeprefix("torch."),
        "mixed precision": str(getattr(accelerator, "mixed_precision", "no")),
        "matrix precision": torch.get_float32_matmul_precision(),
        "processes": accelerator.num_processes,
    }


def differences(then: Mapping[str, Any] | None, now: Mapping[str, Any]) -> list[str]:
    """Say what differs between the machine of a checkpoint and this one."""
    if not then:
        return ["the checkpoint does not say on what machine it was made"]
    return [
        f"{name} {then.get(name, MISSING)} there, {now.get(name, MISSING)} here"
        for name in sorted({*then, *now})
        if then.get(name, MISSING) != now.get(name, MISSING)
    ]


def _processor() -> str:
    """Return the processor's name: its library kernels are chosen by more than the capability."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
