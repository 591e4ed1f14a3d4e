"""What the launcher of several processes has decided, read from its environment."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from tunesmith.config.load import ARGUMENT, FLAG, Resolved
from tunesmith.config.schema import FineTuningConfig
from tunesmith.errors import UsageError
from tunesmith.workflows import zero

Way = Literal["copies", "shards", "zero"]
"""Each process has the whole model, a shard of it, or (DeepSpeed) a shard of its optimiser."""

_MPI = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def processes() -> int:
    """Return how many processes this run was launched in."""
    size = _number("WORLD_SIZE")
    if size == 1 and any(_number(name) > 1 for name in _MPI):
        raise UsageError(
            "mpirun has started several processes, of which none knows the others.",
            hint="accelerate launch --config_file recipes/accelerate/ddp.yaml -m tunesmith train …",
        )
    return size if "LOCAL_RANK" in os.environ else 1


def rank() -> int:
    """Return this process's number among them."""
    return int(os.environ.get("RANK", "0"))


def refuse_several(verb: str) -> None:
    """Raise ``UsageError`` if a verb that works in one process was launched in several."""
    count = processes()
    if count > 1:
        raise UsageError(
            f"tunesmith {verb} works in one process, and {count} were launched.",
            hint=f"tunesmith {verb} … without accelerate launch",
        )


def check_launch(resolved: Resolved[FineTuningConfig]) -> Way:
    """Return how the processes share the model; refuse what the launcher asks for in vain."""
    config, env = resolved.options, os.environ
    if processes() == 1:
        if resolved.sources.get("stall_seconds") in (FLAG, ARGUMENT):
            raise UsageError("--stall-seconds does nothing in one process.", hint="leave it out")
        if "LOCAL_RANK" in env and _is_on(env, zero.SWITCH):
            zero.check_zero(resolved, env, 1)
        return "copies"
    _check_precision(config, env)
    _check_unread(env)
    _check_measured(config)
    if config.device.startswith("cuda:"):
        raise UsageError(
            f"--device {config.device} would put every process on one device.",
            hint="leave --device out: each process takes its own",
        )
    if _is_on(env, "ACCELERATE_USE_CPU") and config.device != "cpu" and has_cuda():
        raise UsageError(
            "The launcher asks for the CPU, and --device does not.", hint="--device cpu"
        )
    if _is_on(env, "ACCELERATE_USE_FSDP"):
        _check_shards(config, env)
        return "shards"
    if _is_on(env, zero.SWITCH):
        zero.check_zero(resolved, env, processes())
        return "zero"
    return "copies"


def _check_precision(config: FineTuningConfig, env: Mapping[str, str]) -> None:
    asked = env.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if asked not in ("no", config.mixed_precision):
        raise UsageError(
            f"The launcher asks for mixed precision {asked}, "
            f"the settings for {config.mixed_precision}.",
            hint=f"--mixed-precision {asked}, or mixed_precision: 'no' in the launcher's file",
        )
    if config.mixed_precision == "fp16":
        raise UsageError(
            "--mixed-precision fp16 was not made for several processes.",
            hint="--mixed-precision bf16",
        )


def _check_measured(config: FineTuningConfig) -> None:
    """Refuse what is decided by measuring, and what was made for a single process."""
    if config.minutes is not None:
        raise UsageError(
            "--minutes measures how fast one process is, and cannot plan for several.",
            hint="--max-steps or --num-epochs",
        )
    if config.gradient_checkpointing == "auto":
        raise UsageError(
            "--gradient-checkpointing auto measures the memory of one process, and cannot choose "
            "for several.",
            hint="--gradient-checkpointing full, or a number of layers",
        )
    if config.torch_compile == "on":
        raise UsageError(
            "--torch-compile on was not made for several processes.", hint="--torch-compile off"
        )


def _check_unread(env: Mapping[str, str]) -> None:
    """Refuse settings of the launcher that tunesmith decides by itself or does not know."""
    unread: dict[str, tuple[tuple[str, ...], str]] = {
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (
            ("", "1", "auto"),
            "--gradient-accumulation-steps of tunesmith, and 1 in the launcher's file",
        ),
        "ACCELERATE_DYNAMO_BACKEND": (("", "no"), "dynamo_backend: 'no'"),
        "ACCELERATE_USE_MEGATRON_LM": (("", "false"), "recipes/accelerate/fsdp2.yaml"),
        "ACCELERATE_USE_PARALLELISM_CONFIG": (("", "false"), "leave parallelism_config out"),
    }
    for name, (fine, hint) in unread.items():
        value = env.get(name, "").lower()
        if value not in fine:
            raise UsageError(f"The launcher sets {name}={value}, which is not used.", hint=hint)


def _check_shards(config: FineTuningConfig, env: Mapping[str, str]) -> None:
    if env.get("FSDP_VERSION", "1") != "2":
        raise UsageError("Only version 2 of FSDP is used here.", hint="fsdp_version: 2")
    for name, hint in {
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "fsdp_cpu_ram_efficient_loading: false",
        "FSDP_OFFLOAD_PARAMS": "fsdp_offload_params: false",
        "FSDP_ACTIVATION_CHECKPOINTING": "--gradient-checkpointing of tunesmith",
    }.items():
        if _is_on(env, name):
            raise UsageError(f"The launcher sets {name}, which is not used.", hint=hint)
    for asked, flag in (
        (config.load_in_4bit, "--load-in-4bit"),
        (config.load_in_8bit, "--load-in-8bit"),
        (config.optim == "adamw_8bit", "--optim adamw_8bit"),
        (config.new_tokens, "--new-tokens"),
    ):
        if asked:
            raise UsageError(
                f"{flag} cannot work on shards of a model.", hint="recipes/accelerate/ddp.yaml"
            )
    if config.optim == "adafactor":
        raise UsageError(
            "--optim adafactor cannot work on shards: PyTorch's has no rule for their norms.",
            hint="--optim adamw, or recipes/accelerate/ddp.yaml",
        )


@contextmanager
def without_wrapper() -> Iterator[None]:
    """Hide DeepSpeed's switch from accelerate, whose own wrapper makes updates by itself."""
    switch = os.environ.pop(zero.SWITCH, None)
    try:
        yield
    finally:
        if switch is not None:
            os.environ[zero.SWITCH] = switch


def reshards() -> bool:
    """Say whether the weights of a block are let go after its forward pass."""
    return os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() in ("true", "1")


def _is_on(env: Mapping[str, str], name: str) -> bool:
    return env.get(name, "").lower() in ("true", "1", "yes")


def _number(name: str) -> int:
    return int(os.environ.get(name) or 1)


def has_cuda() -> bool:
    """Say whether there is a GPU that PyTorch can use."""
    import torch

    found: Any = torch.cuda.is_available()
    return bool(found)
