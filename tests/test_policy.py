"""Numbers that are not finite: no update, the rows named, and every decision replayed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

import tunesmith
from injected import at_forward, break_weight, infinite_gradient, nan_gradient, nan_loss
from test_checkpoint import make_state, weights
from test_training import make_rows
from test_workflows import write_rows
from tiny_models import tiny_model, tiny_tokenizer
from tunesmith.cli import main
from tunesmith.errors import CheckpointError, DivergedError, TrainingError
from tunesmith.train import checkpoint, loop
from tunesmith.train.batches import Plan
from tunesmith.train.decisions import Decisions
from tunesmith.train.ledger import Ledger
from tunesmith.train.loop import Settings, State, fit
from tunesmith.train.policy import OVERFLOWS_IN_A_ROW, Policy

PLAN = Plan(rows=20, rows_a_step=4, total_steps=8, seed=3)
SETTINGS = Settings(1e-2, warmup=2, capacity=4096)
FAULTS = {"loss": nan_loss, "NaN gradient": nan_gradient, "infinite gradient": infinite_gradient}
STOP = Policy()


def steps(state: State, policy: Policy = STOP, accelerator: Any = None):
    accelerator = accelerator or Accelerator(cpu=True)
    return fit(state, make_rows(20), PLAN, SETTINGS, accelerator, policy=policy)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(v, other[n]) for n, v in one.items())


@pytest.mark.parametrize("fault", FAULTS)
def test_stop_makes_no_update_and_names_every_row(fault: str) -> None:
    state = make_state(True)
    running = steps(state)
    with at_forward(state.model, {2}, FAULTS[fault]):
        next(running)
        next(running)
        before = weights(state)
        with pytest.raises(DivergedError) as raised:
            next(running)
    assert equal(before, weights(state))
    assert state.step == 2
    assert all(p.grad is None for p in state.model.parameters())
    for at in PLAN.step_rows(2):
        assert f"test:{at}" in str(raised.value)


@pytest.mark.parametrize("fault", FAULTS)
def test_skip_goes_on_and_enters_the_ledger(fault: str, tmp_path: Path) -> None:
    state = make_state(True)
    state.decisions.path = tmp_path / "decisions.json"
    done = []
    before = weights(state)
    with at_forward(state.model, {1, 5}, FAULTS[fault]):
        for one in steps(state, Policy("skip", 2)):
            if one.skipped:
                assert equal(before, weights(state))
            before = weights(state)
            done.append(one)
    assert [one.step for one in done if one.skipped] == [2, 6]
    assert f"test:{PLAN.step_rows(1)[0]}" in done[1].skipped
    assert state.ledger.skipped == (1, 5)
    assert (state.ledger.count, state.ledger.skipped_rows) == (24, 8)
    assert Decisions.read(state.decisions.path, None).skips == state.decisions.skips
    # A run that has these decisions from the start meets no fault and ends with the same bits.
    replayed = make_state(True)
    replayed.decisions = Decisions.read(state.decisions.path, None)
    list(steps(replayed))
    assert equal(weights(state), weights(replayed))
    assert replayed.ledger == state.ledger


def test_skips_are_exhausted() -> None:
    state = make_state(True)
    with (
        at_forward(state.model, {1, 3, 4}, nan_loss),
        pytest.raises(DivergedError, match="2 steps were skipped already"),
    ):
        list(steps(state, Policy("skip", 2)))
    assert state.step == 4


def test_a_ledger_that_hides_a_skip_does_not_add_up() -> None:
    state = make_state(True)
    with at_forward(state.model, {1}, nan_loss):
        running = steps(state, Policy("skip", 2))
        for _ in range(PLAN.total_steps):
            next(running)
        state.ledger.skipped = ()
        with pytest.raises(TrainingError, match="28 rows were trained and 4 skipped"):
            next(running)
    ledger = Ledger.planned(PLAN, 3, [1])
    assert Ledger.from_json(json.loads(json.dumps(ledger.to_json()))) == ledger
    assert Ledger.from_json({"count": 3, "digest": "x"}) == Ledger(3, "x")


def test_broken_weights_are_never_saved(tmp_path: Path) -> None:
    state = make_state(True)
    running = steps(state)
    next(running)
    good = checkpoint.save(tmp_path, state, {})
    state.optimizer.register_step_post_hook(break_weight(state.model, {0}))
    next(running)
    with pytest.raises(DivergedError, match=r"lora_\w.* is not finite after step 2"):
        checkpoint.save(tmp_path, state, {})
    assert checkpoint.latest(tmp_path) == (good, [])
    with pytest.raises(DivergedError, match="not finite"):
        next(running)


def test_a_broken_optimiser_state_is_never_saved(tmp_path: Path) -> None:
    state = make_state(True)
    next(steps(state))
    first = state.optimizer.param_groups[0]["params"][0]
    state.optimizer.state[first]["exp_avg_sq"].view(-1)[0] = float("inf")
    with pytest.raises(DivergedError, match="the optimiser's exp_avg_sq of"):
        checkpoint.save(tmp_path, state, {})


def test_weights_broken_by_the_last_update_are_found_at_the_end() -> None:
    state = make_state(True)
    state.optimizer.register_step_post_hook(break_weight(state.model, {PLAN.total_steps - 1}))
    with pytest.raises(DivergedError, match="not finite"):
        list(steps(state))


class Halves(Accelerator):
    """An accelerator with fp16's scaler on a CPU."""

    def __init__(self, scale: float, growth_interval: int = 2000) -> None:
        super().__init__(cpu=True)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=growth_interval)


def test_scaled_gradients_are_those_without_a_scale() -> None:
    plain, scaled = make_state(True), make_state(True)
    expected = [(one.loss, one.grad_norm) for one in steps(plain)]
    found = [(one.loss, one.grad_norm) for one in steps(scaled, accelerator=Halves(2.0**10))]
    # A power of two changes no bit of a product.
    assert found == expected
    assert equal(weights(plain), weights(scaled))


def test_overflows_are_counted_and_their_scale_resumes_to_the_bit(tmp_path: Path) -> None:
    def run(stop: int | None, resume: bool) -> tuple[State, list[str]]:
        state = make_state(True)
        accelerator = Halves(2.0**127, growth_interval=2)
        state.scaler = accelerator.scaler
        state.model.register_forward_hook(
            lambda *given: given[-1].logits.register_hook(lambda g: g * 2.0**8) and None
        )
        if resume:
            checkpoint.restore(checkpoint.latest(tmp_path)[0], state)
        said = []
        for one in steps(state, accelerator=accelerator):
            said.append(one.skipped)
            if one.step == stop:
                checkpoint.save(tmp_path, state, {})
                break
        return state, said

    straight, said = run(None, resume=False)
    assert 0 < len(straight.ledger.skipped) < PLAN.total_steps
    assert len([why for why in said if "overflowed" in why]) == len(straight.ledger.skipped)
    assert straight.ledger.count + straight.ledger.skipped_rows == 4 * PLAN.total_steps
    for stop in (1, 3, 6):
        run(stop, resume=False)
        resumed, _ = run(None, resume=True)
        assert equal(weights(straight), weights(resumed))
        assert resumed.scaler.state_dict() == straight.scaler.state_dict()
        assert resumed.ledger == straight.ledger


def test_twenty_overflows_in_a_row_stop_also_across_a_resume(tmp_path: Path) -> None:
    plan = Plan(20, 4, 40, 3)

    def run(steps_: int | None) -> State:
        state = make_state(True)
        accelerator = Halves(2.0**10)
        state.scaler = accelerator.scaler
        path, _ = checkpoint.latest(tmp_path)
        if path is not None:
            checkpoint.restore(path, state)
        with at_forward(state.model, set(range(100)), infinite_gradient):
            for one in fit(state, make_rows(20), plan, SETTINGS, accelerator):
                assert "overflowed" in one.skipped
                if one.step == steps_:
                    break
        checkpoint.save(tmp_path, state, {})
        return state

    assert run(12).overflows == 12
    with pytest.raises(DivergedError, match=f"fp16 {OVERFLOWS_IN_A_ROW} times in a row"):
        run(None)


def test_a_skipped_loss_leaves_the_scale_so_that_a_replay_finds_it() -> None:
    first, replayed = make_state(True), make_state(True)
    with at_forward(first.model, {2}, nan_loss):
        accelerator = Halves(2.0**10, growth_interval=3)
        list(steps(first, Policy("skip", 1), accelerator))
    replayed.decisions.skips = first.decisions.skips
    again = Halves(2.0**10, growth_interval=3)
    list(steps(replayed, Policy("skip", 1), again))
    assert equal(weights(first), weights(replayed))
    assert accelerator.scaler.state_dict() == again.scaler.state_dict()


@pytest.fixture
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows("rows.jsonl")
    tiny_model("llama").save_pretrained("base")
    tiny_tokenizer().save_pretrained("base")


def train(**settings: Any) -> Path:
    common = {"dataset": "rows.jsonl", "model": "base", "max_steps": 8, "log_level": "info"}
    common |= {"report_to": "none", "learning_rate": 0.01, "run_name": "r", "save_steps": 3}
    common |= {"lora": True, "lora_rank": 4, "lora_dropout": 0.1, "logging_steps": 1}
    return tunesmith.train(**{**common, **settings}).run


def final(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "final_model" / "adapter_model.safetensors")


def faulty(patch: pytest.MonkeyPatch, kind: str, at: set[int]) -> None:
    """Let the training of the next runs meet a fault at these steps, once each."""
    backward, make, left = loop._backward, loop.make_optimizer, set(at)

    def faulty_backward(state: State, *given: Any, **more: Any) -> Any:
        loss, *rest = backward(state, *given, **more)
        if kind == "loss" and state.step in left:
            left.discard(state.step)
            loss = float("nan")
        return (loss, *rest)

    def faulty_optimizer(model: Any, settings: Any) -> Any:
        made = make(model, settings)
        if kind == "weights":
            made.register_step_post_hook(break_weight(model, at))
        return made

    patch.setattr(loop, "_backward", faulty_backward)
    patch.setattr(loop, "make_optimizer", faulty_optimizer)


@pytest.mark.usefixtures("in_a_folder")
@pytest.mark.parametrize("policy", ["skip", "rewind"])
def test_a_run_skips_or_goes_back_and_a_resume_replays_it(
    policy: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        faulty(patch, "loss", {4})
        run = train(nonfinite=policy)
    said = capsys.readouterr().err
    assert "step 5 makes no update: loss nan" in said
    assert ("going back to checkpoint-step-3" in said) == (policy == "rewind")
    assert "1 steps with 8 rows made no update (steps 5)" in said
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    [skip] = [record for record in records if record["kind"] == "skip"]
    assert skip["step"] == 5
    assert all("rows.jsonl" in row for row in skip["rows"])
    assert [r["step"] for r in records if r["kind"] == "train"] == [1, 2, 3, 4, 6, 7, 8]
    straight = final(run)
    # The fault does not come again; what was decided does.
    for step in (6, 8):
        (run / "checkpoints" / f"checkpoint-step-{step}" / "state.json").write_text("{}")
    assert equal(final(train(nonfinite=policy, resume="auto")), straight)
    assert "Decided before: step 5" in capsys.readouterr().err


@pytest.mark.usefixtures("in_a_folder")
def test_weights_broken_by_an_update_are_traced_to_their_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clean = train(run_name="clean")
    make = loop.make_optimizer

    def faulty_optimizer(model: Any, settings: Any) -> Any:
        made = make(model, settings)

        def spoil(optimizer: Any, *_: Any) -> None:
            if optimizer.param_groups[0]["lr"] == wanted:
                with torch.no_grad():
                    optimizer.param_groups[0]["params"][0].view(-1)[3] = float("nan")

        made.register_step_post_hook(spoil)
        return made

    records = [json.loads(line) for line in (clean / "metrics.jsonl").read_text().splitlines()]
    [wanted] = [r["lr"] for r in records if r["kind"] == "train" and r["step"] == 5]
    monkeypatch.setattr(loop, "make_optimizer", faulty_optimizer)
    with pytest.raises(DivergedError, match="not finite after step 5 or one before it"):
        train(run_name="stopped")
    run = train(nonfinite="rewind")
    said = capsys.readouterr().err
    assert said.count("going back to checkpoint-step-3") == 2
    assert "step 5 makes no update" in said
    assert all(value.isfinite().all() for value in final(run).values())
    kept = json.loads((run / "decisions.json").read_text())
    assert (list(kept["skips"]), kept["rewinds"]) == (["4"], 2)


@pytest.mark.usefixtures("in_a_folder")
def test_a_rewind_before_the_first_checkpoint_and_its_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        faulty(patch, "loss", {0})
        train(nonfinite="rewind")
    assert "going back to checkpoint-step-0" in capsys.readouterr().err
    faulty(monkeypatch, "loss", {1, 2, 3})
    with pytest.raises(DivergedError, match="--max-nonfinite-steps is 2"):
        train(nonfinite="rewind", max_nonfinite_steps=2, run_name="often")


@pytest.mark.usefixtures("in_a_folder")
def test_settings_that_cannot_act_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    common = ["train", "--dataset", "rows.jsonl", "--model", "base"]
    assert main([*common, "--max-nonfinite-steps", "2"]) == 2
    assert "does nothing with --nonfinite stop" in capsys.readouterr().err
    assert main([*common, "--fp16"]) == 2
    assert "fp16 needs a GPU" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_decisions_that_cannot_be_read_stop_a_resume(tmp_path: Path) -> None:
    path = tmp_path / "decisions.json"
    kept = Decisions({3: "why"}, {2: 64}, 1, 5)
    assert Decisions.read(path, kept.to_json()).to_json() == kept.to_json()
    path.write_text('{"skips": {')
    with pytest.raises(CheckpointError, match="what this run has decided"):
        Decisions.read(path, kept.to_json())
