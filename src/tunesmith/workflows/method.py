"""What of a model a run trains: an adapter, the weights, or the upper layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tunesmith.config.fields import shown
from tunesmith.config.load import ARGUMENT, FLAG, Resolved
from tunesmith.config.presets import NEEDS
from tunesmith.config.schema import FineTuningConfig
from tunesmith.errors import UsageError
from tunesmith.workflows import console, trunk
from tunesmith.workflows.compiling import check_compiled

if TYPE_CHECKING:
    from tunesmith.models.adapters import Trainable
    from tunesmith.models.load import LoadedModel


LORA_SETTINGS = tuple(n for n in NEEDS if NEEDS[n] == "lora" and n != "lora_plus_ratio")
"""What an adapter is, beyond how it is trained."""


def check_method(resolved: Resolved[FineTuningConfig]) -> None:
    """Refuse settings that no method of training fulfils together, or that would do nothing."""
    config = resolved.options
    _check_length(resolved)
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
    if config.trunk_cache == "on" and (why := trunk.against_settings(config)):
        raise trunk.refusal(why)
    _check_sharing(config)
    check_compiled(config)


def _check_sharing(config: FineTuningConfig) -> None:
    if config.shared_prefix != "grouped":
        return
    if config.neftune_alpha:
        raise UsageError(
            "--shared-prefix grouped and --neftune-alpha cannot both be given: noise is drawn for "
            "each row, so rows of one prompt have nothing in common to compute once.",
            hint="leave one of them out",
        )
    if not config.packing:
        raise UsageError(
            "--shared-prefix grouped does nothing without --packing: padded rows stand by "
            "themselves.",
            hint="leave one of --shared-prefix and --no-packing out",
        )


def _check_length(resolved: Resolved[FineTuningConfig]) -> None:
    """Refuse typed epochs beside ``--minutes`` or typed steps: all say how long to train."""
    config, source = resolved.options, resolved.sources.get("num_epochs")
    if source not in (FLAG, ARGUMENT):
        return
    if config.minutes is not None:
        raise UsageError(
            "--minutes and --num-epochs cannot both be given: both say how long to train.",
            hint="leave out --num-epochs; the task's epochs are the most that --minutes takes",
        )
    # A caller may hand over the settings of a stored run, which name the default as well.
    default = FineTuningConfig.model_fields["num_epochs"].default
    stored = source == ARGUMENT and config.num_epochs == default
    if resolved.sources.get("max_steps") in (FLAG, ARGUMENT) and not stored:
        raise UsageError(
            "--max-steps and --num-epochs cannot both be given: both say how long to train, and "
            f"the {config.max_steps} steps would be taken whatever the epochs.",
            hint=f"--max-steps {config.max_steps} or --num-epochs {config.num_epochs:g} alone",
        )


def settle_adapter(
    config: FineTuningConfig, sources: Mapping[str, str], loaded: LoadedModel
) -> FineTuningConfig:
    """Return the settings with what the model's own adapter decides, if it brings one.

    Raises ``UsageError`` where the settings ask for another adapter, or for none.
    """
    path = loaded.ref.adapter
    if path is None:
        return config
    if not config.lora:
        raise UsageError(
            f"{path} is an adapter, and without --lora its base would be trained with it unused.",
            expected="--lora, which goes on in this adapter, or --model with whole weights",
            hint="the same command with --lora",
        )
    own = loaded.model.peft_config["default"]
    if getattr(own.peft_type, "value", own.peft_type) != "LORA":
        raise UsageError(f"{path} is no LoRA adapter ({own.peft_type}), so it cannot be trained.")
    has: dict[str, Any] = {
        "lora_rank": own.r,
        "lora_alpha": float(own.lora_alpha),
        "lora_dropout": own.lora_dropout,
        "lora_init": "default",
        "use_rslora": own.use_rslora,
        "use_dora": own.use_dora,
    }
    kept = {"task", "default"}
    asked = {n for n in LORA_SETTINGS if sources.get(n, "default").split(" ")[0] not in kept}
    wrong = [
        f"--{name.replace('_', '-')} {shown(getattr(config, name))} was asked for, "
        f"the adapter's is {shown(value)}."
        for name, value in has.items()
        if name in asked and getattr(config, name) != value
    ]
    modules = sorted(loaded.model.base_model.targeted_module_names)
    wanted = config.lora_target_modules
    if "lora_target_modules" in asked and wanted != ["all-linear"]:
        fits = [any(m == t or m.endswith(f".{t}") for t in wanted) for m in modules]
        idle = [t for t in wanted if not any(m == t or m.endswith(f".{t}") for m in modules)]
        if idle or not all(fits):
            endings = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in modules}))
            wrong.append(
                f"--lora-target-modules {', '.join(wanted)} was asked for, the adapter's are "
                f"{endings}."
            )
    if wrong:
        raise UsageError(
            f"{path} is an adapter already, and training goes on in it as it is. {' '.join(wrong)}",
            hint="leave these settings out, or start from the adapter's base",
        )
    console.say(
        f"Training goes on in the adapter {path} (rank {own.r}, alpha {own.lora_alpha:g}, "
        f"{len(modules)} layers)."
    )
    return config.model_copy(update={**has, "lora_target_modules": modules})


def check_freezing(config: FineTuningConfig, loaded: LoadedModel) -> None:
    """Refuse a ``--freeze-ratio`` that is less than one of the model's layers."""
    if not config.freeze_ratio:
        return
    from tunesmith.models.adapters import blocks, frozen_blocks, least_ratio

    layers = len(blocks(loaded.model))
    if not frozen_blocks(layers, config.freeze_ratio):
        raise UsageError(
            f"--freeze-ratio {config.freeze_ratio:g} of the {layers} layers of this model is none.",
            expected="at least one layer",
            hint=f"--freeze-ratio {least_ratio(layers):g}",
        )


def make_trainable(config: FineTuningConfig, loaded: LoadedModel) -> Trainable:
    """Put the adapter on ``loaded.model``, freeze what is not trained, and count the rest.

    Raises ``UsageError`` where nothing would be frozen that was to be.
    """
    check_freezing(config, loaded)
    from tunesmith.models.adapters import (
        add_lora,
        count,
        factors,
        freeze_bottom,
        recompute_activations,
    )

    what = "full fine-tuning"
    if loaded.new_tokens is not None:
        from tunesmith.models.vocabulary import add_rows

        new = loaded.new_tokens
        added = add_rows(loaded.model, new.first, new.pieces)
        what += f" with {len(new)} new tokens ({added:,} parameters more than the base)"
    if loaded.ref.adapter:
        what = f"going on in {_kind(config)} of rank {config.lora_rank}"
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
    if config.torch_compile == "off":
        from tunesmith.models.fused_layers import fuse_layers
        from tunesmith.models.fused_lora import fuse_lora

        fuse_layers(loaded.model)
        if config.lora:
            fuse_lora(loaded.model)
    if config.gradient_checkpointing != "no":
        asked = config.gradient_checkpointing
        again = recompute_activations(loaded.model, asked if isinstance(asked, int) else None)
        what += f", {again} layers computed again in the backward pass"
    return count(loaded.model, what)


def _kind(config: FineTuningConfig) -> str:
    name = "DoRA" if config.use_dora else "LoRA"
    name = f"rs{name}" if config.use_rslora else name
    return f"{name} from PiSSA" if config.lora_init == "pissa" else name
