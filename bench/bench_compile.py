"""Training steps with layers compiled one by one against the same steps without, taken in turns.

python bench/bench_compile.py [--steps 8] [--threads 1] [--layers 10] [--tokens 512]

A Llama shape of random weights (20.8M parameters as it stands), packed rows of mixed lengths, other
ones at each step, AdamW, float32, on the CPU. Both arms make the same steps. Wall and processor
seconds are of this process alone, so the C++ compiler is in the wall time only.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from tunesmith.models.adapters import count
from tunesmith.models.compiled import compile_blocks
from tunesmith.train.losses import packed_rows, token_losses
from tunesmith.types import Encoded, Origin

VOCABULARY = 8192


def model_of(layers: int) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=layers,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )
    return AutoModelForCausalLM.from_config(config).train()


def batch(seed: int, tokens: int) -> list[Encoded]:
    stream, rows = random.Random(seed), []
    while tokens > 0:
        size = min(tokens, stream.randint(30, 200))
        tokens -= size
        ids = tuple(stream.randrange(VOCABULARY) for _ in range(max(2, size)))
        rows.append(Encoded(ids, (0.0, *[1.0] * (len(ids) - 1)), Origin("random")))
    return rows


def step(model: Any, optimizer: Any, rows: list[Encoded]) -> tuple[float, float, float]:
    """Return the loss, and the wall and processor seconds that the step took."""
    began, worked = time.perf_counter(), time.process_time()
    with packed_rows(model, rows):
        loss = token_losses(model, rows, torch.device("cpu")).losses.mean()
        loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item(), time.perf_counter() - began, time.process_time() - worked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=512)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    models = {"plain": model_of(given.layers), "compiled": model_of(given.layers)}
    compile_blocks(models["compiled"])
    print(count(models["plain"], "full"))
    optimizers = {
        name: torch.optim.AdamW(model.parameters(), fused=True, lr=1e-4)
        for name, model in models.items()
    }
    taken: dict[str, list[tuple[float, float, float]]] = {"plain": [], "compiled": []}
    for number in range(given.steps + 2):
        rows = batch(number, given.tokens - 40 * (number % 4))
        order = list(taken) if number % 2 else list(taken)[::-1]
        for name in order:
            taken[name].append(step(models[name], optimizers[name], rows))
            loss, wall, worked = taken[name][-1]
            print(f"{number} {name:9} {loss:.6f} {wall:7.2f} {worked:7.2f}", flush=True)
    losses = [[found[0] for found in taken[name]] for name in taken]
    apart = max(abs(one - other) for one, other in zip(*losses, strict=True))
    print(f"losses differ by {apart:.2g} at most")
    for at, what in ((1, "wall"), (2, "processor")):
        middle = {name: statistics.median(f[at] for f in taken[name][2:]) for name in taken}
        first = taken["compiled"][0][at] - middle["compiled"]
        gain = middle["plain"] - middle["compiled"]
        pays = f"pays after {first / gain:,.0f} steps" if gain > 0 else "never pays"
        print(
            f"{what}: plain {middle['plain']:.2f} s, compiled {middle['compiled']:.2f} s "
            f"({middle['plain'] / middle['compiled']:.2f} times), compiling {first:.1f} s: {pays}"
        )


if __name__ == "__main__":
    main()
