"""Checkpoints that are whole or not there: safetensors and JSON, verified before use.

Commit rule: everything is written into a temporary folder beside the target and synced file by
file, a manifest with sizes and hashes last; then the folder is synced and renamed, and its parent
synced. A checkpoint counts only if its manifest verifies.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tunesmith.errors import CheckpointError
from tunesmith.storage import (
    hash_file,
    storage_errors,
    sync_folder,
    whole_folder,
)
from tunesmith.train import sharded
from tunesmith.train.ledger import Ledger
from tunesmith.train.loop import State
from tunesmith.train.policy import check_finite
from tunesmith.train.processes import is_sharded
from tunesmith.train.wire import Wire

MANIFEST = "manifest.json"
ROWS = "rows.safetensors"
KEPT_AT_LEAST = 2
ASIDE = "superseded-"
"""Begins the name of a checkpoint whose course was given up for an earlier one's."""
_NAME = re.compile(r"checkpoint-step-(\d+)")


def name(step: int) -> str:
    """Return the folder name of a step's checkpoint."""
    return f"checkpoint-step-{step}"


def save(
    folder: Path,
    state: State,
    extra: dict[str, Any],
    rows: dict[str, torch.Tensor] | None = None,
    wire: Wire | None = None,
) -> Path:
    """Commit the state as ``checkpoint-step-N``; ``extra`` is JSON of the caller, ``rows`` its
    ledger of rows.

    Of a model in shards every process writes its own, so all must call it, with their ``wire``.
    Raises ``DivergedError`` for weights that are not finite, so that every checkpoint is a good
    one, and ``StorageError``, with the bytes that are needed, where the disk has no room.
    """
    check_finite(state)
    target = folder / name(state.step)
    content: dict[str, Any] = {
        "step": state.step,
        "ledger": state.ledger.to_json(),
        "scaler": state.scaler.state_dict() if state.scaler is not None else None,
        "overflows": state.overflows,
        "extra": extra,
    }
    if wire is not None and is_sharded(state.model):
        sharded.save(target, state, content, {} if rows is None else {ROWS: rows}, wire, MANIFEST)
        return target
    trained = {
        key: value.detach().contiguous()
        for key, value in state.model.named_parameters()
        if value.requires_grad
    }
    tensors, content["optimizer"] = _flat(state.optimizer)
    size = sum(value.nbytes for part in (trained, tensors) for value in part.values())
    with whole_folder(target, size) as partial:
        save_file(trained, partial / "model.safetensors")
        save_file(tensors, partial / "optimizer.safetensors")
        if rows is not None:
            save_file(rows, partial / ROWS)
        (partial / "state.json").write_text(json.dumps(content), encoding="utf-8")
        manifest = {
            path.name: {"bytes": path.stat().st_size, "sha256": hash_file(path)}
            for path in sorted(partial.iterdir())
        }
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    return target


def verify(path: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        for file, facts in manifest.items():
            if (path / file).stat().st_size != facts["bytes"]:
                return f"{file} has {(path / file).stat().st_size} bytes, not {facts['bytes']}"
            if hash_file(path / file) != facts["sha256"]:
                return f"{file} does not have the hash of its manifest"
        wanted = sharded.needed(manifest) or {"model.safetensors", "optimizer.safetensors"}
        missing = {*wanted, "state.json"} - set(manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as failure:
        return f"its manifest cannot be read ({type(failure).__name__})"
    return f"{', '.join(sorted(missing))} is not in its manifest" if missing else None


def steps(folder: Path) -> list[tuple[int, Path]]:
    """Return the checkpoints of a folder by step, the newest first, unverified."""
    if not folder.is_dir():
        return []
    found = [(int(m.group(1)), p) for p in folder.iterdir() if (m := _NAME.fullmatch(p.name))]
    return sorted(found, reverse=True)


def latest(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the newest checkpoint that verifies, and what was wrong with newer ones."""
    complaints: list[str] = []
    for _, path in steps(folder):
        fault = verify(path)
        if fault is None:
            return path, complaints
        complaints.append(f"{path.name} is not used: {fault}")
    return None, complaints


def set_aside_after(path: Path) -> list[Path]:
    """Rename the checkpoints of later steps than this one, so that none is gone on from."""
    step = int(path.name.rpartition("-")[2])
    aside = []
    with storage_errors(path.parent, "renamed in"):
        for later, found in reversed(steps(path.parent)):
            if later > step:
                new = found.with_name(f"{ASIDE}{found.name}")
                shutil.rmtree(new, ignore_errors=True)
                aside.append(found.rename(new))
        sync_folder(path.parent)
    return aside


def restore(path: Path, state: State, wire: Wire | None = None) -> dict[str, Any]:
    """Put a verified checkpoint into ``state`` and return the caller's ``extra``."""
    restore_weights(path, state.model, wire)
    if wire is not None and is_sharded(state.model):
        return sharded.restore(path, state, wire.rank, wire.count)
    content = json.loads((path / "state.json").read_text(encoding="utf-8"))
    _unflat(state.optimizer, load_file(path / "optimizer.safetensors"), content["optimizer"])
    state.step = int(content["step"])
    state.ledger = Ledger.from_json(content["ledger"])
    state.overflows = int(content.get("overflows", 0))
    if state.scaler is not None and content.get("scaler"):
        state.scaler.load_state_dict(content["scaler"])
    extra: dict[str, Any] = content["extra"]
    return extra


def row_ledger(path: Path) -> dict[str, torch.Tensor] | None:
    """Return the ledger of rows of a verified checkpoint; None if it was saved without one."""
    return load_file(path / ROWS) if (path / ROWS).is_file() else None


def restore_weights(path: Path, model: Any, wire: Wire | None = None) -> None:
    """Put the weights of a checkpoint, and nothing else of it, into a model, once verified."""
    fault = verify(path)
    if fault is not None:
        raise CheckpointError(f"The checkpoint {path} is broken: {fault}.")
    if wire is not None and is_sharded(model):
        sharded.restore_weights(path, model, wire.rank, wire.count)
        return
    trained = load_file(path / "model.safetensors")
    own = {key: value for key, value in model.named_parameters() if value.requires_grad}
    if set(own) != set(trained):
        odd = sorted(set(own) ^ set(trained))[:3]
        raise CheckpointError(
            f"The checkpoint {path} trains other parameters than this run ({', '.join(odd)}, …).",
            expected="the same model and the same LoRA and freezing settings",
        )
    with torch.no_grad():
        for key, value in own.items():
            value.copy_(trained[key])


def prune(
    folder: Path, keep: int, best: int | None = None, besides: Collection[int] = ()
) -> list[Path]:
    """Delete the oldest checkpoints beyond ``keep`` (at least two) and half-written ones.

    That of the step ``best`` stays and is one of those kept; the steps ``besides`` stay, however
    old. Nothing is deleted unless the newest verifies; those that do not verify count for nothing.
    """
    newest, _ = latest(folder)
    if newest is None:
        return []
    found = [(step, path) for step, path in steps(folder) if step != best]
    keep -= len(found) < len(steps(folder))
    old = found[max(keep, KEPT_AT_LEAST) :]
    gone = [path for step, path in old if path != newest and step not in besides]
    gone += list(folder.glob(".checkpoint-step-*"))
    for path in gone:
        shutil.rmtree(path, ignore_errors=True)
    return gone


def _flat(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Split an optimiser's state into tensors and plain numbers; no pickle."""
    tensors, numbers = {}, {}
    for number, values in optimizer.state_dict()["state"].items():
        for key, value in values.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{number}.{key}"] = value.detach().contiguous()
            elif isinstance(value, dict):
                # The eight-bit optimiser's; its tables are shared, which safetensors refuses.
                inner = {f"{number}.{key}/{name_}": t.clone() for name_, t in value.items()}
                tensors.update(inner)
            else:
                numbers[f"{number}.{key}"] = value
    return tensors, numbers


def _unflat(
    optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], numbers: dict[str, Any]
) -> None:
    whole = optimizer.state_dict()
    state: dict[int, dict[str, Any]] = {}
    for name_, value in {**tensors, **numbers}.items():
        number, _, key = name_.partition(".")
        outer, _, inner = key.partition("/")
        own = state.setdefault(int(number), {})
        if inner:
            own.setdefault(outer, {})[inner] = value
        else:
            own[outer] = value
    optimizer.load_state_dict({"state": state, "param_groups": whole["param_groups"]})
