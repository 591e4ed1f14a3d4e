"""Training tokens per second against TRL's SFTTrainer and LitGPT, on the same rows in order.

Workload: the shape of SmolLM2-135M (or GPT-2's) with random weights in float32 without gradient
checkpointing; rows of mixed length (prompt and completion log-normal with medians 90 and 80, at
most 1,024 tokens), loss on completions only, 8 rows a step; full fine-tuning, LoRA (rank 16, every
linear layer) or the bottom 0.75 of the blocks frozen. Every arm runs in a process of its own, whose
peak memory is taken. TRL gets a sweep of batch shapes at 8 rows a step, grouping by length and
packing; LitGPT, in an environment of its own (``--litgpt PYTHON``), batches of 1 and 8. Then ours,
the best of each peer and TRL's padded batch of 8 run again in turn, and medians are compared.
Ratios carry, absolute numbers do not.

On a GPU (``--device cuda --shape qwen3-0.6b --method lora --rows-a-step 64``; written, not run):
weights in bfloat16, TRL packs 2,048 tokens and takes its batches as they are, memory is the
device's, and ``--peak`` (dense bfloat16 TFLOP/s of the device) gives the share of it that is used.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from training_workload import (
    ALPHA,
    FROZEN,
    LONGEST,
    METHODS,
    RANK,
    ROWS_A_STEP,
    SHAPES,
    make_model,
    make_rows,
)

OURS = "tunesmith"
PEERS: dict[str, dict[str, Any]] = {
    "TRL, batch 1 x 8": {"batch": 1},
    "TRL, batch 2 x 4": {"batch": 2},
    "TRL, batch 4 x 2": {"batch": 4},
    "TRL, batch 8 x 1": {"batch": 8},
    "TRL, batch 4 x 2, grouped by length": {"batch": 4, "grouped": True},
    "TRL, packed": {"batch": 1, "packing": True},
}
PADDED = "TRL, batch 8 x 1"
LITGPT = {"LitGPT, batch 1 x 8": 1, "LitGPT, batch 8 x 1": 8}


def trainable(job: argparse.Namespace) -> Any:
    """Return the model with what the method trains, the same for ours and TRL."""
    from tunesmith.models.adapters import add_lora, freeze_bottom

    model = make_model(job.shape)
    if job.device == "cuda":
        import torch

        model = model.to("cuda", torch.bfloat16)
    if job.method == "lora":
        return add_lora(model, rank=RANK, alpha=ALPHA, seed=1)
    if job.method == "freeze":
        freeze_bottom(model, FROZEN)
    return model


def planned(job: argparse.Namespace, rows: list[Any]) -> Any:
    from tunesmith.train.batches import make_plan

    return make_plan(len(rows), job.rows_a_step, job.epochs, None, seed=1)


def prepared(rows: list[dict[str, list[int]]], job: argparse.Namespace) -> tuple[Any, ...]:
    """Return what ``fit`` takes, as a run makes it: state, rows, plan, settings, accelerator."""
    from accelerate import Accelerator

    from tunesmith.models.fused_layers import fuse_layers
    from tunesmith.models.fused_lora import fuse_lora
    from tunesmith.models.memory import use_huge_pages
    from tunesmith.train.batches import packed_capacity
    from tunesmith.train.loop import Settings, State, make_optimizer
    from tunesmith.types import Encoded, Origin

    use_huge_pages()  # as loading a model does
    encoded = [
        Encoded(tuple(r["input_ids"]), tuple(map(float, r["completion_mask"])), Origin("bench", at))
        for at, r in enumerate(rows)
    ]
    plan, model = planned(job, rows), trainable(job)
    fuse_layers(model)  # as a run does
    fuse_lora(model)
    hidden = model.get_input_embeddings().weight.shape[1]
    capacity = packed_capacity(max(len(row.ids) for row in encoded), hidden, job.device)
    settings = Settings(1e-4, "constant", capacity=capacity, weight_decay=0.0)
    state = State(model, make_optimizer(model, settings))
    return state, encoded, plan, settings, Accelerator(cpu=job.device == "cpu")


def run_ours(rows: list[dict[str, list[int]]], job: argparse.Namespace) -> dict[str, Any]:
    from tunesmith.train.loop import fit
    from tunesmith.train.trunk_cache import TrunkCache, look

    state, *given = prepared(rows, job)
    trunk = None
    with tempfile.TemporaryDirectory() as folder:
        if job.method == "freeze" and job.epochs > 1:  # as a run decides by itself
            found = look(state.model, *given)
            trunk = TrunkCache(Path(folder) / "trunk.cache", state.model, *given, found)
        done = list(fit(state, *given, trunk=trunk))
    return {
        "losses": [one.loss for one in done],
        "tokens": sum(one.tokens for one in done[1:]),
        "seconds": sum(one.seconds for one in done[1:]),
        **size_of(state.model),
    }


def size_of(model: Any) -> dict[str, int]:
    """Return the weights that a token is multiplied by, and how many of them are trained."""
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    table = 0 if tied else model.get_input_embeddings().weight.numel()
    counted = sum(p.numel() for p in model.parameters()) - table
    return {
        "weights": counted,
        "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }


def used(job: argparse.Namespace, run: dict[str, Any], rate: float) -> float:
    """Return the share of the device's peak: 2 operations a weight forward and 2 for its input.

    Two more for each trained weight; recomputation, attention scores and padding are not counted.
    """
    return rate * (4 * run["weights"] + 2 * run["trained"]) / (job.peak * 1e12)


def run_trl(
    rows: list[dict[str, list[int]]], job: argparse.Namespace, arm: dict[str, Any]
) -> dict[str, Any]:
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    import tunesmith

    batch, packing, grouped = arm["batch"], arm.get("packing", False), arm.get("grouped", False)
    # The order of the plan, so that each step sees the same rows as ours.
    plan = planned(job, rows)
    steps = plan.total_steps
    order = [at for step in range(steps) for at in plan.step_rows(step)]
    data = Dataset.from_list([rows[at] for at in order])
    tokens, times = [0], [time.perf_counter()]

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())
            tokens.append(tokens[-1])

    class Trainer(SFTTrainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            if grouped:
                return super()._get_train_sampler(train_dataset)
            return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)

        def training_step(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
            mask = inputs.get("attention_mask")
            tokens[-1] += inputs["input_ids"].numel() if mask is None else int(mask.sum())
            return super().training_step(model, inputs, *rest, **named)

    tiny = Path(tunesmith.__file__).parent / "assets" / "tiny"
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=1 if packing else job.rows_a_step // batch,
            max_steps=max(2, steps // 2) if packing else steps,
            max_length=LONGEST if job.device == "cpu" else 2 * LONGEST,
            packing=packing,
            completion_only_loss=True,
            learning_rate=1e-4,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            bf16=job.device == "cuda",
            gradient_checkpointing=False,
            use_cpu=job.device == "cpu",
            logging_steps=1,
            logging_strategy="steps",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **({"train_sampling_strategy": "group_by_length"} if grouped else {}),
        )
        trainer = Trainer(
            model=trainable(job),
            args=config,
            train_dataset=data,
            processing_class=AutoTokenizer.from_pretrained(tiny),
            callbacks=[Clock()],
        )
        trainer.train()
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    # tokens[k] counts steps 1 to k+1; the first step warms up.
    return {
        "losses": losses,
        "tokens": tokens[-2] - tokens[0],
        "seconds": times[-1] - times[1],
    }


def run_litgpt(rows: list[dict[str, list[int]]], job: argparse.Namespace) -> dict[str, Any]:
    """Hand LitGPT's Python the weights and the rows of every step; return what it measured."""
    plan = planned(job, rows)
    steps = [[rows[at] for at in plan.step_rows(step)] for step in range(plan.total_steps)]
    with tempfile.TemporaryDirectory() as folder:
        make_model(job.shape).save_pretrained(folder)
        # Its Python may know nothing of torch's default; ours takes the machine's cores.
        told = {"method": job.method, "batch": LITGPT[job.arm], "steps": steps}
        told["threads"] = len(os.sched_getaffinity(0))
        (Path(folder) / "job.json").write_text(json.dumps(told))
        command = [job.litgpt, str(Path(__file__).parent / "litgpt_arm.py"), folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def run_arm(name: str, job: argparse.Namespace) -> dict[str, Any]:
    """Run one arm in a process of its own and return what it measured."""
    settings = ("method", "shape", "steps", "epochs", "litgpt", "device", "rows_a_step")
    given = [
        f"--{key.replace('_', '-')}={getattr(job, key)}" for key in settings if getattr(job, key)
    ]
    command = [sys.executable, __file__, "--arm", name, *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure_one(job: argparse.Namespace) -> dict[str, Any]:
    """Carry out the arm that this process was started for."""
    rows = make_rows(job.rows_a_step * job.steps)
    if job.arm in LITGPT:
        return run_litgpt(rows, job)
    ours = job.arm == OURS
    result = run_ours(rows, job) if ours else run_trl(rows, job, PEERS[job.arm])
    result["gigabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if job.device == "cuda":
        import torch

        result["gigabytes"] = torch.cuda.max_memory_allocated() / 2**30
    return result


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", choices=METHODS, default="full")
    parser.add_argument("--shape", choices=SHAPES, default="smollm2")
    parser.add_argument("--steps", type=int, default=4, help="of an epoch; the first is not timed")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    arms = [*PEERS, *LITGPT]
    parser.add_argument("--sweep", nargs="*", default=arms, choices=arms, help="the peers' arms")
    parser.add_argument("--litgpt", help="Python of an environment that has LitGPT")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rows-a-step", type=int, default=ROWS_A_STEP)
    parser.add_argument("--peak", type=float, help="TFLOP/s of the device, for its share in use")
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def main() -> None:
    job = arguments()
    if job.arm:
        print(json.dumps(measure_one(job)))
        return
    print(f"{job.method} on {job.shape}, {job.steps} steps x {job.epochs} epochs")
    print(f"load before: {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores", flush=True)
    runs: dict[str, list[dict[str, Any]]] = {}

    def measure(name: str) -> None:
        result = run_arm(name, job)
        runs.setdefault(name, []).append(result)
        print(
            f"{name:38} {result['tokens'] / result['seconds']:7.1f} tokens/s "
            f"{result['gigabytes']:6.2f} GiB  losses {[round(x, 4) for x in result['losses']]}",
            flush=True,
        )

    def rate(name: str) -> float:
        return statistics.median(r["tokens"] / r["seconds"] for r in runs[name])

    def memory(name: str) -> float:
        return statistics.median(r["gigabytes"] for r in runs[name])

    # LitGPT has no learned positions for GPT-2's shape; its arm runs on a CPU.
    runs_litgpt = job.litgpt and job.shape == "smollm2" and job.device == "cpu"
    others = [name for name in job.sweep if name in LITGPT and runs_litgpt]
    of_trl = [name for name in job.sweep if name in PEERS]
    for name in [OURS, *of_trl, *others]:
        measure(name)
    peers = [max(group, key=rate) for group in (of_trl, others) if group]
    again = dict.fromkeys([*peers, *([PADDED] if PADDED in job.sweep else [])])
    for _ in range(job.repeats - 1):
        for name in [OURS, *again]:
            measure(name)
    print(f"\nmedians of {job.repeats} runs in turn")
    for name in again:
        pairs = zip(runs[OURS][0]["losses"], runs[name][0]["losses"], strict=False)
        apart = max(abs(a - b) for a, b in pairs)
        print(
            f"{rate(OURS):.1f} against {rate(name):.1f} tokens/s of {name}: "
            f"{rate(OURS) / rate(name):.2f}x; {memory(OURS):.2f} against {memory(name):.2f} GiB; "
            f"largest difference of a step's loss {apart:.1e}"
        )
    if job.peak:
        print(f"{used(job, runs[OURS][0], rate(OURS)):.1%} of the device's peak")
    print(f"load after: {os.getloadavg()[0]:.2f}")
    if job.output:
        job.output.write_text(json.dumps(runs, indent=2))


if __name__ == "__main__":
    main()
