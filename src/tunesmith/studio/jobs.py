"""Training runs that the pages start: children with a log each, which outlive the server."""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tunesmith.errors import UsageError
from tunesmith.rundir import RunDir
from tunesmith.storage import storage_errors, write_json

FOLDER = ".studio"
"""Below the parent of the runs: logs of what was started here."""
TAIL = 64 << 10
"""Bytes of a log that are shown."""
MOST = 200
"""Jobs that are remembered."""
_KEPT = ("id", "words", "pid", "began", "folder", "code", "ended")
_CODES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")


@dataclass(slots=True)
class Job:
    """One child."""

    id: str
    words: list[str]
    """Behind ``python -m``."""
    pid: int
    began: float
    folder: str = ""
    """Name of its run below the parent, once there is one."""
    code: int | None = None
    ended: float | None = None
    child: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def command(self) -> str:
        """What a person would type."""
        return shlex.join(self.words)


class Jobs:
    """All children; what is known of each lies in a file, for the next server."""

    def __init__(self, parent: Path) -> None:
        self.parent = parent
        self._place = parent / FOLDER
        self._lock = threading.Lock()
        self._jobs: dict[str, Job] = {}
        for file in sorted(self._place.glob("*.json"), key=lambda one: one.stat().st_mtime):
            job = _read(file)
            if job is not None:
                self._jobs[job.id] = job

    def start(self, arguments: Sequence[str]) -> Job:
        """Start ``tunesmith train`` with these words; ``UsageError`` where that cannot be."""
        words = ["tunesmith", "train", *arguments]
        job_id = secrets.token_hex(8)
        with storage_errors(self._place, "made"):
            self._place.mkdir(parents=True, exist_ok=True)
            log = self.log_file(job_id).open("wb")
        try:
            with log:
                child = subprocess.Popen(
                    [sys.executable, "-m", *words],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "100"},
                    start_new_session=True,  # Ctrl-C ends the pages, not the run
                )
        except (OSError, ValueError) as failure:
            self.log_file(job_id).unlink(missing_ok=True)
            raise UsageError(
                f"The run cannot be started: {failure}.", expected="settings a command line takes"
            ) from None
        job = Job(job_id, words, child.pid, time.time(), child=child)
        with self._lock:
            self._jobs[job.id] = job
            while len(self._jobs) > MOST:
                del self._jobs[next(iter(self._jobs))]
        self._write(job)
        return job

    def all(self) -> list[Job]:
        """Return the jobs, the newest first."""
        with self._lock:
            jobs = list(self._jobs.values())[::-1]
        for job in jobs:
            self._look(job)
        return jobs

    def get(self, job_id: str) -> Job | None:
        """Return a job by its id."""
        with self._lock:
            job = self._jobs.get(job_id)
        if job is not None:
            self._look(job)
        return job

    def of(self, name: str) -> Job | None:
        """Return the job that works, or worked last, on a run."""
        return next((job for job in self.all() if job.folder == name), None)

    def is_running(self, job: Job) -> bool:
        """Say whether a child has not ended."""
        self._look(job)
        return job.code is None

    def settle(self, runs: dict[str, Path]) -> None:
        """Find the folders of jobs that have none yet: the lock names the process."""
        waiting = {job.pid: job for job in self.all() if not job.folder}
        if not waiting:
            return
        for name, path in runs.items():
            lock = path / ".lock"
            try:
                pid, when = int(lock.read_text(encoding="ascii")), lock.stat().st_mtime
            except (OSError, ValueError):
                continue
            job = waiting.get(pid)
            if job is not None and when >= job.began - 1:
                job.folder = name
                self._write(job)

    def stop_job(self, job: Job) -> bool:
        """Ask a child to stop at its next safe point; False where it has ended."""
        if not self.is_running(job):
            return False
        return _terminate(job.pid)

    def stop_run(self, path: Path) -> bool:
        """Ask the process that holds a run's folder to stop at its next safe point."""
        pid = RunDir(path).holder()
        return pid is not None and _terminate(pid)

    def log_file(self, job_id: str) -> Path:
        """Return where a job's log lies."""
        return self._place / f"{job_id}.log"

    def log(self, job: Job) -> str:
        """Return the end of a job's log as plain text."""
        try:
            with self.log_file(job.id).open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - TAIL))
                raw = file.read(TAIL)
        except OSError:
            return ""
        text = _CODES.sub("", raw.decode("utf-8", "replace"))
        lines = text.replace("\r\n", "\n").split("\n")
        shown = "\n".join(line.rpartition("\r")[2] for line in lines)
        return shown if size <= TAIL else "…" + shown.partition("\n")[2]

    def _look(self, job: Job) -> None:
        """Take note of a child that has ended."""
        if job.code is not None:
            return
        if job.child is not None:
            job.code = job.child.poll()
        elif not _is_ours(job):
            job.code = -1  # it ended while no server looked
        if job.code is not None:
            job.ended = time.time()
            self._write(job)

    def _write(self, job: Job) -> None:
        kept = {name: getattr(job, name) for name in _KEPT}
        write_json(self._place / f"{job.id}.json", kept)


def _read(file: Path) -> Job | None:
    try:
        job = Job(**json.loads(file.read_text(encoding="utf-8")))
        whole = isinstance(job.pid, int) and all(isinstance(word, str) for word in job.words)
    except (OSError, ValueError, TypeError):
        return None
    return job if whole and job.id == file.stem else None


def _is_ours(job: Job) -> bool:
    """Say whether a process of an earlier server still runs, and is no other one of that id."""
    try:
        os.kill(job.pid, 0)
    except OSError:
        return False
    try:
        said = Path(f"/proc/{job.pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return [os.fsencode(word) for word in job.words] == said[-len(job.words) - 1 : -1]


def _terminate(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGTERM)
    except OSError:
        return False
    return True
