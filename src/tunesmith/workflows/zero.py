"""DeepSpeed: what launcher and settings may ask for, and how a run without checkpoints ends.

Whatever DeepSpeed would save is a pickle, which is neither written nor read here.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tunesmith.config.load import ARGUMENT, FLAG, Resolved
from tunesmith.config.schema import FineTuningConfig
from tunesmith.errors import Interrupted, TunesmithError, UsageError
from tunesmith.workflows import console

if TYPE_CHECKING:
    from tunesmith.train.loop import State
    from tunesmith.train.zero import Zero
    from tunesmith.workflows.several import Team

SWITCH = "ACCELERATE_USE_DEEPSPEED"
"""What the launcher sets; accelerate reads it as well, and would put its own wrapper around."""
PACKAGE = "deepspeed"
INSTALL = "pip install 'tunesmith[deepspeed]'"
SHARDS = "recipes/accelerate/fsdp2.yaml"
COPIES = "recipes/accelerate/ddp.yaml"
AFRESH = "start over with --overwrite: a run with DeepSpeed leaves no checkpoint"


def stage(env: Mapping[str, str]) -> int:
    """Return the stage of ZeRO that the launcher asks for: 1 or 2; ``UsageError`` for others."""
    asked = env.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") or "2"
    if asked not in ("1", "2"):
        raise UsageError(
            f"The launcher asks for stage {asked} of ZeRO, and stages 1 and 2 are done here.",
            hint=f"zero_stage: 2, or {SHARDS}, which shards the weights as well",
        )
    return int(asked)


def check_zero(resolved: Resolved[FineTuningConfig], env: Mapping[str, str], count: int) -> None:
    """Raise ``UsageError`` for what DeepSpeed was not made for here, or would ask for in vain."""
    config = resolved.options
    if count == 1:
        raise UsageError(
            "DeepSpeed shares the optimiser out over processes, and one was launched.",
            hint="--num_processes 2, or tunesmith train without accelerate launch",
        )
    if config.resume is not None:
        raise UsageError(
            "--resume cannot go on with DeepSpeed: its state is a pickle, which is neither written "
            "nor read here.",
            hint=f"--overwrite instead of --resume, or a run with {SHARDS}, which can be resumed",
        )
    stage(env)
    _check_launcher(config, env)
    _check_settings(resolved)
    if importlib.util.find_spec(PACKAGE) is None:
        raise UsageError(
            f"The launcher asks for DeepSpeed, and the package {PACKAGE} is missing.", hint=INSTALL
        )


def _check_launcher(config: FineTuningConfig, env: Mapping[str, str]) -> None:
    for name, fine, hint in (
        ("DEEPSPEED_CONFIG_FILE", ("none",), "zero_stage and nothing else in deepspeed_config"),
        ("DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", ("none",), "offload_optimizer_device: none"),
        ("DEEPSPEED_OFFLOAD_PARAM_DEVICE", ("none",), "offload_param_device: none"),
        ("DEEPSPEED_ZERO3_INIT", ("false",), "zero3_init_flag: false"),
        ("DEEPSPEED_ZERO3_SAVE_16BIT_MODEL", ("false",), "zero3_save_16bit_model: false"),
        ("DEEPSPEED_MOE_LAYER_CLS_NAMES", ("none",), "leave deepspeed_moe_layer_cls_names out"),
    ):
        value = env.get(f"ACCELERATE_{name}", "")
        if value.lower() not in ("", *fine):
            raise UsageError(
                f"The launcher sets ACCELERATE_{name}={value}, which is not used.", hint=hint
            )
    asked = env.get("ACCELERATE_GRADIENT_CLIPPING", "").lower()
    if asked not in ("", "none", "auto") and not _is(asked, config.max_grad_norm):
        raise UsageError(
            f"The launcher asks for gradients clipped to {asked}, "
            f"the settings for {config.max_grad_norm:g}.",
            hint=f"--max-grad-norm {asked}, or leave gradient_clipping out of the launcher's file",
        )


def _is(asked: str, norm: float) -> bool:
    try:
        return float(asked) == norm
    except ValueError:
        return False


def _check_settings(resolved: Resolved[FineTuningConfig]) -> None:
    config = resolved.options
    whole = "cannot work on a shared-out optimiser"
    kept = "needs checkpoints, which a run with DeepSpeed does not write"
    best = "leave it out: best_model holds the best one in any case"
    for asked, flag, why, hint in (
        (config.load_in_4bit, "--load-in-4bit", "was not made for DeepSpeed", COPIES),
        (config.load_in_8bit, "--load-in-8bit", "was not made for DeepSpeed", COPIES),
        (config.optim != "adamw", f"--optim {config.optim}", whole, f"--optim adamw, or {COPIES}"),
        (config.new_tokens, "--new-tokens", whole, COPIES),
        (config.nonfinite == "rewind", "--nonfinite rewind", kept, "--nonfinite skip"),
        (config.load_best_model_at_end, "--load-best-model-at-end", kept, best),
        (config.early_stopping_patience, "--early-stopping-patience", kept, SHARDS),
        (config.keep_best, "--keep-best", kept, best),
    ):
        if asked:
            raise UsageError(f"{flag} {why}.", hint=hint)
    for name in ("save_steps", "save_total_limit"):
        source = resolved.sources.get(name, "default")
        in_file = source.startswith("file ")
        if source in (FLAG, ARGUMENT) or in_file:
            flag = f"--{name.replace('_', '-')}"
            where = f" (in {source.removeprefix('file ')})" if in_file else ""
            raise UsageError(
                f"{flag}{where} does nothing: a run with DeepSpeed writes no checkpoint.",
                hint=f"leave it out, or {SHARDS}",
            )


def share_out(optimizer: Any, max_grad_norm: float, accelerator: Any) -> Zero:
    """Return an optimiser that has made no step as DeepSpeed's, at the launcher's stage."""
    from tunesmith.train.zero import Zero

    return Zero(optimizer, stage(os.environ), max_grad_norm, accelerator)


@contextmanager
def nothing_kept(state: State, team: Team, write: Callable[[], None]) -> Iterator[None]:
    """Let a run that is stopped write down its numbers, and say that nothing else is left."""
    try:
        yield
    except Interrupted:
        write()
        console.say(f"Stopped after step {state.step}; DeepSpeed's state was not saved.")
        team.meet()
        raise


def without_resume(failure: BaseException) -> None:
    """Replace an error's hint to resume, which a run with DeepSpeed cannot."""
    if isinstance(failure, TunesmithError) and not isinstance(failure, UsageError):
        failure.hint = AFRESH if "--resume" in failure.hint else failure.hint
