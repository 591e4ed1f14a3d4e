"""Going on from a checkpoint under something else than it was made under: refused, or said."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import tunesmith
from tiny_models import tiny_model, tiny_tokenizer
from tunesmith.config.schema import FineTuningConfig
from tunesmith.errors import CheckpointError
from tunesmith.rundir import RunDir
from tunesmith.train import checkpoint
from tunesmith.workflows.conditions import FIXED, FREE

CHECKPOINTS = Path("runs/r/checkpoints")
SETTINGS: dict[str, Any] = {
    "model": "base",
    "dataset": "rows.jsonl",
    "lora": True,
    "lora_rank": 4,
    "max_steps": 4,
    "save_steps": 2,
    "run_name": "r",
    "report_to": "none",
    "eval_strategy": "no",
    "num_workers": 1,
    "cache": False,
}


def write_rows(path: str, plus: int) -> None:
    rows = ({"prompt": f"What is {n}?", "completion": f"It is {n + plus}."} for n in range(24))
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield the folder of a run of four steps."""
    home = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        tiny_model("llama", num_hidden_layers=2).save_pretrained("base")
        other = tiny_model("llama", num_hidden_layers=2)
        with torch.no_grad():
            other.lm_head.weight += 1
        other.save_pretrained("other")
        for folder in ("base", "other"):
            tiny_tokenizer().save_pretrained(folder)
        write_rows("rows.jsonl", 1)
        write_rows("others.jsonl", 2)
        tunesmith.train(**SETTINGS)
        yield home


@pytest.fixture
def _copied(begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(begun, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")


def resumed(**changed: Any) -> Any:
    return tunesmith.train(**{**SETTINGS, "max_steps": 6, "resume": "auto", **changed})


def test_every_setting_is_free_or_compared() -> None:
    known = set(FineTuningConfig.model_fields)
    assert known >= FREE
    assert known >= set(FIXED)
    assert not FREE & set(FIXED)


@pytest.mark.usefixtures("_copied")
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"optim": "adafactor"}, "--optim was adamw and is adafactor"),
        ({"lora_alpha": 500.0}, "--lora-alpha was"),
        ({"lora_plus_ratio": 16.0}, "--lora-plus-ratio was 1 and is 16"),
        ({"layer_lr_decay": 0.9}, "--layer-lr-decay was 1 and is 0.9"),
        ({"dataset": "others.jsonl"}, "the rows are others"),
        ({"model": "other"}, "the model that it started from is another"),
        ({"max_steps": 3}, "is behind 4 steps, and these settings plan 3"),
    ],
)
def test_what_gives_the_numbers_another_meaning_is_refused(
    changed: dict[str, Any], said: str
) -> None:
    before = Path("runs/r/config.yaml").read_bytes()
    with pytest.raises(CheckpointError) as refused:
        resumed(**changed)
    assert said in str(refused.value)
    assert Path("runs/r/config.yaml").read_bytes() == before


@pytest.mark.usefixtures("_copied")
def test_a_changed_rate_is_taken_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    resumed(learning_rate=0.125)
    said = "goes on under changed settings, so it repeats neither: --learning-rate was 0.0003 and "
    assert said + "is 0.125" in " ".join(capsys.readouterr().err.split())
    assert (
        "--learning-rate was 0.0003 and is 0.125"
        in Path("runs/r/final_model/README.md").read_text()
    )
    assert RunDir("runs/r").read_config()["learning_rate"] == 0.125
    resumed(learning_rate=0.125, max_steps=7)  # it stays said
    assert Path("runs/r/final_model/README.md").read_text().count("--learning-rate was") == 1


@pytest.mark.usefixtures("_copied")
def test_a_checkpoint_from_before_conditions_were_kept_is_taken_and_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for path in CHECKPOINTS.iterdir():
        state = json.loads((path / "state.json").read_text())
        del state["extra"]["conditions"]
        (path / "state.json").write_text(json.dumps(state))
        manifest = json.loads((path / "manifest.json").read_text())
        raw = (path / "state.json").read_bytes()
        manifest["state.json"] = {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
        (path / "manifest.json").write_text(json.dumps(manifest))
    resumed()
    assert "does not say under which settings" in " ".join(capsys.readouterr().err.split())


@pytest.mark.usefixtures("_copied")
def test_a_run_that_is_not_there_is_not_made(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CheckpointError, match=r"There is no run 'runs/rr' to resume"):
        resumed(run_name="rr")
    assert not Path("runs/rr").exists()


@pytest.mark.usefixtures("_copied")
def test_a_kill_between_two_renames_costs_no_checkpoint() -> None:
    for path in list(CHECKPOINTS.iterdir()):
        path.rename(path.with_name(f".{path.name}.before"))
    resumed()
    assert [step for step, _ in checkpoint.steps(CHECKPOINTS)] == [6, 4, 2]


@pytest.mark.usefixtures("_copied")
def test_later_checkpoints_than_a_named_one_are_set_aside(
    capsys: pytest.CaptureFixture[str],
) -> None:
    resumed(resume="checkpoint-step-2", max_steps=3)
    assert [step for step, _ in checkpoint.steps(CHECKPOINTS)] == [3, 2]
    assert (CHECKPOINTS / "superseded-checkpoint-step-4").is_dir()
    assert "set aside as superseded-checkpoint-step-4" in capsys.readouterr().err


@pytest.mark.usefixtures("_copied")
def test_a_finished_run_that_learns_on_is_measured_again() -> None:
    rows = ({"question": f"What is {n} + 1?", "answer": f"#### {n + 1}"} for n in range(24))
    Path("sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = {**SETTINGS, "task": "maths", "dataset": "sums.jsonl", "run_name": "learns"}
    asked |= {"eval_questions": 2, "learning_rate": 0.1, "max_length": 128}
    tunesmith.train(**asked)
    answers = Path("runs/learns/eval/tuned/attempts.jsonl")
    first = answers.read_text()
    tunesmith.train(**{**asked, "max_steps": 6, "resume": "auto"})
    assert answers.read_text() != first
    assert json.loads(Path("runs/learns/manifest.json").read_text())["steps"] == 6
