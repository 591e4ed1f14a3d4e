"""The arithmetic of training: packing, accumulation, the shift, schedules."""

from __future__ import annotations

import random
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st

from tiny_models import ARCHITECTURES, tiny_model
from tunesmith.errors import ModelError, TrainingError
from tunesmith.models.adapters import add_lora, freeze_bottom, recompute_activations
from tunesmith.train import processes
from tunesmith.train.batches import Plan, epoch_order, make_plan, pack
from tunesmith.train.ledger import Ledger
from tunesmith.train.loop import Settings, State, Work, _backward, fit, make_optimizer
from tunesmith.train.losses import packed_rows, row_losses, token_losses
from tunesmith.train.schedule import factor, warmup_steps
from tunesmith.types import Encoded, Origin

CPU = torch.device("cpu")


def make_rows(count: int, seed: int = 0, longest: int = 30) -> list[Encoded]:
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        length = rng.randint(3, longest)
        ids = tuple(rng.randrange(4, 300) for _ in range(length))
        prompt = rng.randint(1, length - 1)
        weights = tuple(0.0 if at < prompt else 1.0 for at in range(length))
        rows.append(Encoded(ids, weights, Origin("test", number)))
    return rows


def gradients(model, rows, *, packing: bool):
    model.zero_grad()
    if packing:
        with packed_rows(model, rows):
            losses, weights, _, _ = token_losses(model, rows, CPU)
            loss = (losses * weights).sum() / weights.sum()
            loss.backward()
    else:
        losses, weights, _, _ = token_losses(model, rows, CPU, packing=False)
        loss = (losses * weights).sum() / weights.sum()
        loss.backward()
    return float(loss.detach()), {
        n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
    }


def test_packed_equals_unpacked_where_soft_caps_bite() -> None:
    compare_packed(tiny_model("gemma2", attn_logit_softcapping=0.05))
    loose, _ = gradients(tiny_model("gemma2"), make_rows(5), packing=True)
    tight, _ = gradients(
        tiny_model("gemma2", attn_logit_softcapping=0.05), make_rows(5), packing=True
    )
    assert loose != pytest.approx(tight, rel=1e-4)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_packed_equals_unpacked(arch: str) -> None:
    compare_packed(tiny_model(arch))


def compare_packed(model) -> None:
    rows = make_rows(5)
    packed_loss, packed_grads = gradients(model, rows, packing=True)
    loss, grads = gradients(model, rows, packing=False)
    assert packed_loss == pytest.approx(loss, rel=1e-5)
    assert grads.keys() == packed_grads.keys()
    for name, gradient in grads.items():
        scale = max(1.0, float(gradient.abs().max()))
        assert torch.allclose(packed_grads[name], gradient, atol=2e-5 * scale), name


@pytest.mark.parametrize("arch", ["llama", "gemma2"])
def test_attention_dropout_acts_in_training_only(arch: str) -> None:
    model = tiny_model(arch, attention_dropout=0.5)
    rows = make_rows(3)

    def twice() -> list[float]:
        return [gradients(model, rows, packing=True)[0] for _ in range(2)]

    first, second = twice()
    assert first == second
    model.train()
    first, second = twice()
    assert first != second


def test_packed_rows_under_gradient_checkpointing() -> None:
    model = tiny_model("llama")
    rows = make_rows(4)
    model.train()
    _, plain = gradients(model, rows, packing=True)
    recompute_activations(model)
    _, recomputed = gradients(model, rows, packing=True)
    assert all(torch.allclose(plain[n], recomputed[n], atol=1e-6) for n in plain)


def test_loss_is_the_hand_computed_one() -> None:
    model = tiny_model("llama")
    row = Encoded((5, 6, 7, 8), (0.0, 0.0, 1.0, 0.5), Origin("test"))
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[5, 6, 7, 8]])).logits[0].log_softmax(-1)
    by_hand = -(logits[1, 7] * 1.0 + logits[2, 8] * 0.5)
    [(loss, weight)] = row_losses(model, [row], CPU, 100)
    assert loss == pytest.approx(float(by_hand), rel=1e-5)
    assert weight == 1.5


def train_losses(model, rows, settings: Settings, steps: int, rows_a_step: int = 8) -> list[float]:
    plan = make_plan(len(rows), rows_a_step, 1, steps, seed=1)
    state = State(model, make_optimizer(model, settings))
    return [r.loss for r in fit(state, rows, plan, settings, Accelerator(cpu=True))]


def test_one_by_eight_equals_four_by_two() -> None:
    rows = make_rows(16)
    runs = []
    for settings in (
        Settings(1e-2, packing=False, rows_a_micro_batch=1),
        Settings(1e-2, packing=False, rows_a_micro_batch=4),
        Settings(1e-2, packing=True, capacity=64),
        Settings(1e-2, packing=True, capacity=4096),
    ):
        model = tiny_model("llama")
        losses = train_losses(model, rows, settings, 4)
        runs.append((losses, {n: p.detach().clone() for n, p in model.named_parameters()}))
    for losses, weights in runs[1:]:
        assert losses == pytest.approx(runs[0][0], rel=1e-4)
        for name, value in weights.items():
            assert torch.allclose(value, runs[0][1][name], atol=2e-3), name
    assert runs[0][0][-1] < runs[0][0][0]


def test_dropout_follows_from_seed_and_step_alone() -> None:
    runs = []
    for noise in (1, 2):
        model = tiny_model("llama", attention_dropout=0.3).train()
        torch.manual_seed(noise)
        runs.append(train_losses(model, make_rows(8), Settings(1e-2), 3))
    assert runs[0] == runs[1]


def test_norms_and_biases_do_not_decay() -> None:
    model = tiny_model("gpt2")
    optimizer = make_optimizer(model, Settings(1e-2, weight_decay=0.1))
    decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    for name, parameter in model.named_parameters():
        plain = name.endswith("bias") or ".ln_" in name
        assert decays[id(parameter)] == (0.0 if plain else 0.1), name


@pytest.mark.parametrize(("limit", "clipped"), [(0.01, True), (0.0, False), (1e9, False)])
def test_gradients_are_clipped_to_the_norm(limit: float, clipped: bool) -> None:
    model = tiny_model("llama")
    settings = Settings(1e-2, max_grad_norm=limit)
    state = State(model, make_optimizer(model, settings))
    found = []

    def look(*_: object) -> None:
        norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
        found.append(float(torch.stack(norms).norm()))

    state.optimizer.register_step_pre_hook(look)
    [result] = fit(state, make_rows(4), Plan(4, 4, 1, 0), settings, Accelerator(cpu=True))
    assert result.grad_norm > 0.02
    assert found[0] == pytest.approx(0.01 if clipped else result.grad_norm, rel=1e-3)


def test_losses_are_measured_without_dropout_and_leave_the_mode() -> None:
    model = tiny_model("llama", attention_dropout=0.5)
    rows = make_rows(4)
    calm = row_losses(model, rows, CPU, 64)
    assert not model.training
    assert row_losses(model.train(), rows, CPU, 64) == calm
    assert model.training


def test_one_lora_target_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(ModelError, match="do not all match"):
        add_lora(tiny_model("llama"), rank=4, alpha=8, targets=["q_proj", "no_such_layer"])


def test_two_processes_share_a_step_and_agree_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes.dist, "all_reduce", lambda _: None)

    def gradients_of(process: int, count: int) -> dict[str, torch.Tensor]:
        model = tiny_model("llama")
        state = State(model, make_optimizer(model, Settings(1e-2)))
        alone = SimpleNamespace(
            process_index=process,
            num_processes=count,
            device=CPU,
            autocast=nullcontext,
            backward=lambda loss: loss.backward(),
            reduce=lambda value, _: value,
        )
        rows = make_rows(7)
        settings = Settings(1e-2)
        work = Work(rows, [len(r.ids) for r in rows], settings, alone, lambda: False, 0, None)
        _backward(state, work, settings, range(7))
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    whole, first, second = gradients_of(0, 1), gradients_of(0, 2), gradients_of(1, 2)
    for name, gradient in whole.items():
        assert torch.allclose(first[name] + second[name], gradient, atol=1e-5), name


def test_the_rate_of_the_schedule_is_the_one_that_is_used() -> None:
    model = tiny_model("llama")
    settings = Settings(1e-2, "linear", 2)
    state = State(model, make_optimizer(model, settings))
    used: list[float] = []
    state.optimizer.register_step_pre_hook(lambda o, *_: used.append(o.param_groups[0]["lr"]))
    rates = [
        step.learning_rate
        for step in fit(state, make_rows(8), Plan(8, 2, 6, 0), settings, Accelerator(cpu=True))
    ]
    assert used == rates == [1e-2 * factor("linear", at, 6, 2) for at in range(6)]
    assert len(set(rates)) > 3


def test_freezing_takes_the_embeddings_along() -> None:
    model = tiny_model("llama", tie_word_embeddings=False)
    assert freeze_bottom(model, 0.5) == 1
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert "model.embed_tokens.weight" not in trained
    assert not any("layers.0." in name for name in trained)
    assert any("layers.1." in name for name in trained)
    assert "lm_head.weight" in trained


def test_an_adapter_begins_from_its_seed_alone() -> None:
    begun = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        adapted = add_lora(tiny_model("llama"), rank=4, alpha=8, seed=7)
        begun.append({n: p for n, p in adapted.named_parameters() if "lora_A" in n})
    assert all(torch.equal(value, begun[1][name]) for name, value in begun[0].items())


def test_non_finite_loss_stops_before_the_update() -> None:
    model = tiny_model("llama")
    rows = make_rows(8)
    state = State(model, make_optimizer(model, Settings(1e-2)))
    steps = fit(state, rows, Plan(8, 4, 4, 0), Settings(1e-2), Accelerator(cpu=True))
    next(steps)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    before = model.lm_head.weight.detach().clone()
    with pytest.raises(TrainingError, match="test:"):
        next(steps)
    assert torch.equal(before, model.lm_head.weight)
    assert state.step == 1


def test_ledger_notices_a_row_that_was_left_out() -> None:
    model = tiny_model("llama")
    rows = make_rows(8)
    state = State(model, make_optimizer(model, Settings(1e-3)))
    steps = fit(state, rows, Plan(8, 4, 2, 0), Settings(1e-3), Accelerator(cpu=True))
    next(steps)
    state.ledger = Ledger()
    next(steps)
    with pytest.raises(TrainingError, match="ledger"):
        next(steps)


def test_lora_trains_the_adapter_only() -> None:
    model = tiny_model("gpt2")
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    adapted = add_lora(model, rank=4, alpha=8)
    train_losses(adapted, make_rows(8), Settings(1e-2), 3)
    for name, value in adapted.named_parameters():
        plain = name.replace("base_model.model.", "").replace(".base_layer", "")
        if "lora_" not in name:
            assert torch.equal(value, before[plain]), name
    assert any(p.abs().sum() > 0 for n, p in adapted.named_parameters() if "lora_B" in n)


@given(st.integers(1, 60), st.integers(0, 3), st.integers(0, 3))
def test_each_epoch_holds_each_row_once(rows: int, seed: int, epoch: int) -> None:
    assert sorted(epoch_order(rows, seed, epoch)) == list(range(rows))
    plan = make_plan(rows, 7, 2, None, seed)
    first = [row for step in range(plan.steps_an_epoch) for row in plan.step_rows(step)]
    assert sorted(first) == list(range(rows))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(10, 80))
def test_packing_loses_nothing_and_fits(lengths: list[int], capacity: int) -> None:
    packed = pack(range(len(lengths)), lengths, capacity)
    assert sorted(row for members in packed for row in members) == list(range(len(lengths)))
    for members in packed:
        assert len(members) == 1 or sum(lengths[row] for row in members) <= capacity


def test_schedules() -> None:
    assert factor("linear", 0, 100, 10) == pytest.approx(1 / 11)
    assert factor("linear", 10, 100, 10) == 1.0
    assert factor("linear", 55, 100, 10) == pytest.approx(0.5)
    assert factor("cosine", 55, 100, 10) == pytest.approx(0.5)
    assert factor("cosine", 99, 100, 0) < 0.001
    assert factor("constant", 99, 100, 10) == 1.0
    assert factor("cosine_with_restarts", 40, 120, 0) == pytest.approx(1.0)
    assert warmup_steps(200, 0.0, 1000) == (100, True)
    assert warmup_steps(50, 0.0, 1000) == (50, False)
    assert warmup_steps(0, 0.03, 1000) == (30, False)
