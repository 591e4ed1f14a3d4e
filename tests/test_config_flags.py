"""Flags, help texts and the reference, all made from the schema."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tunesmith.cli import VERBS
from tunesmith.config import flags
from tunesmith.config.load import resolve
from tunesmith.config.schema import (
    EvalOptions,
    FineTuningConfig,
    Options,
)
from tunesmith.config.schema_data import ShowOptions
from tunesmith.config.schema_generate import GenerateOptions
from tunesmith.config.schema_results import CompareOptions, RunRecipeOptions

ROOT = Path(__file__).parent.parent
KINDS = [(name, verb.settings(), verb.positional) for name, verb in VERBS.items()]


def train(line: str) -> FineTuningConfig:
    parsed = flags.parse(FineTuningConfig, line.split())
    return resolve(FineTuningConfig, parsed.given, parsed.configs, faults=parsed.faults).options


def found_faults(kind: type[Options], line: str, positional: tuple[str, ...] = ()) -> list[str]:
    return flags.parse(kind, line.split(), positional).faults


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--lora --lora-rank 16", {"lora": True, "lora_rank": 16, "lora_alpha": 32.0}),
        ("--freeze-ratio 0.7", {"freeze_ratio": 0.7}),
        ("--config quick_test --base-model ./m", {"max_steps": 100, "model": "./m"}),
        ("--gradient-checkpointing --max-length 4096", {"gradient_checkpointing": "full"}),
        ("--gradient-checkpointing True", {"gradient_checkpointing": "full"}),
        ("--gradient-checkpointing=false", {"gradient_checkpointing": "no"}),
        ("--no-gradient-checkpointing", {"gradient_checkpointing": "no"}),
        ("--torch-compile --max-length 4096", {"torch_compile": "on"}),
        ("--torch_compile True", {"torch_compile": "on"}),
        ("--torch-compile=off", {"torch_compile": "off"}),
        ("--no-torch-compile", {"torch_compile": "off"}),
        ("--gradient_checkpointing 3", {"gradient_checkpointing": 3}),
        ("--gradient-checkpointing auto --lora", {"gradient_checkpointing": "auto"}),
        ("--mixed-precision bf16", {"mixed_precision": "bf16"}),
        ("--bf16", {"mixed_precision": "bf16"}),
        ("--use-flash-attn", {"attention": "flash_attention_2"}),
        ("--attn_implementation eager", {"attention": "eager"}),
        ("--bf16 True", {"mixed_precision": "bf16"}),
        ("--fp16=true --bf16 False", {"mixed_precision": "fp16"}),
        ("--resume checkpoint-step-1000", {"resume": "checkpoint-step-1000"}),
        ("--resume --lora", {"resume": "auto", "lora": True}),
        ("--resume", {"resume": "auto"}),
        ("--eval-steps 50 --save-steps 200", {"eval_steps": 50, "save_steps": 200}),
        ("--checkpointing_steps epoch", {"save_steps": "epoch"}),
        ("--use_peft --lora_r 64 --lora_alpha 16", {"lora": True, "lora_alpha": 16.0}),
        ("--num-epochs 10 --learning-rate 1e-6", {"num_epochs": 10, "learning_rate": 1e-6}),
        ("--report-to none --run_name x", {"report_to": ["none"], "run_name": "x"}),
        ("--no-packing", {"packing": False}),
        ("--packing false", {"packing": False}),
        ("--packing=False", {"packing": False}),
        ("--no_use_lora", {"lora": False}),
        ("--no-assistant-only-loss", {"assistant_only_loss": False}),
        ("--lora-target-modules q_proj,k_proj", {"lora_target_modules": ["q_proj", "k_proj"]}),
        ("--lora-target-modules q k", {"lora_target_modules": ["q", "k"]}),
        ("--dataset a,1.jsonl b.jsonl --lora", {"dataset": ["a,1.jsonl", "b.jsonl"]}),
        ("--dataset a --dataset b", {"dataset": ["a", "b"]}),
        (
            "--columns prompt=Frage,completion=A=B",
            {"columns": {"prompt": "Frage", "completion": "A=B"}},
        ),
        ("--seed -1", {"seed": -1}),
    ],
)
def test_flags_set_their_settings(line: str, expected: dict[str, Any]) -> None:
    config = train(line)
    assert {name: getattr(config, name) for name in expected} == expected


def test_the_commands_of_the_units_requirement() -> None:
    parsed = flags.parse(EvalOptions, ["--task", "units", "--ckpt_path", "RUN", "--prompt", "cot"])
    options = resolve(EvalOptions, parsed.given).options
    assert (options.model, options.prompt) == ("RUN", "cot")


def test_words_without_a_flag() -> None:
    line = "r.yaml model=m --output-dir d eval.limit=5"
    parsed = flags.parse(RunRecipeOptions, line.split(), ("recipe", "overrides"))
    assert parsed.given == {
        "recipe": "r.yaml",
        "overrides": ["model=m", "eval.limit=5"],
        "output_dir": "d",
    }
    parsed = flags.parse(CompareOptions, ["a", "--output", "o", "b"], ("results",))
    assert parsed.given == {"results": ["a", "b"], "output": "o"}
    parsed = flags.parse(GenerateOptions, ["--", "--what is -1?"], ("prompt",))
    assert parsed.given == {"prompt": "--what is -1?"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--learning-rat 1", "unknown flag --learning-rat; did you mean --learning-rate?"),
        ("--lora-ran 1", "unknown flag --lora-ran; did you mean --lora-rank?"),
        ("--learning 1", "unknown flag --learning"),
        ("--zzzz 1", "unknown flag --zzzz"),
        ("--no-seed", "unknown flag --no-seed"),
        ("--seed", "--seed wants a whole number"),
        ("--dataset --lora", "--dataset wants a list"),
        ("--config", "--config wants a YAML file or a preset's name"),
        ("--bf16 --fp16", "--fp16 contradicts --mixed-precision bf16"),
        ("--bf16=perhaps", "--bf16: 'perhaps' is not true or false"),
        ("word", "unexpected word 'word'"),
        ("--lora maybe", "unexpected word 'maybe'"),
        ("-o x", "unknown flag -o; flags begin with two dashes"),
    ],
)
def test_faulty_flags_are_sentences(line: str, said: str) -> None:
    assert said in " / ".join(found_faults(FineTuningConfig, line))


def test_abbreviations_are_no_flags() -> None:
    assert found_faults(FineTuningConfig, "--lora-r 8") == []  # an alias, not an abbreviation
    assert found_faults(FineTuningConfig, "--lora-al 8")
    assert found_faults(FineTuningConfig, "--max 8")


def test_switches_of_training_are_unknown_elsewhere() -> None:
    assert found_faults(EvalOptions, "--bf16")[0].startswith("unknown flag --bf16")


@pytest.mark.parametrize(("name", "kind", "positional"), KINDS)
def test_help_shows_every_setting_once_in_80_columns(
    name: str, kind: type[Options], positional: tuple[str, ...]
) -> None:
    text = flags.usage(name, kind, positional)
    assert max(map(len, text.splitlines())) <= 80
    listed = [field for _, names in flags.sections(kind) for field in names]
    assert sorted(listed) == sorted(kind.model_fields)
    for field in kind.model_fields:
        assert f"  --{field.replace('_', '-')}" in text
        explained = (kind.model_fields[field].description or "").split()
        assert " ".join(explained[:3]) in text, f"{field} has no docstring"


def test_help_of_train_names_aliases_choices_and_the_defaults_of_tasks() -> None:
    text = flags.usage("train", FineTuningConfig)
    assert "--model, --base-model, --model-name-or-path" in text
    assert "One of: linear, cosine" in text
    assert "[the task's]" in text
    assert "  domain     1e-05   10" in text


@pytest.mark.parametrize(("name", "kind", "positional"), KINDS)
def test_positional_fields_exist(
    name: str, kind: type[Options], positional: tuple[str, ...]
) -> None:
    assert set(positional) <= set(kind.model_fields)


def test_show_options_take_words() -> None:
    assert flags.parse(ShowOptions, ["a", "b"], ("dataset",)).given == {"dataset": ["a", "b"]}


@pytest.fixture
def script(tmp_path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("ref", ROOT / "scripts" / "make_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.PAGE = tmp_path / "reference.md"
    return module


def test_the_reference_in_docs_is_up_to_date(script: ModuleType) -> None:
    assert (ROOT / "docs" / "reference.md").read_text(encoding="utf-8") == script.text()


def test_a_stale_reference_is_noticed(script: ModuleType, capsys: Any) -> None:
    assert script.main(["--check"]) == 1
    assert script.main([]) == 0
    assert script.main(["--check"]) == 0
    script.PAGE.write_text(script.PAGE.read_text().replace("lora_rank", "lora_rnk"))
    assert script.main(["--check"]) == 1
    assert "make reference" in capsys.readouterr().err


def test_the_reference_names_every_setting_and_verb(script: ModuleType) -> None:
    text = script.text()
    for name, kind, _ in KINDS:
        assert f"### {name}\n" in text
        assert all(f"| `{field}` |" in text for field in kind.model_fields)
