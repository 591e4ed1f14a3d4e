"""Ways to attend over packed rows: all compute the same, and what cannot be used says why."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.attention.varlen as kernel

from test_sharing import CPU, LONG, awkward_rows
from test_workflows import write_rows
from tiny_models import ARCHITECTURES, tiny_model, tiny_tokenizer
from tunesmith.cli import main
from tunesmith.errors import ModelError
from tunesmith.models import attention_ways
from tunesmith.models.attention import Scores, by_segments, packed
from tunesmith.models.attention_ways import by_kernel, by_model, why_not
from tunesmith.models.packs import Group
from tunesmith.train.losses import lay_out, packed_rows, token_losses
from tunesmith.train.sharing import bundles

CUDA = torch.device("cuda")
GROUPS = (Group(9, (5, 1, 7)), Group(4), Group(3, (8,)))
ROWS = awkward_rows()
PACK = lay_out(ROWS, bundles(range(len(ROWS)), ROWS, LONG))


def loss_and_gradients(model: Any, how: str) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    with packed_rows(model, PACK, how):
        losses, weights, *_ = token_losses(model, PACK, CPU)
        loss = (losses * weights).sum()
        loss.backward()
    return float(loss.detach()), {n: p.grad.clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_models_own_attention_gives_the_same_loss(arch: str) -> None:
    model = tiny_model(arch)
    loss, gradients = loss_and_gradients(model, "segments")
    for how in ("sdpa", "eager"):
        if why_not(how, model, CPU, half=False):
            assert (arch, how) == ("gemma2", "sdpa")
            continue
        own, own_gradients = loss_and_gradients(model, how)
        assert own == pytest.approx(loss, rel=1e-5)
        for name, gradient in gradients.items():
            scale = float(gradient.abs().max())
            assert torch.allclose(own_gradients[name], gradient, atol=2e-5 * scale), name


def test_the_models_own_attention_is_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    home = sys.modules["transformers.models.llama.modeling_llama"]
    own, seen = home.eager_attention_forward, []

    def look(*given: Any, **more: Any) -> Any:
        seen.append(given[4].shape)
        return own(*given, **more)

    monkeypatch.setattr(home, "eager_attention_forward", look)
    loss_and_gradients(model, "eager")
    assert seen == [(1, 1, len(PACK.ids), len(PACK.ids))] * 2

    class Bare(torch.nn.Module):
        """Comes from a file without such a function."""

    with pytest.raises(ModelError, match="test_attention has no eager attention"):
        by_model("eager", Bare(), [], torch.zeros(1), Scores(None, 0.0, None, None))


def states(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    stream = torch.Generator().manual_seed(1)
    total = sum(group.tokens for group in GROUPS)
    return [torch.randn(1, h, total, 8, generator=stream).to(dtype) for h in (4, 2, 2)]


def reference(
    q: Any, k: Any, v: Any, begins_q: Any, begins_k: Any, most_q: int, most_k: int,
    scale: float, window_size: tuple[int, int], enable_gqa: bool = True,
) -> torch.Tensor:  # fmt: skip
    """Attend part by part as the kernels document it: the last query stands at the last key."""
    assert begins_q.dtype == begins_k.dtype == torch.int32
    out = []
    for at in range(len(begins_q) - 1):
        own = slice(begins_q[at], begins_q[at + 1])
        its = slice(begins_k[at], begins_k[at + 1])
        queries, keys, values = q[own], k[its], v[its]
        assert len(queries) <= most_q
        assert len(keys) <= most_k
        keys, values = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (keys, values))
        scores = torch.einsum("qhd,khd->hqk", queries, keys) * scale
        places = torch.arange(len(keys))
        ends = torch.arange(len(keys) - len(queries), len(keys))[:, None]
        hidden = places > ends
        if window_size[0] >= 0:
            hidden |= places < ends - window_size[0]
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        out.append(torch.einsum("hqk,khd->qhd", weights, values))
    return torch.cat(out)


@pytest.mark.parametrize("window", [None, 6])
def test_kernels_are_told_what_segments_compute(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = Scores(0.3, 0.0, window, None)
    wanted = by_segments(states(), GROUPS, scores, {})
    monkeypatch.setattr(kernel, "varlen_attn", reference)
    assert torch.allclose(by_kernel("varlen", states(), GROUPS, scores), wanted, atol=1e-6)

    def flash(
        *given: Any,
        dropout_p: float,
        softmax_scale: float,
        causal: bool,
        softcap: float,
        **more: Any,
    ) -> torch.Tensor:
        assert (dropout_p, causal, softcap) == (0.0, True, 0.0)
        return reference(*given, scale=softmax_scale, **more)

    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_varlen_func=flash))
    found = by_kernel("flash_attention_2", states(), GROUPS, scores)
    assert torch.allclose(found, wanted, atol=1e-6)


def test_a_kernel_that_computes_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "varlen_attn", reference)
    assert attention_ways.no_varlen(CPU) is None

    def upper_left(q: Any, k: Any, v: Any, begins_q: Any, *rest: Any, **more: Any) -> torch.Tensor:
        return reference(q, k, v, begins_q, *rest, **more).roll(1, 0)

    def broken(*_: Any, scale: float, window_size: Any, enable_gqa: bool) -> torch.Tensor:
        raise RuntimeError("no kernel image\nmore")

    def old(q: Any, k: Any, v: Any, is_causal: bool) -> torch.Tensor:
        return q

    for made, reason in (
        (upper_left_signature(upper_left), "results differ"),
        (broken, "no kernel image"),
        (old, "has no enable_gqa, scale, window_size"),
    ):
        monkeypatch.setattr(kernel, "varlen_attn", made)
        assert reason in str(attention_ways.no_varlen(CPU))


def upper_left_signature(function: Any) -> Any:
    """Give a stand-in the options that the kernel is asked for."""

    def varlen_attn(*given: Any, scale: float, window_size: Any, enable_gqa: bool = False) -> Any:
        return function(*given, scale=scale, window_size=window_size, enable_gqa=enable_gqa)

    return varlen_attn


@pytest.mark.parametrize(
    ("how", "model", "device", "half", "reason"),
    [
        ("varlen", {}, CPU, True, "runs on CUDA devices, not on cpu"),
        ("flash_attention_2", {}, CPU, True, "runs on CUDA devices"),
        ("varlen", {}, CUDA, False, "this run is in float32"),
        ("flash_attention_2", {}, CUDA, True, "flash-attn is not installed"),
        ("varlen", {"attn_logit_softcapping": 50.0}, CUDA, True, "caps its attention scores"),
        ("varlen", {"attention_dropout": 0.1}, CUDA, True, "drops attention weights"),
        ("varlen", {"attn_pdrop": 0.1}, CUDA, True, "drops attention weights"),
        ("sdpa", {"attn_logit_softcapping": 50.0}, CPU, False, "caps its attention scores"),
    ],
)
def test_a_way_that_cannot_be_gone_says_why(
    how: str, model: dict[str, Any], device: torch.device, half: bool, reason: str
) -> None:
    assert reason in str(
        why_not(how, SimpleNamespace(config=SimpleNamespace(**model)), device, half=half)
    )


def test_ways_that_always_go() -> None:
    for how in ("segments", "eager"):
        assert why_not(how, tiny_model("gemma2"), CPU, half=False) is None
    with pytest.raises(KeyError), packed(tiny_model("llama"), [3], "segments"):
        raise KeyError


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("--attention varlen", "--attention varlen cannot be used: it runs on CUDA devices"),
        ("--use-flash-attn", "--attention flash_attention_2 cannot be used"),
        ("--attention segments --no-packing", "without --packing they are padded"),
    ],
)
def test_the_command_refuses_what_cannot_be_used(
    command: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows("rows.jsonl")
    tiny_model("llama").save_pretrained("base")
    tiny_tokenizer().save_pretrained("base")
    assert main(f"train --dataset rows.jsonl --model base --max-steps 1 {command}".split()) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "segments" in said or "sdpa" in said
