"""One run's folder: its layout, its lock, and when it may be written into again."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tunesmith import __version__
from tunesmith.errors import CheckpointError, Interrupted, TunesmithError, UsageError
from tunesmith.storage import (
    LOCK,
    TEMPORARY,
    JsonlLog,
    acquire_lock,
    hash_file,
    hash_json,
    hash_tree,
    is_locked,
    settle_folders,
    storage_errors,
    sync_folder,
    write_bytes,
    write_json,
    write_text,
)

__all__ = [
    "JsonlLog",
    "RunDir",
    "hash_file",
    "hash_json",
    "hash_tree",
    "parse_config",
    "storage_errors",
    "sync_folder",
    "write_bytes",
    "write_json",
    "write_text",
]

CONFIG_HEADER = "# tunesmith: the resolved settings of this run\n"
CONTENTS = (
    "config.yaml",
    "plan.json",
    "manifest.json",
    "metrics.jsonl",
    "samples.jsonl",
    "row_losses.safetensors",
    "rows.json",
    "checkpoints",
    "decisions.json",
    "best_model",
    "final_model",
    "eval",
    "comparison.json",
    "report.html",
    "tensorboard",
    "trunk.cache",
    "new_tokens.json",
    "stacks",
    "ended.json",
)
"""All that a run writes into its folder, and all that ``overwrite`` removes from it."""
PROBE = ".probe"
"""Folder of what a run writes only to time it."""


class RunDir:
    """The folder of one run; ``RunDir(path)`` reads one, ``create`` makes or reopens one.

    ``create`` holds the folder's lock until ``close`` or the end of the process.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.plan = self.path / "plan.json"
        self.manifest = self.path / "manifest.json"
        self.metrics = self.path / "metrics.jsonl"
        self.samples = self.path / "samples.jsonl"
        self.row_losses = self.path / "row_losses.safetensors"
        self.rows = self.path / "rows.json"
        self.checkpoints = self.path / "checkpoints"
        self.decisions = self.path / "decisions.json"
        self.best_model = self.path / "best_model"
        self.final_model = self.path / "final_model"
        self.eval = self.path / "eval"
        self.report = self.path / "report.html"
        self.tensorboard = self.path / "tensorboard"
        self.trunk = self.path / "trunk.cache"
        self.new_tokens = self.path / "new_tokens.json"
        self.ended = self.path / "ended.json"
        """How a run ended that did not finish; a killed one leaves no word."""
        self.existed = False
        """Whether ``create`` found the folder there (to resume or to overwrite)."""
        self._lock: int | None = None

    @classmethod
    def create(
        cls, parent: str | Path, name: str, *, resume: bool = False, overwrite: bool = False
    ) -> RunDir:
        """Make ``parent/name``, or with an existing one resume, overwrite or append ``-2``, ``-3``.

        Raises ``UsageError`` for a name that is no folder name, for ``resume`` with ``overwrite``,
        and for ``overwrite`` of a folder that no run has made; ``CheckpointError`` when another
        process is at work in the folder.
        """
        if not name or name in (".", "..") or any(part in name for part in ("/", "\\", "\0")):
            raise UsageError(
                f"{name!r} is not a name for a run.", expected="a name without slashes"
            )
        if resume and overwrite:
            raise UsageError(
                "--resume and --overwrite were both given.",
                expected="one of them: continue the run, or start it over",
            )
        parent = Path(parent)
        wanted = parent / name
        if resume and not wanted.is_dir():
            near = difflib.get_close_matches(
                name, [p.parent.name for p in parent.glob("*/config.yaml")]
            )
            raise CheckpointError(
                f"There is no run {str(wanted)!r} to resume.",
                expected=f"one such as {near[0]!r}" if near else "the --run-name of a run",
                hint="the same command without --resume starts it",
            )
        with storage_errors(wanted, "made"):
            parent.mkdir(parents=True, exist_ok=True)
            number = 1
            while True:
                run = cls(wanted if number == 1 else parent / f"{name}-{number}")
                try:
                    run.path.mkdir()
                except FileExistsError:
                    if resume or overwrite:
                        run.existed = True
                        break
                    number += 1
                else:
                    break
        run._acquire()
        if overwrite and run.existed:
            run._sweep()  # while the config is there, which says that the folder is a run's
            run._clear()
        run._sweep()
        with storage_errors(run.ended, "removed"):
            run.ended.unlink(missing_ok=True)
        for folder in (run.path, run.checkpoints):
            settle_folders(folder)
        return run

    def _acquire(self) -> None:
        path = self.path / LOCK
        with storage_errors(path):
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        if not acquire_lock(handle):
            holder = os.read(handle, 32).decode(errors="replace").strip()
            os.close(handle)
            raise CheckpointError(
                f"Another process (id {holder or 'unknown'}) is at work in {str(self.path)!r}.",
                hint="wait for it to end, or give this run another --run-name",
            )
        with storage_errors(path):
            os.ftruncate(handle, 0)
            os.write(handle, f"{os.getpid()}\n".encode())
        self._lock = handle

    def _clear(self) -> None:
        """Remove what an earlier run has written here; whatever else lies here stays."""
        others = [
            entry
            for entry in self.path.iterdir()
            if entry.name != LOCK and not entry.name.startswith(TEMPORARY)
        ]
        if others and not self._is_ours():
            self.close()
            raise UsageError(
                f"{str(self.path)!r} holds files, but no run of tunesmith made it.",
                expected="a run folder, with manifest.json or config.yaml written by a run",
                hint="choose another --output-dir or --run-name",
            )
        with storage_errors(self.path, "cleared"):
            # The manifest vouches for the rest, so it is the last to go.
            for name in sorted(CONTENTS, key=("manifest.json", "config.yaml").__contains__):
                entry = self.path / name
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink(missing_ok=True)
            for entry in self.path.glob(".*_model.*"):
                shutil.rmtree(entry)
            sync_folder(self.path)

    def _sweep(self) -> None:
        """Remove what a kill has left in this folder: half-written files, and a probe's."""
        probe = self.path / PROBE
        with storage_errors(self.path, "cleared"):
            if probe.is_dir() and not probe.is_symlink() and self._is_ours():
                shutil.rmtree(probe)
            found = [*self.path.glob(f"{TEMPORARY}*")]
            if self._is_ours():
                found += self.eval.rglob(f"{TEMPORARY}*")
            for entry in found:
                entry.unlink(missing_ok=True)

    def _is_ours(self) -> bool:
        with contextlib.suppress(OSError, ValueError):
            if self.config.read_text(encoding="utf-8").startswith(CONFIG_HEADER):
                return True
        with contextlib.suppress(OSError, ValueError):
            manifest = json.loads(self.manifest.read_text(encoding="utf-8"))
            return isinstance(manifest, dict) and "tunesmith" in manifest
        return False

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write the resolved settings as YAML."""
        import yaml

        # The one in C, where it is there, writes the same in a fifth of the time.
        dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
        text = yaml.dump(dict(config), Dumper=dumper, sort_keys=False, allow_unicode=True)
        write_text(self.config, CONFIG_HEADER + text)

    def read_config(self) -> dict[str, Any]:
        """Return the saved settings; ``CheckpointError`` if there are none that can be read."""
        import yaml

        try:
            config = parse_config(self.config.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            config = None
        return self._mapping(config, self.config)

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest with this version of tunesmith at its head."""
        write_json(self.manifest, {"tunesmith": __version__, **manifest})

    def read_manifest(self) -> dict[str, Any]:
        """Return the manifest; ``CheckpointError`` if there is none that can be read."""
        try:
            manifest = json.loads(self.manifest.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            manifest = None
        return self._mapping(manifest, self.manifest)

    def _mapping(self, content: object, file: Path) -> dict[str, Any]:
        if isinstance(content, dict):
            return content
        raise CheckpointError(
            f"{str(self.path)!r} has no readable {file.name}.", expected="the folder of a run"
        )

    def close(self) -> None:
        """Give the folder's lock back."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Before the config stands there, nothing says that the folder is a run's.
        if value is not None and self._lock is not None and self._is_ours():
            self._tell_end(value)
        self.close()

    def _tell_end(self, failure: BaseException) -> None:
        stopped = isinstance(failure, Interrupted | KeyboardInterrupt)
        said = failure.found if isinstance(failure, TunesmithError) else type(failure).__name__
        # The failure itself is what has to be seen, not that of a note about it.
        with contextlib.suppress(TunesmithError, OSError):
            write_json(self.ended, {"how": "stopped" if stopped else "failed", "said": said})

    def holder(self) -> int | None:
        """Return the id of the process that is at work in the folder, without disturbing it."""
        path = self.path / LOCK
        try:
            pid = int(path.read_text(encoding="ascii").strip())
            place = path.stat()
        except (OSError, ValueError):
            return None
        if pid <= 1 or not is_locked(place, pid):
            return None
        try:
            os.kill(pid, 0)
        except PermissionError:
            return pid
        except OSError:
            return None
        return pid


def parse_config(text: str) -> Any:
    """Return what a saved config says; ``yaml.YAMLError`` where it is no YAML."""
    import yaml

    # The parser in C, where it is there, does the same in a fifth of the time.
    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
