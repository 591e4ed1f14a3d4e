"""Training tokens per second against TRL's SFTTrainer, on the same rows in the same order.

Workload: the shape of SmolLM2-135M with random weights, full fine-tuning in float32 without
gradient checkpointing; rows of mixed length (prompt and completion log-normal with medians 90 and
80, at most 1,024 tokens), loss on completions only, 8 rows a step. Every arm runs in a process of
its own, whose peak memory is taken. TRL gets a sweep of batch shapes at 8 rows a step, grouping by
length and packing; then ours, the best of the sweep and the padded batch of 8 run again in turn,
and medians are compared. Ratios carry, absolute numbers do not.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROWS_A_STEP, LONGEST, VOCABULARY = 8, 1024, 49_152
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


def make_model() -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
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


def run_ours(rows: list[dict[str, list[int]]], steps: int) -> dict[str, Any]:
    from accelerate import Accelerator

    from tunesmith.models.memory import use_huge_pages
    from tunesmith.train.batches import make_plan, packed_capacity
    from tunesmith.train.loop import Settings, State, fit, make_optimizer
    from tunesmith.types import Encoded, Origin

    use_huge_pages()  # as loading a model does
    encoded = [
        Encoded(tuple(r["input_ids"]), tuple(map(float, r["completion_mask"])), Origin("bench", at))
        for at, r in enumerate(rows)
    ]
    plan = make_plan(len(rows), ROWS_A_STEP, 1, steps, seed=1)
    model = make_model()
    capacity = packed_capacity(max(len(row.ids) for row in encoded), 576, "cpu")
    settings = Settings(1e-4, "constant", capacity=capacity, weight_decay=0.0)
    state = State(model, make_optimizer(model, settings))
    done = list(fit(state, encoded, plan, settings, Accelerator(cpu=True)))
    return {
        "losses": [one.loss for one in done],
        "tokens": sum(one.tokens for one in done[1:]),
        "seconds": sum(one.seconds for one in done[1:]),
    }


def run_trl(rows: list[dict[str, list[int]]], steps: int, arm: dict[str, Any]) -> dict[str, Any]:
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    import tunesmith
    from tunesmith.train.batches import make_plan

    batch, packing, grouped = arm["batch"], arm.get("packing", False), arm.get("grouped", False)
    # The order of the plan, so that each step sees the same rows as ours.
    plan = make_plan(len(rows), ROWS_A_STEP, 1, steps, seed=1)
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
            gradient_accumulation_steps=1 if packing else ROWS_A_STEP // batch,
            max_steps=max(2, steps // 2) if packing else steps,
            max_length=LONGEST,
            packing=packing,
            completion_only_loss=True,
            learning_rate=1e-4,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            logging_steps=1,
            logging_strategy="steps",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **({"train_sampling_strategy": "group_by_length"} if grouped else {}),
        )
        trainer = Trainer(
            model=make_model(),
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


def run_arm(name: str, steps: int) -> dict[str, Any]:
    """Run one arm in a process of its own and return what it measured."""
    command = [sys.executable, __file__, "--arm", name, "--steps", str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4, help="the first one is not timed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--arm")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    steps = arguments.steps
    if arguments.arm:
        rows = make_rows(ROWS_A_STEP * steps)
        ours = arguments.arm == OURS
        result = run_ours(rows, steps) if ours else run_trl(rows, steps, PEERS[arguments.arm])
        result["gigabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps(result))
        return
    print(f"load before: {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores", flush=True)
    runs: dict[str, list[dict[str, Any]]] = {}

    def measure(name: str) -> None:
        result = run_arm(name, steps)
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

    for name in [OURS, *PEERS]:
        measure(name)
    best = max(PEERS, key=rate)
    for _ in range(arguments.repeats - 1):
        for name in dict.fromkeys([OURS, best, PADDED]):
            measure(name)
    apart = max(
        abs(a - b) for a, b in zip(runs[OURS][0]["losses"], runs[best][0]["losses"], strict=False)
    )
    print(f"\nbest of the sweep: {best}; medians of {arguments.repeats} runs in turn")
    for name in dict.fromkeys([best, PADDED]):
        print(
            f"{rate(OURS):.1f} against {rate(name):.1f} tokens/s of {name}: "
            f"{rate(OURS) / rate(name):.2f}x; {memory(OURS):.2f} against {memory(name):.2f} GiB"
        )
    print(f"largest difference of a step's loss from {best}: {apart:.1e}")
    print(f"load after: {os.getloadavg()[0]:.2f}")
    if arguments.output:
        arguments.output.write_text(json.dumps(runs, indent=2))


if __name__ == "__main__":
    main()
