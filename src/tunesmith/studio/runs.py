"""The run folders below one parent: which there are, how each one stands, what it came to."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.evaluate.records import ATTEMPTS
from tunesmith.report.curves import in_order, read_record
from tunesmith.rundir import CONFIG_HEADER, CONTENTS, RunDir, parse_config

DEEPEST = 5
"""Folders below the parent that are looked into."""
MOST = 2000
"""Run folders, or sets of answers, that are shown."""
LARGEST_FILE = 4 << 20
"""Bytes of a config or manifest; a larger one is not read."""
LARGEST_METRICS = 256 << 20
MARK = 256
"""Bytes before the place read last that tell whether the file has only grown."""
MOST_ALIASES = 64
_ALIAS = re.compile(r"(?:^|[\s\[,:])\*\w")
_INSIDE = frozenset(CONTENTS) - {"eval"}


@dataclass(frozen=True, slots=True)
class RunFacts:
    """One run in a line."""

    name: str
    """Its path below the parent."""
    path: Path
    state: str
    """running, finished, stopped, failed or killed."""
    said: str = ""
    """How it failed."""
    task: str = ""
    model: str = ""
    steps: int = 0
    planned: int | None = None
    loss: float | None = None
    held_out: float | None = None
    score: str = ""
    seconds: float | None = None
    changed: float = 0.0

    @property
    def is_resumable(self) -> bool:
        """Whether there is a checkpoint and something left to do."""
        return self.state in ("stopped", "failed", "killed") and any(
            (self.path / "checkpoints").glob("checkpoint-step-*")
        )


class Runs:
    """What lies below the parent; files are read again only where they have changed."""

    def __init__(self, parent: Path) -> None:
        self.parent = parent
        self._tails: dict[Path, Tail] = {}
        self._read: dict[Path, tuple[tuple[int, int], Any]] = {}
        self._lock = threading.Lock()

    def names(self) -> dict[str, Path]:
        """Return name → folder of every run; a request's name is looked up here, never opened."""
        return self._walk(lambda files: "config.yaml" in files or "manifest.json" in files)

    def sets(self) -> dict[str, Path]:
        """Return name → folder of every stored set of answers."""
        return self._walk(lambda files: ATTEMPTS in files)

    def _walk(self, wanted: Any) -> dict[str, Path]:
        found: dict[str, Path] = {}
        root = str(self.parent)
        for place, folders, files in os.walk(root):
            depth = place[len(root) :].count(os.sep)
            inside = "config.yaml" in files
            folders[:] = sorted(
                name
                for name in folders
                if depth < DEEPEST and not name.startswith(".") and not (inside and name in _INSIDE)
            )
            if place != root and wanted(files):
                found[Path(place).relative_to(root).as_posix()] = Path(place)
                if len(found) >= MOST:
                    break
        return found

    def all(self) -> list[RunFacts]:
        """Return every run, the one that changed last first."""
        found = [self.facts(name, path) for name, path in self.names().items() if _is_run(path)]
        return sorted(found, key=lambda one: (one.state != "running", -one.changed))

    def one(self, name: str) -> RunFacts | None:
        """Return one run; None where there is none of that name."""
        path = self.names().get(name)
        return None if path is None or not _is_run(path) else self.facts(name, path)

    def records(self, path: Path) -> list[dict[str, Any]]:
        """Return a run's metrics, reading only what is new."""
        with self._lock:
            tail = self._tails.setdefault(path, Tail(path / "metrics.jsonl"))
            tail.read()
            return tail.records

    def facts(self, name: str, path: Path) -> RunFacts:
        """Return what is known of one run."""
        run = RunDir(path)
        config, manifest = self._config(run.config), self._json(run.manifest)
        records = self.records(path)
        train = [one for one in records if one.get("kind") == "train"]
        held = [one for one in records if one.get("kind") == "eval"]
        state, said = self._state(run, manifest)
        return RunFacts(
            name,
            path,
            state,
            said,
            task=_word(config.get("task", manifest.get("task"))),
            model=_word(config.get("model", manifest.get("model"))),
            steps=int(records[-1]["step"]) if records else 0,
            planned=_whole(manifest.get("planned steps", config.get("max_steps"))),
            loss=_number(train[-1].get("loss")) if train else None,
            held_out=_number(held[-1].get("loss")) if held else None,
            score=_score(self._json(run.eval / "comparison.json")),
            seconds=_number(manifest.get("seconds")) or _lasted(run),
            changed=_changed(run),
        )

    def config(self, path: Path) -> dict[str, Any]:
        """Return the settings that a run has stored; empty where they cannot be read."""
        return self._config(path / "config.yaml")

    def _state(self, run: RunDir, manifest: Mapping[str, Any]) -> tuple[str, str]:
        if run.holder() is not None:
            return "running", ""
        ended = self._json(run.ended)
        if ended.get("how") in ("stopped", "failed"):
            return str(ended["how"]), _word(ended.get("said"))
        return ("finished" if manifest.get("finished") is True else "killed"), ""

    def _config(self, file: Path) -> dict[str, Any]:
        return self._cached(file, _read_config)

    def _json(self, file: Path) -> dict[str, Any]:
        return self._cached(file, json.loads)

    def _cached(self, file: Path, parse: Any) -> dict[str, Any]:
        try:
            place = file.stat()
            if place.st_size > LARGEST_FILE:
                return {}
            known = (place.st_mtime_ns, place.st_size)
            if self._read.get(file, (None,))[0] != known:
                content = parse(file.read_text(encoding="utf-8"))
                self._read[file] = (known, content if isinstance(content, dict) else {})
        except (OSError, ValueError, RecursionError):
            return {}
        found: dict[str, Any] = self._read[file][1]
        return found


class Tail:
    """A file of metrics that grows, or is replaced by one that begins in the same way."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._place, self._mark = 0, b""
        self._known = (0, 0)
        self._lines: list[dict[str, Any] | None] = []
        self.records: list[dict[str, Any]] = []
        self.bytes_read = 0

    def read(self) -> None:
        """Take in what is new."""
        try:
            with self._file.open("rb") as file:
                place = os.fstat(file.fileno())
                if (place.st_mtime_ns, place.st_size) == self._known:
                    return
                file.seek(max(0, self._place - len(self._mark)))
                if file.read(len(self._mark)) != self._mark:
                    self._place, self._mark, self._lines = 0, b"", []
                    file.seek(0)
                new = file.read(LARGEST_METRICS)
                self._known = (place.st_mtime_ns, place.st_size)
        except OSError:
            self._place, self._mark, self._lines, self._known = 0, b"", [], (0, 0)
            self.records = []
            return
        self.bytes_read += len(new)
        whole, newline, _ = new.rpartition(b"\n")
        if newline:
            self._place += len(whole) + 1
            self._mark = (self._mark + whole + newline)[-MARK:]
            self._lines += map(read_record, whole.split(b"\n"))
        self.records = in_order(self._lines)


def _is_run(path: Path) -> bool:
    """Say whether a run of tunesmith made a folder, as far as its files say."""
    try:
        with (path / "config.yaml").open(encoding="utf-8") as file:
            if file.read(len(CONFIG_HEADER)) == CONFIG_HEADER:
                return True
    except (OSError, ValueError):
        pass
    return (path / "metrics.jsonl").is_file() and (path / "manifest.json").is_file()


def _read_config(text: str) -> Any:
    import yaml

    if len(_ALIAS.findall(text)) > MOST_ALIASES:
        return {}
    try:
        return parse_config(text)
    except yaml.YAMLError:
        return {}


def _score(comparison: Mapping[str, Any]) -> str:
    """Return the scores before and after, such as «12.0% → 34.0%»."""
    sets = comparison.get("summaries")
    if not isinstance(sets, dict):
        return ""
    found = [_number(one.get("accuracy")) for one in sets.values() if isinstance(one, dict)]
    return " → ".join(f"{100 * share:.1f}%" for share in found if share is not None)


def _word(value: object) -> str:
    return str(value) if isinstance(value, str | int | float) else ""


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _changed(run: RunDir) -> float:
    times = [run.path, run.metrics, run.manifest, run.config, run.ended]
    return max((_time(one) for one in times), default=0.0)


def _lasted(run: RunDir) -> float | None:
    """Return the time from the first word of a run to its last one, as far as files tell."""
    lock = run.path / ".lock"
    began, last = _time(lock), max(_time(run.metrics), _time(run.ended))
    return last - began if 0 < began < last else None


def _time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
