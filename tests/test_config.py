"""Layers of settings: precedence, aliases, presets, task defaults, YAML, faults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tunesmith.config.load import ARGUMENT, Resolved, resolve
from tunesmith.config.presets import ALIASES, PRESETS, RIVALS, SWITCHES, TASK_DEFAULTS
from tunesmith.config.schema import (
    TASKS,
    EvalOptions,
    FineTuningConfig,
    Options,
    SampleOptions,
)
from tunesmith.config.schema_data import ShowOptions, ValidateOptions
from tunesmith.errors import UsageError
from tunesmith.tasks.registry import task_names


def train(*configs: str, **given: Any) -> Resolved[FineTuningConfig]:
    return resolve(FineTuningConfig, given, configs)


def faults(kind: type[Options], given: dict[str, Any], *configs: str, origin: str = "flag") -> str:
    with pytest.raises(UsageError) as caught:
        resolve(kind, given, configs, origin)
    assert caught.value.exit_code == 2
    return caught.value.found


def file(folder: Path, text: str, name: str = "my.yaml") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_command_line_beats_file_beats_preset_beats_task_beats_default(tmp_path: Path) -> None:
    path = file(tmp_path, "weight_decay: 0.2\nwarmup_steps: 7\nepochs: 4\n")
    found = train("high_quality", path, task="domain", num_epochs="6")
    options, sources = found.options, found.sources
    assert (options.num_epochs, sources["num_epochs"]) == (6, "flag")
    assert (options.weight_decay, sources["weight_decay"]) == (0.2, f"file {path}")
    assert (options.warmup_steps, sources["warmup_steps"]) == (7, f"file {path}")
    assert (options.learning_rate, sources["learning_rate"]) == (5e-6, "preset high_quality")
    assert (options.eval_steps, sources["eval_steps"]) == (500, "task domain")
    assert options.max_grad_norm == 1.0
    assert "max_grad_norm" not in sources


def test_a_file_beats_a_preset_in_either_order_and_later_files_beat_earlier(tmp_path: Path) -> None:
    one = file(tmp_path, "learning_rate: 1e-3\nseed: 1\n", "one.yaml")
    two = file(tmp_path, "seed: 2\n", "two.yaml")
    for configs in ((one, "quick_test", two), ("quick_test", one, two)):
        options = train(*configs).options
        assert (options.learning_rate, options.seed, options.max_steps) == (1e-3, 2, 100)


def test_a_preset_or_a_task_overrides_only_the_fields_it_names() -> None:
    plain = train(task="chat").options
    preset = train("low_resource", task="chat").options
    changed = {n for n in type(plain).model_fields if getattr(plain, n) != getattr(preset, n)}
    assert changed == set(PRESETS["low_resource"])
    assert preset.lr_scheduler_type == "cosine_with_restarts"


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_defaults_that_the_schema_takes(task: str) -> None:
    options = train(task=task).options
    for name, value in TASK_DEFAULTS[task].items():
        assert getattr(options, name) == value


def test_tasks_of_the_schema_of_the_presets_and_of_the_registry_are_the_same() -> None:
    assert set(TASKS) == set(TASK_DEFAULTS) == set(task_names())


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_taken(preset: str) -> None:
    options = train(preset).options
    for name, value in PRESETS[preset].items():
        assert getattr(options, name) == value


def test_requirement_numbers_of_the_table() -> None:
    code = train(task="code").options
    assert (code.learning_rate, code.num_epochs, code.max_length) == (1e-5, 5, 2048)
    assert (code.per_device_train_batch_size, code.gradient_accumulation_steps) == (2, 4)
    assert (code.warmup_steps, code.eval_steps, code.save_steps) == (500, 200, 1000)
    assert code.gradient_checkpointing == "full"
    assert train(task="domain").options.weight_decay == 0.05


@pytest.mark.parametrize("lora", [True, "true", "True", "yes"])
def test_lora_takes_ten_times_the_rate_of_the_task(lora: object) -> None:
    found = train(task="chat", lora=lora)
    assert found.options.learning_rate == pytest.approx(2e-4)
    assert found.sources["learning_rate"] == "task chat (x10 for LoRA)"
    assert train(task="chat", lora="false").options.learning_rate == 2e-5


def test_a_rate_that_was_given_is_not_multiplied() -> None:
    assert train(task="chat", lora=True, learning_rate="3e-5").options.learning_rate == 3e-5
    assert train("low_resource", task="chat", lora=True).options.learning_rate == 1e-5


def test_a_rank_alone_keeps_the_ratio_of_the_task() -> None:
    assert train(task="units", lora=True, lora_rank="4").options.lora_alpha == 16
    assert train(task="chat", lora_r="32").options.lora_alpha == 64
    assert train(task="chat", lora_rank=32, lora_alpha=8).options.lora_alpha == 8


def test_a_warmup_ratio_is_not_overruled_by_the_steps_of_task_or_preset(tmp_path: Path) -> None:
    for configs in ((), ("production",)):
        options = train(*configs, task="chat", warmup_ratio="0.03").options
        assert (options.warmup_steps, options.warmup_ratio) == (0, 0.03)
    path = file(tmp_path, "warmup_ratio: 0.03\n")
    options = train(path, task="chat", warmup_steps=9).options
    assert (options.warmup_steps, options.warmup_ratio) == (9, 0.0)


def test_epochs_that_are_given_put_the_steps_of_a_preset_back() -> None:
    assert train("quick_test").options.max_steps == 100
    assert train("quick_test", epochs=3).options.max_steps is None
    options = train(task="domain", max_steps=50)
    assert options.options.max_steps == 50
    assert "num_epochs" not in options.sources


ALIASED = (FineTuningConfig, SampleOptions, ValidateOptions)
"""Classes that between them have every setting with another name."""


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_every_alias_sets_its_setting(alias: str, name: str) -> None:
    value = {"lora": True, "dataset": ["a.jsonl"], "save_steps": "epoch", "output": "o.jsonl"}
    value |= {"load_best_model_at_end": True, "report_to": ["wandb"]}
    value |= {"optim": "adafactor", "layer_lr_decay": "0.5", "attention": "eager"}
    value |= {"use_rslora": True, "use_dora": True, "lora_init": "pissa"}
    chosen = value.get(name, "12")
    kind = next(k for k in ALIASED if name in k.model_fields)
    needed = {"dataset": ["a"]} if kind is ValidateOptions else {}
    chosen = True if name == "json_output" else chosen
    for spelled in (alias, alias.replace("_", "-")):
        options = resolve(kind, {spelled: chosen, **needed}).options
        assert str(getattr(options, name)).rstrip("0").rstrip(".") == str(chosen)


def test_alias_targets_and_rivals_exist() -> None:
    known = {name for kind in ALIASED for name in kind.model_fields}
    assert {*ALIASES.values(), *RIVALS, *(name for name, _ in SWITCHES.values())} <= known
    assert not known & {*ALIASES, *SWITCHES}


def test_yaml_sections_switches_and_exponents(tmp_path: Path) -> None:
    text = (
        "task: units\nlora: {rank: 8, target-modules: [q_proj, v_proj]}\nlearning_rate: 1e-5\n"
        "bf16: true\nfp16: false\neval_strategy: no\ndataset: a,b.jsonl\nrun_name: 7\n"
        "columns: {prompt: Frage}\nresume: true\n"
    )
    options = train(file(tmp_path, text)).options
    assert options.lora
    assert (options.lora_rank, options.lora_alpha) == (8, 32)
    assert options.lora_target_modules == ["q_proj", "v_proj"]
    assert options.learning_rate == 1e-5
    assert options.mixed_precision == "bf16"
    assert options.eval_strategy == "no"
    assert options.dataset == ["a,b.jsonl"]
    assert options.run_name == "7"
    assert options.columns == {"prompt": "Frage"}
    assert options.resume == "auto"
    assert not train(file(tmp_path, text), lora=False).options.lora


def test_null_in_a_higher_layer_puts_the_lower_value_back(tmp_path: Path) -> None:
    path = file(tmp_path, "learning_rate: null\nmax_steps:\n")
    options = train("quick_test", path, task="chat").options
    assert (options.learning_rate, options.max_steps, options.num_epochs) == (2e-5, None, 1)
    assert train("quick_test", max_steps="None").options.max_steps is None


def test_a_saved_config_gives_the_same_settings(tmp_path: Path) -> None:
    first = train("quick_test", task="units", lora=True, dataset=["x.jsonl"], warmup_ratio=0.2)
    saved = yaml.safe_dump(first.options.model_dump(mode="json"))
    assert train(file(tmp_path, saved)).options == first.options


def test_paths_of_python_callers_are_taken(tmp_path: Path) -> None:
    given = {"dataset": [tmp_path / "a"], "output_dir": tmp_path}
    options = resolve(FineTuningConfig, given, origin=ARGUMENT).options
    assert (options.dataset, options.output_dir) == ([str(tmp_path / "a")], str(tmp_path))


def test_a_config_that_was_resolved_once_is_not_changed_by_a_second_time() -> None:
    first = train(task="chat", lora=True, lora_rank=4, warmup_ratio=0.1).options
    again = resolve(FineTuningConfig, first.model_dump(exclude_unset=True), origin=ARGUMENT).options
    assert again == first


def test_what_differs_from_the_defaults_is_described() -> None:
    found = train("quick_test", lora=True, seed="42", columns="prompt=Frage").describe()
    assert ("max_steps", "100", "preset quick_test") in found
    assert ("lora", "true", "flag") in found
    assert ("columns", "prompt=Frage", "flag") in found
    assert "seed" not in [name for name, _, _ in found]


def test_all_faults_are_reported_together(tmp_path: Path) -> None:
    path = file(tmp_path, "# mine\nlerning_rate: 1\nlora:\n  rank: none\n  aplha: 3\n")
    given = {"packing": "maybe", "task": "unit", "save_steps": "0", "max_lenght": "9"}
    found = faults(FineTuningConfig, given, path, "quick_tset").splitlines()
    assert len(found) == 8
    text = "\n".join(found)
    assert (
        f"{path}:2: lerning_rate: there is no such setting; did you mean 'learning_rate'?" in text
    )
    assert f"{path}:5: lora.aplha: there is no such setting; did you mean 'lora_alpha'?" in text
    assert f"{path}:4: lora.rank: 'none' is not a whole number of at least 1" in text
    assert "--packing: 'maybe' is not true or false" in text
    assert "--save-steps: '0' is not a whole number of at least 1 or epoch" in text
    assert "--max-lenght: there is no such setting; did you mean --max-length?" in text
    assert "did you mean 'units'?" in text
    assert "did you mean 'quick_test'?" in text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lora_rank", "abc"),
        ("lora_rank", "0"),
        ("lora_alpha", "-1"),
        ("learning_rate", "nan"),
        ("learning_rate", "inf"),
        ("lora", "perhaps"),
        ("num_epochs", "many"),
        ("report_to", "wandbb"),
        ("max_length", "1.5"),
        ("validation_split", "1"),
        ("save_total_limit", "1"),
    ],
)
def test_a_wrong_value_is_a_sentence_that_names_the_setting(name: str, value: str) -> None:
    found = faults(FineTuningConfig, {"lora": True, name: value})
    assert found.startswith(f"--{name.replace('_', '-')}: '{value}' is not ")
    assert len(found.splitlines()) == 1


def test_trackers_that_are_known_are_named() -> None:
    said = faults(FineTuningConfig, {"report_to": "wandb,neptun"})
    assert "'neptun' is not one of tensorboard, wandb, mlflow" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 1\nseed: 2\n", "2: 'seed' stands in line 1 already"),
        ("epochs: 1\nnum_epochs: 2\n", ":2: num_epochs: "),
        ("a: [1\nb: 2\n", "not valid YAML"),
        ("- 1\n", "1: this is no mapping"),
        ("only text\n", "1: this is no mapping"),
        ("x: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
        ("columns: 3\n", ":1: columns: 3 is not pairs such as name=value"),
        ("dataset: {a: 1}\n", ":1: dataset: {'a': 1} is not a list"),
        ("dataset: [[1]]\n", ":1: dataset: [1] is not text"),
        ("lora: {rank: {x: 1}}\n", ":1: lora.rank: {'x': 1} is not a whole number"),
        ("1: 2\n", ":1: 1: there is no such setting"),
        ("x: 2001-99-99\n", "not valid YAML"),
        ("\t\n", "not valid YAML"),
    ],
)
def test_a_faulty_file_is_named_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    path = file(tmp_path, text)
    found = faults(FineTuningConfig, {}, path)
    assert found.startswith(path)
    assert said in found


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    binary = tmp_path / "b.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "not a text file in UTF-8" in faults(FineTuningConfig, {}, str(binary))
    assert "neither a file nor a preset" in faults(FineTuningConfig, {}, str(tmp_path))
    assert train(file(tmp_path, "")).options == train().options


def test_a_training_preset_is_refused_by_other_commands() -> None:
    assert faults(EvalOptions, {}, "quick_test") == (
        "--config quick_test: this preset is for tunesmith train"
    )


def test_a_lora_section_is_refused_by_other_commands(tmp_path: Path) -> None:
    found = faults(EvalOptions, {}, file(tmp_path, "lora: {rank: 3}\n"))
    assert "lora.rank: there is no such setting" in found


def test_the_python_class_refuses_unknown_settings_too() -> None:
    with pytest.raises(ValidationError, match="lerning_rate"):
        FineTuningConfig(lerning_rate=1e-5)  # type: ignore[call-arg]


def test_missing_settings_are_named_with_what_they_are() -> None:
    assert faults(SampleOptions, {}).startswith("--output is missing: The selected rows")
    assert faults(SampleOptions, {}, origin=ARGUMENT).startswith("output is missing")
    recipe = faults(SampleOptions, {"limt": 3}, origin="r.yaml stage s")
    assert "r.yaml stage s: limt: there is no such setting; did you mean 'limit'?" in recipe
    assert "length at least 1" in faults(ShowOptions, {"dataset": []})


@pytest.mark.parametrize("columns", ["prompt", "prompt=", "=Frage", "a=b,c"])
def test_columns_that_are_no_pairs_are_refused(columns: str) -> None:
    assert "is not of the form name=value" in faults(FineTuningConfig, {"columns": columns})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from([*FineTuningConfig.model_fields, "bf16", "nope"]), JSON))
def test_any_values_resolve_or_are_faults(given_settings: dict[str, Any]) -> None:
    try:
        options = resolve(FineTuningConfig, given_settings).options
    except UsageError:
        return
    assert options.learning_rate is not None
    assert options.lora_alpha is not None


def test_going_on_and_starting_over_contradict_each_other():
    with pytest.raises(UsageError, match="resume and overwrite cannot both be given"):
        resolve(FineTuningConfig, {"resume": "auto", "overwrite": True}, origin="argument")
