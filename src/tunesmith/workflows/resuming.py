"""Which checkpoint of a run to go on from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import CheckpointError
from tunesmith.rundir import RunDir
from tunesmith.workflows import conditions, console
from tunesmith.workflows.several import Team

if TYPE_CHECKING:
    from tunesmith.train.batches import Plan


def going_on(folder: Path) -> dict[str, Any]:
    """Return the settings that begin a run, or go on with the one that was stopped in a folder.

    The folder has to be the caller's own, so that a run in it is this very one.
    """
    from tunesmith.train import checkpoint

    if checkpoint.latest(folder / "checkpoints")[0] is not None:
        return {"resume": "auto"}
    return {"overwrite": True} if folder.exists() else {}


def checkpoint_to_resume(run: RunDir, wanted: str) -> Path:
    """Return the checkpoint of this name, or for ``auto`` the newest that verifies."""
    from tunesmith.train import checkpoint

    if wanted != "auto":
        path = run.checkpoints / Path(wanted).name
        if not path.is_dir():
            names = ", ".join(p.name for _, p in checkpoint.steps(run.checkpoints))
            raise CheckpointError(
                f"There is no checkpoint {wanted!r} in {run.path}.",
                expected=names or "a run with checkpoints",
            )
        return path
    found, complaints = checkpoint.latest(run.checkpoints)
    for complaint in complaints:
        console.warn(complaint)
    if found is None:
        raise CheckpointError(
            f"{run.path} holds no valid checkpoint to resume from.",
            hint="the same command with --overwrite instead of --resume",
        )
    return found


def check_resume(path: Path, plan: Plan, team: Team, now: Mapping[str, Any]) -> list[str]:
    """Refuse a checkpoint that this plan, or these processes, cannot go on from exactly.

    ``now`` are the conditions of this run. Returns what there is to say about its differences.

    Copies of the model may be more or fewer than before, if a step still takes the same rows:
    order, batches and losses stay, but dropout and the order of sums depend on who does what.
    """
    from tunesmith.train.ledger import Ledger

    try:
        content = json.loads((path / "state.json").read_text(encoding="utf-8"))
        step, ledger, extra = content["step"], Ledger.from_json(content["ledger"]), content["extra"]
    except (OSError, ValueError, KeyError, TypeError) as failure:
        raise CheckpointError(
            f"{path.name} cannot be read ({type(failure).__name__}).", hint="--resume"
        ) from None
    was = int(extra.get("processes", 1))
    in_shards = not (path / "model.safetensors").exists()
    if in_shards != (team.way == "shards") or (in_shards and was != team.count):
        raise CheckpointError(
            f"{path.name} is of {_described(was, in_shards)}, "
            f"this run of {_described(team.count, team.way == 'shards')}.",
            hint="launch it as before",
        )
    if step > plan.total_steps:
        raise CheckpointError(
            f"{path.name} is behind {step} steps, and these settings plan {plan.total_steps}.",
            expected=f"at least {step} steps",
            hint="a higher --max-steps or --num-epochs, or --resume with an earlier checkpoint",
        )
    notes = conditions.compare(path.name, extra.get("conditions"), now)
    if ledger != Ledger.planned(plan, step, ledger.skipped):
        raise CheckpointError(
            f"{path.name} was made with other rows in a step than these settings and "
            f"{team.count} process{'es' if team.several else ''} plan (it had {was}).",
            expected="the same data and seed, and as many rows a step: micro-batch × accumulation "
            "× processes",
            hint="another --gradient-accumulation-steps",
        )
    if was != team.count:
        notes.append(
            f"{path.name} was made by {was} processes, this run has {team.count}. Rows, order and "
            "steps stay, but not the bits: dropout and the order of sums depend on the processes"
        )
    for note in notes:
        console.warn(note)
    return [f"{note[0].upper()}{note[1:]}." for note in notes]


def give_up_later(path: Path) -> None:
    """Set aside the checkpoints of later steps than the one that a run goes on from.

    They belong to a course that is given up: neither a further resume nor a return after a number
    that is not finite is to take them up.
    """
    from tunesmith.train import checkpoint

    aside = checkpoint.set_aside_after(path)
    if aside:
        names = ", ".join(one.name for one in aside)
        console.say(f"The run goes on from {path.name}; later ones are set aside as {names}.")


def _described(count: int, in_shards: bool) -> str:
    if in_shards:
        return f"{count} processes with a shard each"
    return "one process" if count == 1 else f"{count} processes with a copy each"
