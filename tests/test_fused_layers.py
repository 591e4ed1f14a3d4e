"""Gates, norms and tied tables by hand equal the model's own, in training and nowhere else."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tiny_models import ARCHITECTURES, tiny_model
from tunesmith.config.schema import FineTuningConfig
from tunesmith.models import fused_layers
from tunesmith.models.adapters import freeze_bottom, recompute_activations
from tunesmith.models.fused_layers import fuse_layers
from tunesmith.models.trunk import caught, find_trunk, trained_below
from tunesmith.workflows.method import make_trainable


def fresh(arch: str = "llama") -> Any:
    torch.manual_seed(3)
    model = copy.deepcopy(tiny_model(arch)).train()
    for parameter in model.parameters():
        # Weights of ones would hide a norm's gradient that misses them.
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model


def taken(model: Any, rows: int = 2) -> tuple[float, dict[str, torch.Tensor]]:
    torch.manual_seed(2)
    model.zero_grad()
    total = 0.0
    for _ in range(rows):
        ids = torch.randint(4, 250, (1, 9))
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        total += loss.item()
    named = model.named_parameters()
    return total, {name: p.grad.clone() for name, p in named if p.grad is not None}


def same(own: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert own.keys() == other.keys()
    for name, gradient in other.items():
        assert not own[name].is_sparse
        size = float(gradient.abs().max())
        torch.testing.assert_close(own[name], gradient, rtol=1e-4, atol=2e-6 * max(size, 1.0))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_loss_and_gradients_are_those_of_the_models_own_code(arch: str) -> None:
    model = fresh(arch)
    loss, gradients = taken(model)
    fuse_layers(model)
    again, own = taken(model)
    assert again == pytest.approx(loss, rel=1e-6)
    same(own, gradients)


def test_a_second_call_changes_nothing() -> None:
    for arch in ARCHITECTURES:
        model = fresh(arch)
        fuse_layers(model)
        assert fuse_layers(model) == 0


def test_llamas_gates_norms_and_table_are_fused_once() -> None:
    model = fresh()
    layers = model.config.num_hidden_layers
    names = [name for name, _ in model.named_modules()]
    tied = model.config.tie_word_embeddings
    # Gates and two norms a layer, the last norm, and the last layer where it is read.
    assert fuse_layers(model) == 3 * layers + 2 + tied
    assert fuse_layers(model) == 0
    assert [name for name, _ in model.named_modules()] == names
    assert type(model.model.norm).__name__ == "LlamaRMSNorm"


@pytest.mark.parametrize("arch", ["qwen2", "qwen3", "mistral", "gpt2"])
def test_models_that_compute_as_llama_and_gpt2_are_fused(arch: str) -> None:
    assert fuse_layers(fresh(arch)) >= fresh(arch).config.num_hidden_layers


def test_other_norms_and_gates_stay_the_models_own() -> None:
    model = fresh("gemma3")
    fuse_layers(model)
    kinds = {type(module) for module in model.modules() if hasattr(type(module), "unfused")}
    assert not [kind for kind in kinds if "RMSNorm" in kind.__name__ or "MLP" in kind.__name__]


def test_evaluation_runs_the_models_own_code_to_the_bit() -> None:
    model = fresh()
    ids = torch.randint(4, 250, (2, 30))
    with torch.no_grad():
        before = model(input_ids=ids).logits
    fuse_layers(model)
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, before)


def test_automatic_casts_are_left_to_the_models_own_code(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh()
    fuse_layers(model)
    monkeypatch.setattr(fused_layers, "_Gate", None)
    monkeypatch.setattr(fused_layers, "_Norm", None)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(input_ids=torch.randint(4, 250, (1, 30))).logits.requires_grad


def test_norms_of_other_types_are_left_to_the_models_own_code() -> None:
    model = fresh().double()
    norm, x = model.model.norm, torch.randn(3, model.config.hidden_size, dtype=torch.float64)
    before = norm(x)
    fuse_layers(model)
    assert torch.equal(norm(x), before)


def test_a_padding_row_of_a_tied_table_gets_no_gradient() -> None:
    model = fresh("gpt2")
    model.transformer.wte.padding_idx = 7
    ids = torch.tensor([[5, 7, 9, 7, 11]])
    found = []
    for _ in range(2):
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        found.append(model.transformer.wte.weight.grad.clone())
        fuse_layers(model)
    size = float(found[0].abs().max())
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=2e-6 * size)


def test_frozen_and_recomputed_layers_give_the_same_gradients() -> None:
    model = fresh()
    freeze_bottom(model, 0.5)
    _, gradients = taken(model)
    fuse_layers(model)
    recompute_activations(model, None)
    _, own = taken(model)
    same(own, gradients)


def test_a_tied_tables_gradient_lies_where_the_heads_does() -> None:
    model = fresh("gpt2")
    fuse_layers(model)
    table = model.transformer.wte.weight
    made: list[torch.Tensor] = []
    table.register_hook(made.append)  # of the head alone: the rows are added behind it
    taken(model, rows=1)
    assert len(made) == 1
    rows = set((table.grad - made[0]).abs().sum(-1).nonzero().flatten().tolist())
    torch.manual_seed(2)
    assert rows == set(torch.randint(4, 250, (1, 9))[0, :-1].tolist())  # the last one has no loss


def test_a_table_of_its_own_keeps_a_dense_gradient() -> None:
    model = fresh()
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
    fuse_layers(model)
    _, gradients = taken(model)
    assert not gradients["model.embed_tokens.weight"].is_sparse


def test_a_gate_keeps_two_tensors_of_its_width_for_the_backward_pass() -> None:
    model = fresh()
    fuse_layers(model)
    mlp = model.model.layers[0].mlp
    kept: list[torch.Size] = []
    x = torch.randn(1, 7, model.config.hidden_size, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: (kept.append(t.shape), t)[1], lambda t: t
    ):
        mlp(x).sum().backward()
    width = model.config.intermediate_size
    # Gate and up for the gate itself, their product for the layer behind it.
    assert sum(shape.numel() == 7 * width for shape in kept) == 3


@pytest.mark.parametrize("compiled", ["on", "off"])
def test_a_run_trains_with_fused_layers_unless_it_compiles_them(compiled: str) -> None:
    loaded: Any = SimpleNamespace(model=fresh(), new_tokens=None, ref=SimpleNamespace(adapter=None))
    make_trainable(FineTuningConfig(torch_compile=compiled), loaded)
    found = any(hasattr(type(module), "unfused") for module in loaded.model.modules())
    assert found is (compiled == "off")


def test_a_trained_table_is_seen_below_a_frozen_trunk() -> None:
    model = fresh("gpt2")
    freeze_bottom(model, 0.5)
    model.get_input_embeddings().weight.requires_grad_(True)
    assert fuse_layers(model)
    trunk = find_trunk(model)
    with caught(trunk) as found:
        model(input_ids=torch.tensor([[5, 6, 7]]))
    assert trained_below(trunk, found[0]) == "transformer.wte.weight"
    assert model.get_input_embeddings().weight.grad is None


def test_several_processes_are_told_of_the_whole_gradient_of_a_table(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = fresh("gpt2")
    fuse_layers(model)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    told = []
    model.transformer.wte.weight.register_hook(lambda gradient: told.append(gradient.clone()))
    taken(model, rows=1)
    model.zero_grad()
    taken(model, rows=1)
    assert len(told) == 2
    torch.testing.assert_close(told[0], told[1])
    torch.testing.assert_close(told[0], model.transformer.wte.weight.grad)
