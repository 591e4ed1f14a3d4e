"""What every arm of ``bench_train.py`` trains: rows, models, and what of a model is trained.

Imports nothing of any trainer, so that a peer's own environment can load it.
"""

from __future__ import annotations

import math
import random
from typing import Any

ROWS_A_STEP, LONGEST, VOCABULARY = 8, 1024, 49_152
RANK, ALPHA = 16, 32
FROZEN = 0.75
"""Share of the bottom blocks that the arm ``freeze`` leaves as they are."""
METHODS = ("full", "lora", "freeze")
QWEN3 = {
    "qwen3-0.6b": {"hidden_size": 1024, "intermediate_size": 3072},
    "qwen3-1.7b": {"hidden_size": 2048, "intermediate_size": 6144},
}
SHAPES = ("smollm2", "gpt2", *QWEN3)


def make_rows(number: int) -> list[dict[str, list[int]]]:
    """Return rows of token ids with a mask of what is trained."""
    rng = random.Random(7)
    rows = []
    for _ in range(number):
        prompt = max(4, round(rng.lognormvariate(math.log(90), 0.7)))
        answer = max(4, round(rng.lognormvariate(math.log(80), 0.7)))
        prompt = min(prompt, LONGEST // 2)
        answer = min(answer, LONGEST - prompt)
        ids = [rng.randrange(VOCABULARY) for _ in range(prompt + answer)]
        rows.append({"input_ids": ids, "completion_mask": [0] * prompt + [1] * answer})
    return rows


def make_model(shape: str) -> Any:
    """Return a model with random weights, the same in every process."""
    import torch

    torch.manual_seed(0)
    if shape == "gpt2":
        from transformers import GPT2Config, GPT2LMHeadModel

        # Without dropout, so that losses can be compared.
        off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return GPT2LMHeadModel(GPT2Config(**off))
    if shape in QWEN3:
        from transformers import Qwen3Config, Qwen3ForCausalLM

        wide = Qwen3Config(
            **QWEN3[shape],
            vocab_size=151_936,
            num_hidden_layers=28,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=128,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
        )
        return Qwen3ForCausalLM(wide)
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def frozen_blocks(blocks: int) -> int:
    """Return how many of the bottom blocks ``freeze`` leaves alone."""
    return int(FROZEN * blocks)
