"""What a run began under: going on under something else is refused, or said."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from tunesmith.config.fields import shown
from tunesmith.config.schema import DataOptions, FineTuningConfig, ModelOptions, RunOptions
from tunesmith.errors import CheckpointError

if TYPE_CHECKING:
    from tunesmith.types import Encoded

FREE = (
    frozenset(DataOptions.model_fields) | frozenset(RunOptions.model_fields)
    | (frozenset(ModelOptions.model_fields) - {"dtype"})
    | {"num_epochs", "max_steps", "minutes", "gradient_checkpointing"}
    | {"trunk_cache", "torch_compile", "seed"}
)  # fmt: skip
"""Settings that decide no step, or that something else answers for: rows and weights by their
hashes, order and batches by the ledger, trunk cache and compiling by their own word."""
FIXED = (
    "dtype",
    "optim",
    "lora",
    "lora_rank",
    "lora_alpha",
    "lora_target_modules",
    "lora_init",
    "use_rslora",
    "use_dora",
    "lora_plus_ratio",
    "layer_lr_decay",
    "freeze_ratio",
    "load_in_4bit",
    "load_in_8bit",
)
"""Settings that decide what the numbers of a checkpoint mean."""
_SAMPLE = 64
"""Values of each weight that its hash takes in."""


def conditions(config: FineTuningConfig, rows: Iterable[Encoded], model: Any) -> dict[str, Any]:
    """Return what a checkpoint keeps: deciding settings, and hashes of rows and untrained weights.

    ``model`` is as it was loaded. Of each of its weights some values are hashed, spread evenly:
    enough to tell one model from another, without reading all of a large one.
    """
    whole = config.model_dump(mode="json")
    return {
        "settings": {name: value for name, value in whole.items() if name not in FREE},
        "rows": _rows_hash(rows),
        "base": base_hash(model),
    }


def compare(name: str, was: Mapping[str, Any] | None, now: Mapping[str, Any]) -> list[str]:
    """Return what to say about a run that goes on from the checkpoint ``name``.

    Raises ``CheckpointError`` where its numbers would mean something else.
    """
    if was is None:
        return [f"{name} does not say under which settings it was made, so none were compared"]
    before, after = was["settings"], now["settings"]
    changed = [key for key in after if key in before and before[key] != after[key]]
    fixed = [_change(key, before[key], after[key]) for key in changed if key in FIXED]
    if was["rows"] != now["rows"]:
        fixed.append("the rows are others")
    if was["base"] != now["base"] and not fixed:
        fixed.append("the model that it started from is another")
    if fixed:
        raise CheckpointError(
            f"{name} cannot be gone on from exactly: {'; '.join(fixed)}.",
            expected="the data, model and method that the run began with",
            hint="leave out what was changed, or start over with --overwrite",
        )
    loose = [_change(key, before[key], after[key]) for key in changed]
    if not loose:
        return []
    return [f"this run goes on under changed settings, so it repeats neither: {'; '.join(loose)}"]


def _change(key: str, before: object, after: object) -> str:
    return f"--{key.replace('_', '-')} was {shown(before)} and is {shown(after)}"


def _rows_hash(rows: Iterable[Encoded]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for row in rows:
        digest.update(array("q", [len(row.ids)]))
        digest.update(array("i", row.ids))
        digest.update(array("f", row.weights))
    return digest.hexdigest()


def base_hash(model: Any) -> str:
    """Return a hash of some values of each weight, enough to tell one model from another."""
    digest = hashlib.blake2b(digest_size=16)
    for key, weight in model.named_parameters():
        values = weight.detach().flatten()
        picked = values[:: max(1, len(values) // _SAMPLE)].float().cpu().numpy()
        digest.update(f"{key} {tuple(weight.shape)}".encode())
        digest.update(picked.tobytes())
    return digest.hexdigest()
