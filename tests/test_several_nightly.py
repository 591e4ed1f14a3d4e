"""Several processes that are killed, stopped, stalled or fail: no hang, no loss, one sentence."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pair import COMMON, SHARDS, environment, outcome, started
from test_several import RECIPES, make_data, weights
from tunesmith.train import checkpoint

pytestmark = pytest.mark.reliability
Weights = dict[str, torch.Tensor]
LORA = {"lora": True, "lora_rank": 4, "lora_dropout": 0.2, "max_steps": 12, "neftune_alpha": 5.0}


slow = pytest.mark.slow
SHARED_OUT = pytest.param(SHARDS, id="shards", marks=slow)
"""Weights in shards, where the share of a machine without much time is that of the copies."""


@pytest.fixture(scope="module")
def unstopped(tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, str]], Weights]:
    """Return what gives the weights of a run that nothing stops; each is made once."""
    found: dict[str, Weights] = {}

    def weights_of(env: dict[str, str]) -> Weights:
        name = "shards" if env else "copies"
        if name not in found:
            job = {"env": env, "train": {"run_name": "whole", **LORA}}
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(tmp_path_factory.mktemp(name))
                make_data()
                assert [code for code, _ in run(job)] == [0, 0]
                found[name] = weights("whole")
        return found[name]

    return weights_of


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_data()


def run(*jobs: dict[str, Any]) -> list[tuple[int, str]]:
    with started(Path.cwd(), jobs) as pair:
        return outcome(pair)


def wait_for_a_checkpoint(name: str) -> None:
    until = time.monotonic() + 120
    while not checkpoint.steps(Path("runs") / name / "checkpoints") and time.monotonic() < until:
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("env", "how"),
    [
        pytest.param({}, "term one", id="copies, one asked", marks=slow),
        pytest.param({}, "term both", id="copies, both asked", marks=slow),
        pytest.param({}, "kill", id="copies, killed", marks=slow),
        pytest.param(SHARDS, "term one", id="shards, one asked", marks=slow),
        pytest.param(SHARDS, "term both", id="shards, both asked", marks=slow),
        pytest.param(SHARDS, "kill", id="shards, killed", marks=slow),
    ],
)
def test_stopped_and_resumed_equals_unstopped(
    env: dict[str, str], how: str, unstopped: Callable[[dict[str, str]], Weights]
) -> None:
    job = {"env": env, "train": {"run_name": "cut", **LORA}, "fault": "slow"}
    with started(Path.cwd(), [job]) as pair:
        wait_for_a_checkpoint("cut")
        for process in pair[1:] if how == "term one" else pair:
            process.send_signal(signal.SIGKILL if how == "kill" else signal.SIGTERM)
        found = outcome(pair)
    if how != "kill":
        assert [code for code, _ in found] == [130, 130], found
        assert sum(text.count("error: Stopped by a signal") for _, text in found) == 1
        assert "a checkpoint was saved" in found[0][1]
    newest, _ = checkpoint.latest(Path("runs/cut/checkpoints"))
    assert newest is not None
    assert newest.name != checkpoint.name(12)
    again = run({"env": env, "train": {"run_name": "cut", **LORA, "resume": "auto"}})
    assert [code for code, _ in again] == [0, 0], again
    whole, cut = unstopped(env), weights("cut")
    assert all(torch.equal(value, cut[name]) for name, value in whole.items())


@pytest.mark.parametrize(
    "env",
    [pytest.param({}, id="copies"), pytest.param(SHARDS, id="shards", marks=slow)],
)
def test_a_process_that_stalls_is_named_and_all_end(env: dict[str, str]) -> None:
    began = time.monotonic()
    job = {"env": env, "train": {"run_name": "stalled", "stall_seconds": 8}, "fault": "stall"}
    found = run(job)
    assert [code for code, _ in found] == [9, 9], found
    assert time.monotonic() - began < 100
    [text] = [text for _, text in found if "error:" in text]
    if env:  # the one that gathers waits within the model, so it can only name both
        assert "stall together at step 4" in text
    else:
        assert "Process 1 stalls: it has been at step 4 (micro-batch 1 of 1)" in text
    stack = Path("runs/stalled/stacks/process-1.txt").read_text()
    assert "token_losses" in stack
    assert Path("runs/stalled/stacks/process-0.txt").is_file()


@pytest.mark.parametrize("env", [pytest.param({}, id="copies"), SHARED_OUT])
def test_all_go_back_where_a_weight_is_not_finite(env: dict[str, str]) -> None:
    job = {"run_name": "back", "nonfinite": "rewind", "eval_strategy": "no", **LORA, "max_steps": 6}
    found = run({"env": env, "train": job, "fault": "broken"})
    assert [code for code, _ in found] == [0, 0], found
    assert "going back to checkpoint-step-2" in found[0][1]
    assert all(value.isfinite().all() for value in weights("back").values())


@pytest.mark.parametrize("env", [pytest.param({}, id="copies"), SHARED_OUT])
def test_an_error_of_one_process_ends_both_with_its_code(env: dict[str, str]) -> None:
    found = run({"env": env, "train": {"run_name": "failed"}, "fault": "error"})
    assert [code for code, _ in found] == [3, 3], found
    said = found[0][1] + found[1][1]
    assert said.count("error:") == 1
    assert "Process 1: A row went missing." in said
    assert "Traceback" not in said


@pytest.mark.parametrize("env", [pytest.param({}, id="copies"), SHARED_OUT])
def test_a_process_that_dies_leaves_none_behind(env: dict[str, str]) -> None:
    (first, said), (second, _) = run({"env": env, "train": {"run_name": "dead"}, "fault": "death"})
    assert (first, second) == (6, -signal.SIGKILL), said
    assert "ended without a word" in said
    assert "Process 1 (last heard of at step" in said


def test_accelerate_launches_two_processes_and_says_why_they_failed() -> None:
    launch = ["--config_file", str(RECIPES / "cpu_two.yaml"), "-m", "tunesmith", "train"]
    given = [
        part
        for name, value in COMMON.items()
        for part in (
            f"--{name.replace('_', '-')}",
            *(value if isinstance(value, list) else [str(value)]),
        )
    ]
    done = launched([*launch, "--device", "cpu", *given, "--run-name", "launched"])
    assert done.returncode == 0, done.stderr
    direct = run({"train": {"run_name": "direct"}})
    assert [code for code, _ in direct] == [0, 0]
    assert all(torch.equal(v, weights("direct")[name]) for name, v in weights("launched").items())
    failed = launched([*launch, "--device", "cpu", *given, "--dataset", "none.jsonl"])
    assert failed.returncode == 1
    assert failed.stderr.count("error: ") == 1
    assert "none.jsonl" in failed.stderr
    assert "exitcode  : 3" in failed.stderr


def launched(given: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "accelerate.commands.launch", *given]
    process = subprocess.Popen(
        command, env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        text = process.communicate(timeout=240)[1]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(command, process.returncode, "", text)
