"""The trunk cache in whole runs: what is decided, said, recorded, replayed and removed."""

from __future__ import annotations

import json
import os
import shutil
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tunesmith
from test_workflows import write_rows
from tiny_models import tiny_model, tiny_tokenizer
from tunesmith.cli import main
from tunesmith.config.schema import FineTuningConfig
from tunesmith.errors import CheckpointError, StorageError, UsageError
from tunesmith.rundir import RunDir
from tunesmith.train import trunk_cache
from tunesmith.train.batches import Plan
from tunesmith.train.trunk_cache import NoTrunkError, TrunkCache
from tunesmith.workflows import trunk as workflow

SETTINGS: dict[str, Any] = {
    "dataset": "rows.jsonl",
    "model": "base",
    "freeze_ratio": 0.5,
    "num_epochs": 3,
    "save_steps": 2,
    "save_total_limit": 9,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "learning_rate": 0.01,
    "report_to": "none",
    "num_workers": 1,
}
"""Three steps an epoch."""


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows("rows.jsonl")
    tiny_model("llama", attention_dropout=0.1).save_pretrained("base")
    tiny_tokenizer().save_pretrained("base")


def train(**more: Any) -> Path:
    return tunesmith.train(**{**SETTINGS, **more}).run


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "final_model" / "model.safetensors")


def recorded(run: Path) -> set[bool]:
    states = run.glob("checkpoints/*/state.json")
    return {json.loads(path.read_text())["extra"]["trunk_kept"] for path in states}


def spy(monkeypatch: pytest.MonkeyPatch) -> list[TrunkCache]:
    made: list[TrunkCache] = []
    begin = TrunkCache.__init__

    def noted(self: TrunkCache, *given: Any) -> None:
        begin(self, *given)
        made.append(self)

    monkeypatch.setattr(TrunkCache, "__init__", noted)
    return made


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if "runk cache" in line]


def test_a_frozen_run_of_several_epochs_keeps_its_trunk(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = spy(monkeypatch)
    run = train()
    [line] = said(capsys)
    assert line.startswith("Trunk cache: on.")
    assert "1 frozen layers" in line
    assert "MB" in line
    [cache] = made
    assert cache.computed == 22  # two of the rows are held out
    assert recorded(run) == {True}
    assert not (run / "trunk.cache").exists()


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"num_epochs": 1}, "Trunk cache: off, because no row is met twice in a run of one epoch."),
        ({"neftune_alpha": 5.0}, "Trunk cache: off, because --neftune-alpha changes"),
        ({"trunk_cache": "off"}, None),
        ({"freeze_ratio": 0.0}, None),
    ],
    ids=str,
)
def test_auto_does_without_where_it_cannot_be(
    settings: dict[str, Any], line: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(**settings)
    assert [found.startswith(line or "?") for found in said(capsys)] == [True] * bool(line)
    assert recorded(run) == {False}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"num_epochs": 1}, "no row is met twice"),
        ({"neftune_alpha": 5.0}, "--neftune-alpha changes"),
        ({"freeze_ratio": 0.0}, "does nothing without --freeze-ratio"),
    ],
    ids=str,
)
def test_on_is_refused_where_it_cannot_be(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        train(trunk_cache="on", **settings)


def test_several_processes_do_without() -> None:
    config = FineTuningConfig(freeze_ratio=0.5)
    several = SimpleNamespace(num_processes=2)
    with pytest.raises(NoTrunkError, match="several processes train"):
        workflow._check(config, Plan(8, 4, 4, 0), several)
    workflow._check(config, Plan(8, 4, 4, 0), SimpleNamespace(num_processes=1))


def test_on_may_be_written_without_quotes(capsys: pytest.CaptureFixture[str]) -> None:
    Path("c.yaml").write_text("trunk_cache: on\nfreeze_ratio: 0.5\nmax_steps: 4\n")
    command = "train --config c.yaml --dataset rows.jsonl --model base --report-to none"
    assert main([*command.split(), "--learning-rate", "0.01"]) == 0
    assert "Trunk cache: on." in capsys.readouterr().err
    Path("c.yaml").write_text("trunk_cache: off\nfreeze_ratio: 0.5\nmax_steps: 4\n")
    assert main([*command.split(), "--run-name", "off"]) == 0
    assert "Trunk cache" not in capsys.readouterr().err


Usage = namedtuple("Usage", "total used free")


def full_disk(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """Let the disk look full to the trunk cache alone: checkpoints look at it as well."""
    usage = Usage(10**9, 10**9 - free, free)
    monkeypatch.setattr(workflow, "shutil", SimpleNamespace(disk_usage=lambda _: usage))


def test_auto_leaves_half_of_the_free_disk(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    full_disk(monkeypatch, 50_000)
    run = train()
    [line] = said(capsys)
    assert "more than half of the 0.1 MB that are free" in line
    assert recorded(run) == {False}
    run = train(trunk_cache="on")
    assert recorded(run) == {True}


@pytest.mark.parametrize("before", ["on", "off"])
def test_a_resume_replays_what_was_decided(
    before: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = spy(monkeypatch)
    if before == "off":
        full_disk(monkeypatch, 50_000)
    run = train(run_name="straight")
    straight, stopped = weights(run), shutil.copytree(run, run.with_name("stopped"))
    shutil.rmtree(stopped / "final_model")
    for step in (6, 8, 9):  # as if killed after step 4, in the second epoch
        for file in stopped.glob(f"checkpoints/checkpoint-step-{step}/model.safetensors"):
            file.write_bytes(b"torn")
    full_disk(monkeypatch, 50_000 if before == "on" else 10**12)
    made.clear()
    capsys.readouterr()
    resumed = train(run_name="stopped", resume="auto")
    assert bool(made) is (before == "on")
    assert all(torch.equal(value, straight[name]) for name, value in weights(resumed).items())
    assert recorded(resumed) == {before == "on"}
    assert "began with" not in "".join(said(capsys))


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let the run fail in the middle of a step, as a kill would end it."""
    whole, calls = TrunkCache.stored, iter(range(1, 1000))

    def stored(self: TrunkCache, *given: Any) -> Any:
        if next(calls) == step:
            raise KeyboardInterrupt
        return whole(self, *given)

    monkeypatch.setattr(TrunkCache, "stored", stored)


@pytest.mark.parametrize("file", ["kept", "lost"])
def test_a_killed_run_goes_on_to_the_same_bits(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = weights(train(run_name="straight"))
    with monkeypatch.context() as patch:
        stop_at(patch, 6)
        with pytest.raises(KeyboardInterrupt):
            train(run_name="killed")
    path = Path("runs/killed/trunk.cache")
    assert path.is_file()
    if file == "lost":
        path.unlink()
    made = spy(monkeypatch)
    resumed = train(run_name="killed", resume="auto")
    assert [cache.computed for cache in made] == [0 if file == "kept" else 22]
    assert all(torch.equal(value, straight[name]) for name, value in weights(resumed).items())
    assert not path.exists()


def test_another_wish_on_a_resume_is_followed_and_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, 6)
        with pytest.raises(KeyboardInterrupt):
            train()
    capsys.readouterr()
    run = train(resume="auto", run_name="instruct_rows", trunk_cache="off")
    [line] = said(capsys)
    assert "began with its trunk cache on and goes on with it off" in line
    assert not (run / "trunk.cache").exists()


def test_a_replay_that_cannot_be_is_no_silent_change(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, 6)
        with pytest.raises(KeyboardInterrupt):
            train()

    def unable(*_: Any) -> None:
        raise NoTrunkError("it is not the same model")

    monkeypatch.setattr(trunk_cache, "look", unable)
    with pytest.raises(CheckpointError, match="began with its trunk cache on, and that cannot"):
        train(resume="auto", run_name="instruct_rows")


def test_a_disk_that_reserves_nothing_stops_a_wish_and_not_a_guess(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("os.posix_fallocate", full, raising=False)
    run = train()
    [line] = said(capsys)
    assert line.startswith("Trunk cache: off. ")
    assert "the disk is full" in line
    assert recorded(run) == {False}
    with pytest.raises(StorageError, match="the disk is full"):
        train(trunk_cache="on")


def test_overwriting_a_killed_run_removes_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, 6)
        with pytest.raises(KeyboardInterrupt):
            train()
    assert Path("runs/instruct_rows/trunk.cache").is_file()
    with RunDir.create("runs", "instruct_rows", overwrite=True) as run:
        assert not run.trunk.exists()


def test_early_stopping_and_held_out_losses_are_as_without_it() -> None:
    more = {"eval_steps": 1, "early_stopping_patience": 2, "learning_rate": 0.2}
    tiny_model("llama").save_pretrained("base")
    runs = [train(trunk_cache=wish, **more) for wish in ("on", "off")]
    records = [
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in runs
    ]
    held = [[r["loss"] for r in found if r["kind"] == "eval"] for found in records]
    assert len(held[0]) < 9
    assert held[0] == pytest.approx(held[1], abs=1e-4)
    assert not (runs[0] / "trunk.cache").exists()
