"""Kills and faults; a share of them, as much as fits into a few minutes."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from test_checkpoint import make_state, steps
from tunesmith.errors import StorageError
from tunesmith.train import checkpoint

pytestmark = pytest.mark.reliability
KILLS = 3
"""Of the command itself; ``test_faults`` kills many more runs in forked processes."""


def write_rows(path: Path, count: int = 40) -> None:
    rows = ({"prompt": f"What is {n} + 1?", "completion": f"It is {n + 1}."} for n in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def train(folder: Path, name: str, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tunesmith", "train", "--dataset", "rows.jsonl", "--lora"]
    command += ["--lora-dropout", "0.1", "--max-steps", "40", "--save-steps", "2"]
    command += ["--eval-strategy", "no", "--run-name", name, "--report-to", "none", *more]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, cwd=folder, stderr=quiet, stdout=quiet)


def newest(checkpoints: Path) -> int:
    """Return the step of the newest checkpoint, verified or not; 0 if there is none."""
    return max((step for step, _ in checkpoint.steps(checkpoints)), default=0)


def final_weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(folder / "runs" / name / "final_model" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, torch.Tensor], float]:
    """Return the weights of a run that nothing stops, and how long it took."""
    folder = tmp_path_factory.mktemp("straight")
    write_rows(folder / "rows.jsonl")
    began = time.monotonic()
    assert train(folder, "straight").wait() == 0
    return final_weights(folder, "straight"), time.monotonic() - began


def test_killed_at_random_and_resumed_equals_unkilled(
    tmp_path: Path, straight: tuple[dict[str, torch.Tensor], float]
) -> None:
    write_rows(tmp_path / "rows.jsonl")
    unkilled, whole = straight
    rng = random.Random(7)
    killed = 0
    checkpoints = tmp_path / "runs" / "killed" / "checkpoints"
    for number in range(KILLS):
        again = ["--resume"] if checkpoint.latest(checkpoints)[0] else ["--overwrite"]
        process = train(tmp_path, "killed", *again)
        # Later with every life; by what lies on the disk, for no machine is equally fast all day.
        wanted = 2 * rng.randint(3 * number, 3 * number + 3)
        while newest(checkpoints) < wanted and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.02) * whole)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.wait()
    again = ["--resume"] if checkpoint.latest(checkpoints)[0] else ["--overwrite"]
    assert train(tmp_path, "killed", *again).wait() == 0
    resumed = final_weights(tmp_path, "killed")
    assert all(torch.equal(value, resumed[name]) for name, value in unkilled.items())
    print(f"{killed} kills, weights bit-identical")
    assert killed > 0


@pytest.mark.slow  # runs_ended_anywhere of test_faults has a share of these
def test_sigterm_leaves_a_resumable_run(
    tmp_path: Path, straight: tuple[dict[str, torch.Tensor], float]
) -> None:
    write_rows(tmp_path / "rows.jsonl")
    process = train(tmp_path, "asked")
    checkpoints = tmp_path / "runs" / "asked" / "checkpoints"
    deadline = time.monotonic() + 300
    while not checkpoint.steps(checkpoints) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 130
    again = train(tmp_path, "asked", "--resume")
    assert again.wait() == 0
    resumed = final_weights(tmp_path, "asked")
    assert all(torch.equal(value, resumed[name]) for name, value in straight[0].items())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES])
@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_failing_save_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    state = make_state(True)
    running = steps(state)
    next(running)
    first = checkpoint.save(tmp_path, state, {})
    next(running)

    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail) if call == "fsync" else patched.setattr(
            Path, "rename", fail
        )
        with pytest.raises(StorageError):
            checkpoint.save(tmp_path, state, {})
    assert checkpoint.latest(tmp_path)[0] == first
    second = checkpoint.save(tmp_path, state, {})
    assert checkpoint.latest(tmp_path) == (second, [])
