"""Sampling that is killed at random moments, gone on with to the end, and compared byte for byte.

    python tests/kill_sampling.py --kills 1000

As in ``kill_anywhere``, one process imports everything once and forks every life off. A run samples
in two rounds, the second with the answer told; a life of it ends by SIGKILL after a random time or
at a random call that touches the file system, and the next one is the same command again. At the
end the log must hold the records of a run that was never killed, each once, and the selected rows
must be the same bytes.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from kill_anywhere import LIVES, Tally, life, parallel, sooner

SETTINGS: dict[str, dict[str, Any]] = {
    "more": {"round_temperature": 1.0, "enough": 2},
    "hinted": {"hint_last": True, "enough": 1, "keep_gold": True},
}
"""Two ways to spend the second round."""
COMMON: dict[str, Any] = {
    "task": "units",
    "limit": 8,
    "question_seed": 1,
    "samples": 2,
    "rounds": 2,
    "temperature": 0.8,
    "max_new_tokens": 40,
    "batch_size": 4,
    "log_level": "error",
}
FINISHED = "after the rows"


def run(name: str, settings: dict[str, Any]) -> int:
    """Sample or go on sampling; the same command that a person would give."""
    import tunesmith
    from tunesmith.errors import TunesmithError

    try:
        tunesmith.sample(**COMMON, **settings, output=f"{name}.jsonl")
    except TunesmithError as failure:
        print(failure, file=sys.stderr)
        return failure.exit_code
    return 0


def files(folder: Path, name: str) -> tuple[Path, Path]:
    """Return the selected rows and the log of a run."""
    return folder / f"{name}.jsonl", folder / f"{name}.jsonl.attempts.jsonl"


def outcome(folder: Path, name: str) -> tuple[bytes, list[bytes], bytes]:
    """Return what must not depend on kills: the header, the records in order, the rows."""
    rows, log = files(folder, name)
    header, *records = log.read_bytes().splitlines(keepends=True)
    # The run's name stands in the header, and the checksum in front of it follows from it.
    return header.split(b'"r":')[1].replace(name.encode(), b""), sorted(records), rows.read_bytes()


def moment(folder: Path, name: str) -> str:
    """Say from the files where a run stood when it was killed."""
    rows, log = files(folder, name)
    if rows.is_file():
        return FINISHED
    stored = log.read_bytes().count(b"\n") - 1 if log.is_file() else -1
    if stored <= 0:
        return "before an attempt"
    # The first round always has that many.
    return "in round 1" if stored < COMMON["limit"] * COMMON["samples"] else "in round 2 or later"


def work(folder: Path, wanted: int, seed: int, number: int, seconds: float) -> Tally:
    """Kill runs until so many kills are done or the time is over."""
    tally, rng = Tally(), random.Random(seed)
    deadline = time.monotonic() + seconds
    references: dict[str, tuple[Any, float, int]] = {}
    while tally.kills < wanted and time.monotonic() < deadline:
        kind = list(SETTINGS)[tally.runs % len(SETTINGS)]
        if kind not in references:
            began, name = time.monotonic(), f"{kind}-{seed}-straight"
            if life(folder, name, SETTINGS[kind], None, run) != 0:
                tally.faults.append(f"{name}: {(folder / f'{name}.log').read_text()}")
                return tally
            touches = int((folder / f"{name}.touches").read_text())
            references[kind] = outcome(folder, name), time.monotonic() - began, touches
        expected, whole, touches = references[kind]
        name = f"{kind}-{seed}-{tally.runs}"
        tally.runs += 1
        for _ in range(LIVES):
            if tally.kills == wanted:
                break
            code = life(folder, name, SETTINGS[kind], sooner(rng, whole, touches, number), run)
            if code not in (0, -number):
                tally.faults.append(f"{name}: a life ended with {code}: {said(folder, name)}")
                return tally
            if code == 0:
                break
            tally.kills += 1
            stood = moment(folder, name)
            tally.moments[stood] += 1
            if stood == FINISHED:
                break
        code = life(folder, name, SETTINGS[kind], None, run)
        if code != 0:
            tally.faults.append(f"{name}: the last life ended with {code}: {said(folder, name)}")
            return tally
        names = ("header", "records", "rows")
        pairs = zip(names, outcome(folder, name), expected, strict=True)
        differing = [part for part, found, wanted_ in pairs if found != wanted_]
        differing += [f"a left {path.name}" for path in folder.glob(f".{name}*")]
        if differing:
            tally.faults.append(f"{name}: {', '.join(differing)} differ from the unkilled run")
            return tally
        for path in files(folder, name):
            path.unlink()
    return tally


def said(folder: Path, name: str) -> str:
    """Return what the last life wrote to stderr."""
    return (folder / f"{name}.log").read_text()


def main() -> int:
    """Kill, compare, and print what was done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after these")
    asked = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as home:
        import torch

        torch.set_num_threads(1)
        folder, before = Path(home), Path.cwd()
        # One run in this very process, so that every import and cache is there to be inherited.
        os.chdir(folder)
        if run("warm", SETTINGS["more"]):
            raise SystemExit("a run without kills failed")
        os.chdir(before)
        began = time.monotonic()
        tallies = parallel(
            folder, asked.kills, asked.jobs, asked.seed, signal.SIGKILL, asked.seconds, work
        )
    took = time.monotonic() - began
    kills, runs = sum(t.kills for t in tallies), sum(t.runs for t in tallies)
    moments = sum((t.moments for t in tallies), Counter[str]())
    for fault in (fault for tally in tallies for fault in tally.faults):
        print(fault, file=sys.stderr)
    print(
        f"SIGKILL: {kills} of {asked.kills} in {runs} runs of sampling, {60 * kills / took:.0f} a "
        f"minute; moments: {dict(moments.most_common())}"
    )
    return 1 if any(t.faults for t in tallies) else 0


if __name__ == "__main__":
    raise SystemExit(main())
