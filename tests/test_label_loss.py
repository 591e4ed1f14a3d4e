"""The loss of labels, whose gradient takes the place of the logits, equals PyTorch's."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy

from tunesmith.train import label_loss
from tunesmith.train.label_loss import label_losses


def made(rows: int, width: int, scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(rows * width)
    return torch.randn(rows, width) * scale, torch.randint(width, (rows,))


@pytest.mark.parametrize(("rows", "width"), [(1, 3), (7, 50), (64, 300), (5, 1)])
@pytest.mark.parametrize("cached", [1, 4 * 300 * 3, 2**20])
def test_losses_and_gradients_are_those_of_cross_entropy(
    rows: int, width: int, cached: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_loss, "CACHED_BYTES", cached)
    values, labels = made(rows, width)
    weights = torch.rand(rows)
    found = []
    for losses_of in (
        lambda x: cross_entropy(x, labels, reduction="none"),
        lambda x: label_losses(x, labels)[0],
    ):
        leaf = values.clone().requires_grad_()
        losses = losses_of(leaf * 1.0)
        (losses * weights).sum().backward()
        found.append((losses.detach(), leaf.grad))
    (their, their_gradient), (our, our_gradient) = found
    torch.testing.assert_close(our, their, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(our_gradient, their_gradient, rtol=1e-5, atol=1e-7)


def test_large_logits_neither_overflow_nor_vanish() -> None:
    values = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4]], requires_grad=True)
    losses, _ = label_losses(values * 1.0, torch.tensor([1, 2]))
    torch.testing.assert_close(losses, torch.tensor([2e4, 1.0986123]))
    losses.sum().backward()
    assert values.grad.isfinite().all()


def test_a_logit_that_is_no_number_gives_a_loss_that_is_none() -> None:
    losses, _ = label_losses(torch.tensor([[0.0, float("nan")], [0.0, 1.0]]), torch.tensor([0, 1]))
    assert losses.isnan().tolist() == [True, False]


def test_a_hit_is_the_likeliest_token_and_a_tie_no_miss() -> None:
    values = torch.tensor([[0.0, 2.0, 1.0], [3.0, 3.0, 1.0], [0.0, 2.0, 1.0]])
    assert label_losses(values, torch.tensor([1, 1, 2]))[1].tolist() == [True, True, False]


def test_in_half_precision_one_of_equal_logits_is_the_likeliest() -> None:
    values = torch.tensor([[3.0, 3.0, 1.0], [3.0, 3.0, 1.0]], dtype=torch.bfloat16)
    assert label_losses(values, torch.tensor([0, 1]))[1].tolist() == [True, False]


def test_the_gradient_takes_the_place_of_the_logits() -> None:
    values, labels = made(4, 9)
    leaf = values.requires_grad_()
    logits = leaf * 1.0
    losses, _ = label_losses(logits, labels)
    losses.sum().backward()
    torch.testing.assert_close(logits.detach(), leaf.grad)


def test_a_second_backward_pass_is_refused() -> None:
    values, labels = made(4, 9)
    losses, _ = label_losses(values.requires_grad_() * 1.0, labels)
    losses.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        losses.sum().backward()


def test_only_a_cpu_works_row_by_row() -> None:
    assert len(label_loss._parts(torch.empty(8, 2**19))) == 8
    on_gpu = SimpleNamespace(device=torch.device("cuda"), shape=(8, 2**19))
    assert label_loss._parts(on_gpu) == [slice(None)]


def test_half_precision_is_summed_in_float32() -> None:
    values, labels = made(8, 50)
    half = values.to(torch.bfloat16).requires_grad_()
    losses, _ = label_losses(half * 1.0, labels)
    torch.testing.assert_close(
        losses, cross_entropy(half.detach().float(), labels, reduction="none")
    )
    losses.sum().backward()
    assert half.grad.dtype == torch.bfloat16
