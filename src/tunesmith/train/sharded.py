"""A model in shards (FSDP2): making them, their checkpoints, and the whole model again.

A checkpoint holds two files of each process, with its own part of weights and optimiser, under one
manifest: the first process makes the folder, all write and flush into it, the first one commits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from tunesmith.errors import CheckpointError
from tunesmith.models.adapters import blocks
from tunesmith.storage import hash_file, storage_errors, sync_file, whole_folder
from tunesmith.train import pulse
from tunesmith.train.ledger import Ledger
from tunesmith.train.loop import State
from tunesmith.train.processes import needing_others
from tunesmith.train.wire import Wire

_PART = re.compile(r"(model|optimizer)-(\d+)-of-(\d+)\.safetensors")


def shard(model: Any, accelerator: Any, *, reshard: bool = True) -> Any:
    """Shard a model in place over all processes, each block by itself, and return it.

    With ``reshard`` the weights of a block are let go after its forward pass and fetched again.
    """
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for block in blocks(model):
        fully_shard(block, mesh=mesh, reshard_after_forward=reshard)
    return fully_shard(model, mesh=mesh)


def gather(model: Any, whole: Any | None) -> None:
    """Put the trained weights of all shards into ``whole``; None where they are not wanted."""
    into = dict(whole.named_parameters()) if whole is not None else {}
    with needing_others("gathering the model"), torch.no_grad():
        for name, value in _trained(model).items():
            full = value.full_tensor()
            if into:
                into[name].copy_(full)


def _trained(model: Any) -> dict[str, Any]:
    """Return the trained parameters as shards, also after a forward pass that left them whole."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def parts(rank: int, count: int) -> tuple[str, str]:
    """Return the names of a process's files in a checkpoint: its weights, its optimiser."""
    ending = f"-{rank}-of-{count}.safetensors"
    return f"model{ending}", f"optimizer{ending}"


def needed(manifest: Mapping[str, Any]) -> set[str]:
    """Return the files that a checkpoint of so many processes must have; empty for a whole one."""
    counts = {int(found.group(3)) for name in manifest if (found := _PART.fullmatch(name))}
    return {name for count in counts for rank in range(count) for name in parts(rank, count)}


def save(
    target: Path,
    state: State,
    content: dict[str, Any],
    besides: Mapping[str, dict[str, torch.Tensor]],
    wire: Wire,
    manifest: str,
) -> None:
    """Commit a checkpoint of all processes; ``content`` goes into its ``state.json``.

    ``besides`` are files that the first process alone writes, by their names.
    """
    if wire.rank:
        partial = Path(wire.tell())
        wire.gather(_write(partial, state, wire))
    else:
        with pulse.alone("saving"), whole_folder(target) as partial:
            wire.tell(str(partial))
            facts: dict[str, Any] = {}
            for found in wire.gather(_write(partial, state, wire)):
                facts |= found
            for name, tensors in besides.items():
                save_file(tensors, partial / name)
                facts[name] = _facts(partial / name)
            (partial / "state.json").write_text(json.dumps(content), encoding="utf-8")
            facts["state.json"] = _facts(partial / "state.json")
            (partial / manifest).write_text(json.dumps(facts, indent=2), encoding="utf-8")
    wire.meet()


def _write(folder: Path, state: State, wire: Wire) -> dict[str, Any]:
    """Write and flush this process's files; return what the manifest says of them."""
    weights = {
        name: local(value).detach().contiguous() for name, value in _trained(state.model).items()
    }
    moments = {
        f"{number}.{key}": local(value).detach().contiguous()
        for number, values in state.optimizer.state_dict()["state"].items()
        for key, value in values.items()
    }
    found = {}
    with pulse.alone("saving"):
        for name, tensors in zip(parts(wire.rank, wire.count), (weights, moments), strict=True):
            with storage_errors(folder / name):
                save_file(tensors, folder / name)
                sync_file(folder / name)
            found[name] = _facts(folder / name)
    return found


def _facts(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": hash_file(path)}


def restore_weights(path: Path, model: Any, rank: int, count: int) -> None:
    """Put this process's shards of a verified checkpoint into the model."""
    saved = load_file(path / parts(rank, count)[0])
    own = {name: local(value) for name, value in _trained(model).items()}
    shapes = {name: tuple(value.shape) for name, value in own.items()}
    if shapes != {name: tuple(value.shape) for name, value in saved.items()}:
        raise CheckpointError(
            f"The checkpoint {path} trains other parameters than this run.",
            expected="the same model and the same LoRA and freezing settings",
        )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(saved[name])


def restore(path: Path, state: State, rank: int, count: int) -> dict[str, Any]:
    """Put all of a checkpoint but its weights into ``state``; return the caller's extra."""
    optimizer = state.optimizer
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    moments: dict[int, dict[str, Any]] = {}
    for name, value in load_file(path / parts(rank, count)[1]).items():
        at, _, key = name.partition(".")
        like = trained[int(at)]
        # A count of steps is the one thing that is no tensor of the parameter's shape.
        moments.setdefault(int(at), {})[key] = _as_shard(value, like) if value.dim() else value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    content = json.loads((path / "state.json").read_text(encoding="utf-8"))
    state.step = int(content["step"])
    state.ledger = Ledger.from_json(content["ledger"])
    extra: dict[str, Any] = content["extra"]
    return extra


def local(value: Any) -> Any:
    """Return the part of a tensor that lies in this process."""
    return value.to_local() if isinstance(value, DTensor) else value


def _as_shard(value: torch.Tensor, like: Any) -> Any:
    if not isinstance(like, DTensor):
        return value
    return DTensor.from_local(
        value.to(like.device),
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )
