"""Layers that are compiled for the steps: what does not go with it, what it needs, what is said."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from tunesmith.config.schema import FineTuningConfig
from tunesmith.errors import UsageError
from tunesmith.workflows import console

if TYPE_CHECKING:
    import torch

FLAG = "--torch-compile on"


def check_compiled(config: FineTuningConfig) -> None:
    """Refuse what does not go with compiled layers, or was never seen to."""
    if config.torch_compile == "off":
        return
    recomputed = config.gradient_checkpointing
    against = (
        ("--load-in-4bit", config.load_in_4bit, "quantised layers were never compiled here"),
        ("--load-in-8bit", config.load_in_8bit, "quantised layers were never compiled here"),
        ("--use-dora", config.use_dora, "PEFT's DoRA falls into dozens of pieces"),
        ("--minutes", config.minutes is not None, "the steps that it measures are not compiled"),
        (
            f"--gradient-checkpointing {recomputed}",
            recomputed != "no",
            "transformers recomputes a layer from within, and nothing of it would be compiled",
        ),
    )
    for flag, given, why in against:
        if given:
            raise UsageError(
                f"{FLAG} and {flag} cannot both be given: {why}.",
                hint=f"--torch-compile off, or no {flag.split(' ')[0]}",
            )


def check_compiler(config: FineTuningConfig) -> None:
    """Raise ``UsageError`` if the settings want compiled layers and this machine has no means."""
    if config.torch_compile == "off":
        return
    from tunesmith.models.compiled import why_not
    from tunesmith.models.device import choose_device

    found = why_not(choose_device(config.device))
    if found is not None:
        raise UsageError(f"{FLAG} cannot be done: {found[0]}.", hint=found[1])


def compile_layers(config: FineTuningConfig, model: Any) -> None:
    """Let the layers run compiled in training steps, if the settings want it, and say so."""
    if config.torch_compile == "off":
        return
    from tunesmith.models.compiled import compile_blocks

    console.say(
        f"Compiled one by one: {compile_blocks(model)} layers, in training steps alone; the first "
        "step takes longer by as long as that takes."
    )


def failures_explained(
    config: FineTuningConfig, should_stop: Callable[[], bool], step: Callable[[], int]
) -> AbstractContextManager[None]:
    """Return the context in which a failure to compile ends the run in a sentence."""
    if config.torch_compile == "off":
        return nullcontext()
    from tunesmith.models.compiled import explained

    return explained(should_stop, step)


def compiled_by(config: FineTuningConfig, device: torch.device) -> str:
    """Return what the bits of compiled layers depend on; off where none are compiled."""
    if config.torch_compile == "off":
        return "off"
    from tunesmith.models.compiled import BACKEND, compiler

    return f"on, by {BACKEND}" + (f" with {compiler()}" if device.type == "cpu" else "")


def warn_of_other(then: str, now: str) -> list[str]:
    """Say loudly that a run goes on compiled otherwise than it began; return it as a note."""
    if then == now:
        return []
    note = (
        f"The run began with --torch-compile {then} and was resumed with {now}. It is not "
        "bit-identical to a run that was never stopped."
    )
    console.warn(note)
    return [note]
