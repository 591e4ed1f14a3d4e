"""What a model folder claims to be: the headers of its weights, and a configuration against them.

Sizes are checked before anything of that size is made: a configuration is a few numbers, and each
of them decides how much memory a library takes.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from tunesmith.errors import ModelError

LONGEST_HEADER = 16 << 20
"""Bytes; some hundred thousand tensors."""
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "U16": 16,
    "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64,
    "F64": 64, "C64": 64,
}  # fmt: skip
"""Bits of a number, by the type's name in a header."""
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
WIDTHS = (
    "hidden_size", "n_embd", "d_model", "intermediate_size", "n_inner", "ffn_dim", "vocab_size",
    "head_dim", "num_attention_heads", "n_head", "n_heads", "num_key_value_heads", "num_experts",
    "num_local_experts", "n_routed_experts", "moe_intermediate_size", "embedding_size",
)  # fmt: skip
"""Numbers that are a side of some weight, or a part of one."""
POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
MOST_POSITIONS = 1 << 27
SQUARES = ("gpt2", "gpt_neo", "gptj", "codegen", "gpt_bigcode")
"""Architectures that make a square of as many positions."""
MOST_IN_SQUARE = 1 << 15
MOST_LABELS = 100_000


@dataclass(frozen=True, slots=True)
class Weights:
    """What the headers of a folder's safetensors say."""

    files: int
    widest: int
    """The largest side of a tensor."""
    layers: int
    """Blocks, by the numbers in the names."""
    bytes: int


def read_weights(folder: Path) -> Weights:
    """Read and check the header of every safetensors file; no tensor is read."""
    files = sorted(folder.glob("*.safetensors"))
    widest, layers, total = 0, 0, 0
    for file in files:
        for name, shape in _header(file).items():
            widest = max(widest, *shape, 0)
            layers = max(layers, *(1 + int(n) for n in re.findall(r"(?:^|\.)(\d{1,9})\.", name)), 0)
        total += file.stat().st_size
    room = psutil.virtual_memory().total + psutil.swap_memory().total
    if torch.cuda.is_available():
        room += sum(torch.cuda.mem_get_info(n)[1] for n in range(torch.cuda.device_count()))
    if total > room:
        raise ModelError(
            f"The weights in {folder} take {total / 2**30:,.0f} GiB; all memory of this machine is "
            f"{room / 2**30:,.0f} GiB."
        )
    return Weights(len(files), widest, layers, total)


def _header(file: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of a file; ``ModelError`` where the header lies."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or length > size - 8 or length > LONGEST_HEADER:
            raise ModelError(
                f"{file} claims a header of {length:,} bytes and has {size:,} altogether.",
                expected=f"a whole safetensors file with a header of at most {LONGEST_HEADER:,}",
                hint="download it again",
            )
        try:
            found = json.loads(opened.read(length))
        except (ValueError, RecursionError):
            raise ModelError(f"The header of {file} is no JSON.") from None
    if not isinstance(found, dict):
        raise ModelError(f"The header of {file} is no JSON object.")
    found.pop("__metadata__", None)
    shapes, ends = {}, []
    for name, entry in found.items():
        shapes[name], end = _entry(file, name, entry, size - 8 - length)
        ends.append(end)
    at = 0
    for first, last in sorted(ends):
        if first != at:
            raise ModelError(f"Two tensors of {file} lie upon one another, or apart.")
        at = last
    if at != size - 8 - length:
        raise ModelError(f"{file} has {size - 8 - length:,} bytes of weights and tells of {at:,}.")
    return shapes


def _entry(file: Path, name: str, entry: Any, room: int) -> tuple[tuple[int, ...], tuple[int, int]]:
    """Return the shape and the place of a tensor, both checked."""
    try:
        kind, shape, (first, last) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        whole = all(type(n) is int and n >= 0 for n in (*shape, first, last))
    except (TypeError, KeyError, ValueError):
        whole = False
    if not whole or kind not in BITS:
        raise ModelError(f"{file} does not say type, shape and place of {name[:80]!r}.")
    needed = math.prod(shape) * BITS[kind]
    if not first <= last <= room or needed != 8 * (last - first):
        raise ModelError(
            f"{file} claims {needed // 8:,} bytes for {name[:80]!r} and gives it "
            f"{last - first:,} of {room:,}."
        )
    return shape, (first, last)


def check_config(config: dict[str, Any], weights: Weights, path: Path) -> None:
    """Refuse a configuration that names code or files, or claims more than the weights hold."""
    kind = config.get("model_type")
    for part in _parts(config):
        _check_names(part, path)
        for key in LAYERS:
            most = max(weights.layers, 1)
            _check_number(part, key, most if weights.files else 10_000, path, "blocks")
        for key in WIDTHS:
            most = weights.widest if weights.files else 1 << 24
            _check_number(part, key, most, path, "on the largest side")
        for key in POSITIONS:
            square = kind in SQUARES
            _check_number(part, key, MOST_IN_SQUARE if square else MOST_POSITIONS, path, "")
        _check_number(part, "num_labels", MOST_LABELS, path, "")


def _parts(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a configuration and those inside of it, such as text_config."""
    return [config, *(v for k, v in config.items() if isinstance(v, dict) and k.endswith("config"))]


def _check_number(part: dict[str, Any], key: str, most: int, path: Path, of: str) -> None:
    given = part.get(key)
    for one in given if isinstance(given, list) else [given]:
        if one is None:
            continue
        if isinstance(one, bool) or not isinstance(one, int) or one < 1:
            raise ModelError(f"{path}: {key} is {str(one)[:60]!r}.", expected="a number above 0")
        if one > most:
            held = f"; the weights have {most:,} {of}" if of else f"; at most {most:,} may be"
            raise ModelError(f"{path}: {key} is {one:,}{held}.", hint="the model's own config.json")


def _check_names(part: dict[str, Any], path: Path) -> None:
    """Refuse values that a library would go and fetch, import or open."""
    for key in ("attn_implementation", "_attn_implementation", "experts_implementation"):
        value = part.get(key)
        if value is not None and not re.fullmatch(r"[a-z0-9_]{1,40}", str(value)):
            raise ModelError(
                f"{path}: {key} is {str(value)[:80]!r}, code from elsewhere, which is never run."
            )
    named = part.get("transformers_weights")
    if named is not None and Path(str(named)).name != named:
        raise ModelError(f"{path} takes weights from {str(named)!r}, outside of its folder.")
    for key in ("dtype", "torch_dtype"):
        value = part.get(key)
        if value is not None and not re.fullmatch(
            r"(torch\.)?(b?float\d*\w*|auto|half)", str(value)
        ):
            raise ModelError(f"{path}: {key} is {str(value)[:60]!r}.", expected="float32 or alike")
