"""Which device computes, and in which type: one rule for all commands."""

from __future__ import annotations

import torch

from tunesmith.errors import ModelError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str) -> torch.device:
    """Return the device of a setting; auto is a GPU where there is one."""
    if name != "auto":
        try:
            return torch.device(name)
        except RuntimeError:
            raise ModelError(
                f"There is no device {name!r}.", expected="auto, cpu, cuda, cuda:0 or mps"
            ) from None
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("cpu")


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the type of a setting; auto is bfloat16 on a GPU that has it, float32 elsewhere."""
    if name in DTYPES:
        return DTYPES[name]
    half = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if half else torch.float32
