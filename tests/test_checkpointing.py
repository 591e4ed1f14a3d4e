"""Some layers computed again: the same loss and gradients, and less memory with each of them."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from test_estimate import make_rows
from test_training import gradients
from test_workflows import in_a_folder, weights, write_rows  # noqa: F401
from tiny_models import ARCHITECTURES, tiny_model
from tunesmith.cli import main
from tunesmith.errors import ModelError
from tunesmith.models import memory as machine
from tunesmith.models.adapters import (
    add_lora,
    blocks,
    freeze_bottom,
    keep_activations,
    recompute_activations,
)
from tunesmith.models.packs import Group
from tunesmith.train.estimate import Shape, memory, on_meta

TRAIN = ["train", "--dataset", "rows.jsonl", "--max-steps", "4", "--report-to", "none"]


def recomputed(model: Any) -> list[int]:
    return [at for at, layer in enumerate(blocks(model)) if layer.gradient_checkpointing]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_computes_some_layers_again(arch: str) -> None:
    model = tiny_model(arch)
    rows = make_rows(3)
    model.train()
    loss, plain = gradients(model, rows, packing=True)
    calls: list[int] = []
    for number, layer in enumerate(blocks(model)):
        norm = next(child for child in layer.modules() if not list(child.children()))
        norm.register_forward_pre_hook(lambda *_, number=number: calls.append(number))
    assert recompute_activations(model, 1) == 1
    again, less = gradients(model, rows, packing=True)
    assert sorted(calls) == sorted([0, 1, recomputed(model)[0]])
    assert again == loss
    assert all(torch.allclose(plain[name], less[name], atol=1e-6) for name in plain)


@pytest.mark.parametrize("layers", [1, 3, None])
@pytest.mark.parametrize("method", ["full", "lora", "frozen"])
def test_loss_and_gradients_with_dropout_are_the_same(method: str, layers: int | None) -> None:
    results = []
    for again in (False, True):
        model = tiny_model("llama", num_hidden_layers=6, attention_dropout=0.2)
        if method == "lora":
            model = add_lora(model, rank=4, alpha=8, dropout=0.2)
        if method == "frozen":
            freeze_bottom(model, 0.5)
        if again:
            recompute_activations(model, layers)
        model.train()
        torch.manual_seed(1)
        results.append(gradients(model, make_rows(4), packing=True))
    (loss, plain), (other, less) = results
    assert loss == other
    assert plain.keys() == less.keys()
    assert all(torch.equal(plain[name], less[name]) for name in plain)


def test_layers_are_spread_evenly_over_those_that_keep_something() -> None:
    model = tiny_model("llama", num_hidden_layers=8)
    recompute_activations(model, 4)
    assert recomputed(model) == [1, 3, 5, 7]
    recompute_activations(model, 2)
    assert recomputed(model) == [2, 6]
    keep_activations(model)
    assert recomputed(model) == []
    assert not model.is_gradient_checkpointing
    freeze_bottom(model, 0.5)
    assert recompute_activations(model) == 4
    assert recomputed(model) == [4, 5, 6, 7]
    with pytest.raises(ModelError, match="reaches 4 of the 8 layers"):
        recompute_activations(model, 5)


@pytest.mark.parametrize("packing", [True, False])
def test_each_layer_more_takes_less_memory(packing: bool) -> None:
    with torch.device("meta"):
        config = LlamaConfig(
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=6,
            num_attention_heads=9,
            num_key_value_heads=3,
            vocab_size=1000,
        )
        model = AutoModelForCausalLM.from_config(config)
    shape = Shape((Group(200), Group(300)), 100, packing)
    plain, peaks = on_meta(model, recompute=False), []
    for layers in range(7):
        keep_activations(model)
        again = None
        if layers:
            recompute_activations(model, layers)
            again = on_meta(model)
        peaks.append(memory(plain, shape, several=True, recomputed=again).peak)
    # One layer alone saves nothing: it is there again when it is needed.
    assert peaks[0] >= peaks[1]
    assert all(one > other for one, other in pairwise(peaks[1:]))


def test_auto_takes_the_fewest_layers_that_fit_and_keeps_to_it(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    write_rows("rows.jsonl", 60)
    auto = [*TRAIN, "--gradient-checkpointing", "auto"]
    assert main([*auto, "--run-name", "roomy"]) == 0
    assert "none of the 5 layers are computed again" in capsys.readouterr().err
    stored = json.loads(Path("runs/roomy/plan.json").read_text())["gradient_checkpointing"]
    assert stored["layers"] == 0
    monkeypatch.setattr(machine, "free_bytes", lambda _: round(0.96 * stored["bytes"] / 0.9))
    assert main([*auto, "--run-name", "tight", "--save-steps", "2"]) == 0
    tight = json.loads(Path("runs/tight/plan.json").read_text())["gradient_checkpointing"]
    assert 0 < tight["layers"] < 5
    assert tight["bytes"] <= 0.9 * tight["free"]
    number = [*TRAIN, "--gradient-checkpointing", str(tight["layers"]), "--run-name", "number"]
    assert main(number) == 0
    one, other = weights("tight"), weights("number")
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    # On resume the stored number holds, whatever is free by then.
    (Path("runs/tight/checkpoints/checkpoint-step-4") / "model.safetensors").write_bytes(b"torn")
    monkeypatch.setattr(machine, "free_bytes", lambda _: 10**12)
    capsys.readouterr()
    assert main([*auto, "--run-name", "tight", "--resume"]) == 0
    assert f"{tight['layers']} of 5 layers are computed again" in capsys.readouterr().err
    again = weights("tight")
    assert all(torch.equal(value, again[name]) for name, value in one.items())


def test_more_layers_than_there_are_is_a_sentence(capsys: Any) -> None:
    write_rows("rows.jsonl")
    assert main([*TRAIN, "--gradient-checkpointing", "6"]) == 5
    assert "reaches 5 of the 5 layers" in capsys.readouterr().err
