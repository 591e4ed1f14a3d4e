"""--minutes: the plan that fits, with a stand-in clock, and that it is kept to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tunesmith
from test_workflows import in_a_folder, weights, write_rows  # noqa: F401
from tunesmith.cli import main
from tunesmith.config.load import ARGUMENT, resolve
from tunesmith.config.schema import FineTuningConfig
from tunesmith.errors import UsageError
from tunesmith.train.batches import make_plan
from tunesmith.train.budget import Costs, Method, Rhythm, choose, most_steps, seconds_of
from tunesmith.train.ledger import Ledger
from tunesmith.train.schedule import factor
from tunesmith.workflows import minutes
from tunesmith.workflows.method import check_method

COMMAND = ["train", "--dataset", "rows.jsonl", "--report-to", "none", "--eval-steps", "4"]
COMMAND += ["--learning-rate", "0.001", "--save-steps", "5"]
FREE = Costs(0.0, 0.0, 0.0)
seconds = st.floats(0.01, 100)


class Clock:
    """A clock that moves by so many seconds each time that it is looked at."""

    def __init__(self, tick: float) -> None:
        self.now, self.tick = 0.0, tick

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


def fake(monkeypatch: pytest.MonkeyPatch, tick: float, *a_step: float) -> list[dict[str, Any]]:
    """Let probes say these seconds a step, method by method, and return what was asked of them."""
    asked: list[dict[str, Any]] = []

    def measure(_o: Any, _a: Any, name: str, changes: dict[str, Any], *_: Any) -> Any:
        asked.append(changes)
        return Method(name, changes, a_step[len(asked) - 1]), Costs(1.0, 1.0, 10.0)

    monkeypatch.setattr(minutes, "clock", Clock(tick))
    monkeypatch.setattr(minutes, "measure", measure)
    return asked


def decided(run: str) -> dict[str, Any]:
    return dict(json.loads(Path(f"runs/{run}/plan.json").read_text()))


def manifest(run: str) -> dict[str, Any]:
    return dict(json.loads(Path(f"runs/{run}/manifest.json").read_text()))


@given(
    seconds,
    seconds,
    st.builds(Costs, seconds, seconds, seconds),
    st.builds(Rhythm, st.none() | st.integers(1, 9), st.integers(1, 9)),
)
def test_the_most_steps_fit_and_one_more_does_not(
    time: float, a_step: float, costs: Costs, rhythm: Rhythm
) -> None:
    steps = most_steps(time, a_step, costs, rhythm)
    assert steps == 0 or seconds_of(steps, a_step, costs, rhythm) <= time
    assert seconds_of(steps + 1, a_step, costs, rhythm) > time


def test_another_method_has_to_be_worth_it() -> None:
    rhythm = Rhythm(None, 100)
    full, near, far = Method("full", {}, 1.0), Method("a", {}, 0.9), Method("b", {}, 0.5)
    assert choose([full, near], 100, FREE, rhythm, 1000) == (full, 100)
    assert choose([full, near, far], 100, FREE, rhythm, 1000) == (far, 200)
    assert choose([full, far], 100, FREE, rhythm, 70) == (full, 70)


def test_the_steps_that_fit_are_planned_and_the_schedule_ends_with_them(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    write_rows("rows.jsonl", 400)
    fake(monkeypatch, 0.0, 2.0)
    assert main([*COMMAND, "--minutes", "1", "--freeze-ratio", "0.5", "--logging-steps", "1"]) == 0
    # 55.2 s less 10 s for the end: 19 steps, 4 looks and 3 checkpoints of a second take 45 s.
    assert decided("instruct_rows")["minutes"]["steps"] == 19
    said = capsys.readouterr().err
    assert "--minutes 1: 19 steps" in said
    assert "of 1 minutes" in said
    lines = Path("runs/instruct_rows/metrics.jsonl").read_text().splitlines()
    *_, last = (line for line in map(json.loads, lines) if line["kind"] == "train")
    assert last["step"] == manifest("instruct_rows")["steps"] == 19
    assert last["lr"] == pytest.approx(1e-3 * factor("cosine", 18, 19, 1))


@pytest.mark.slow
def test_enough_time_adds_no_epochs(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    write_rows("rows.jsonl", 24)
    asked = fake(monkeypatch, 0.0, 0.01)
    assert main([*COMMAND, "--minutes", "60"]) == 0
    assert "none are added" in capsys.readouterr().err
    assert asked == [{}]
    assert manifest("instruct_rows")["steps"] == manifest("instruct_rows")["planned steps"] == 6


@pytest.mark.slow
def test_a_cheaper_method_is_taken_where_the_time_is_short(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    write_rows("rows.jsonl", 400)
    command = [word for word in COMMAND if word not in ("--learning-rate", "0.001")]
    asked = fake(monkeypatch, 0.0, 9.0, 4.0, 8.0, 6.0)
    assert main([*command, "--minutes", "1"]) == 0
    assert [sorted(changes) for changes in asked] == [
        [], ["learning_rate", "lora"], ["freeze_ratio"], ["freeze_ratio"]
    ]  # fmt: skip
    assert decided("instruct_rows")["minutes"]["changes"] == {
        "lora": True,
        "learning_rate": pytest.approx(3e-4),
    }
    assert Path("runs/instruct_rows/final_model/adapter_config.json").is_file()
    assert "by LoRA" in capsys.readouterr().err


@pytest.mark.slow
def test_what_was_set_is_not_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows("rows.jsonl", 400)
    asked = fake(monkeypatch, 0.0, 9.0)
    assert main([*COMMAND, "--minutes", "1"]) == 0
    assert asked == [{}]


def test_no_more_layers_are_recomputed_than_a_cheaper_method_reaches(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    write_rows("rows.jsonl", 60)
    real, built = minutes.measure, []

    def measure(*given: Any) -> Any:
        built.append(given[3])
        real(*given)  # each method can be built
        return Method(given[2], given[3], 9.0), Costs(1.0, 1.0, 10.0)

    monkeypatch.setattr(minutes, "clock", Clock(0.0))
    monkeypatch.setattr(minutes, "measure", measure)
    command = ["train", "--dataset", "rows.jsonl", "--report-to", "none", "--minutes", "1"]
    assert main([*command, "--gradient-checkpointing", "4"]) == 0
    assert built[2:] == [
        {"freeze_ratio": 0.5, "gradient_checkpointing": 3},
        {"freeze_ratio": 0.75, "gradient_checkpointing": 2},
    ]
    assert "50% of the bottom layers frozen and the 3 others computed again (9" in (
        capsys.readouterr().err
    )


def test_a_cheaper_method_that_cannot_be_built_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    write_rows("rows.jsonl", 60)
    Path("c.yaml").write_text("lora_target_modules: [nothing]\n")
    real = minutes.measure

    def measure(*given: Any) -> Any:
        real(*given)
        return Method(given[2], given[3], 9.0), Costs(1.0, 1.0, 10.0)

    monkeypatch.setattr(minutes, "clock", Clock(0.0))
    monkeypatch.setattr(minutes, "measure", measure)
    command = ["train", "--dataset", "rows.jsonl", "--report-to", "none", "--minutes", "1"]
    assert main([*command, "--config", "c.yaml"]) == 0
    said = capsys.readouterr().err
    assert "LoRA is not tried: The LoRA targets nothing do not all match" in said
    assert [*decided("instruct_rows")["minutes"]["measured"]][1:] == [
        "50% of the bottom layers frozen",
        "75% of the bottom layers frozen",
    ]


def test_a_best_model_that_the_planned_steps_cannot_have_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    write_rows("rows.jsonl", 60)
    fake(monkeypatch, 0.0, 9.0)
    given = [*COMMAND, "--keep-best", "2", "--minutes", "1"]
    given[given.index("--eval-steps") + 1] = "10"
    assert main(given) == 0
    said = " ".join(capsys.readouterr().err.split())
    steps = decided("instruct_rows")["minutes"]["steps"]
    assert f"no held-out loss is taken before the last of the {steps} steps" in said


def test_a_model_of_one_layer_has_none_to_freeze() -> None:
    [(name, _)] = minutes._cheaper(FineTuningConfig(), {}, 1)
    assert name == "LoRA"


def test_too_short_a_time_is_refused_with_what_it_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    write_rows("rows.jsonl", 40)
    fake(monkeypatch, 0.0, 9.0)
    assert main([*COMMAND, "--minutes", "0.2"]) == 2
    assert "is too short for this run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--max-steps", "3"], "--minutes and --max-steps cannot both be given"),
        (["--num-epochs", "2"], "--minutes and --num-epochs cannot both be given"),
    ],
)
def test_two_ways_to_say_how_long_are_refused(more: list[str], said: str, capsys: Any) -> None:
    write_rows("rows.jsonl", 24)
    assert main([*COMMAND, "--minutes", "1", *more]) == 2
    assert said in capsys.readouterr().err


def test_typed_steps_and_typed_epochs_are_refused(capsys: Any) -> None:
    write_rows("rows.jsonl", 24)
    assert main([*COMMAND, "--max-steps", "2", "--num-epochs", "3"]) == 2
    said = capsys.readouterr().err
    assert "--max-steps and --num-epochs cannot both be given" in said
    assert "Try: --max-steps 2 or --num-epochs 3 alone" in said
    with pytest.raises(UsageError, match="whatever the epochs"):
        tunesmith.train(dataset="rows.jsonl", max_steps=2, num_epochs=5)


def test_steps_go_with_the_epochs_of_a_file_or_preset() -> None:
    both = {"num_epochs": 5, "max_steps": 2}
    Path("c.yaml").write_text("num_epochs: 5\nmax_steps: 2\n")
    for typed, configs in (
        ({}, ["c.yaml"]),
        ({"max_steps": 3}, ["c.yaml"]),
        ({"num_epochs": 3}, ["c.yaml"]),
        ({"max_steps": 3}, ["high_quality"]),
        ({"num_epochs": 3}, ["quick_test"]),
        ({"max_steps": 3, "num_epochs": None}, []),
    ):
        check_method(resolve(FineTuningConfig, typed, configs))
    with pytest.raises(UsageError):
        check_method(resolve(FineTuningConfig, both, ["c.yaml"]))
    # What a stored run's settings become, all of them handed over as arguments.
    stored = resolve(FineTuningConfig, {"max_steps": 2, "lora": True}).options.model_dump()
    check_method(resolve(FineTuningConfig, stored, origin=ARGUMENT))


def test_a_machine_that_became_slower_ends_in_time_and_resumes_to_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    write_rows("rows.jsonl", 400)
    fake(monkeypatch, 3.0, 1.0)
    assert main([*COMMAND, "--minutes", "1"]) == 0
    said = capsys.readouterr().err
    stopped, planned = decided("instruct_rows")["stopped_at"], decided("instruct_rows")["minutes"]
    assert 5 < stopped < planned["steps"]
    assert f"Stopped by --minutes after step {stopped} of {planned['steps']}" in said
    assert manifest("instruct_rows")["stopped early"]
    state = Path(f"runs/instruct_rows/checkpoints/checkpoint-step-{stopped}")
    ledger = json.loads((state / "state.json").read_text())["ledger"]
    plan = make_plan(360, 8, 1, planned["steps"], 42)
    expected = Ledger.planned(plan, stopped)
    assert (ledger["count"], ledger["digest"]) == (expected.count, expected.digest)
    first = weights("instruct_rows")
    # Resumed from an earlier checkpoint it takes the same plan and ends at the same step.
    (state / "model.safetensors").write_bytes(b"torn")
    monkeypatch.setattr(minutes, "clock", Clock(0.0))
    assert main([*COMMAND, "--minutes", "1", "--resume"]) == 0
    assert "As planned at first" in capsys.readouterr().err
    again = weights("instruct_rows")
    assert all(torch.equal(value, again[name]) for name, value in first.items())


@pytest.mark.slow
def test_a_resumed_run_trains_the_same_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows("rows.jsonl", 400)
    fake(monkeypatch, 0.0, 3.0)
    assert main([*COMMAND, "--minutes", "1"]) == 0
    first, steps = weights("instruct_rows"), manifest("instruct_rows")["steps"]
    torn = Path(f"runs/instruct_rows/checkpoints/checkpoint-step-{steps}/model.safetensors")
    torn.write_bytes(b"torn")
    fake(monkeypatch, 7.0, 1.0)
    assert main([*COMMAND, "--minutes", "1", "--resume"]) == 0
    again = weights("instruct_rows")
    assert manifest("instruct_rows")["planned steps"] == steps
    assert all(torch.equal(value, again[name]) for name, value in first.items())


@pytest.mark.slow
def test_measuring_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows("rows.jsonl", 60)
    assert main([*COMMAND, "--minutes", "60", "--run-name", "measured"]) == 0
    epochs = str(manifest("measured")["steps"])
    assert main([*COMMAND, "--max-steps", epochs, "--run-name", "plain"]) == 0
    one, other = weights("measured"), weights("plain")
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert not list(Path("runs/measured").glob(".probe*"))
