"""Output tokens per second against transformers ``generate``, in one run on one machine.

Workload: a 20-million-parameter Llama shape with random weights; questions × samples behind one
shared 300-token prefix; output lengths exponential with mean 50, forced the same for both sides.
The peer gets a sweep: batch sizes, with and without a reused prefix cache; then ours and the best
of the sweep run again in turn, and medians are compared. Greedy text is checked against sequential
generation. Ratios carry, absolute numbers do not.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import statistics
import time
from pathlib import Path

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from tunesmith.generate.engine import Engine
from tunesmith.generate.reference import generate_one
from tunesmith.generate.requests import Request, Sampling
from tunesmith.models.memory import use_huge_pages

PREFIX, MEAN_OUTPUT = 300, 50
OURS = "tunesmith"


def make_model() -> LlamaForCausalLM:
    use_huge_pages()  # as loading a model does; both sides gain
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16_384,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def make_requests(questions: int, samples: int) -> list[Request]:
    rng = random.Random(1)
    head = [rng.randrange(16_384) for _ in range(PREFIX)]
    requests = []
    for question in range(questions):
        tail = [rng.randrange(16_384) for _ in range(rng.randint(15, 40))]
        for sample in range(samples):
            length = max(4, min(256, round(rng.expovariate(1 / MEAN_OUTPUT))))
            prompt = tuple(head + tail)
            requests.append(Request((question, sample), prompt, Sampling(length)))
    return requests


def ours(model: LlamaForCausalLM, requests: list[Request]) -> tuple[float, dict]:
    began = time.perf_counter()
    done = list(Engine(model, str, ()).run(requests))
    seconds = time.perf_counter() - began
    tokens = sum(len(completion.tokens) for completion in done)
    return tokens / seconds, {completion.key: completion.tokens for completion in done}


@torch.inference_mode()
def theirs(model: LlamaForCausalLM, requests: list[Request], batch: int, cached: bool) -> float:
    """Time ``generate`` on padded batches; a batch runs until its longest row is done."""
    began = time.perf_counter()
    tokens = 0
    prefix_cache = None
    if cached:
        prefix_cache = DynamicCache(config=model.config)
        head = torch.tensor([requests[0].prompt_ids[:PREFIX]])
        model(input_ids=head, past_key_values=prefix_cache, use_cache=True)
    for start in range(0, len(requests), batch):
        rows = requests[start : start + batch]
        longest = max(len(row.prompt_ids) for row in rows)
        # Padding goes behind the shared prefix, so that a cached prefix stays one for all rows.
        pads = [longest - len(row.prompt_ids) for row in rows]
        ids = torch.tensor(
            [
                [*row.prompt_ids[:PREFIX], *[0] * pad, *row.prompt_ids[PREFIX:]]
                for row, pad in zip(rows, pads, strict=True)
            ]
        )
        mask = torch.ones_like(ids)
        for number, pad in enumerate(pads):
            mask[number, PREFIX : PREFIX + pad] = 0
        settings = {}
        if prefix_cache is not None:
            cache = copy.deepcopy(prefix_cache)
            cache.batch_repeat_interleave(len(rows))
            settings["past_key_values"] = cache
        new = max(row.sampling.max_new_tokens for row in rows)
        model.generate(
            ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=new,
            min_new_tokens=new,
            pad_token_id=0,
            eos_token_id=None,
            **settings,
        )
        tokens += sum(row.sampling.max_new_tokens for row in rows)  # what was asked for
    return tokens / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=32)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    model = make_model()
    requests = make_requests(arguments.questions, arguments.samples)
    peers = {
        f"generate, batch {batch}{', prefix cache' if cached else ''}": (batch, cached)
        for batch in (8, 32, 128)
        for cached in (False, True)
    }
    print(f"load before: {os.getloadavg()[0]:.2f}, threads {torch.get_num_threads()}", flush=True)
    rates: dict[str, list[float]] = {}
    made: dict[tuple[int, int], tuple[int, ...]] = {}

    def measure(name: str) -> None:
        if name == OURS:
            rate, found = ours(model, requests)
            made.update(found)
        else:
            rate = theirs(model, requests, *peers[name])
        rates.setdefault(name, []).append(rate)
        print(f"{name:34} {rate:8.1f} tokens/s", flush=True)

    for name in [OURS, *peers]:
        measure(name)
    best = max(peers, key=lambda name: rates[name][0])
    for _ in range(arguments.repeats - 1):
        measure(OURS)
        measure(best)
    mine, peer = statistics.median(rates[OURS]), statistics.median(rates[best])
    print(f"\nbest of the sweep: {best}; medians of {arguments.repeats} runs in turn")
    print(f"{mine:.1f} against {peer:.1f} tokens/s: {mine / peer:.2f}x")
    sample = requests[:: max(1, len(requests) // 8)]
    equal = sum(made[r.key] == generate_one(model, r, str, ()).tokens for r in sample)
    print(f"greedy rows equal to sequential generation: {equal} of {len(sample)}")
    print(f"load after: {os.getloadavg()[0]:.2f}")
    if arguments.output:
        arguments.output.write_text(json.dumps(rates, indent=2))


if __name__ == "__main__":
    main()
