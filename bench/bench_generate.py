"""Output tokens per second against transformers ``generate`` and llama.cpp, on one machine.

Workload: a 20-million-parameter Llama shape with random weights (``--shape smollm2`` for that of
SmolLM2-135M); questions × samples behind one shared 300-token prefix; output lengths exponential
with mean 50, forced the same for all. ``generate`` gets a sweep: batch sizes, with and without a
reused prefix cache. llama.cpp (``--llama PYTHON`` of an environment with llama-cpp-python and gguf)
gets the same weights, the prefix shared between its sequences, and a sweep of their number. Then
ours and the best of each peer run again in turn, and medians are compared. Greedy text is checked
against sequential generation, llama.cpp's against ours. Ratios carry, absolute numbers do not.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import training_workload
from tunesmith.generate.engine import Engine
from tunesmith.generate.reference import generate_one
from tunesmith.generate.requests import Request, Sampling
from tunesmith.models.memory import use_huge_pages

PREFIX, MEAN_OUTPUT = 300, 50
OURS = "tunesmith"


def make_model(shape: str) -> LlamaForCausalLM:
    use_huge_pages()  # as loading a model does; both sides gain
    torch.manual_seed(0)
    if shape == "smollm2":
        return training_workload.make_model("smollm2").eval()
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


def write_for_llama(model: LlamaForCausalLM, requests: list[Request], folder: Path) -> None:
    """Write weights, shape and requests for ``llama_cpp_arm.py``; a tied head once."""
    config = model.config.to_dict()
    config["rope_theta"] = model.config.rope_parameters["rope_theta"]
    (folder / "config.json").write_text(json.dumps(config, default=str))
    weights = {name: p.detach().numpy() for name, p in model.named_parameters()}
    np.savez(folder / "model.npz", **weights)
    rows = [{"prompt": r.prompt_ids, "new": r.sampling.max_new_tokens} for r in requests]
    (folder / "requests.json").write_text(json.dumps({"shared": PREFIX, "requests": rows}))


def llama(python: str, folder: Path, slots: int, kind: str) -> tuple[float, list[list[int]]]:
    script = str(Path(__file__).with_name("llama_cpp_arm.py"))
    threads = str(torch.get_num_threads())
    command = [python, script, str(folder), "--slots", str(slots), "--type", kind]
    done = subprocess.run(
        [*command, "--threads", threads], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"llama.cpp failed:\n{done.stderr[-3000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return found["rate"], found["tokens"]


def arguments_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=("20m", "smollm2"), default="20m")
    parser.add_argument("--questions", type=int, default=32)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="*", default=(8, 32, 128), help="of generate")
    parser.add_argument("--slots", type=int, nargs="*", default=(16, 32, 64), help="of llama.cpp")
    parser.add_argument("--llama", help="Python of an environment with llama-cpp-python and gguf")
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def main() -> None:
    arguments = arguments_of()
    model = make_model(arguments.shape)
    requests = make_requests(arguments.questions, arguments.samples)
    peers = {
        f"generate, batch {batch}{', prefix cache' if cached else ''}": (batch, cached)
        for batch in arguments.batches
        for cached in (False, True)
    }
    others = {}
    if arguments.llama:
        others = {f"llama.cpp, {slots} sequences": (slots, "f32") for slots in arguments.slots}
    print(f"load before: {os.getloadavg()[0]:.2f}, threads {torch.get_num_threads()}", flush=True)
    rates: dict[str, list[float]] = {}
    made: dict[tuple[int, int], tuple[int, ...]] = {}
    from_llama: list[list[int]] = []

    def measure(name: str) -> None:
        if name == OURS:
            rate, found = ours(model, requests)
            made.update(found)
        elif name in others:
            rate, from_llama[:] = llama(arguments.llama, folder, *others[name])
        else:
            rate = theirs(model, requests, *peers[name])
        rates.setdefault(name, []).append(rate)
        print(f"{name:34} {rate:8.1f} tokens/s", flush=True)

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if others:
            write_for_llama(model, requests, folder)
        for name in [OURS, *peers, *others]:
            measure(name)
        best = [max(arms, key=lambda name: rates[name][0]) for arms in (peers, others) if arms]
        for _ in range(arguments.repeats - 1):
            for name in [OURS, *best]:
                measure(name)
    mine = statistics.median(rates[OURS])
    print(f"\nmedians of {arguments.repeats} runs in turn")
    for name in best:
        peer = statistics.median(rates[name])
        print(f"{mine:.1f} against {peer:.1f} tokens/s of {name}: {mine / peer:.2f}x")
    sample = requests[:: max(1, len(requests) // 8)]
    equal = sum(made[r.key] == generate_one(model, r, str, ()).tokens for r in sample)
    print(f"greedy rows equal to sequential generation: {equal} of {len(sample)}")
    if others:
        pairs = zip(requests, from_llama, strict=True)
        same = sum(made[r.key] == tuple(tokens) for r, tokens in pairs)
        print(f"rows in which llama.cpp says the same: {same} of {len(requests)}")
    print(f"load after: {os.getloadavg()[0]:.2f}")
    if arguments.output:
        arguments.output.write_text(json.dumps(rates, indent=2))


if __name__ == "__main__":
    main()
