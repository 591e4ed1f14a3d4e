"""The rate finder: what it suggests, when it says nothing, and that it leaves no trace."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from tiny_models import tiny_model
from tunesmith.cli import main
from tunesmith.errors import DivergedError
from tunesmith.models.adapters import add_lora
from tunesmith.report.text_plot import text_plot
from tunesmith.train.batches import Plan, make_plan
from tunesmith.train.find_rate import BELOW, CAP, Sweep, rates, read, smooth, sweep
from tunesmith.train.loop import Settings, State, fit, make_optimizer
from tunesmith.types import Encoded, Origin

PLAIN = Settings(1e-3)


def ladders(count: int = 480) -> list[Encoded]:
    """Return rows that a tiny model can learn: every token is the one before, plus three."""
    rng = random.Random(0)
    rows = []
    for number in range(count):
        first, length = rng.randrange(60), rng.randint(6, 16)
        ids = tuple(4 + (first + 3 * at) % 60 for at in range(length))
        rows.append(Encoded(ids, (0.0, 0.0) + (1.0,) * (length - 2), Origin("test", number)))
    return rows


def make(kind: str) -> Any:
    model = tiny_model("llama", attention_dropout=0.1)
    return add_lora(model, rank=4, alpha=8, dropout=0.1) if kind == "lora" else model


def swept(
    model: Any, rows: list[Encoded], low: float = 1e-6, high: float = 10.0, steps: int = 100
) -> tuple[Sweep, State, Plan]:
    plan = make_plan(len(rows), 8, 1, None, 1)
    state = State(model, make_optimizer(model, PLAIN))
    accelerator = Accelerator(cpu=True)
    found = sweep(state, rows, plan, PLAIN, accelerator, rates(low, high, steps))
    return found, state, plan


def trained(kind: str, rate: float, rows: list[Encoded]) -> float:
    """Return the loss of the last steps of a short run; infinite if it diverged."""
    model, settings = make(kind), Settings(rate, "cosine", 4)
    state = State(model, make_optimizer(model, settings))
    plan = make_plan(len(rows), 8, 1, None, 1)
    try:
        steps = fit(state, rows, plan, settings, Accelerator(cpu=True))
        return sum([step.loss for step in steps][-8:]) / 8
    except DivergedError:
        return float("inf")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_suggested_rate_beats_much_more_and_much_less(kind: str) -> None:
    rows = ladders()
    found = read(swept(make(kind), rows)[0])
    assert found.suggestion is not None, found.reason
    here = trained(kind, found.suggestion, rows)
    assert here < trained(kind, 30 * found.suggestion, rows) - 0.5
    assert here < trained(kind, found.suggestion / 30, rows) - 0.5


def test_the_flat_start_of_lora_does_not_count() -> None:
    found, _, _ = swept(make("lora"), ladders())
    reading = read(found)
    assert reading.suggestion is not None
    flat = found.smoothed[: len(found.rates) // 3]
    assert max(flat) - min(flat) < 0.1 * reading.drop
    assert reading.suggestion > 10 * found.rates[len(flat)]


def test_a_sweep_leaves_no_trace() -> None:
    rows, model = ladders(), make("lora")
    plan = make_plan(len(rows), 8, 1, 3, 1)
    twin = make("lora")
    fresh = State(twin, make_optimizer(twin, PLAIN))
    expected = [s.loss for s in fit(fresh, rows, plan, PLAIN, Accelerator(cpu=True))]
    before = {name: value.detach().clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    found, state, _ = swept(model, rows, steps=30)
    assert len(found.losses) == 30
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert [module.training for module in model.modules()] == modes
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[:2]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert (state.step, state.ledger.count, dict(state.optimizer.state)) == (0, 0, {})
    after = [s.loss for s in fit(state, rows, plan, PLAIN, Accelerator(cpu=True))]
    assert after == expected


def test_a_started_optimiser_is_put_back_too() -> None:
    rows = ladders(64)
    straight: list[float] = []
    looked: list[float] = []
    for losses, look in ((straight, False), (looked, True)):
        model = make("full")
        state = State(model, make_optimizer(model, PLAIN))
        plan = make_plan(len(rows), 8, 1, 6, 1)
        steps = fit(state, rows, plan, PLAIN, Accelerator(cpu=True))
        losses += [next(steps).loss, next(steps).loss]
        if look:
            found = sweep(state, rows, plan, PLAIN, Accelerator(cpu=True), rates(1e-5, 1e-1, 9))
            assert len(found.losses) == 9
            assert state.step == 2
        losses += [step.loss for step in steps]
    assert straight == looked


def test_the_first_losses_are_those_of_training() -> None:
    rows = ladders(64)
    found, _, plan = swept(make("full"), rows, 1e-4, 1.1e-4, 4)
    model, settings = make("full"), Settings(1e-4, "constant")
    state = State(model, make_optimizer(model, settings))
    first = next(fit(state, rows, plan, settings, Accelerator(cpu=True)))
    assert found.losses[0] == first.loss
    assert found.rates == pytest.approx(rates(1e-4, 1.1e-4, 4))


def test_divergence_stops_the_sweep_and_caps_the_suggestion() -> None:
    found, _, _ = swept(make("full"), ladders())
    assert found.diverged is not None
    assert found.diverged == found.rates[-1] < 10.0
    reading = read(found)
    assert reading.cap == pytest.approx(CAP * found.diverged)
    assert reading.suggestion is not None
    assert reading.suggestion <= reading.cap
    late = Sweep(found.rates, found.losses, found.untrained, 10 * found.rates[0], found.rows)
    assert read(late).suggestion == pytest.approx(found.rates[0])


def test_weights_that_are_not_finite_are_a_divergence_too() -> None:
    model = make("full")
    found, _, _ = swept(model, ladders(), 1e30, 1e38, 30)
    assert found.diverged is not None
    assert len(found.losses) < 30
    assert read(found).suggestion is None
    assert "begin lower" in read(found).reason
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_rates_that_are_too_low_are_inconclusive() -> None:
    reading = read(swept(make("full"), ladders(), 1e-10, 1e-8)[0])
    assert reading.suggestion is None
    assert "higher rate" in reading.reason


def test_targets_that_the_model_knows_are_inconclusive() -> None:
    rows = [Encoded((5,) * 10, (0.0,) * 2 + (1.0,) * 8, Origin("test", n)) for n in range(240)]
    model = tiny_model("llama")
    settings = Settings(1e-2, "constant")
    state = State(model, make_optimizer(model, settings))
    list(fit(state, rows, make_plan(240, 8, 1, None, 1), settings, Accelerator(cpu=True)))
    assert read(swept(model.eval(), rows, steps=60)[0]).suggestion is None


def curve(drop: float, noise: float, steps: int = 120, rise: float = 0.0) -> Sweep:
    """Return a made sweep; with ``rise`` its loss is lowest where that makes it so."""
    rng = random.Random(3)
    swept_rates = rates(1e-6, 1.0, steps)
    fall = [drop / (1 + (1e-3 / rate) ** 2) - rise * rate for rate in swept_rates]
    losses = tuple(3 - part + rng.gauss(0, noise) for part in fall)
    return Sweep(swept_rates, losses, (3.0,) * steps, None, steps)


def test_the_steepest_place_and_the_lowest_of_a_made_curve_are_found() -> None:
    # The slope of 1 / (1 + (a / x)²) against log x is steepest at a, and with 2 x added the sum is
    # lowest where 2 a² / x³ (1 + (a / x)²)² is 2, at a^(2/3) as long as that is far above a.
    reading = read(curve(1.0, 0.02, rise=2.0))
    assert reading.steepest == pytest.approx(1e-3, rel=0.5)
    assert reading.lowest == pytest.approx(1e-2, rel=0.5)
    assert reading.suggestion == pytest.approx(BELOW * reading.lowest)
    assert "half the rate of the lowest loss" in reading.reason
    assert read(curve(1.0, 0.02)).noise == pytest.approx(0.02, rel=0.5)


def test_a_loss_that_still_falls_where_the_sweep_ends_is_said() -> None:
    reading = read(curve(1.0, 0.0))
    assert reading.suggestion is not None
    assert "a higher --lr-end" in reading.reason


def test_a_fall_within_the_noise_is_inconclusive() -> None:
    assert sum(read(curve(0.0, noise)).suggestion is not None for noise in (0.1, 0.5, 2.0)) == 0
    found = read(curve(0.2, 1.0))
    assert found.suggestion is None
    assert "standard errors" in found.reason or "did not fall" in found.reason


def test_hard_batches_do_not_look_like_a_bad_rate() -> None:
    rng = random.Random(1)
    calm = curve(0.5, 0.01, rise=1.0)
    hard = [rng.gauss(0, 1.0) for _ in calm.losses]
    losses = tuple(loss + more for loss, more in zip(calm.losses, hard, strict=True))
    uneven = Sweep(calm.rates, losses, tuple(3 + more for more in hard), None, calm.rows)
    assert read(uneven).suggestion == pytest.approx(read(calm).suggestion, rel=1e-6)


def test_smoothing_is_corrected_for_its_start() -> None:
    assert smooth([2.0] * 5) == pytest.approx([2.0] * 5)
    assert smooth([1.0, 3.0], 0.5) == pytest.approx([1.0, 7 / 3])


def test_the_plot_fits_a_terminal() -> None:
    xs = rates(1e-6, 1.0, 300)
    text = text_plot(xs, [3 + x for x in xs], [(1e-3, "s")])
    assert max(map(len, text.splitlines())) <= 80
    assert text.isascii()
    assert text.splitlines()[-1].strip() == "s"
    assert "1e-3" in text
    assert text_plot([1.0], [float("nan")]) == ""
    assert text_plot([1.0], [2.0]).count("*") == 1


@pytest.fixture
def rows_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    rows = ({"prompt": f"What is {n} + 1?", "completion": f"It is {n + 1}."} for n in range(200))
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "rows.jsonl"


def test_the_command_suggests_and_writes_a_curve(rows_file: str, capsys: Any) -> None:
    command = ["find-lr", "--dataset", rows_file, "--lora", "--lr-steps", "24"]
    assert main([*command, "--save-steps", "7"]) == 0
    said = capsys.readouterr()
    assert "not used here: save_steps 7." in said.err
    stored = json.loads(Path("runs/instruct_rows_rate/rate.json").read_text())
    assert float(said.out) == pytest.approx(stored["suggestion"], rel=0.05)
    assert "The rule: half the rate at which the loss is lowest" in said.err
    assert len(stored["losses"]) == len(stored["rates"]) == len(stored["smoothed"])
    page = Path("runs/instruct_rows_rate/rate.html").read_text()
    assert "<svg" in page
    assert "log10 of the learning rate" in page


def test_the_command_says_inconclusive_and_exits_with_0(rows_file: str, capsys: Any) -> None:
    command = ["find-lr", "--dataset", rows_file, "--lr-start", "1e-12", "--lr-end", "1e-11"]
    assert main([*command, "--lr-steps", "20"]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "Inconclusive" in said.err
    assert json.loads(Path("runs/instruct_rows_rate/rate.json").read_text())["suggestion"] is None
    assert main([*command, "--lr-end", "1e-13"]) == 2
