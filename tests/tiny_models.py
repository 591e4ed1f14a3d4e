"""Tiny tokenizers and random models, made in the test that wants them."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PhiConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

ARCHITECTURES = (
    "llama",
    "qwen2",
    "qwen3",
    "mistral",
    "gemma2",
    "gemma3",
    "phi",
    "gpt_neox",
    "gpt2",
)
QUICK = ("llama", "gemma3", "gpt2")
ALL_BY_NIGHT = [
    pytest.param(arch, marks=[] if arch in QUICK else pytest.mark.slow) for arch in ARCHITECTURES
]
"""For whole runs: some architectures by default, the others nightly."""

CHATML = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@cache
def _backend() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat sat on the mat", "how many are there"], trainer)
    return tokenizer


def tiny_tokenizer(template: str | None = CHATML, eos: str = "<|im_end|>") -> Any:
    """Return a byte-level tokenizer with ChatML markers; any text round-trips through it."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_backend().to_str()), bos_token="<s>", eos_token=eos
    )
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    fast.chat_template = template
    return fast


def tiny_model(arch: str = "llama", seed: int = 0, vocab: int = 304, **config: Any) -> Any:
    """Return a random model of two layers with weights large enough to have opinions."""
    base = {
        "vocab_size": vocab,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "bos_token_id": 0,
        "eos_token_id": 3,
    }
    grouped = {**base, "num_key_value_heads": 2, "intermediate_size": 48}
    window = {**grouped, "head_dim": 8, "sliding_window": 8}
    gpt2 = {
        "vocab_size": vocab,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 256,
        "bos_token_id": 0,
        "eos_token_id": 3,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    }
    made: dict[str, Any] = {
        "llama": lambda: LlamaConfig(**{**grouped, **config}),
        "qwen2": lambda: Qwen2Config(**{**grouped, **config}),
        "qwen3": lambda: Qwen3Config(**{**grouped, "head_dim": 8, **config}),
        "mistral": lambda: MistralConfig(**{**window, **config}),
        "gemma2": lambda: Gemma2Config(**{**window, **config}),
        "gemma3": lambda: Gemma3TextConfig(**{**window, **config}),
        "phi": lambda: PhiConfig(**{**base, "intermediate_size": 48, **config}),
        "gpt_neox": lambda: GPTNeoXConfig(**{**base, "intermediate_size": 48, **config}),
        "gpt2": lambda: GPT2Config(**{**gpt2, **config}),
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(made[arch]())
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.data *= 5
    return model.eval()
