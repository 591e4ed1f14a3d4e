"""Parameter groups, noise and optimisers of the loop."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator

from test_training import CPU, make_rows, train_losses
from tiny_models import tiny_model
from tunesmith.models.adapters import add_lora, freeze_bottom
from tunesmith.train.batches import Plan
from tunesmith.train.groups import parameter_groups
from tunesmith.train.loop import Settings, State, fit, make_optimizer
from tunesmith.train.losses import row_losses
from tunesmith.train.noise import noisy_embeddings
from tunesmith.train.schedule import factor


def rates(model, **more) -> dict[str, float]:
    names = {id(p): name for name, p in model.named_parameters()}
    groups = parameter_groups(model, 0.01, 0.1, **more)
    return {names[id(p)]: g["initial_lr"] for g in groups for p in g["params"]}


@pytest.mark.parametrize("tied", [False, True])
def test_each_layer_has_a_share_of_the_rate_above_it(tied: bool) -> None:
    model = tiny_model("llama", num_hidden_layers=3, tie_word_embeddings=tied)
    found = rates(model, layer_decay=0.5)
    assert len(found) == len(list(model.named_parameters()))
    for name, rate in found.items():
        at = next((2 - n for n in range(3) if f"layers.{n}." in name), 0)
        at = 3 if "embed" in name else at
        assert rate == pytest.approx(0.01 * 0.5**at), name


def test_layers_of_an_adapter_have_their_shares_too() -> None:
    adapted = add_lora(tiny_model("llama"), rank=4, alpha=8)
    found = rates(adapted, layer_decay=0.5, lora_plus=4.0)
    for name, rate in found.items():
        scale = (0.5 if "layers.0." in name else 1.0) * (4.0 if "lora_B" in name else 1.0)
        assert rate == pytest.approx(0.01 * scale), name


def test_every_trained_parameter_is_in_one_group() -> None:
    model = tiny_model("gpt2")
    freeze_bottom(model, 0.5)
    for more in ({}, {"layer_decay": 0.9}, {"lora_plus": 4.0}):
        groups = parameter_groups(model, 0.01, 0.1, **more)
        members = [id(p) for g in groups for p in g["params"]]
        assert sorted(members) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_the_schedule_moves_each_group_in_proportion() -> None:
    model = add_lora(tiny_model("llama"), rank=4, alpha=8)
    settings = Settings(1e-2, "linear", 2, lora_plus_ratio=4.0, layer_lr_decay=0.5)
    state = State(model, make_optimizer(model, settings))
    used: list[list[float]] = []
    state.optimizer.register_step_pre_hook(
        lambda o, *_: used.append([group["lr"] for group in o.param_groups])
    )
    plan = Plan(8, 2, 6, 0)
    told = [
        s.learning_rate for s in fit(state, make_rows(8), plan, settings, Accelerator(cpu=True))
    ]
    assert told == [1e-2 * factor("linear", at, 6, 2) for at in range(6)]
    for rate, groups in zip(told, used, strict=True):
        assert groups == pytest.approx([rate * scale for scale in (4, 2, 1, 0.5)])


def test_noise_has_the_size_of_the_paper_and_stays_in_its_row() -> None:
    model = tiny_model("llama")
    ids = torch.arange(10)[None]
    plain = model.get_input_embeddings()(ids).detach()
    with noisy_embeddings(model, 5.0, [8, 2], ["a", "b"], packing=True):
        noise = (model.get_input_embeddings()(ids) - plain).detach()
    for part, length in ((noise[0, :8], 8), (noise[0, 8:], 2)):
        most = 5.0 / (length * 32) ** 0.5
        assert 0.9 * most < float(part.abs().max()) <= most * 1.0001
        assert abs(float(part.mean())) < 0.2 * most
    assert torch.equal(model.get_input_embeddings()(ids), plain)
    with noisy_embeddings(model, 5.0, [2, 8], ["b", "a"], packing=False):
        below = model.get_input_embeddings()(torch.stack([ids[0, :8], ids[0, :8]]))
    assert torch.allclose(below[1] - plain[0, :8], noise[0, :8], atol=1e-6)
    assert torch.equal(below[0, 2:], plain[0, 2:8])


def test_noise_is_the_same_however_rows_are_put_together() -> None:
    runs = []
    for settings in (
        Settings(1e-3, neftune_alpha=50.0, packing=False, rows_a_micro_batch=1),
        Settings(1e-3, neftune_alpha=50.0, packing=False, rows_a_micro_batch=4),
        Settings(1e-3, neftune_alpha=50.0, packing=True, capacity=64),
    ):
        torch.manual_seed(len(runs))
        runs.append(train_losses(tiny_model("llama"), make_rows(16), settings, 4))
    assert runs[1] == pytest.approx(runs[0], rel=1e-4)
    assert runs[2] == pytest.approx(runs[0], rel=1e-4)
    calm = train_losses(tiny_model("llama"), make_rows(16), Settings(1e-3, capacity=64), 4)
    assert runs[0] != pytest.approx(calm, rel=1e-3)


def test_noise_differs_from_step_to_step_and_is_not_in_evaluation() -> None:
    model, rows = tiny_model("llama"), make_rows(4)
    before = row_losses(model, rows, CPU, 64)
    settings = Settings(1e-12, "constant", neftune_alpha=50.0, weight_decay=0.0)
    state = State(model, make_optimizer(model, settings))
    losses = []
    for done in fit(state, rows, Plan(4, 4, 3, 0), settings, Accelerator(cpu=True)):
        losses.append(done.loss)
        assert [a for a, _ in row_losses(model, rows, CPU, 64)] == pytest.approx(
            [a for a, _ in before], rel=1e-5
        )
    assert len({round(loss, 4) for loss in losses}) == 3


def test_noise_under_gradient_checkpointing_and_lora() -> None:
    from tunesmith.models.adapters import recompute_activations

    runs = []
    for recompute in (False, True):
        model = add_lora(tiny_model("llama"), rank=4, alpha=8)
        if recompute:
            recompute_activations(model)
        settings = Settings(1e-2, neftune_alpha=50.0)
        runs.append(train_losses(model, make_rows(8), settings, 3))
    assert runs[0] == pytest.approx(runs[1], rel=1e-5)


def test_adafactor_learns_and_keeps_rows_and_columns_only() -> None:
    model = tiny_model("llama")
    settings = Settings(1e-2, optim="adafactor")
    state = State(model, make_optimizer(model, settings))
    steps = fit(state, make_rows(8), Plan(8, 8, 12, 0), settings, Accelerator(cpu=True))
    losses = [done.loss for done in steps]
    assert losses[-1] < 0.9 * losses[0]
    kept = sum(v.numel() for s in state.optimizer.state.values() for v in s.values())
    assert kept < 0.2 * sum(p.numel() for p in model.parameters())
