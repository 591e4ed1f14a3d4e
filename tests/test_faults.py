"""Faults in numbers: kills, signals, power cuts, system calls, flipped bits, NaN, a full disk.

``make test-reliability`` makes a share of each, ``make nightly`` all of it; both print the number.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

import power_cut
from injected import at_forward, break_weight
from shares import NIGHTLY, share, tell
from test_checkpoint import make_state, steps, weights
from test_policy import FAULTS, equal, final, in_a_folder, train  # noqa: F401
from test_training import make_rows
from tunesmith.errors import DivergedError, StorageError
from tunesmith.train import checkpoint
from tunesmith.train.batches import Plan, epoch_order
from tunesmith.train.loop import Settings, fit

pytestmark = pytest.mark.reliability
HERE = Path(__file__).parent


def script(name: str, *given: str) -> str:
    """Run one of the long scripts; return the line that it ends with."""
    command = [sys.executable, "-W", "ignore", str(HERE / name), *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == power_cut.UNABLE:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip().splitlines()[-1]


def counted(what: str, full: int, part: int, limit: list[str], name: str, *given: str) -> None:
    """Let a script make its faults, whose number is its last argument, and count them."""
    said = script(name, *given, str(share(full, part)), *([] if NIGHTLY else limit))
    done = int(said.split()[1])
    print(said)
    tell(what, done, full)
    assert done >= (full if NIGHTLY else 1)


@pytest.mark.parametrize(
    ("signal_", "full", "part"), [("SIGKILL", 10_000, 40), ("SIGTERM", 250, 8), ("SIGINT", 250, 8)]
)
def test_runs_ended_anywhere_end_with_the_same_bits(signal_: str, full: int, part: int) -> None:
    limit = ["--seconds", "30" if signal_ == "SIGKILL" else "15"]
    given = ["kill_anywhere.py", "--signal", signal_, "--kills"]
    counted(f"ended by {signal_}", full, part, limit, *given)


def test_runs_whose_power_is_cut_go_on_from_what_the_disk_held() -> None:
    counted("power cuts", 1000, 30, ["--seconds", "15"], "power_cut.py", "--cuts")


def test_sampling_killed_anywhere_ends_with_the_same_attempts() -> None:
    limit = ["--seconds", "8", "--jobs", "1"]
    counted("sampling ended by SIGKILL", 1000, 10, limit, "kill_sampling.py", "--kills")


def test_exports_killed_anywhere_leave_the_old_one_or_the_new_one() -> None:
    limit = ["--seconds", "5", "--jobs", "1"]
    counted("exports ended by SIGKILL", 1000, 12, limit, "kill_export.py", "--kills")


def test_every_system_call_of_a_save_may_fail() -> None:
    if shutil.which("cc") is None or not sys.platform.startswith("linux"):
        pytest.skip("needs a C compiler on Linux")
    print(script("system_calls.py", "--stride", "1" if NIGHTLY else "4"))


def test_flipped_bits_and_cuts_are_found_before_a_tensor_is_used(tmp_path: Path) -> None:
    state = make_state(True)
    next(steps(state))
    path = checkpoint.save(tmp_path, state, {})
    rng = random.Random(4)
    whole = {file: file.read_bytes() for file in sorted(path.iterdir())}
    manifest = json.loads(whole[path / "manifest.json"])
    files, sizes = list(whole), [len(raw) for raw in whole.values()]
    full, wanted = 100_000, share(100_000, 2_000)
    for number in range(wanted):
        # Every byte of the checkpoint is as likely as any other, and small files get their part.
        target = rng.choices(files, sizes if number % 2 else None)[0]
        damaged = bytearray(whole[target])
        if number % 10:
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        else:
            del damaged[rng.randrange(len(damaged)) :]
        target.write_bytes(damaged)
        if checkpoint.verify(path) is None:
            assert target.name == "manifest.json"
            assert json.loads(damaged) == manifest  # white space of JSON carries no meaning
        target.write_bytes(whole[target])
    tell("flipped bits and cuts found", wanted, full)


def test_nan_anywhere_makes_no_update_and_names_the_rows(tmp_path: Path) -> None:
    full, wanted = 200, share(200, 40)
    plan, settings = Plan(20, 4, 6, 3), Settings(1e-2, capacity=4096)
    rng = random.Random(5)
    for number in range(wanted):
        kind = [*FAULTS, "weights"][number % 4]
        at = rng.randrange(plan.total_steps)
        state = make_state(bool(number % 8 < 4), settings)
        running = fit(state, make_rows(20), plan, settings, Accelerator(cpu=True))
        if kind == "weights":
            state.optimizer.register_step_post_hook(break_weight(state.model, {at}))
            for _ in range(at + 1):
                next(running)
            with pytest.raises(DivergedError, match="is not finite after step"):
                checkpoint.save(tmp_path, state, {})
            # A weight that no row reaches shows in no loss, but nothing is kept or ended with it.
            with pytest.raises(DivergedError, match="is not finite after step"):
                list(running)
            assert not checkpoint.steps(tmp_path)
            continue
        with at_forward(state.model, {at}, FAULTS[kind]):
            for _ in range(at):
                next(running)
            before_ = weights(state)
            with pytest.raises(DivergedError) as raised:
                next(running)
        assert equal(before_, weights(state))
        assert state.step == at
        assert all(f"test:{row}" in str(raised.value) for row in plan.step_rows(at))
    tell("NaN in loss, gradients and weights", wanted, full)


def test_the_order_is_a_function_of_seed_epoch_and_position() -> None:
    full, wanted = 100_000, share(100_000, 10_000)
    rng = random.Random(6)
    done = 0
    while done < wanted:
        rows, a_step, seed = rng.randint(1, 400), rng.randint(1, 30), rng.randrange(1 << 32)
        plan = Plan(rows, a_step, 10**6, seed)
        for _ in range(50):
            epoch, position = rng.randrange(20), rng.randrange(rows)
            step = epoch * plan.steps_an_epoch + position // a_step
            random.seed(rng.random())  # what others draw must not matter
            assert (
                plan.step_rows(step)[position % a_step] == epoch_order(rows, seed, epoch)[position]
            )
            assert plan.epoch(step) == epoch
            done += 1
        assert sorted(epoch_order(rows, seed, 3)) == list(range(rows))
    tell("orders by seed, epoch and position", done, full)


@pytest.mark.usefixtures("in_a_folder")
def test_a_full_disk_says_how_much_it_needs_and_costs_nothing(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    size = "size=2m"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(small)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs leave to mount a small disk")
    filler = small / "filler"
    try:
        settings: dict[str, Any] = {"output_dir": str(small), "save_steps": 2, "lora_rank": 8}
        settings |= {"log_level": "error", "save_total_limit": 9}
        straight = final(train(**settings))
        stopped = tmp_path / "stopped"
        shutil.copytree(small / "r", stopped)
        for path in (
            "final_model",
            "best_model",
            "eval",
            *(f"checkpoints/checkpoint-step-{n}" for n in (4, 6, 8)),
        ):
            shutil.rmtree(stopped / path, ignore_errors=True)
        places = 0
        for free in range(0, 400, 80):
            shutil.rmtree(small / "r", ignore_errors=True)
            shutil.copytree(stopped, small / "r")
            left = shutil.disk_usage(small).free
            with filler.open("wb") as file:
                file.write(b"x" * max(0, left - free * 1024))
            kept = checkpoint.latest(small / "r" / "checkpoints")[0]
            began = time.monotonic()
            refused = None
            try:
                train(**settings, resume="auto")
            except StorageError as failure:
                refused = failure
            places += refused is not None
            assert refused is None or "the disk is full" in str(refused)
            assert checkpoint.latest(small / "r" / "checkpoints")[0] is not None
            assert kept is not None
            assert time.monotonic() - began < 60
            filler.unlink()
            found = final(train(**settings, resume="auto"))
            assert equal(found, straight)
        assert places > 0
        print(f"full disk: {places} runs stopped by it, each went on once there was room")
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)


def test_a_checkpoint_without_room_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = make_state(True)
    next(steps(state))
    first = checkpoint.save(tmp_path, state, {})
    tensors = ("model.safetensors", "optimizer.safetensors")
    needed = sum((first / name).stat().st_size for name in tensors)
    state.step += 1
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    began = time.monotonic()
    with pytest.raises(StorageError, match="the disk is full") as raised:
        checkpoint.save(tmp_path, state, {})
    assert time.monotonic() - began < 5
    [said] = [int(w.strip("(").replace(",", "")) for w in str(raised.value).split() if w[0] == "("]
    assert 0.8 * needed < said <= needed
    assert checkpoint.latest(tmp_path) == (first, [])
    assert not list(tmp_path.glob(".*"))
