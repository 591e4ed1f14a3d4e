"""Whether a run keeps the output of its frozen layers: decided once, said, and replayed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.schema import FineTuningConfig
from tunesmith.errors import CheckpointError, StorageError, UsageError
from tunesmith.storage import storage_errors
from tunesmith.workflows import console

if TYPE_CHECKING:
    from tunesmith.train.batches import Plan
    from tunesmith.train.loop import Settings
    from tunesmith.train.trunk_cache import TrunkCache
    from tunesmith.types import Encoded

MOST_OF_FREE = 0.5
"""Share of the free disk that the file may take: checkpoints and models need room as well."""


def against_settings(config: FineTuningConfig) -> str | None:
    """Return what in the settings alone stands against keeping the trunk's output."""
    if not config.freeze_ratio:
        return "no layers are frozen (--freeze-ratio)"
    if config.neftune_alpha:
        return "--neftune-alpha changes what goes into the frozen layers at every step"
    if config.shared_prefix == "grouped":
        return "--shared-prefix grouped computes rows of one prompt together"
    return None


def refusal(reason: str) -> UsageError:
    """Return the answer to ``--trunk-cache on`` where that cannot work."""
    return UsageError(
        f"--trunk-cache on cannot be done: {reason}.",
        hint="--trunk-cache auto, which does without the cache then",
    )


@contextmanager
def kept_trunk(
    config: FineTuningConfig,
    path: Path,
    model: Any,
    rows: Sequence[Encoded],
    plan: Plan,
    settings: Settings,
    accelerator: Any,
    decided: bool | None,
) -> Iterator[TrunkCache | None]:
    """Yield the store of the trunk's output, or None; delete its file once all steps are done.

    ``decided`` is what this run decided before it was stopped: auto does the same again, whatever
    the disk looks like now.
    """
    cache = _open(config, path, model, rows, plan, settings, accelerator, decided)
    if cache is None:
        with storage_errors(path, "removed"):
            path.unlink(missing_ok=True)  # of a part of the run that did keep it
        yield None
        return
    try:
        yield cache
    except BaseException:
        cache.close()
        raise
    cache.remove()


def _open(
    config: FineTuningConfig,
    path: Path,
    model: Any,
    rows: Sequence[Encoded],
    plan: Plan,
    settings: Settings,
    accelerator: Any,
    decided: bool | None,
) -> TrunkCache | None:
    from tunesmith.train.losses import lengths
    from tunesmith.train.trunk_cache import NoTrunkError, TrunkCache, look, size_in_bytes

    wish = config.trunk_cache
    wanted = decided is not False if wish == "auto" else wish == "on"
    if decided is not None and wanted is not decided:
        console.warn(
            f"The run began with its trunk cache {_named(decided)} and goes on with it "
            f"{_named(wanted)}: the results are those of neither, by rounding, and by dropout in "
            "the frozen layers if there is any"
        )
    if not wanted or (wish == "auto" and not config.freeze_ratio):
        return None
    sure = bool(decided) or wish == "on"
    try:
        _check(config, plan, accelerator)
        found = look(model, rows, plan, settings, accelerator)
        room = _room(path, size_in_bytes(found, lengths(rows)), sure=sure)
        cache = TrunkCache(path, model, rows, plan, settings, accelerator, found)
    except NoTrunkError as obstacle:
        if wish == "on":
            raise refusal(str(obstacle)) from obstacle
        if decided:
            raise CheckpointError(
                f"This run began with its trunk cache on, and that cannot be now: {obstacle}.",
                hint="--trunk-cache off, which goes on without it",
            ) from obstacle
        console.say(f"Trunk cache: off, because {obstacle}.")
        return None
    except StorageError as failure:
        if sure:
            raise
        console.say(f"Trunk cache: off. {failure.found}")
        return None
    console.say(
        f"Trunk cache: on. From the second epoch on, the output of the {len(found.trunk.layers)} "
        f"frozen layers, without dropout, is read from {path} ({room})."
    )
    return cache


def _check(config: FineTuningConfig, plan: Plan, accelerator: Any) -> None:
    from tunesmith.train.trunk_cache import NoTrunkError

    against = against_settings(config)
    if against is not None:
        raise NoTrunkError(against)
    if plan.total_steps <= plan.steps_an_epoch:
        raise NoTrunkError("no row is met twice in a run of one epoch")
    if accelerator.num_processes > 1:
        raise NoTrunkError("several processes train, and each meets other rows in each epoch")


def _room(path: Path, needed: int, *, sure: bool) -> str:
    """Say what the file takes; refuse it above a share of the free disk unless it is ``sure``."""
    from tunesmith.train.trunk_cache import NoTrunkError

    with storage_errors(path, "looked at"):
        held = path.stat().st_size if path.exists() else 0
        free = shutil.disk_usage(path.parent).free + held
    if needed > MOST_OF_FREE * free and not sure:
        raise NoTrunkError(
            f"it would take {needed / 1e6:,.1f} MB, more than half of the {free / 1e6:,.1f} MB "
            f"that are free in {path.parent}"
        )
    return f"{needed / 1e6:,.1f} MB of {free / 1e6:,.0f} MB that are free"


def _named(kept: bool) -> str:
    return "on" if kept else "off"
