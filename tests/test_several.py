"""Several processes: one run, the same weights as one process, and what launchers may ask for."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tunesmith
from pair import COMMON, SHARDS, outcome, started
from test_workflows import write_rows
from tiny_models import tiny_model, tiny_tokenizer
from tunesmith.cli import main
from tunesmith.config.load import resolve
from tunesmith.config.schema import FineTuningConfig
from tunesmith.errors import UsageError
from tunesmith.workflows.launched import check_launch

RECIPES = Path(__file__).parent.parent / "recipes" / "accelerate"
TOLERANCE = 2e-5
"""Between final weights of one process and of two: sums of float32 in another order, 6 steps."""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def make_data() -> None:
    write_rows("rows.jsonl", 25)
    write_rows("five.jsonl", 5)
    tiny_model("llama").save_pretrained("base")
    tiny_tokenizer().save_pretrained("base")


def weights(run: str, folder: str = "final_model") -> dict[str, torch.Tensor]:
    [file] = (Path("runs") / run / folder).glob("*.safetensors")
    return load_file(file)


def apart(one: str, other: str) -> float:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


# Of five rows, four a step, the last step of an epoch has one: a process without any.
FIVE: dict[str, Any] = {"dataset": ["five.jsonl"], "validation_split": 0, "max_steps": 4}
LORA: dict[str, Any] = {"lora": True, "lora_rank": 4, "lora_dropout": 0.0}
FIVE |= {"per_device_train_batch_size": 2, "eval_strategy": "no"}


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_processes_equal_one_and_their_resumed_selves(every: bool) -> None:
    """``every`` combination, or that few rows go with shards and an adapter with copies."""
    make_data()
    jobs: list[dict[str, Any]] = []
    asked = [("one", "copies"), ("one", "shards"), ("five", "shards"), ("lora", "copies")]
    asked += [("five", "copies"), ("lora", "shards")] if every else []
    for name, env in (("copies", {}), ("shards", SHARDS)):
        jobs.append({"env": env, "train": {"run_name": name}})
        again = {"run_name": name, "resume": "auto"}
        keep = {f"runs/{name}/final_model": f"runs/{name}-straight/final_model"}
        drop = [f"runs/{name}/checkpoints/checkpoint-step-{step}" for step in (4, 6)]
        jobs.append({"env": env, "train": again, "keep": keep, "drop": drop})
        if ("five", name) in asked:
            jobs.append({"env": env, "train": {"run_name": f"{name}-five", **FIVE}})
        if ("lora", name) in asked:
            jobs.append({"env": env, "train": {"run_name": f"{name}-lora", **LORA}})
    with started(Path.cwd(), jobs) as pair:
        alone = {**COMMON, "per_device_train_batch_size": 8, "log_level": "error"}
        straight = tunesmith.train(**alone, run_name="one")
        five = {**alone, **FIVE, "per_device_train_batch_size": 4}
        tunesmith.train(**five, run_name="one-five")
        tunesmith.train(**alone, **LORA, run_name="one-lora")
        (first, said), (second, silence) = outcome(pair)
    assert (first, second) == (0, 0), said + silence
    assert silence == ""
    assert said.count("Resumed from checkpoint-step-2") == 2
    for kind, name in asked:
        both = ("one", name) if kind == "one" else (f"one-{kind}", f"{name}-{kind}")
        print(*both, apart(*both))
        assert apart(*both) < TOLERANCE
    for name in ("copies", "shards"):
        assert apart(name, f"{name}-straight") == 0
        best = weights(name, "best_model")
        assert all(torch.equal(best[key], value) for key, value in weights(name).items())
    assert straight.held_out_loss == pytest.approx(_held_out("shards"), abs=1e-5)
    assert len(list(Path("runs").iterdir())) == len(asked) + 5
    _refused_elsewhere()


def _held_out(run: str) -> float:
    import json

    lines = (Path("runs") / run / "metrics.jsonl").read_text().splitlines()
    return float([r["loss"] for r in map(json.loads, lines) if r["kind"] == "eval"][-1])


def _refused_elsewhere() -> None:
    """Go on with one process: from copies with the same rows a step only, from shards never."""
    given = ["train", "--resume", "--report-to", "none", "--num-workers", "1"]
    for name, value in COMMON.items():
        if name not in ("dataset", "num_workers", "report_to"):
            given += [f"--{name.replace('_', '-')}", str(value)]
    given += ["--dataset", "rows.jsonl", "--run-name"]
    assert main([*given, "shards"]) == 7
    assert main([*given, "copies"]) == 7
    shutil.rmtree("runs/copies/checkpoints/checkpoint-step-6")
    assert main([*given, "copies", "--per-device-train-batch-size", "8"]) == 0
    assert apart("one", "copies") < TOLERANCE


LAUNCHED = {"LOCAL_RANK": "0", "WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("environment", "settings", "said"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, {}, "mixed precision bf16"),
        ({}, {"mixed_precision": "fp16"}, "fp16"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, {}, "ACCUMULATION_STEPS=4"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, {}, "DYNAMO"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, {}, "MEGATRON"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, {}, "PARALLELISM"),
        ({}, {"device": "cuda:0"}, "one device"),
        ({}, {"minutes": 5}, "cannot plan for several"),
        ({}, {"gradient_checkpointing": "auto"}, "cannot choose for several"),
        ({}, {"torch_compile": "on"}, "was not made for several"),
        (SHARDS | {"FSDP_VERSION": "1"}, {}, "version 2"),
        (SHARDS | {"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, {}, "EFFICIENT_LOADING"),
        (SHARDS | {"FSDP_OFFLOAD_PARAMS": "true"}, {}, "OFFLOAD"),
        (SHARDS | {"FSDP_ACTIVATION_CHECKPOINTING": "true"}, {}, "CHECKPOINTING"),
        (SHARDS, {"optim": "adafactor"}, "adafactor"),
        ({"WORLD_SIZE": "1"}, {"stall_seconds": 5}, "does nothing in one process"),
        ({"WORLD_SIZE": "", "PMI_SIZE": "2"}, {}, "mpirun"),
    ],
)
def test_what_the_launcher_asks_for_in_vain_is_refused(
    environment: dict[str, str],
    settings: dict[str, Any],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {**LAUNCHED, **environment}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=said):
        check_launch(resolve(FineTuningConfig, settings, origin="argument"))


def test_other_commands_are_refused_in_several_processes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    assert main(["find-lr", "--dataset", "rows.jsonl"]) == 2
    assert "works in one process, and 2 were launched" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["cpu_two", "ddp", "fsdp2"])
def test_shipped_configurations_launch_what_is_accepted(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    given = ["--config_file", str(RECIPES / f"{name}.yaml"), "-m", "tunesmith", "train"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(given))
    assert arguments.multi_gpu or arguments.use_fsdp
    for key, value in {**LAUNCHED, **prepare_multi_gpu_env(arguments)}.items():
        if key.startswith(("ACCELERATE_", "FSDP_")) or key in LAUNCHED:
            monkeypatch.setenv(key, value)
    way = check_launch(resolve(FineTuningConfig, {}, origin="argument"))
    assert way == ("shards" if name == "fsdp2" else "copies")
