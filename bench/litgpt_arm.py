"""LitGPT's fine-tuning on the rows of ``bench_train.py``; run by the Python that has LitGPT.

LitGPT's own model, padding, loss and optimiser settings. Three things are set against its
defaults, so that its losses can be compared: the head is tied to the embeddings as in the shape,
micro-batches count by their trained tokens, and gradients are clipped to 1.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any


def make_model(folder: Path, method: str) -> Any:
    """Return the shape with the weights that lie in the folder, and what is trained of it."""
    import litgpt.lora
    import litgpt.model
    import torch
    from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
    from safetensors.torch import load_file

    from training_workload import ALPHA, RANK, frozen_blocks

    changed: dict[str, Any] = {"rope_base": 10_000, "norm_eps": 1e-6, "block_size": 2048}
    if method == "lora":
        parts = ("query", "key", "value", "projection", "mlp")
        changed |= {"lora_r": RANK, "lora_alpha": ALPHA, **{f"lora_{p}": True for p in parts}}
    module = litgpt.lora if method == "lora" else litgpt.model
    torch.manual_seed(0)
    model = module.GPT(module.Config.from_name("SmolLM2-135M", **changed))
    weights: dict[str, Any] = {}
    copy_weights_hf_llama(model.config, {}, weights, load_file(folder / "model.safetensors"))
    missing = model.load_state_dict(weights, strict=False)
    assert all("lora" in name for name in missing.missing_keys), missing
    model.lm_head.weight = model.transformer.wte.weight
    if method == "lora":
        litgpt.lora.mark_only_lora_as_trainable(model)
    if method == "freeze":
        model.transformer.wte.weight.requires_grad_(False)
        for block in model.transformer.h[: frozen_blocks(len(model.transformer.h))]:
            block.requires_grad_(False)
    return model


def main() -> None:
    """Train as ``job.json`` in the folder says and print what was measured."""
    import torch
    from litgpt.data.base import get_sft_collate_fn
    from litgpt.utils import chunked_cross_entropy

    folder = Path(sys.argv[1])
    job = json.loads((folder / "job.json").read_text())
    torch.set_num_threads(job["threads"])
    model = make_model(folder, job["method"])
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)
    collate = get_sft_collate_fn(pad_id=0)
    losses, tokens, times = [], [], [time.perf_counter()]
    for step in job["steps"]:
        samples = []
        for row in step:
            ids, mask = torch.tensor(row["input_ids"]), torch.tensor(row["completion_mask"])
            labels = ids.masked_fill(mask == 0, -100)
            counts = {"raw": len(ids), "raw_plus_prompt_template": len(ids)}
            samples.append({"input_ids": ids, "labels": labels, "token_counts": counts})
        whole = sum(int((s["labels"][1:] != -100).sum()) for s in samples)
        total = 0.0
        for at in range(0, len(samples), job["batch"]):
            batch = collate(samples[at : at + job["batch"]])
            logits = model(batch["input_ids"])
            targets = batch["labels"][..., 1:]
            mean = chunked_cross_entropy(logits[..., :-1, :], targets)
            loss = mean * int((targets != -100).sum()) / whole
            loss.backward()
            total += float(loss)
            del logits, mean, loss
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
        tokens.append(sum(len(s["input_ids"]) for s in samples))
        times.append(time.perf_counter())
    result = {"losses": losses, "tokens": sum(tokens[1:]), "seconds": times[-1] - times[1]}
    result["gigabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps(result))


if __name__ == "__main__":
    main()
