"""What a planted defect would break and no other quick test names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from test_checkpoint import make_state, steps
from test_training import make_rows
from tiny_models import tiny_model
from tunesmith.train import checkpoint, loop
from tunesmith.train.batches import Plan
from tunesmith.train.loop import Settings, State, fit, make_optimizer


def test_dropout_differs_from_step_to_step() -> None:
    settings = Settings(1e-12, "constant", weight_decay=0.0)
    model = tiny_model("llama", attention_dropout=0.5)
    state = State(model, make_optimizer(model, settings))
    # One row, because where a row lies among others decides its dropout as well.
    running = fit(state, make_rows(1), Plan(1, 1, 3, 0), settings, Accelerator(cpu=True))
    assert len({round(done.loss, 4) for done in running}) == 3


def test_every_epoch_has_an_order_of_its_own() -> None:
    plan = Plan(rows=30, rows_a_step=30, total_steps=3, seed=1)
    assert len({tuple(plan.step_rows(step)) for step in range(3)}) == 3


def test_gradients_are_clipped_once_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    clip, clipped = loop._clip, []
    monkeypatch.setattr(loop, "_clip", lambda *given: clipped.append(1) or clip(*given))
    settings = Settings(1e-2, packing=False, rows_a_micro_batch=1)
    model = tiny_model("llama")
    state = State(model, make_optimizer(model, settings))
    list(fit(state, make_rows(8), Plan(8, 4, 3, 0), settings, Accelerator(cpu=True)))
    assert len(clipped) == 3


def note_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Return a list that fills with (what, name) of syncs and renames."""
    seen: list[tuple[str, str]] = []
    fsync, rename = os.fsync, Path.rename

    def noted_fsync(handle: int) -> None:
        seen.append(("fsync", Path(f"/proc/self/fd/{handle}").readlink().name))
        fsync(handle)

    def noted_rename(path: Path, target: Path) -> Path:
        seen.append(("rename", Path(target).name))
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "rename", noted_rename)
    return seen


def test_all_of_a_checkpoint_is_synced_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc")
    state = make_state(True)
    next(steps(state))
    seen = note_calls(monkeypatch)
    path = checkpoint.save(tmp_path, state, {})
    at = seen.index(("rename", path.name))
    before = {name for what, name in seen[:at] if what == "fsync"}
    assert before == {*(p.name for p in path.iterdir()), f".{path.name}.partial"}
    assert ("fsync", tmp_path.name) in seen[at:]


def test_the_manifest_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = make_state(True)
    next(steps(state))
    written: list[str] = []
    write, save = Path.write_text, checkpoint.save_file

    def noted_write(path: Path, *given: str, **more: str) -> int:
        written.append(path.name)
        return write(path, *given, **more)

    def noted_save(tensors: dict[str, torch.Tensor], path: Path) -> None:
        written.append(path.name)
        save(tensors, path)

    monkeypatch.setattr(Path, "write_text", noted_write)
    monkeypatch.setattr(checkpoint, "save_file", noted_save)
    checkpoint.save(tmp_path, state, {})
    assert written == [
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
        "manifest.json",
    ]
