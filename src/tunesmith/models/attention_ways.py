"""Other ways to attend over packed rows: kernels for CUDA, and the model's own code with a mask.

``varlen`` and ``flash_attention_2`` give a kernel the borders of all parts at once. The keys of a
continuation are its prefix's and its own; both kernels let the last query see the last key, which
is what that needs. ``sdpa`` and ``eager`` run what transformers runs, under one mask over the whole
sequence: references, whose cost grows with the square of the sequence.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from tunesmith.errors import ModelError
from tunesmith.models.packs import Group

if TYPE_CHECKING:
    from tunesmith.models.attention import Scores


def block_mask(groups: Sequence[Group], query: torch.Tensor, window: int | None) -> torch.Tensor:
    """Return what is added to all scores [1, 1, T, T]: 0 where a token sees another, else -inf."""
    group: list[int] = []
    part: list[int] = []
    at: list[int] = []
    for number, one in enumerate(groups):
        for which, length in enumerate((one.prefix, *one.rests)):
            begin = one.prefix if which else 0
            group += [number] * length
            part += [which] * length
            at += range(begin, begin + length)
    own, places = (torch.tensor(x, device=query.device) for x in (group, at))
    parts = torch.tensor(part, device=query.device)
    seen = own[:, None] == own
    seen &= (parts == 0) | (parts[:, None] == parts)
    seen &= places <= places[:, None]
    if window is not None:
        seen &= places[:, None] - places < window
    mask = torch.zeros(seen.shape, dtype=query.dtype, device=query.device)
    return mask.masked_fill(~seen, float("-inf"))[None, None]


def by_model(
    how: str, module: Any, states: Sequence[torch.Tensor], mask: torch.Tensor, scores: Scores
) -> torch.Tensor:
    """Attend with the model's own eager code, or with transformers' way to call SDPA."""
    given = {"scaling": scores.scaling, "dropout": scores.dropout}
    if scores.softcap is not None:
        given["softcap"] = scores.softcap
    if how == "sdpa":
        from transformers.integrations.sdpa_attention import sdpa_attention_forward as own
    else:
        home = type(module).__module__
        own = getattr(sys.modules[home], "eager_attention_forward", None)
        if own is None:
            raise ModelError(
                f"{home.rsplit('.', 1)[-1]} has no eager attention of its own.",
                hint="--attention segments",
            )
    attended: torch.Tensor = own(module, *states, mask, **given)[0]
    return attended


def borders(groups: Sequence[Group]) -> tuple[list[int], list[int], list[int]]:
    """Return the queries and keys of every part, and the places of all keys, part after part."""
    queries, keys = [], []
    places: list[int] = []
    start = 0
    for group in groups:
        prefix = range(start, start + group.prefix)
        queries.append(group.prefix)
        keys.append(group.prefix)
        places += prefix
        at = prefix.stop
        for rest in group.rests:
            queries.append(rest)
            keys.append(group.prefix + rest)
            places += [*prefix, *range(at, at + rest)]
            at += rest
        start = at
    return queries, keys, places


def by_kernel(
    how: str, states: Sequence[torch.Tensor], groups: Sequence[Group], scores: Scores
) -> torch.Tensor:
    """Attend in one call of a kernel. Takes [1, heads, T, d] states, returns [1, T, heads, d]."""
    queries, keys, places = borders(groups)
    device = states[0].device
    q, k, v = (_half(state, device)[0].transpose(0, 1) for state in states)
    if len(places) > len(q):
        which = torch.tensor(places, device=device)
        k, v = k[which], v[which]
    begins = [_cumulated(lengths, device) for lengths in (queries, keys)]
    most = max(queries), max(keys)
    window = (-1 if scores.window is None else scores.window - 1, 0)
    if how == "flash_attention_2":
        from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found]

        out = flash_attn_varlen_func(
            q, k, v, *begins, *most, dropout_p=scores.dropout, softmax_scale=scores.scaling,
            causal=True, window_size=window, softcap=scores.softcap or 0.0,
        )  # fmt: skip
    else:
        from torch.nn.attention.varlen import varlen_attn

        gqa = {"enable_gqa": True} if q.shape[1] > k.shape[1] else {}
        out = varlen_attn(
            q, k, v, *begins, *most, scale=scores.scaling, window_size=window, **gqa
        )  # fmt: skip
    attended: torch.Tensor = out[None]
    return attended


def why_not(how: str, model: Any, device: torch.device, *, half: bool) -> str | None:
    """Say why a model cannot attend in this way on this device, None if it can.

    ``half`` says whether it computes in bfloat16 or float16.
    """
    capped = getattr(model.config, "attn_logit_softcapping", None) is not None
    if how == "sdpa" and capped:
        return "this model caps its attention scores, which SDPA cannot"
    if how not in ("varlen", "flash_attention_2"):
        return None
    if device.type != "cuda":
        return f"it runs on CUDA devices, not on {device.type}"
    if not half:
        return "its kernels compute in bfloat16 or float16, and this run is in float32"
    if how == "flash_attention_2":
        from transformers.utils import is_flash_attn_2_available

        return None if is_flash_attn_2_available() else "the package flash-attn is not installed"
    if capped:
        return "this model caps its attention scores, which its kernel cannot"
    if any(getattr(model.config, name, 0) for name in ("attention_dropout", "attn_pdrop")):
        return "this model drops attention weights while training, which its kernel cannot"
    return no_varlen(device)


def no_varlen(device: torch.device) -> str | None:
    """Say what this PyTorch's kernel lacks: it is asked for its options, and for an example."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return f"PyTorch {torch.__version__} does not have it"
    missing = {"window_size", "scale", "enable_gqa"} - set(
        inspect.signature(varlen_attn).parameters
    )
    if missing:
        return f"that of PyTorch {torch.__version__} has no {', '.join(sorted(missing))}"
    from tunesmith.models.attention import Scores, by_segments

    stream = torch.Generator().manual_seed(0)
    groups = (Group(40, (24, 9)), Group(17))
    states = [torch.randn(1, heads, 90, 64, generator=stream) for heads in (4, 2, 2)]
    states = [state.to(device, torch.bfloat16) for state in states]
    for window in (None, 16):
        scores = Scores(0.125, 0.0, window, None)
        try:
            found = by_kernel("varlen", states, groups, scores).float()
        except RuntimeError as failure:  # a kernel that this device has not
            return f"it fails on this device ({str(failure).splitlines()[0]})"
        wanted = by_segments(states, groups, scores, {}).float()
        if not torch.allclose(found, wanted, atol=3e-2):
            apart = float((found - wanted).abs().max())
            return f"its results differ from those by segments on this device (by {apart:.2g})"
    return None


def _half(state: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return states as the kernels take them: norms leave float32 under autocast."""
    if state.dtype == torch.float32 and torch.is_autocast_enabled(device.type):
        return state.to(torch.get_autocast_dtype(device.type))
    return state


def _cumulated(lengths: Sequence[int], device: torch.device) -> torch.Tensor:
    begins = torch.tensor([0, *lengths], device=device)
    return begins.cumsum(0).to(torch.int32)
