"""Training steps on k answers to one prompt: the prompt computed once against once for each.

Workload: a Llama shape of 11 million parameters (6 layers, or ``--layers``) with random weights,
full fine-tuning in float32 without gradient checkpointing; prompts of 512 tokens with 8 answers of
256 tokens, loss on answers only, one prompt a step. Two arms, each in a process of its own whose
peak memory is taken: rows by themselves, and all 8 answers at once behind their prompt
(``--shared-prefix grouped`` with 8 rows of a micro-batch). Both see the same rows in the same
order; medians of runs in turn are compared, and the largest difference between the losses of a step
is printed. Ratios carry, absolute numbers do not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

PROMPT, ANSWER, ANSWERS = 512, 256, 8
VOCABULARY, WIDTH = 4096, 384
ARMS = {"by themselves": "off", "shared": "grouped"}
EXPECTED = ANSWERS * (PROMPT + ANSWER) / (PROMPT + ANSWERS * ANSWER)


def make_rows(prompts: int) -> list[Any]:
    from tunesmith.types import Encoded, Origin

    rng = random.Random(7)
    rows = []
    weights = (0.0,) * PROMPT + (1.0,) * ANSWER
    for _ in range(prompts):
        prompt = [rng.randrange(VOCABULARY) for _ in range(PROMPT)]
        for _ in range(ANSWERS):
            ids = prompt + [rng.randrange(VOCABULARY) for _ in range(ANSWER)]
            rows.append(Encoded(tuple(ids), weights, Origin("bench", len(rows))))
    return rows


def make_model(layers: int) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=1024,
            num_hidden_layers=layers,
            num_attention_heads=6,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
        )
    )


def run_arm(shared: str, steps: int, layers: int) -> dict[str, Any]:
    from accelerate import Accelerator

    from tunesmith.models.fused_layers import fuse_layers
    from tunesmith.models.memory import use_huge_pages
    from tunesmith.train.batches import make_plan, packed_capacity
    from tunesmith.train.loop import Settings, State, fit, make_optimizer
    from tunesmith.train.sharing import prompts_of

    use_huge_pages()  # as loading a model does
    rows = make_rows(steps)
    # The same order in every arm, so that the losses of a step can be compared.
    plan = make_plan(len(rows), ANSWERS, 1, steps, 1, prompts_of(rows))
    model = make_model(layers)
    fuse_layers(model)  # as a run does
    settings = Settings(
        1e-4,
        "constant",
        capacity=packed_capacity(PROMPT + ANSWER, WIDTH, "cpu"),
        rows_a_micro_batch=ANSWERS,
        weight_decay=0.0,
        shared_prefix=shared,
    )
    state = State(model, make_optimizer(model, settings))
    used, done = [], []
    before = time.process_time()
    for one in fit(state, rows, plan, settings, Accelerator(cpu=True)):
        done.append(one)
        used.append(time.process_time() - before)
        before = time.process_time()
    return {
        "losses": [one.loss for one in done],
        "tokens": sum(one.tokens for one in done[1:]),
        "seconds": sum(one.seconds for one in done[1:]),
        "processor": sum(used[1:]),
        "gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4, help="the first one is not timed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--arm")
    arguments = parser.parse_args()
    if arguments.arm:
        print(json.dumps(run_arm(arguments.arm, arguments.steps, arguments.layers)))
        return
    print(f"load before: {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores", flush=True)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in ARMS}
    for _ in range(arguments.repeats):
        for name, shared in ARMS.items():
            command = [sys.executable, __file__, "--arm", shared, "--steps", str(arguments.steps)]
            command += ["--layers", str(arguments.layers)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
            result = json.loads(done.stdout.splitlines()[-1])
            runs[name].append(result)
            print(
                f"{name:28} {result['tokens'] / result['seconds']:8.1f} tokens/s, "
                f"{result['tokens'] / result['processor']:7.1f} a processor second, "
                f"{result['gigabytes']:5.2f} GiB  losses {[round(x, 5) for x in result['losses']]}",
                flush=True,
            )

    def median(name: str, what: str) -> float:
        return statistics.median(run["tokens"] / run[what] for run in runs[name])

    first, other = ARMS
    print(f"\ntokens saved: {EXPECTED:.2f}x; medians of {arguments.repeats} runs in turn")
    pairs = zip(runs[first][0]["losses"], runs[other][0]["losses"], strict=True)
    apart = max(abs(a - b) / a for a, b in pairs)
    print(
        f"{median(other, 'seconds') / median(first, 'seconds'):.2f}x by the clock, "
        f"{median(other, 'processor') / median(first, 'processor'):.2f}x by processor time; "
        f"losses differ by {apart:.1e} of their size at most"
    )
    print(f"load after: {os.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    main()
