"""Settings of ``train`` that a look before the run takes, so that its files serve, but not uses."""

from __future__ import annotations

from collections.abc import Mapping

from tunesmith.config.schema import FineTuningConfig
from tunesmith.workflows import console


def name_unused(config: FineTuningConfig, sources: Mapping[str, str], *, timed: bool) -> list[str]:
    """Say which of the given settings matter to a whole run only; ``timed`` takes some of them in.

    Returns their names. A setting that a person gave and that does nothing is never passed over
    in silence.
    """
    whole: dict[str, object] = {
        "resume": config.resume,
        "minutes": config.minutes,
        "overwrite": config.overwrite,
        "stall_seconds": config.stall_seconds,
        "nonfinite": config.nonfinite,
        "max_nonfinite_steps": config.max_nonfinite_steps,
        "logging_steps": config.logging_steps,
        "report_to": config.report_to,
        "eval_samples": config.eval_samples,
        "rehearsal": config.rehearsal,
        "eval_questions": config.eval_questions,
        "forgetting": config.forgetting,
        "forgetting_file": config.forgetting_file,
        "trunk_cache": config.trunk_cache,
        "torch_compile": config.torch_compile,
    }
    if not timed:
        whole |= {
            "eval_strategy": config.eval_strategy,
            "eval_steps": config.eval_steps,
            "save_steps": config.save_steps,
            "save_total_limit": config.save_total_limit,
            "keep_best": config.keep_best,
            "num_epochs": config.num_epochs,
            "max_steps": config.max_steps,
            "lr_scheduler_type": config.lr_scheduler_type,
            "warmup_steps": config.warmup_steps,
            "warmup_ratio": config.warmup_ratio,
        }
    given = [name for name in whole if not sources.get(name, "task").startswith("task")]
    if given:
        listed = ", ".join(f"{name} {whole[name]}" for name in given)
        console.say(f"Settings of the whole run, not used here: {listed}.")
    return given
