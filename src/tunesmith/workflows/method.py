"""What of a model a run trains: an adapter, the weights, or the upper layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunesmith.config.load import ARGUMENT, FLAG, Resolved
from tunesmith.config.presets import NEEDS
from tunesmith.config.schema import FineTuningConfig
from tunesmith.errors import UsageError

if TYPE_CHECKING:
    from tunesmith.models.adapters import Trainable
    from tunesmith.models.load import LoadedModel


def check_method(resolved: Resolved[FineTuningConfig]) -> None:
    """Refuse settings that no method of training fulfils together, or that would do nothing."""
    config = resolved.options
    # A saved config.yaml names every setting, so only what was typed can be a mistake.
    typed = {name for name, source in resolved.sources.items() if source in (FLAG, ARGUMENT)}
    idle = [
        f"--{name.replace('_', '-')} does nothing without --{needed.replace('_', '-')}."
        for name, needed in NEEDS.items()
        if name in typed
        and getattr(config, name) != FineTuningConfig.model_fields[name].default
        and not getattr(config, needed)
    ]
    if idle:
        raise UsageError("\n".join(idle))
    if config.lora and config.use_dora and config.lora_init == "pissa":
        raise UsageError(
            "--use-dora and --lora-init pissa cannot both be given: what DoRA learns about "
            "magnitudes holds for the changed weights alone, so it cannot be saved for the base.",
            hint="leave one of them out",
        )


def make_trainable(config: FineTuningConfig, loaded: LoadedModel) -> Trainable:
    """Put the adapter on ``loaded.model``, freeze what is not trained, and count the rest."""
    from tunesmith.models.adapters import (
        add_lora,
        count,
        factors,
        freeze_bottom,
        recompute_activations,
    )

    what = "full fine-tuning"
    if loaded.ref.adapter:
        what = "going on in the adapter"
    elif config.lora:
        what = f"{_kind(config)} of rank {config.lora_rank}"
        pissa = config.lora_init == "pissa"
        loaded.model = add_lora(
            loaded.model,
            rank=config.lora_rank,
            alpha=config.lora_alpha or 2.0 * config.lora_rank,
            dropout=config.lora_dropout,
            targets=config.lora_target_modules,
            base_name=loaded.ref.path,
            seed=config.seed,
            rslora=config.use_rslora,
            dora=config.use_dora,
            pissa=pissa,
        )
        if pissa:
            loaded.taken_out = factors(loaded.model)
    if config.freeze_ratio:
        frozen = freeze_bottom(loaded.model, config.freeze_ratio)
        what += f", {frozen} bottom layers and the embeddings frozen"
    if config.gradient_checkpointing:
        recompute_activations(loaded.model)
    return count(loaded.model, what)


def _kind(config: FineTuningConfig) -> str:
    name = "DoRA" if config.use_dora else "LoRA"
    name = f"rs{name}" if config.use_rslora else name
    return f"{name} from PiSSA" if config.lora_init == "pissa" else name
