"""DeepSpeed: the same weights as one process, no checkpoint, and what it was not made for."""

from __future__ import annotations

import importlib.util
import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import tunesmith
from pair import COMMON, ZERO, outcome, started
from test_several import FIVE, LAUNCHED, LORA, RECIPES, TOLERANCE, apart, make_data, weights
from test_several_nightly import launched
from tunesmith.config.load import resolve
from tunesmith.config.schema import FineTuningConfig
from tunesmith.errors import TrainingError, UsageError
from tunesmith.train import loop
from tunesmith.train.zero import Zero
from tunesmith.workflows import zero
from tunesmith.workflows.launched import check_launch

STAGE_1 = ZERO | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"}
PADDED = {"packing": False, "max_grad_norm": 0.5}
"""Micro-batches of two rows, several in a step, and gradients that are clipped in every step."""

runs = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed"
)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def job(name: str, env: dict[str, str] = ZERO, fault: str = "", **settings: Any) -> dict[str, Any]:
    made = {"env": env, "train": {"run_name": name, **settings}, "fault": fault}
    return {**made, "without": ["save_steps"]}


@runs
@pytest.mark.slow
def test_deepspeed_trains_the_weights_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    make_data()
    steps: dict[str, Any] = {**PADDED, "per_device_train_batch_size": 2}
    jobs = [
        job("two", **steps, gradient_accumulation_steps=2),
        job("two-1", STAGE_1, **steps, gradient_accumulation_steps=2),
        job("two-five", **FIVE),
        job("two-five-1", STAGE_1, **FIVE),
        job("two-lora", **LORA),
        job("two-nan", fault="nan", nonfinite="skip"),
        job("two-bf16", fault="nan", nonfinite="skip", dtype="bfloat16"),
        job("two", resume="auto"),
    ]
    with started(Path.cwd(), jobs) as pair:
        alone = {**COMMON, "per_device_train_batch_size": 8, "log_level": "error"}
        tunesmith.train(**{**alone, **steps, "gradient_accumulation_steps": 4}, run_name="one")
        tunesmith.train(**{**alone, **FIVE, "per_device_train_batch_size": 4}, run_name="one-five")
        tunesmith.train(**alone, **LORA, run_name="one-lora")
        break_step(monkeypatch)
        tunesmith.train(**alone, nonfinite="skip", run_name="one-nan")
        (first, said), (second, silence) = outcome(pair, 280)
    assert (first, second) == (2, 2), said + silence  # that of the last job alone
    assert said.count("error: ") == 1
    assert "--resume cannot go on with DeepSpeed" in said
    for kind, stages in (("", 2), ("-five", 2), ("-lora", 1), ("-nan", 1)):
        for name in (f"two{kind}", f"two{kind}-1")[:stages]:
            print(name, apart(f"one{kind}", name))
            assert apart(f"one{kind}", name) < TOLERANCE
            assert norms(name) == pytest.approx(norms(f"one{kind}"), rel=1e-4, nan_ok=True)
    for name in ("two", "two-1", "two-lora", "two-bf16"):
        folder = Path("runs") / name
        assert not list(folder.glob("checkpoints/*"))
        assert not [path for path in folder.rglob("*") if path.suffix in (".pt", ".bin", ".pkl")]
        best, final = weights(name, "best_model"), weights(name)
        assert all(torch.equal(best[key], value) for key, value in final.items())
        config = "adapter_config.json" if name == "two-lora" else "config.json"
        for written in ("README.md", config):
            assert (folder / "final_model" / written).is_file()
        for written in ("metrics.jsonl", "manifest.json", "report.html", "rows.json"):
            assert (folder / written).is_file()
    assert all(value.dtype == torch.bfloat16 for value in weights("two-bf16").values())
    for name in ("one-nan", "two-nan", "two-bf16"):
        assert [line["step"] for line in records(name) if line["kind"] == "skip"] == [4]


def records(run: str) -> list[dict[str, Any]]:
    lines = (Path("runs") / run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def norms(run: str) -> list[float]:
    """Return the gradient norms of a run, before they were clipped."""
    return [line["grad_norm"] for line in records(run) if "grad_norm" in line]


def break_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the fourth step's gradients be no numbers, as the fault ``nan`` does for one of two."""
    losses, calls = loop.token_losses, [0]

    def token_losses(*given: Any, **more: Any) -> Any:
        calls[0] += 1
        found = losses(*given, **more)
        if calls[0] == 4:
            found.losses.register_hook(lambda gradient: gradient * float("nan"))
        return found

    monkeypatch.setattr(loop, "token_losses", token_losses)


@runs
@pytest.mark.slow
def test_a_stopped_run_says_that_nothing_is_left_to_resume() -> None:
    make_data()
    with started(Path.cwd(), [job("cut", fault="slow", max_steps=200)]) as pair:
        until = time.monotonic() + 120
        while not Path("runs/cut/best_model").exists() and time.monotonic() < until:
            time.sleep(0.02)
        pair[1].send_signal(signal.SIGTERM)
        found = outcome(pair)
    assert [code for code, _ in found] == [130, 130], found
    assert "DeepSpeed's state was not saved" in found[0][1]
    assert sum(text.count("start over with --overwrite") for _, text in found) == 1, found
    assert not any("--resume" in text for _, text in found)
    assert not list(Path("runs/cut").glob("checkpoints/*"))
    assert Path("runs/cut/metrics.jsonl").is_file()


@runs
@pytest.mark.slow
def test_accelerate_launches_deepspeed() -> None:
    make_data()
    given = ["--dataset", "rows.jsonl", "--model", "base", "--max-steps", "2", "--eval-steps", "1"]
    given += ["--num-workers", "1", "--report-to", "none", "--device", "cpu", "--run-name", "run"]
    file = str(RECIPES / "deepspeed.yaml")
    done = launched(["--config_file", file, "-m", "tunesmith", "train", *given])
    assert done.returncode == 0, done.stderr
    assert weights("run")


REFUSED: list[tuple[dict[str, str], dict[str, Any], str]] = [
    ({"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, {}, "stage 3 of ZeRO"),
    ({"ACCELERATE_DEEPSPEED_CONFIG_FILE": "zero.json"}, {}, "CONFIG_FILE=zero.json"),
    ({"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"}, {}, "OPTIMIZER_DEVICE=cpu"),
    ({"ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "nvme"}, {}, "PARAM_DEVICE=nvme"),
    ({"ACCELERATE_DEEPSPEED_ZERO3_INIT": "true"}, {}, "ZERO3_INIT"),
    ({"ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true"}, {}, "16BIT_MODEL"),
    ({"ACCELERATE_DEEPSPEED_MOE_LAYER_CLS_NAMES": "Experts"}, {}, "Experts"),
    ({"ACCELERATE_GRADIENT_CLIPPING": "0.5"}, {}, "clipped to 0.5, the settings for 1"),
    ({"ACCELERATE_GRADIENT_CLIPPING": "much"}, {}, "clipped to much"),
    ({"WORLD_SIZE": "1"}, {}, "one was launched"),
    ({}, {"resume": "auto"}, "--resume cannot go on with DeepSpeed"),
    ({}, {"lora": True, "load_in_4bit": True}, "--load-in-4bit"),
    ({}, {"lora": True, "load_in_8bit": True}, "--load-in-8bit"),
    ({}, {"optim": "adafactor"}, "--optim adafactor"),
    ({}, {"optim": "adamw_8bit"}, "--optim adamw_8bit"),
    ({}, {"new_tokens": 4}, "--new-tokens"),
    ({}, {"nonfinite": "rewind"}, "--nonfinite rewind needs checkpoints"),
    ({}, {"load_best_model_at_end": True}, "--load-best-model-at-end needs"),
    ({}, {"early_stopping_patience": 2}, "--early-stopping-patience needs"),
    ({}, {"keep_best": 2}, "--keep-best needs"),
    ({}, {"save_steps": 5}, "--save-steps does nothing"),
    ({}, {"save_total_limit": 4}, "--save-total-limit does nothing"),
]


@pytest.mark.parametrize(("environment", "settings", "said"), REFUSED)
def test_what_deepspeed_was_not_made_for_is_refused(
    environment: dict[str, str],
    settings: dict[str, Any],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(zero, "PACKAGE", "torch")  # one that is there
    for name, value in {**LAUNCHED, **ZERO, **environment}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=said):
        check_launch(resolve(FineTuningConfig, settings, origin="argument"))


def test_what_would_do_nothing_is_refused_from_a_file_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(zero, "PACKAGE", "torch")
    for name, value in {**LAUNCHED, **ZERO, "ACCELERATE_GRADIENT_CLIPPING": "auto"}.items():
        monkeypatch.setenv(name, value)
    file = tmp_path / "run.yaml"
    file.write_text("save_steps: 7\n")
    with pytest.raises(UsageError, match=r"--save-steps \(in .*run.yaml\) does nothing"):
        check_launch(resolve(FineTuningConfig, {}, [str(file)], origin="argument"))
    check_launch(resolve(FineTuningConfig, {}, origin="argument"))


def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zero, "PACKAGE", "no_such_package")
    for name, value in {**LAUNCHED, **ZERO}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="no_such_package is missing") as found:
        check_launch(resolve(FineTuningConfig, {}, origin="argument"))
    assert "tunesmith[deepspeed]" in str(found.value)


def test_weights_of_several_precisions_are_refused() -> None:
    mixed = [torch.nn.Parameter(torch.zeros(2, dtype=d)) for d in (torch.float32, torch.bfloat16)]
    with pytest.raises(TrainingError, match="bfloat16 and float32 at once"):
        Zero(torch.optim.AdamW(mixed), 2, 1.0, None)


def test_the_shipped_configuration_launches_what_is_accepted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env

    given = ["--config_file", str(RECIPES / "deepspeed.yaml"), "-m", "tunesmith", "train"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(given))
    assert arguments.use_deepspeed
    arguments.deepspeed_fields_from_accelerate_config = ""  # as its command sets it
    _, env = prepare_deepspeed_cmd_env(arguments)
    for key, value in {**env, **LAUNCHED}.items():
        if key.startswith("ACCELERATE_") or key in LAUNCHED:
            monkeypatch.setenv(key, value)
    monkeypatch.setattr(zero, "PACKAGE", "torch")  # one that is there
    assert check_launch(resolve(FineTuningConfig, {}, origin="argument")) == "zero"
    assert zero.stage(env) == 2


def test_bfloat16_by_stage_1_is_refused() -> None:
    weights = [torch.nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))]
    with pytest.raises(TrainingError, match="Stage 1") as refused:
        Zero(torch.optim.AdamW(weights), 1, 1.0, None)
    assert "zero_stage: 2" in refused.value.hint
