"""How a run's model attends, chosen from the settings, the model and the device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunesmith.config.schema import FineTuningConfig
from tunesmith.errors import UsageError
from tunesmith.workflows import console

if TYPE_CHECKING:
    from tunesmith.models.load import LoadedModel


def choose_attention(config: FineTuningConfig, loaded: LoadedModel, *, quiet: bool = False) -> str:
    """Return how packed rows attend; a way that the model cannot go here is refused.

    Padded rows are the model's own business, which is told the way.
    """
    import torch

    from tunesmith.models.attention_ways import why_not

    half = loaded.dtype != torch.float32 or config.mixed_precision != "no"
    wanted = config.attention
    if wanted == "auto":
        if loaded.device.type != "cuda" or not config.packing:
            return "segments"
        reason = why_not("varlen", loaded.model, loaded.device, half=half)
        if reason is None:
            return "varlen"
        if not quiet:
            console.say(f"Attention goes row by row (segments), not by varlen: {reason}.")
        return "segments"
    if not config.packing and wanted in ("segments", "varlen"):
        raise UsageError(
            f"--attention {wanted} is for rows in one sequence, and without --packing they are "
            "padded.",
            expected="auto, sdpa, eager or flash_attention_2",
        )
    reason = why_not(wanted, loaded.model, loaded.device, half=half)
    if reason is not None:
        raise UsageError(
            f"--attention {wanted} cannot be used: {reason}.", hint="--attention segments"
        )
    if not config.packing:
        loaded.model.set_attn_implementation(wanted)
    return wanted
