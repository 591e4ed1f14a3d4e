"""Every training flag of the requirement documents: taken, read into its setting, and of effect.

That a setting changes a run is shown in ``test_every_setting``, whose table must name each of them.
"""

from __future__ import annotations

from typing import Any

import pytest

from test_every_setting import ELSEWHERE, TABLE
from tunesmith import FineTuningConfig
from tunesmith.config import flags
from tunesmith.config.load import resolve
from tunesmith.config.presets import PRESETS, TASK_DEFAULTS

ORCA, REFOCUSED, SOCRATIC = "000 Orca", "003 ReFocused", "004 SoT"
"""The documents, by number and subject."""

FLAGS: list[tuple[str, str, str, Any]] = [
    (ORCA, "--model_name_or_path meta-llama/Llama-3.2-1B", "model", "meta-llama/Llama-3.2-1B"),
    (ORCA, "--dataset_name mixed_finetuning_dataset", "dataset", ["mixed_finetuning_dataset"]),
    (ORCA, "--dataset_test_split validation", "dataset_test_split", "validation"),
    (ORCA, "--output_dir ./models/tuned", "output_dir", "./models/tuned"),
    (ORCA, "--learning_rate 2e-5", "learning_rate", 2e-5),
    (ORCA, "--num_train_epochs 3", "num_epochs", 3),
    (ORCA, "--per_device_train_batch_size 2", "per_device_train_batch_size", 2),
    (ORCA, "--gradient_accumulation_steps 4", "gradient_accumulation_steps", 4),
    (ORCA, "--packing True", "packing", True),
    (ORCA, "--packing False", "packing", False),
    (ORCA, "--eval_strategy steps", "eval_strategy", "steps"),
    (ORCA, "--eval_steps 100", "eval_steps", 100),
    (ORCA, "--logging_steps 25", "logging_steps", 25),
    (REFOCUSED, "--task chat", "task", "chat"),
    (REFOCUSED, "--task code", "task", "code"),
    (REFOCUSED, "--task instruct", "task", "instruct"),
    (REFOCUSED, "--task domain", "task", "domain"),
    (REFOCUSED, "--task custom", "task", "custom"),
    (REFOCUSED, "--base-model ./base_model", "model", "./base_model"),
    (REFOCUSED, "--dataset codeparrot/github-code", "dataset", ["codeparrot/github-code"]),
    (REFOCUSED, "--output-dir ./fine_tuned_models", "output_dir", "./fine_tuned_models"),
    (REFOCUSED, "--lora", "lora", True),
    (REFOCUSED, "--lora --lora-rank 8", "lora_rank", 8),
    (REFOCUSED, "--freeze-ratio 0.7", "freeze_ratio", 0.7),
    (REFOCUSED, "--gradient-checkpointing", "gradient_checkpointing", "full"),
    (REFOCUSED, "--max-length 4096", "max_length", 4096),
    (REFOCUSED, "--mixed-precision bf16", "mixed_precision", "bf16"),
    (REFOCUSED, "--mixed-precision fp16", "mixed_precision", "fp16"),
    (REFOCUSED, "--resume checkpoint-step-1000", "resume", "checkpoint-step-1000"),
    (REFOCUSED, "--eval-steps 50", "eval_steps", 50),
    (REFOCUSED, "--save-steps 200", "save_steps", 200),
    (REFOCUSED, "--per-device-train-batch-size 1", "per_device_train_batch_size", 1),
    (REFOCUSED, "--gradient-accumulation-steps 8", "gradient_accumulation_steps", 8),
    (REFOCUSED, "--num-workers 8", "num_workers", 8),
    (REFOCUSED, "--num-epochs 10", "num_epochs", 10),
    (REFOCUSED, "--learning-rate 1e-6", "learning_rate", 1e-6),
    (SOCRATIC, "--train_file sot.jsonl", "dataset", ["sot.jsonl"]),
    (SOCRATIC, "--model_name_or_path microsoft/DialoGPT", "model", "microsoft/DialoGPT"),
    (SOCRATIC, "--output_dir ./output", "output_dir", "./output"),
    (SOCRATIC, "--use_lora", "lora", True),
    (SOCRATIC, "--use_lora --lora_rank 32", "lora_rank", 32),
    (SOCRATIC, "--use_lora --lora_alpha 16", "lora_alpha", 16),
    (SOCRATIC, "--use_lora --lora_dropout 0.1", "lora_dropout", 0.1),
    (SOCRATIC, "--max_seq_length 1024", "max_length", 1024),
    (SOCRATIC, "--per_device_train_batch_size 4", "per_device_train_batch_size", 4),
    (SOCRATIC, "--learning_rate 3e-5", "learning_rate", 3e-5),
    (SOCRATIC, "--num_train_epochs 5", "num_epochs", 5),
    (SOCRATIC, "--gradient_accumulation_steps 2", "gradient_accumulation_steps", 2),
    (SOCRATIC, "--warmup_ratio 0.1", "warmup_ratio", 0.1),
    (SOCRATIC, "--logging_steps 20", "logging_steps", 20),
    (SOCRATIC, "--checkpointing_steps epoch", "save_steps", "epoch"),
    (SOCRATIC, "--checkpointing_steps 500", "save_steps", 500),
    (SOCRATIC, "--seed 42", "seed", 42),
    (SOCRATIC, "--use_flash_attn", "attention", "flash_attention_2"),
]
"""A document, a flag as it is written there, the setting it is read into, and the value there."""

PYTHON = {
    "learning_rate": 1e-5,
    "num_epochs": 5,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "warmup_steps": 500,
    "eval_steps": 100,
    "save_steps": 500,
    "max_length": 2048,
}
"""Fields of ``FineTuningConfig`` in document 003."""

DEFAULTS = {
    "lora": True,
    "lora_rank": 64,
    "lora_alpha": 16,
    "lora_dropout": 0.1,
    "max_length": 512,
    "per_device_train_batch_size": 8,
    "learning_rate": 5e-5,
    "num_epochs": 3,
    "gradient_accumulation_steps": 1,
    "warmup_ratio": 0,
    "warmup_steps": 0,
    "logging_steps": 10,
    "save_steps": "epoch",
    "seed": 42,
}
"""What document 004 says of its flags that are not given."""

NAMED_PRESETS = ("quick_test", "low_resource", "high_quality", "production")
"""Values of ``--config`` in document 003."""


def train(line: str) -> FineTuningConfig:
    parsed = flags.parse(FineTuningConfig, line.split())
    return resolve(FineTuningConfig, parsed.given, parsed.configs, faults=parsed.faults).options


@pytest.mark.parametrize(("document", "line", "setting", "value"), FLAGS)
def test_a_flag_is_read_into_its_setting(
    document: str, line: str, setting: str, value: Any
) -> None:
    assert getattr(train(line), setting) == value, document


@pytest.mark.parametrize("document", [ORCA, REFOCUSED, SOCRATIC])
def test_the_flags_of_a_document_go_together(document: str) -> None:
    given = {setting: (line, value) for where, line, setting, value in FLAGS if where == document}
    config = train(" ".join(line for line, _ in given.values()))
    assert {name: getattr(config, name) for name in given} == {n: v for n, (_, v) in given.items()}


def test_each_setting_of_the_documents_is_shown_to_change_a_run() -> None:
    tabled = {getattr(row, "values", row)[0] for row in TABLE} | set(ELSEWHERE)
    named = {setting for _, _, setting, _ in FLAGS} | set(PYTHON) | set(DEFAULTS)
    named |= {name for values in (*PRESETS.values(), *TASK_DEFAULTS.values()) for name in values}
    assert sorted(named - tabled) == []


def test_fields_of_the_python_class() -> None:
    config = FineTuningConfig(**PYTHON)
    assert {name: getattr(config, name) for name in PYTHON} == PYTHON
    assert config.model_fields_set == set(PYTHON)


def test_defaults_of_the_socratic_document() -> None:
    config = train("--task socratic --train_file a.jsonl")
    assert {name: getattr(config, name) for name in DEFAULTS} == DEFAULTS


@pytest.mark.parametrize("name", NAMED_PRESETS)
def test_a_preset_changes_settings_beside_those_of_its_task(name: str) -> None:
    plain, preset = train("--task instruct"), train(f"--task instruct --config {name}")
    assert plain != preset
    assert {key: getattr(preset, key) for key in PRESETS[name]} == PRESETS[name]
