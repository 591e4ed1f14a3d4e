"""Checkpoints: bit-identical resume, verification, the commit rule."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from test_training import make_rows
from tiny_models import tiny_model
from tunesmith.errors import CheckpointError, Interrupted
from tunesmith.models.adapters import add_lora
from tunesmith.train import checkpoint
from tunesmith.train.batches import Plan
from tunesmith.train.loop import Settings, State, fit, make_optimizer

SETTINGS = Settings(1e-2, warmup=2, capacity=64)
PLAN = Plan(rows=20, rows_a_step=8, total_steps=7, seed=3)


def make_state(lora: bool, settings: Settings = SETTINGS, **variant: bool) -> State:
    model = tiny_model("llama", attention_dropout=0.1)
    if lora:
        model = add_lora(model, rank=4, alpha=8, dropout=0.2, seed=5, **variant)
    return State(model, make_optimizer(model, settings))


def steps(state: State, settings: Settings = SETTINGS):
    return fit(state, make_rows(20), PLAN, settings, Accelerator(cpu=True))


def weights(state: State) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in state.model.named_parameters()}


METHODS = {
    "full": (False, {}, {}),
    "lora": (True, {}, {}),
    "rslora": (True, {"rslora": True}, {}),
    "dora": (True, {"dora": True}, {}),
    "pissa": (True, {"pissa": True}, {}),
    "lora+": (True, {}, {"lora_plus_ratio": 8.0}),
    "layer decay": (False, {}, {"layer_lr_decay": 0.5}),
    "adafactor": (False, {}, {"optim": "adafactor"}),
    "adafactor, lora": (True, {"dora": True}, {"optim": "adafactor", "lora_plus_ratio": 8.0}),
    "neftune": (False, {}, {"neftune_alpha": 5.0}),
}
"""Whether LoRA, its variant, and further settings of the loop."""


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stops", [pytest.param([3], marks=pytest.mark.slow), [1, 4]])
def test_interrupted_equals_uninterrupted_to_the_bit(
    tmp_path: Path, method: str, stops: list[int]
) -> None:
    lora, variant, more = METHODS[method]
    settings = replace(SETTINGS, **more)
    straight = make_state(lora, settings, **variant)
    losses = [done.loss for done in steps(straight, settings)]
    torch.manual_seed(99)  # whatever else draws random numbers must not matter
    resumed: list[float] = []
    for stop in [*stops, PLAN.total_steps]:
        state = make_state(lora, settings, **variant)
        path, _ = checkpoint.latest(tmp_path)
        if path is not None:
            checkpoint.restore(path, state)
        for done in steps(state, settings):
            resumed.append(done.loss)
            if done.step == stop and stop != PLAN.total_steps:
                break
        checkpoint.save(tmp_path, state, {"note": "x"})
    assert resumed == losses
    final = weights(state)
    assert all(torch.equal(value, final[name]) for name, value in weights(straight).items())
    assert state.ledger == straight.ledger


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "manifest"])
def test_a_damaged_checkpoint_is_never_used(tmp_path: Path, damage: str) -> None:
    state = make_state(True)
    running = steps(state)
    next(running)
    first = checkpoint.save(tmp_path, state, {})
    next(running)
    second = checkpoint.save(tmp_path, state, {})
    assert checkpoint.latest(tmp_path) == (second, [])
    target = second / ("manifest.json" if damage == "manifest" else "model.safetensors")
    raw = bytearray(target.read_bytes())
    if damage == "flip":
        raw[len(raw) // 2] ^= 1
    if damage == "remove":
        target.unlink()
    else:
        target.write_bytes(raw if damage == "flip" else raw[:-3])
    found, complaints = checkpoint.latest(tmp_path)
    assert found == first
    assert "step-2" in complaints[0]
    with pytest.raises(CheckpointError, match="broken"):
        checkpoint.restore(second, state)


def test_pruning_keeps_what_verifies(tmp_path: Path) -> None:
    state = make_state(True)
    for _ in steps(state):
        checkpoint.save(tmp_path, state, {})
        checkpoint.prune(tmp_path, 2)
    assert [step for step, _ in checkpoint.steps(tmp_path)] == [7, 6]
    (tmp_path / "checkpoint-step-7" / "state.json").write_text("{}")
    checkpoint.prune(tmp_path, 2)
    assert checkpoint.latest(tmp_path)[0] == tmp_path / "checkpoint-step-6"


def test_a_half_written_folder_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint-step-9.partial").mkdir()
    (tmp_path / "checkpoint-step-8").mkdir()
    found, complaints = checkpoint.latest(tmp_path)
    assert found is None
    assert len(complaints) == 1


def test_another_model_cannot_be_resumed(tmp_path: Path) -> None:
    state = make_state(True)
    next(steps(state))
    path = checkpoint.save(tmp_path, state, {})
    with pytest.raises(CheckpointError, match="other parameters"):
        checkpoint.restore(path, make_state(False))


def test_a_signal_gives_up_the_running_step(tmp_path: Path) -> None:
    state = make_state(True)
    asked: list[int] = []

    def should_stop() -> bool:
        asked.append(1)
        return len(asked) > 5

    running = fit(
        state, make_rows(20), PLAN, SETTINGS, Accelerator(cpu=True), should_stop=should_stop
    )
    with pytest.raises(Interrupted):
        list(running)
    done = state.step
    path = checkpoint.save(tmp_path, state, {})
    fresh = make_state(True)
    checkpoint.restore(path, fresh)
    assert fresh.step == done
    list(steps(fresh))
    straight = make_state(True)
    list(steps(straight))
    final = weights(fresh)
    assert all(torch.equal(value, final[name]) for name, value in weights(straight).items())


def test_a_manifest_that_leaves_a_file_out_is_found(tmp_path: Path) -> None:
    state = make_state(False)
    path = checkpoint.save(tmp_path, state, {})
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["optimizer.safetensors"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert checkpoint.verify(path) == "optimizer.safetensors is not in its manifest"


def test_nothing_is_pruned_where_nothing_verifies(tmp_path: Path) -> None:
    state = make_state(False)
    for step in range(4):
        state.step = step
        (checkpoint.save(tmp_path, state, {}) / "state.json").write_text("{}")
    assert checkpoint.prune(tmp_path, 2) == []
    assert len(checkpoint.steps(tmp_path)) == 4
