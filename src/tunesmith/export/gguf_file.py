"""GGUF files for llama.cpp: which shapes there are, and how their weights are laid out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tunesmith.data.render import Renderer
from tunesmith.errors import ModelError
from tunesmith.export.gguf_words import Words, words_of

LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
GPT2_LAYER = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
OUTER = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
}
ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "gpt2": "gpt2",
}
"""transformers' name of a shape, and llama.cpp's."""
FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7}
BLOCK = 32
"""Numbers that share a scale in q8_0; rows of another length stay in f16."""


def write_gguf(
    model: Any, tokenizer: Any, renderer: Renderer, kind: str, path: Path, name: str
) -> int:
    """Write a model in float32 as one GGUF file; return how many matrices q8_0 left in f16.

    Raises ``ModelError`` for a shape, a tokenizer or a setting that is not among those written.
    """
    import gguf

    config = model.config
    check_shape(config)
    arch = ARCHITECTURES[config.model_type]
    words = words_of(tokenizer, model.get_input_embeddings().weight.shape[0])
    writer = gguf.GGUFWriter(str(path), arch)
    writer.add_name(name)
    writer.add_file_type(FILE_TYPES[kind])
    if kind == "q8_0":
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    (_gpt2_header if arch == "gpt2" else _llama_header)(writer, config, words)
    _add_words(writer, words, tokenizer, renderer)
    wide = 0
    for own, tensor in _tensors(model, arch):
        wide += _add(writer, own, tensor, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return wide


def check_shape(config: Any) -> None:
    """Refuse by name what has no counterpart in the file; ``ModelError``."""
    kind = config.model_type
    if kind not in ARCHITECTURES:
        raise ModelError(
            f"Models of type {kind} are not written as GGUF.",
            expected=", ".join(ARCHITECTURES),
            hint="llama.cpp's own convert_hf_to_gguf.py, on --formats merged",
        )
    wanted = "gelu_new" if kind == "gpt2" else "silu"
    used = config.activation_function if kind == "gpt2" else config.hidden_act
    if used != wanted:
        raise ModelError(f"llama.cpp computes {kind} with {wanted}, this model with {used}.")
    if kind == "gpt2" and (config.scale_attn_by_inverse_layer_idx or not config.scale_attn_weights):
        raise ModelError("llama.cpp has no GPT-2 whose attention is scaled in another way.")
    if getattr(config, "use_sliding_window", kind == "mistral") and config.sliding_window:
        raise ModelError(
            f"This {kind} model attends within a window of {config.sliding_window} tokens, which "
            "is not written as GGUF."
        )
    rope = _rope(config).get("rope_type", "default")
    if rope not in ("default", "linear", "llama3"):
        raise ModelError(
            f"Positions scaled by {rope} are not written as GGUF.",
            expected="default, linear or llama3",
        )
    if _rope(config).get("partial_rotary_factor", 1.0) != 1.0:
        raise ModelError("Heads of which only a part is rotated are not written as GGUF.")


def _rope(config: Any) -> Mapping[str, Any]:
    return getattr(config, "rope_parameters", None) or {}


def _head_size(config: Any) -> int:
    own = getattr(config, "head_dim", None)
    return int(own or config.hidden_size // config.num_attention_heads)


def _llama_header(writer: Any, config: Any, words: Words) -> None:
    import gguf

    size, rope = _head_size(config), _rope(config)
    writer.add_vocab_size(len(words.pieces))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10000.0)))
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))


def _gpt2_header(writer: Any, config: Any, _: Words) -> None:
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)


def _add_words(writer: Any, words: Words, tokenizer: Any, renderer: Renderer) -> None:
    """Write pieces, special tokens and the chat template."""
    writer.add_tokenizer_model(words.model)
    writer.add_tokenizer_pre(words.pre)
    writer.add_token_list(words.pieces)
    writer.add_token_types(words.kinds)
    if words.model == "llama":
        writer.add_token_scores(words.scores)
        writer.add_add_space_prefix(words.space_first)
    else:
        writer.add_token_merges(words.merges)
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_add_bos_token(renderer.bos_id is not None)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    others = [number for number in renderer.stop_ids if number != tokenizer.eos_token_id]
    for number, add in zip(
        others, (writer.add_eot_token_id, writer.add_eom_token_id), strict=False
    ):
        add(number)
    if tokenizer.unk_token_id is not None:
        writer.add_unk_token_id(tokenizer.unk_token_id)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(renderer.template)


def _tensors(model: Any, arch: str) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Yield the file's name and numbers of each weight; a tied head comes once, as embeddings."""
    state = model.state_dict()
    config = model.config
    embeddings = model.get_input_embeddings().weight
    head = model.get_output_embeddings()
    tied = head is not None and head.weight.data_ptr() == embeddings.data_ptr()
    for name, value in state.items():
        own, _, part = name.rpartition(".")
        if tied and own == "lm_head":
            continue
        tensor = value.detach().float().cpu().numpy()
        for prefix, table in (("model.layers.", LAYER), ("transformer.h.", GPT2_LAYER)):
            if own.startswith(prefix):
                number, _, rest = own.removeprefix(prefix).partition(".")
                if rest not in table:
                    raise ModelError(f"llama.cpp has no weight like {name} in {arch}.")
                if arch == "llama" and rest.endswith((".q_proj", ".k_proj")):
                    tensor = _interleaved(tensor, _head_size(config))
                if arch == "gpt2" and tensor.ndim == 2:
                    tensor = tensor.T  # Conv1D keeps inputs first
                yield f"blk.{number}.{table[rest]}.{part}", tensor
                break
        else:
            if own not in OUTER:
                raise ModelError(f"llama.cpp has no weight like {name} in {arch}.")
            yield f"{OUTER[own]}.{part}", tensor
    if _rope(config).get("rope_type") == "llama3":
        yield "rope_freqs.weight", _llama3_factors(_rope(config), _head_size(config))


def _interleaved(tensor: np.ndarray[Any, Any], size: int) -> np.ndarray[Any, Any]:
    """Reorder the rows of each head: llama.cpp turns pairs, transformers two halves."""
    halves = tensor.reshape(-1, 2, size // 2, *tensor.shape[1:])
    return halves.swapaxes(1, 2).reshape(tensor.shape)


def _llama3_factors(rope: Mapping[str, Any], size: int) -> np.ndarray[Any, Any]:
    """Return what each frequency is divided by, as Llama 3.1 stretches its positions."""
    places = np.arange(0, size, 2, dtype=np.float64)
    lengths = 2 * math.pi * float(rope["rope_theta"]) ** (places / size)
    before, low, high = (
        float(rope[key])
        for key in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor")
    )
    smooth = (before / lengths - low) / (high - low)
    between = 1 / ((1 - smooth) / float(rope["factor"]) + smooth)
    found = np.where(lengths < before / high, 1.0, between)
    found = np.where(lengths > before / low, float(rope["factor"]), found)
    return found.astype(np.float32)


def _add(writer: Any, name: str, tensor: np.ndarray[Any, Any], kind: str) -> int:
    """Add one weight in the file's type; return 1 where q8_0 had to leave it in f16."""
    import gguf

    tensor = np.ascontiguousarray(tensor)
    if not np.isfinite(tensor).all():
        raise ModelError(f"{name} holds numbers that are not finite.")
    if tensor.ndim < 2 or kind == "f32" or name.startswith("position_embd"):
        writer.add_tensor(name, tensor)
        return 0
    if kind == "q8_0" and tensor.shape[-1] % BLOCK == 0:
        packed = gguf.quants.quantize(tensor, gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        return 0
    largest = float(np.abs(tensor).max(initial=0))
    if largest > float(torch.finfo(torch.float16).max):
        raise ModelError(f"{name} holds numbers that f16 cannot: up to {largest:.3g}.")
    writer.add_tensor(name, tensor.astype(np.float16))
    return int(kind == "q8_0")
