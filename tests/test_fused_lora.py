"""LoRA layers in three products equal PEFT's, and leave to PEFT what they do not cover."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft.tuners.lora.layer import Linear

from tiny_models import ARCHITECTURES, tiny_model
from tunesmith.models.adapters import add_lora, freeze_bottom
from tunesmith.models.fused_lora import fuse_lora


def adapted(arch: str = "llama", **settings: Any) -> Any:
    model = add_lora(copy.deepcopy(tiny_model(arch)), rank=4, alpha=8, **settings).double()
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.train()


def taken(model: Any) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the loss of fixed rows and its gradients, with the same draws for dropout."""
    torch.manual_seed(2)
    ids = torch.randint(4, 250, (2, 9))
    model.zero_grad()
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    named = model.named_parameters()
    return loss.item(), {name: p.grad.clone() for name, p in named if p.grad is not None}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_loss_and_gradients_are_those_of_peft(arch: str) -> None:
    model = adapted(arch)
    loss, gradients = taken(model)
    assert fuse_lora(model) == sum(isinstance(m, Linear) for m in model.modules())
    again, own = taken(model)
    assert again == pytest.approx(loss, rel=1e-12)
    assert own.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(own[name], gradient, rtol=1e-10, atol=1e-14)
        assert gradient.any()


def test_frozen_layers_get_no_gradient() -> None:
    model = adapted()
    freeze_bottom(model, 0.5)
    _, gradients = taken(model)
    fuse_lora(model)
    _, own = taken(model)
    assert own.keys() == gradients.keys()
    assert not any(".layers.0." in name for name in own)


@pytest.mark.parametrize("settings", [{"dora": True}, {"rslora": True}, {"dropout": 0.5}])
def test_kinds_of_lora(settings: dict[str, Any]) -> None:
    model = adapted(**settings)
    loss, gradients = taken(model)
    assert bool(fuse_lora(model)) is ("dora" not in settings)
    again, own = taken(model)
    assert again == pytest.approx(loss, rel=1e-12)
    for name, gradient in gradients.items():
        torch.testing.assert_close(own[name], gradient, rtol=1e-10, atol=1e-14)


def test_what_peft_does_with_an_adapter_still_works() -> None:
    model = adapted().eval()
    ids = torch.arange(5, 14)[None]
    with torch.no_grad():
        tuned = model(input_ids=ids).logits
        with model.disable_adapter():
            base = model(input_ids=ids).logits
        fuse_lora(model)
        torch.testing.assert_close(model(input_ids=ids).logits, tuned)
        with model.disable_adapter():
            assert torch.equal(model(input_ids=ids).logits, base)
        with torch.autocast("cpu", torch.bfloat16):
            assert model(input_ids=ids).logits.shape == tuned.shape
        merged = model.merge_and_unload()
        torch.testing.assert_close(merged(input_ids=ids).logits, tuned)
    assert not torch.allclose(base, tuned)


def test_an_adapter_beside_another_is_left_to_peft() -> None:
    model = adapted()
    model.add_adapter("other", model.peft_config["default"])
    assert fuse_lora(model) == 0


def test_shapes_alone_are_computed_too() -> None:
    model = adapted().to("meta")
    fuse_lora(model)
    assert model(input_ids=torch.zeros(1, 4, dtype=torch.long, device="meta")).logits.shape[1] == 4
