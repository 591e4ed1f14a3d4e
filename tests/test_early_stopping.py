"""Runs that stop early or end with their best model: what they say, keep, and resume to."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from test_methods import check_resume, in_a_folder, train, trained  # noqa: F401
from tunesmith.cli import main
from tunesmith.workflows.progress import Progress, best_steps

RISING = {"learning_rate": 0.02, "lr_scheduler_type": "constant", "max_steps": 40, "eval_steps": 1}
"""A rate that soon learns the few rows by heart, so that the held-out loss rises."""


@pytest.fixture(autouse=True)
def rows_without_a_rule(in_a_folder: None) -> None:  # noqa: F811
    rng = random.Random(0)
    rows = [
        {"prompt": f"Word {n}?", "completion": "".join(rng.choices("abcdefgh", k=12))}
        for n in range(24)
    ]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def evaluations(run: Path) -> list[tuple[int, float]]:
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(r["step"], r["loss"]) for r in records if r["kind"] == "eval"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    [file] = folder.glob("*.safetensors")
    return load_file(file)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(v, other[n]) for n, v in one.items())


@pytest.mark.parametrize("patience", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_run_stops_when_patience_is_over(
    patience: int, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(**RISING, early_stopping_patience=patience, log_level="info")
    found = evaluations(run)
    best = min(found, key=lambda one: one[1])
    assert [step for step, _ in found] == list(range(1, best[0] + patience + 1))
    said = capsys.readouterr().err
    assert f"Stopped early, after step {best[0] + patience} of 40" in said
    assert f"final_model is the best one, of step {best[0]}" in said
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["finished"]
    assert manifest["stopped early"]
    assert (manifest["steps"], manifest["planned steps"]) == (best[0] + patience, 40)
    assert equal(weights(run / "final_model"), weights(run / "best_model"))
    assert (run / "checkpoints" / f"checkpoint-step-{best[0]}").is_dir()


def test_a_run_that_gets_better_does_not_stop() -> None:
    run = train(learning_rate=1e-4, max_steps=6, eval_steps=1, early_stopping_patience=1)
    manifest = json.loads((run / "manifest.json").read_text())
    assert not manifest["stopped early"]
    assert manifest["steps"] == 6


@pytest.mark.parametrize("last", [True, False])
def test_a_run_ends_with_its_best_model_if_asked(last: bool) -> None:
    settings = {**RISING, "max_steps": 8}
    done = trained(**settings, load_best_model_at_end=not last, save_total_limit=2)
    run, found = done.run, evaluations(done.run)
    best = min(found, key=lambda one: one[1])
    assert best[0] < 7, "the held-out loss was to rise"
    assert done.held_out_loss == (found[-1] if last else best)[1]
    assert equal(weights(run / "final_model"), weights(run / "best_model")) is not last
    kept = sorted(p.name for p in (run / "checkpoints").iterdir())
    assert (f"checkpoint-step-{best[0]}" in kept) is not last
    assert "checkpoint-step-8" in kept


def test_the_best_checkpoint_is_among_those_kept() -> None:
    run = train(**{**RISING, "max_steps": 9}, load_best_model_at_end=True, save_steps=1)
    best, _ = min(evaluations(run), key=lambda one: one[1])
    kept = sorted(int(p.name[16:]) for p in (run / "checkpoints").iterdir())
    assert best < 7
    assert kept == [best, 8, 9]


@pytest.mark.slow
def test_the_best_few_checkpoints_are_kept_besides_the_last() -> None:
    settings = {**RISING, "max_steps": 14, "save_total_limit": 2, "save_steps": 1, "keep_best": 3}
    run = train(**settings)
    ranked = [step for _, step in sorted((loss, step) for step, loss in evaluations(run))]
    kept = sorted(int(p.name[16:]) for p in (run / "checkpoints").iterdir())
    assert kept == sorted({*ranked[:3], 13, 14})
    assert len(kept) > 2, "the best were to be early ones"
    check_resume({**RISING, "max_steps": 9, "save_steps": 4, "keep_best": 2})


def test_a_checkpoint_of_a_best_loss_is_saved_between_two_others() -> None:
    run = train(**{**RISING, "max_steps": 9}, save_steps=100, keep_best=2)
    ranked = [step for _, step in sorted((loss, step) for step, loss in evaluations(run))]
    kept = {int(p.name[16:]) for p in (run / "checkpoints").iterdir()}
    assert {*ranked[:2], 9} <= kept


def test_steps_are_ranked_by_their_loss() -> None:
    records = [{"kind": "eval", "step": n, "loss": loss} for n, loss in enumerate([3, 1, 2, 1])]
    records += [{"kind": "eval", "step": 9, "loss": float("nan")}, {"kind": "train", "step": 5}]
    assert best_steps(records, 3) == [1, 3, 2]
    assert best_steps(records, 0) == []


PISSA = {"lora": True, "lora_rank": 4, "lora_init": "pissa"}


@pytest.mark.parametrize(
    ("method", "patience"),
    [
        ({}, 3),
        (PISSA, 1),
        pytest.param({}, 1, marks=pytest.mark.slow),
        pytest.param(PISSA, 3, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_run_that_stopped_early_resumes_to_the_bit(method: dict[str, Any], patience: int) -> None:
    check_resume({**RISING, "early_stopping_patience": patience, "save_steps": 2, **method})


def test_a_stopped_run_stays_stopped_and_goes_on_with_more_patience() -> None:
    settings = {**RISING, "max_steps": 12}
    run = train(**settings, early_stopping_patience=1)
    before, found = weights(run / "final_model"), evaluations(run)
    assert train(**settings, early_stopping_patience=1, resume="auto") == run
    assert equal(before, weights(run / "final_model"))
    assert evaluations(run) == found
    train(**settings, early_stopping_patience=5, resume="auto")
    straight = train(**settings, early_stopping_patience=5, run_name="straight")
    assert len(evaluations(run)) > len(found)
    assert evaluations(run) == evaluations(straight)
    assert equal(weights(run / "final_model"), weights(straight / "final_model"))


def test_a_broken_best_checkpoint_is_said_and_the_last_model_kept(
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = {**RISING, "max_steps": 8, "load_best_model_at_end": True}
    run = train(**settings)
    best, _ = min(evaluations(run), key=lambda one: one[1])
    (run / "checkpoints" / f"checkpoint-step-{best}" / "model.safetensors").write_bytes(b"torn")
    capsys.readouterr()
    train(**settings, resume="auto", log_level="warning")
    assert "final_model is the last one; best_model holds the best" in capsys.readouterr().err
    assert not equal(weights(run / "final_model"), weights(run / "best_model"))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("--early-stopping-patience 2 --eval-strategy no", "takes none on the way"),
        ("--load-best-model-at-end --validation-split 0", "holds no rows out"),
        ("--keep-best 2 --eval-strategy no", "--keep-best 2 goes by the held-out loss"),
    ],
)
def test_without_held_out_losses_there_is_no_best(
    command: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(f"train --dataset rows.jsonl --model base {command}".split()) == 2
    assert message in capsys.readouterr().err
    assert not Path("runs").exists()


SIX = "train --dataset rows.jsonl --model base --max-steps 6"


@pytest.mark.parametrize(
    ("command", "message", "hint"),
    [
        (f"{SIX} --early-stopping-patience 2", "before the last of the 6 steps", "--eval-steps 1"),
        (f"{SIX} --keep-best 2 --eval-steps 6", "--eval-steps is 6", "--eval-steps 1"),
        (
            f"{SIX} --load-best-model-at-end --eval-strategy epoch --gradient-accumulation-steps 1",
            "each epoch has 6",
            "--eval-strategy steps --eval-steps 1",
        ),
        (
            "train --dataset rows.jsonl --model base --max-steps 1 --keep-best 2",
            "before the one step",
            "leave it out",
        ),
    ],
)
def test_without_a_look_on_the_way_there_is_no_best(
    command: str, message: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command.split(), "--per-device-train-batch-size", "4"]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert f"Try: {hint}" in said
    assert not Path("runs").exists()


def test_what_a_file_asks_of_looks_in_vain_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    Path("c.yaml").write_text("keep_best: 2\n")
    assert main(f"{SIX} --config c.yaml --report-to none".split()) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "--keep-best 2 does nothing: no held-out loss is taken before the last of the 6" in said
    assert "(--eval-steps 1)" in said


def test_losses_are_counted_since_the_best() -> None:
    progress = Progress()
    taken = [3.0, 2.0, 2.0, float("nan"), 1.5, 1.6]
    assert [progress.note(n, loss) for n, loss in enumerate(taken)] == [1, 1, 0, 0, 1, 0]
    assert progress == Progress(1.5, 4, 1)
    assert Progress.from_json(progress.to_json()) == progress
    assert Progress.from_json({"best": 2.0, "losses": []}) == Progress(2.0)
    assert progress.is_over(1)
    assert not progress.is_over(2)
    assert not progress.is_over(None)
