"""Output tokens per second and memory of weights in int8, against float32 and bfloat16 on a CPU.

Workload: SmolLM2-135M's shape with random weights, saved in bfloat16 as such models are; a prompt
of 512 tokens (all of it at once), then answers of 32 tokens to prompts of 32, at batches of 1, 8
and 32, greedily. Each arm is a process of its own, which loads the model as a command does. The
arms run in turn; medians are compared. Blocks of 64 MB take every layer whole.

Memory is what /proc says (Linux): pages of the process's own, and with pages of mapped files, now
and at most. Random weights say nothing about the quality of answers.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import training_workload

ARMS = {
    "float32": ("float32", 0.0),
    "bfloat16": ("bfloat16", 0.0),
    "int8": ("float32", 4.0),
    "int8, blocks of 1 MB": ("float32", 1.0),
    "int8, whole layers": ("float32", 64.0),
}
"""Type of what is computed in, and megabytes of a block; 0 is no int8."""
PROMPT, ANSWER, LONG = 32, 32, 512
BATCHES = (1, 8, 32)


def save_model(folder: Path) -> None:
    import torch

    from tunesmith.models.load import ASSETS

    training_workload.make_model("smollm2").to(torch.bfloat16).save_pretrained(folder)
    for file in (ASSETS / "tiny").glob("token*"):
        shutil.copy(file, folder)


def memory() -> dict[str, int]:
    lines = Path("/proc/self/status").read_text().splitlines()
    facts = dict(line.split(":", 1) for line in lines)
    names = {"own": "RssAnon", "resident": "VmRSS", "at most": "VmHWM"}
    return {name: int(facts[key].split()[0]) // 1024 for name, key in names.items()}


def run_arm(name: str, folder: str) -> dict[str, Any]:
    from tunesmith.generate.engine import Engine
    from tunesmith.generate.requests import Request, Sampling
    from tunesmith.models import int8_weights
    from tunesmith.models.load import load

    dtype, block = ARMS[name]
    int8_weights.BLOCK_BYTES = int(block * (1 << 20)) or int8_weights.BLOCK_BYTES
    start = time.perf_counter()
    loaded = load(folder, dtype=dtype, device="cpu", int8=block > 0)
    found: dict[str, Any] = {"loading": time.perf_counter() - start, "loaded": memory()}
    found["weights"] = int8_weights.held_bytes(loaded.model) / 1e6
    engine = Engine(loaded.model, lambda _: "", ())
    rng = random.Random(3)

    def seconds(rows: int, prompt: int, answer: int) -> float:
        ids = [[rng.randrange(40_000) for _ in range(prompt)] for _ in range(rows)]
        asked = [Request(n, tuple(row), Sampling(answer)) for n, row in enumerate(ids)]
        start = time.perf_counter()
        made = sum(len(done.tokens) for done in engine.run(asked))
        assert made == rows * answer
        return time.perf_counter() - start

    seconds(2, 8, 2)
    found["prompt"] = LONG / seconds(1, LONG, 1)
    for rows in BATCHES:
        found[f"batch {rows}"] = rows * ANSWER / seconds(rows, PROMPT, ANSWER)
    found["afterwards"] = memory()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.arm:
        print(json.dumps(run_arm(arguments.arm, arguments.folder)))
        return
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in arguments.arms}
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder))
        environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
        for _ in range(arguments.repeats):
            for name in arguments.arms:
                command = [sys.executable, __file__, "--arm", name, "--folder", folder]
                done = subprocess.run(
                    command, env=environment, check=True, stdout=subprocess.PIPE, text=True
                )
                found[name].append(json.loads(done.stdout.splitlines()[-1]))
                print(name, found[name][-1], file=sys.stderr, flush=True)
    print(f"threads {arguments.threads}, load {os.getloadavg()[0]:.1f}, medians of ", end="")
    print(arguments.repeats)
    for name, runs in found.items():
        speeds = {
            key: round(statistics.median(run[key] for run in runs), 1)
            for key in ("loading", "weights", "prompt", *(f"batch {rows}" for rows in BATCHES))
        }
        print(f"{name}: {speeds}\n  {runs[-1]['loaded']} {runs[-1]['afterwards']}")


if __name__ == "__main__":
    main()
