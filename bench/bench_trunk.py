"""What three epochs with the bottom layers frozen take, with and without the trunk cache.

Workload: a Llama shape with random weights in float32 (``--shape smollm2`` for that of
SmolLM2-135M, ``wide`` for one whose head weighs as little as a large model's; the default ends in
minutes on a laptop), the rows of ``bench_train.py``, packed, 8 a step. Both arms of a share lie in
one process and run step by step in turn, on the same rows in the same order, after a step that is
not timed and changes nothing, so that a machine whose speed changes from minute to minute does not
decide. Seconds are compared, processor seconds, and the losses of all steps.

The ideal counts matrix products of the layers only: forward 1, backward 1 for the input and 1 for
the weights (none for an adapter), nothing for the head, whose cost the cache does not change, and
all tokens of the last block, whose feed-forward layer runs for labels alone: that much more can be
gained. With a share f frozen an epoch takes 3 - 2f, a cached one 3(1 - f); with LoRA 2 - f and
2(1 - f).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import training_workload

ROWS_A_STEP, EPOCHS = 8, 3
KINDS = ("plain", "cached")
CLOCKS = ("seconds", "processor")


SHAPES = {
    # A head of 49,152 words would outweigh these layers.
    "small": {"vocab_size": 8192, "hidden_size": 256, "intermediate_size": 688,
              "num_hidden_layers": 20, "num_attention_heads": 4, "num_key_value_heads": 2},
    # The head is 2.7% of the parameters, as it is 2% of Llama 2's with 7 billion.
    "wide": {"vocab_size": 4096, "hidden_size": 1024, "intermediate_size": 2752,
             "num_hidden_layers": 12, "num_attention_heads": 16, "num_key_value_heads": 16},
}  # fmt: skip


def make_model(shape: str) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    if shape == "smollm2":
        return training_workload.make_model("smollm2")
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=2048, tie_word_embeddings=True)
    return LlamaForCausalLM(config)


def run_pair(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train the plain and the cached run step by step in turn; return what each took."""
    from tunesmith.models.memory import use_huge_pages

    use_huge_pages()
    with tempfile.TemporaryDirectory() as folder:
        arms = {kind: begin_arm(kind, arguments, Path(folder) / "trunk.cache") for kind in KINDS}
        order = list(KINDS)
        for _ in range(arms["plain"]["plan"].total_steps):
            for kind in order:
                arm, before = arms[kind], clocks()
                done = next(arm["steps"])
                arm["losses"].append(done.loss)
                part = "first" if done.step <= arm["plan"].steps_an_epoch else "later"
                for clock, now in clocks().items():
                    arm[part][clock] += now - before[clock]
            order.reverse()  # neither has the other's warm caches every time
        arms["cached"]["cache"].remove()
    shown = ("losses", "frozen", "tokens", "size", "opened", "first", "later")
    return {kind: {name: arm[name] for name in shown} for kind, arm in arms.items()}


def begin_arm(kind: str, arguments: argparse.Namespace, path: Path) -> dict[str, Any]:
    from accelerate import Accelerator

    from tunesmith.models.adapters import add_lora, blocks, freeze_bottom
    from tunesmith.models.fused_layers import fuse_layers
    from tunesmith.models.fused_lora import fuse_lora
    from tunesmith.train.batches import Plan, make_plan, packed_capacity
    from tunesmith.train.loop import Settings, State, fit, make_optimizer
    from tunesmith.train.trunk_cache import TrunkCache, look
    from tunesmith.types import Encoded, Origin

    model = make_model(arguments.shape)
    words, width = model.get_input_embeddings().weight.shape
    rows = []
    for at, row in enumerate(training_workload.make_rows(arguments.rows)):
        ids = tuple(token % words for token in row["input_ids"])
        rows.append(Encoded(ids, tuple(map(float, row["completion_mask"])), Origin("bench", at)))
    layers = len(blocks(model))
    if arguments.lora:
        model = add_lora(model, rank=16, alpha=32)
    frozen = freeze_bottom(model, arguments.share)
    fuse_layers(model)  # as a run does
    fuse_lora(model)
    accelerator = Accelerator(cpu=True)
    capacity = packed_capacity(max(len(row.ids) for row in rows), width, "cpu")
    still = Settings(0.0, "constant", capacity=capacity, weight_decay=0.0)
    warm = State(model, make_optimizer(model, still))
    list(fit(warm, rows, Plan(ROWS_A_STEP, ROWS_A_STEP, 1, 2), still, accelerator))
    settings = Settings(1e-4, "constant", capacity=capacity, weight_decay=0.0)
    plan = make_plan(len(rows), ROWS_A_STEP, EPOCHS, None, seed=1)
    state = State(model, make_optimizer(model, settings))
    before, cache = clocks(), None
    if kind == "cached":
        found = look(model, rows, plan, settings, accelerator)
        cache = TrunkCache(path, model, rows, plan, settings, accelerator, found)
    opened = {clock: now - before[clock] for clock, now in clocks().items()}
    return {
        "steps": fit(state, rows, plan, settings, accelerator, trunk=cache),
        "plan": plan,
        "cache": cache,
        "losses": [],
        "frozen": frozen / layers,
        "tokens": sum(len(row.ids) for row in rows),
        "size": path.stat().st_size if cache else 0,
        "opened": opened,
        "first": dict.fromkeys(CLOCKS, 0.0),
        "later": dict.fromkeys(CLOCKS, 0.0),
    }


def clocks() -> dict[str, float]:
    return {"seconds": time.perf_counter(), "processor": time.process_time()}


def in_a_process(share: float, arguments: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--share", str(share)]
    command += ["--rows", str(arguments.rows), "--shape", arguments.shape]
    command += ["--lora"] if arguments.lora else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"the pair at {share} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def ideal(frozen: float, lora: bool) -> dict[str, float]:
    """Return the gain of the whole run and of a later epoch."""
    whole, cached = (2 - frozen, 2 - 2 * frozen) if lora else (3 - 2 * frozen, 3 - 3 * frozen)
    return {
        "whole run": EPOCHS * whole / (whole + (EPOCHS - 1) * cached),
        "later epochs": whole / cached,
        "first epoch": 1.0,
    }


def show(pairs: list[dict[str, Any]], lora: bool) -> None:
    """Print the gains of one share, each the median over the pairs."""
    plain, one = pairs[0]["plain"], pairs[0]["cached"]
    apart = max(abs(a - b) for a, b in zip(plain["losses"], one["losses"], strict=True))
    print(
        f"frozen {one['frozen']:.3f}: {one['size'] / 1e6:.1f} MB for {one['tokens']:,} tokens; "
        f"losses of {len(one['losses'])} steps at most {apart:.1e} apart"
    )
    covered = {"whole run": ("opened", "first", "later"), "later epochs": ("later",)}
    covered["first epoch"] = ("first",)
    for name, best in ideal(one["frozen"], lora).items():

        def gain(pair: dict[str, Any], clock: str, name: str = name) -> float:
            took = {kind: sum(pair[kind][part][clock] for part in covered[name]) for kind in KINDS}
            return took["plain"] / took["cached"]

        gains = [[gain(pair, clock) for pair in pairs] for clock in CLOCKS]
        middle = [statistics.median(found) for found in gains]
        print(
            f"  {name:12} {middle[0]:.2f}x ({min(gains[0]):.2f} to {max(gains[0]):.2f}), "
            f"{middle[1]:.2f}x by processor, ideal {best:.2f}x"
        )
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=[*SHAPES, "smollm2"], default="small")
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.75, 0.9])
    parser.add_argument("--lora", action="store_true", help="train an adapter of rank 16 instead")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--share", type=float, help="run one pair at this share, here")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if arguments.share is not None:
        print(json.dumps(run_pair(arguments)))
        return
    print(f"load before: {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores", flush=True)
    kept: dict[str, list[dict[str, Any]]] = {}
    for share in arguments.shares:
        kept[str(share)] = [in_a_process(share, arguments) for _ in range(arguments.repeats)]
        show(kept[str(share)], arguments.lora)
    print(f"load after: {os.getloadavg()[0]:.2f}")
    if arguments.output:
        arguments.output.write_text(json.dumps(kept, indent=2))


if __name__ == "__main__":
    main()
