"""Task defaults and presets of requirement 003, and the names that one setting may have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def _task(
    rate: float, epochs: float, batch: int, accumulation: int, warmup: int, *steps: int, **more: Any
) -> dict[str, Any]:
    evaluate, save, length, rank, alpha = steps
    return {
        "learning_rate": rate,
        "num_epochs": epochs,
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulation,
        "warmup_steps": warmup,
        "eval_steps": evaluate,
        "save_steps": save,
        "max_length": length,
        "lora_rank": rank,
        "lora_alpha": float(alpha),
        **more,
    }


TASK_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "chat": _task(
        2e-5, 3, 4, 2, 200, 100, 500, 2048, 16, 32, lr_scheduler_type="cosine_with_restarts"
    ),
    "code": _task(1e-5, 5, 2, 4, 500, 200, 1000, 2048, 32, 64, gradient_checkpointing="full"),
    "instruct": _task(3e-5, 2, 8, 1, 100, 50, 200, 1024, 8, 16),
    "domain": _task(1e-5, 10, 4, 2, 1000, 500, 2000, 1024, 64, 128, weight_decay=0.05),
    "custom": _task(2e-5, 3, 4, 2, 100, 100, 500, 1024, 16, 32),
    # Requirement 001: adapters on all linear layers, alpha 4 to 5 times the rank, batch 32.
    "units": _task(3e-4, 3, 32, 1, 20, 50, 200, 512, 16, 64),
    "maths": _task(3e-5, 3, 16, 2, 50, 100, 500, 1024, 16, 64),
    "choice": _task(2e-5, 3, 16, 2, 50, 100, 500, 512, 16, 32),
    "bbh": _task(2e-5, 3, 8, 2, 20, 50, 200, 1024, 16, 32),
    "countdown": _task(3e-4, 3, 32, 1, 20, 50, 200, 512, 16, 64),
    "qa": _task(2e-5, 3, 8, 2, 20, 50, 200, 1024, 16, 32),
    # As instruct, for prompts with several documents.
    "raft": _task(3e-5, 2, 8, 1, 100, 50, 200, 2048, 8, 16),
    "humaneval": _task(1e-5, 5, 2, 4, 20, 50, 200, 2048, 32, 64, gradient_checkpointing="full"),
    "mbpp": _task(1e-5, 5, 2, 4, 20, 50, 200, 2048, 32, 64, gradient_checkpointing="full"),
    # As instruct, for longer answers.
    "ifeval": _task(3e-5, 2, 8, 1, 100, 50, 200, 2048, 8, 16),
    # Requirement 004: LoRA unless told otherwise, at its own rate, scaled by 16/64.
    "socratic": _task(
        5e-5, 3, 8, 1, 0, 100, 500, 512, 64, 16, save_steps="epoch", lora=True, lora_dropout=0.1
    ),
}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "quick_test": {
        "learning_rate": 5e-5,
        "num_epochs": 1,
        "max_steps": 100,
        "per_device_train_batch_size": 2,
        "warmup_steps": 10,
        "eval_steps": 20,
        "save_steps": 50,
    },
    "low_resource": {
        "learning_rate": 1e-5,
        "num_epochs": 5,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 8,
        "gradient_checkpointing": "full",
        "max_length": 512,
    },
    "high_quality": {
        "learning_rate": 5e-6,
        "num_epochs": 10,
        "per_device_train_batch_size": 8,
        "warmup_steps": 2000,
        "weight_decay": 0.1,
        "save_total_limit": 10,
    },
    "production": {
        "learning_rate": 2e-5,
        "num_epochs": 3,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "warmup_steps": 500,
        "mixed_precision": "bf16",
        "save_total_limit": 5,
    },
}

ALIASES: Mapping[str, str] = {
    "base_model": "model",
    "model_name_or_path": "model",
    "model_path": "model",
    "ckpt_path": "model",
    "dataset_name": "dataset",
    "train_file": "dataset",
    "source_file": "dataset",
    "output_json": "output",
    "num_train_epochs": "num_epochs",
    "epochs": "num_epochs",
    "max_seq_length": "max_length",
    "preprocessing_num_workers": "num_workers",
    "dataset_num_proc": "num_workers",
    "checkpointing_steps": "save_steps",
    "use_lora": "lora",
    "use_peft": "lora",
    "lora_r": "lora_rank",
    "rslora": "use_rslora",
    "lora_use_rslora": "use_rslora",
    "dora": "use_dora",
    "lora_use_dora": "use_dora",
    "peft_use_rslora": "use_rslora",
    "peft_use_dora": "use_dora",
    "peft_init_lora_weights": "lora_init",
    "init_lora_weights": "lora_init",
    "optimizer": "optim",
    "neftune_noise_alpha": "neftune_alpha",
    "layerwise_lr_decay": "layer_lr_decay",
    "llrd": "layer_lr_decay",
    "patience": "early_stopping_patience",
    "load_best": "load_best_model_at_end",
    "loraplus_lr_ratio": "lora_plus_ratio",
    "attn_implementation": "attention",
    "json": "json_output",
    "log_with": "report_to",
}
"""Other names of a setting, in YAML and on the command line alike."""

BARE: Mapping[str, str] = {
    "resume": "auto",
    "gradient_checkpointing": "full",
    "torch_compile": "on",
}
"""What a flag stands for that no value follows."""

SWITCHES: Mapping[str, tuple[str, str]] = {
    "bf16": ("mixed_precision", "bf16"),
    "fp16": ("mixed_precision", "fp16"),
    "use_flash_attn": ("attention", "flash_attention_2"),
}
"""Flags that stand for a value of another setting."""

SECTIONS: Mapping[str, str] = {"lora": "lora_"}
"""YAML sections, and what their keys begin with outside: lora: {rank: 16} is lora_rank."""

LORA_RATE = 10.0
"""An unset rate is the task's full fine-tuning rate times this, with LoRA."""

OWN_LORA_RATE = frozenset({"socratic"})
"""Tasks whose rate is meant for LoRA as it is."""

RIVALS: Mapping[str, str] = {
    "warmup_steps": "warmup_ratio",
    "warmup_ratio": "warmup_steps",
    "num_epochs": "max_steps",
    "max_steps": "num_epochs",
}
"""Two ways to say one thing: the one that is set in the higher layer puts the other back."""

EXCLUSIVE = (
    ("resume", "overwrite", "one goes on with a run, the other starts over"),
    ("load_in_4bit", "load_in_8bit", "a weight is held in one of them"),
    ("dataset", "test_dataset_path", "both name the rows to ask"),
    ("terms", "terms_from", "one is a list of terms, the other texts to find some in"),
    ("minutes", "max_steps", "both say how long to train"),
    ("prompt", "prompts", "one is the prompt itself, the other a file of them"),
)
"""Settings that contradict each other, and why."""

NEEDS: Mapping[str, str] = {
    "trunk_cache": "freeze_ratio",
    "new_tokens_warmup": "new_tokens",
} | dict.fromkeys(
    (
        "lora_rank",
        "lora_alpha",
        "lora_dropout",
        "lora_target_modules",
        "lora_init",
        "use_rslora",
        "use_dora",
        "lora_plus_ratio",
    ),
    "lora",
)
"""Settings that do nothing without another one, so that giving them alone is a mistake."""

SPLIT_AT_COMMAS = frozenset({"lora_target_modules", "rules", "report_to"})
"""Lists whose values may also be written with commas; a path may have commas of its own."""
