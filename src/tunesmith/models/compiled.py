"""Blocks compiled one by one, each in place: names, checkpoints and saved models stay as they are.

Only training steps run what was compiled. Whatever puts a model into evaluation (held-out losses,
answers, the trunk's output) runs it as it is, so what is measured is what will be delivered.
Attention over packed rows stays outside of what is compiled: its loops follow how the rows lie,
and each layout would be compiled anew. Blocks that are built alike share what was compiled for one.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface

from tunesmith.errors import Interrupted, TrainingError
from tunesmith.models.adapters import blocks
from tunesmith.models.attention import PACKED, packed_attention

BACKEND = "inductor"
"""What makes the code; tests take one that needs no compiler."""


def compile_blocks(model: Any) -> int:
    """Let the blocks of a model run compiled while they train; return how many there are.

    Nothing is compiled before the first pass. Sizes are symbols from the first one on, so that
    batches of other shapes need no further code; a size of 1 and a mask that is left out are cases
    of their own.
    """
    # What earlier models of this process have left counts against the limit of recompilations.
    torch.compiler.reset()
    AttentionInterface.register(PACKED, torch.compiler.disable(packed_attention))
    layers = blocks(model)
    for layer in layers:
        layer.compile(dynamic=True, backend=BACKEND, options=_options())
        _only_in_training(layer)
    return len(layers)


def _options() -> dict[str, Any] | None:
    # Dropout then draws what it draws without: a compiled run can be compared with a plain one.
    return {"fallback_random": True} if BACKEND == "inductor" else None


def _only_in_training(layer: torch.nn.Module) -> None:
    compiled = layer._compiled_call_impl
    assert compiled is not None

    def call(*given: Any, **named: Any) -> Any:
        # A layer of the trunk whose output was kept has a forward of its own for a moment.
        as_it_is = not layer.training or "forward" in layer.__dict__
        return (layer._call_impl if as_it_is else compiled)(*given, **named)

    layer._compiled_call_impl = call


def why_not(device: torch.device) -> tuple[str, str] | None:
    """Return why nothing can be compiled for a device, and what mends it; None if it can be.

    Something small is compiled for it, which takes seconds.
    """
    if BACKEND == "inductor" and device.type == "cpu" and compiler() is None:
        names = " or ".join(_compilers())
        return (
            f"a C++ compiler is needed on a CPU, and {names} is not there",
            "apt-get install g++ (macOS: xcode-select --install), CXX=<another compiler>, or "
            "--torch-compile off",
        )
    try:
        compiled = torch.compile(_example, backend=BACKEND, dynamic=True, options=_options())
        compiled(torch.ones(24, device=device))
    except Exception as failure:  # whatever is missing: headers, a linker, Triton, a driver
        return f"a small example fails ({_said(failure)})", "--torch-compile off"
    return None


def compiler() -> str | None:
    """Return the first line that the C++ compiler says of itself, None where there is none."""
    for name in _compilers():
        path = shutil.which(name)
        if path is not None:
            done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
            return (done.stdout.splitlines() or [name])[0]
    return None


def _compilers() -> list[str]:
    from torch._inductor import config

    names = config.cpp.cxx
    return [str(n) for n in (names if isinstance(names, list | tuple) else [names]) if n]


def _example(numbers: torch.Tensor) -> torch.Tensor:
    return (numbers * 2 + 1).sin()


@contextmanager
def explained(should_stop: Callable[[], bool], step: Callable[[], int]) -> Iterator[None]:
    """Raise ``TrainingError`` for what goes wrong in compiling, or ``Interrupted`` after a signal.

    A signal from the keyboard ends the C++ compiler as well.
    """
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as failure:
        if should_stop():
            raise Interrupted(
                f"Stopped by a signal after step {step()}.", hint="the same command with --resume"
            ) from failure
        raise TrainingError(
            f"The layers of this model could not be compiled: {_said(failure)}.",
            hint="--torch-compile off",
        ) from failure


def _said(failure: BaseException) -> str:
    failure = getattr(failure, "inner_exception", failure)
    lines = [line.strip() for line in str(failure).splitlines() if line.strip()]
    return f"{type(failure).__name__}: {lines[0] if lines else 'no word of why'}"[:300].rstrip(".")
