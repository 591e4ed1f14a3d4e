"""The last block's feed-forward layer is computed where a label needs it, and is exact there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from test_fused_layers import fresh, same
from tiny_models import ARCHITECTURES
from tunesmith.models.adapters import add_lora, blocks, freeze_bottom, recompute_activations
from tunesmith.models.attention import packed, places_read
from tunesmith.models.fused_layers import fuse_layers
from tunesmith.models.fused_lora import fuse_lora
from tunesmith.models.trunk import caught, find_trunk
from tunesmith.train.losses import lay_out, packed_rows, token_losses
from tunesmith.train.sharing import bundles
from tunesmith.types import Encoded, Origin

CPU = torch.device("cpu")
BY_TOKEN = sorted(set(ARCHITECTURES) - {"phi"})
"""Those whose feed-forward layer is known to take each token by itself."""


def row(ids: list[int], trained: int) -> Encoded:
    weights = [0.0] * (len(ids) - trained) + [1.0] * trained
    return Encoded(tuple(ids), tuple(weights), Origin("test", 0))


ROWS = [row([5, 9, 11, 7, 30, 31], 2), row([8, 8, 40, 41, 42, 43, 44, 45, 46], 3), row([60, 61], 1)]
READ = [3, 4, 11, 12, 13, 15]
SHARED = [row([*range(5, 69), *rest], 2) for rest in ([130, 131], [132, 133], [132, 134])]


def gradients(model: Any, rows: Any = ROWS) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    with packed_rows(model, rows):
        found = token_losses(model, rows, CPU)
        total = (found.losses * found.weights).sum()
        total.backward()
    named = model.named_parameters()
    return total.item(), {name: p.grad.clone() for name, p in named if p.grad is not None}


@contextmanager
def widths(model: Any) -> Iterator[list[int]]:
    """Collect for how many tokens the last feed-forward layer's products are computed."""
    found: list[int] = []
    product = next(m for m in blocks(model)[-1].mlp.modules() if not list(m.children()))
    hook = product.register_forward_hook(lambda _, given, __: found.append(given[0].shape[-2]))
    try:
        yield found
    finally:
        hook.remove()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_losses_and_gradients_are_those_of_all_places(arch: str) -> None:
    model = fresh(arch)
    if arch == "gpt2":  # a draw for fewer places would be another one
        for module in model.modules():
            module.p = 0.0 if isinstance(module, torch.nn.Dropout) else getattr(module, "p", None)
    total, whole = gradients(model)
    fuse_layers(model)
    with widths(model) as found:
        again, own = gradients(model)
    assert found == [len(READ) if arch in BY_TOKEN else 17]
    assert again == pytest.approx(total, rel=1e-6)
    same(own, whole)


@pytest.mark.parametrize("how", ["lora", "frozen", "recomputed"])
def test_so_they_are_with_adapters_frozen_and_recomputed_layers(how: str) -> None:
    model = fresh()
    if how == "lora":
        model = add_lora(model, rank=4, alpha=8.0, seed=1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
    if how == "frozen":
        freeze_bottom(model, 0.5)
    _, whole = gradients(model)
    fuse_layers(model)
    if how == "lora":
        assert fuse_lora(model)
    if how == "recomputed":
        recompute_activations(model, None)
    _, own = gradients(model)
    same(own, whole)


def test_so_they_are_with_automatic_casts() -> None:
    model = fresh()
    with torch.autocast("cpu", torch.bfloat16):
        total, whole = gradients(model)
        fuse_layers(model)
        with widths(model) as found:
            again, own = gradients(model)
    assert found == [len(READ)]
    assert again == pytest.approx(total, rel=1e-2)
    for name, gradient in whole.items():
        torch.testing.assert_close(
            own[name], gradient, rtol=0.1, atol=0.02 * float(gradient.abs().max())
        )


def test_a_place_that_several_rows_read_is_computed_once() -> None:
    model = fresh()
    lengths = [len(one.ids) for one in SHARED]
    pack = lay_out(SHARED, bundles(range(3), SHARED, 100, at_least=3))
    assert len(pack.ids) < sum(lengths)
    _, whole = gradients(model, pack)
    fuse_layers(model)
    with widths(model) as found:
        _, own = gradients(model, pack)
    assert len(set(pack.places)) < len(pack.places)
    assert found == [len(set(pack.places))]
    same(own, whole)


def test_without_gradients_every_place_is_computed() -> None:
    model = fresh()
    fuse_layers(model)
    with torch.no_grad(), packed_rows(model, ROWS), widths(model) as found:
        token_losses(model, ROWS, CPU)
    assert found == [17]


def test_what_a_wholly_frozen_trunk_hands_on_is_whole() -> None:
    model = fresh()
    for block in blocks(model):
        block.requires_grad_(False)
    model.get_input_embeddings().weight.requires_grad_(False)
    states = []
    for _ in range(2):
        with packed_rows(model, ROWS), caught(find_trunk(model), whole=True) as found:
            token_losses(model, ROWS, CPU)
        states.append(found[0])
        fuse_layers(model)
    torch.testing.assert_close(states[1], states[0])
    assert len(find_trunk(model).layers) == len(blocks(model))


def test_a_layer_that_draws_computes_every_place() -> None:
    model = fresh("gpt2")
    blocks(model)[-1].mlp.dropout.p = 0.1
    fuse_layers(model)
    with widths(model) as found:
        gradients(model)
    assert found == [17]


def test_the_promise_ends_with_the_sequence() -> None:
    model = fresh()
    with packed_rows(model, ROWS):
        token_losses(model, ROWS, CPU)
        assert list(places_read() or ()) == READ
        with packed(model, [4]):
            assert places_read() is None
    assert places_read() is None
    fuse_layers(model)
    with widths(model) as found:
        model(input_ids=torch.tensor([[5, 6, 7]]))
    assert found == [3]
