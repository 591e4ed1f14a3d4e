"""Which checkpoint of a run to go on from."""

from __future__ import annotations

from pathlib import Path

from tunesmith.errors import CheckpointError
from tunesmith.rundir import RunDir
from tunesmith.workflows import console


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
