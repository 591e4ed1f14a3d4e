"""Which share of the machine's matrix rate a training step reaches, and where the rest goes.

The workload of ``bench_train.py``. The rate is that of a bare product of 2,048 x 2,048 in float32,
measured before and after every step, since a shared machine's speed drifts. Of a step those
operations count that the method needs, a multiplication and an addition each: twice the weights a
token forward, as much for the gradient of its input, and for the weights' own where they are
trained; the head for trained tokens alone; attention's two products forward and four backward
over the half of the square that a causal row has. Nothing that is computed twice counts, and
nothing elementwise. A profile of one more step says which operators take its time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from typing import Any

from bench_train import prepared
from training_workload import ROWS_A_STEP, make_rows

SIDE = 2048


def product_rate() -> float:
    """Return the operations a second of a bare product, the median of five."""
    import torch

    one, other = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        torch.mm(one, other)
        times.append(time.perf_counter() - began)
    return float(2 * SIDE**3 / statistics.median(times))


def needed_operations(model: Any, rows: list[dict[str, list[int]]]) -> float:
    """Return the operations that a step of full or LoRA training needs over these rows."""
    config = model.config
    tables = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    weights = [
        weight
        for name, weight in model.named_parameters()
        if weight.ndim == 2 and id(weight) not in tables and "wpe" not in name
    ]
    tokens = sum(len(row["input_ids"]) for row in rows)
    labels = sum(sum(row["completion_mask"]) for row in rows)
    squares = sum(len(row["input_ids"]) ** 2 for row in rows)
    head = model.get_output_embeddings().weight
    layers = sum((6 if one.requires_grad else 4) * one.numel() for one in weights) * tokens
    attention = 12 * squares / 2 * config.hidden_size * config.num_hidden_layers
    return layers + (6 if head.requires_grad else 4) * head.numel() * labels + attention


def main() -> None:
    import torch

    from tunesmith.train.loop import fit

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", choices=("full", "lora"), default="full")
    parser.add_argument("--shape", choices=("smollm2", "gpt2"), default="smollm2")
    parser.add_argument("--steps", type=int, default=6, help="the first is not timed")
    job = parser.parse_args()
    job.device, job.epochs, job.rows_a_step = "cpu", 1, ROWS_A_STEP
    print(f"{job.method} on {job.shape}; load {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores")
    rows = make_rows(ROWS_A_STEP * (job.steps + 1))
    state, *given = prepared(rows, job)
    steps, before, shares = fit(state, *given), product_rate(), []
    for done in (next(steps) for _ in range(job.steps)):
        after = product_rate()
        needed = needed_operations(state.model, [rows[at] for at in done.rows])
        reached, bare = needed / done.seconds, (before + after) / 2
        note = "not counted" if done.step == 1 else f"{reached / bare:.1%}"
        print(
            f"step {done.step}: {done.tokens} tokens, {needed / 1e9:.0f} GFLOP needed in "
            f"{done.seconds:.1f} s, {reached / 1e9:.1f} of {bare / 1e9:.1f} GFLOP/s: {note}",
            flush=True,
        )
        shares += [reached / bare] if done.step > 1 else []
        before = after
    print(f"median {statistics.median(shares):.1%} of the bare product's rate")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        next(steps)
    table = profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=22)
    for line in table.splitlines():
        print(line[:110])


if __name__ == "__main__":
    main()
